"""tools/predict.py on videos, images and rooms, with tiny networks of random weights."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmdet")
pytest.importorskip("decord")
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope

import dr2net
import dr2net.openmmlab
from tasks.pointcloud.room_files import read_room
from tests.video_clips import write_clip
from tools.predict import load_model, main

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared/data/real"
CONFIGS = {
    "video": "video/demo/dr2net_vit_tiny_motion.py",
    "image": "detection/demo/dr2net_retinanet_small_objects.py",
    "room": "pointcloud/demo/dr2net_point_vit_tiny_rooms.py",
}
# The detector of the demo without tiles, which tests images of at most 128 pixels.
PLAIN = """
_base_ = "{base}"
model = dict(_delete_=True, **_base_.model.detector)
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(128, 128), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs"),
]
test_dataloader = dict(dataset=dict(pipeline=pipeline))
"""


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """By kind, a config, its model and the checkpoint of that."""
    folder = tmp_path_factory.mktemp("networks")
    configs = {kind: ROOT / "configs" / path for kind, path in CONFIGS.items()}
    configs["plain"] = folder / "plain.py"
    configs["plain"].write_text(PLAIN.format(base=configs["image"]))
    made = {}

    def make(kind):
        if kind not in made:
            config = Config.fromfile(configs[kind])
            init_default_scope(config.default_scope)
            torch.manual_seed(0)
            model = MODELS.build(config.model).eval()
            checkpoint = folder / f"{kind}.pth"
            torch.save({"state_dict": model.state_dict()}, checkpoint)
            made[kind] = configs[kind], model, checkpoint
        return made[kind]

    return make


@pytest.fixture
def predict(networks):
    """Run tools/predict.py in this process; return what was wrong with inputs."""

    def run(kind, *arguments):
        config, _, checkpoint = networks(kind)
        return main([str(config), str(checkpoint), *map(str, arguments), "--device", "cpu"])

    return run


def read(file):
    return json.loads(Path(file).read_text(encoding="utf-8"))


def write_image(path, width, height, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_a_video_gets_the_classes_that_a_test_gives_it(networks, predict, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", frames=40)
    assert predict("video", clip, "--out", tmp_path / "out", "--top", 3) == []
    found = read(tmp_path / "out/clip.json")
    config, model, _ = networks("video")
    pipeline = Compose(Config.fromfile(config).test_dataloader.dataset.pipeline)
    given = pipeline({"filename": str(clip), "label": 0, "start_index": 0, "modality": "RGB"})
    with torch.no_grad():
        (sample,) = model.test_step(pseudo_collate([given]))
    best = sample.pred_score.topk(3)
    assert [entry["label"] for entry in found["classes"]] == best.indices.tolist()
    scores = [entry["score"] for entry in found["classes"]]
    assert scores == pytest.approx(best.values.tolist(), abs=1e-6)
    assert found["frames"] == 40
    assert found["seconds"] == pytest.approx(40 / 25)
    assert names_in(tmp_path / "out") == ["clip.json", "clip.png"]


@pytest.mark.parametrize("kind", ["video", "plain", "room"])
def test_of_several_and_wrapped_sets_the_first_says_how_inputs_are_read(
    kind, networks, tmp_path, points
):
    base, _, checkpoint = networks(kind)
    file = tmp_path / {"video": "in.mp4", "plain": "in.png", "room": "in.npy"}[kind]
    if kind == "video":
        write_clip(file, frames=40)
    elif kind == "plain":
        write_image(file, 200, 160)
    else:
        np.save(file, np.column_stack(points).astype(np.float32))
    several = tmp_path / "several.py"
    several.write_text(
        f"_base_ = {str(base)!r}\n"
        "first = dict(type='RepeatDataset', times=2, dataset={{_base_.test_dataloader.dataset}})\n"
        "other = dict(type='BaseDataset', pipeline=[dict(type='Nothing')])\n"
        "sets = dict(_delete_=True, type='ConcatDataset', datasets=[first, other])\n"
        "test_dataloader = dict(dataset=sets)\n"
    )
    for config in (base, several):
        out = tmp_path / Path(config).stem
        command = [config, checkpoint, file, "--out", out, "--device", "cpu"]
        assert main([*map(str, command)]) == []
    assert read(tmp_path / "several/in.json") == read(tmp_path / Path(base).stem / "in.json")


def test_a_config_without_a_test_pipeline_is_refused(networks, tmp_path):
    base, _, checkpoint = networks("video")
    config, clip = tmp_path / "without.py", write_clip(tmp_path / "in.mp4", frames=40)
    config.write_text(
        f"_base_ = {str(base)!r}\ntest_dataloader = dict(dataset=dict(pipeline=[]))\n"
    )
    with pytest.raises(ValueError, match="no dataset with a pipeline"):
        main([str(config), str(checkpoint), str(clip), "--out", str(tmp_path), "--device", "cpu"])


def test_more_clips_go_over_the_whole_video(predict, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", frames=100)
    assert predict("video", clip, "--out", tmp_path / "out", "--clips", 3) == []
    clips = read(tmp_path / "out/clip.json")["clips"]
    assert len(clips) == 3
    starts = [part["from"] for part in clips]
    assert starts == sorted(starts)
    assert starts[0] < 1
    assert clips[-1]["to"] > 3


def test_one_bad_input_of_many_is_named_and_the_others_go_on(predict, tmp_path, capsys):
    write_clip(tmp_path / "in/deep/good.mp4")
    (tmp_path / "in/broken.mp4").write_bytes(b"no video")
    (tmp_path / "notes.txt").write_text("no video either")
    inputs = [tmp_path / "in", tmp_path / "missing.mp4", tmp_path / "notes.txt"]
    problems = predict("video", *inputs, "--out", tmp_path / "out")
    missing, wrong, broken = problems
    assert missing == f"input {tmp_path}/missing.mp4 does not exist"
    assert f"{tmp_path}/notes.txt is no video (.mp4" in wrong
    assert broken.startswith(f"{tmp_path}/in/broken.mp4: it cannot be read")
    assert names_in(tmp_path / "out") == ["deep/good.json", "deep/good.png"]
    printed = capsys.readouterr()
    assert "1 of 4 inputs predicted" in printed.out
    assert all(problem in printed.err for problem in problems)


def test_the_exit_status_tells_that_an_input_was_not_predicted(monkeypatch, tmp_path, capsys):
    config = ROOT / "configs" / CONFIGS["room"]
    arguments = [config, "none.pth", tmp_path / "missing.ply", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["tools/predict.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools/predict.py"), run_name="__main__")
    assert ended.value.code == 1
    assert "missing.ply does not exist" in capsys.readouterr().err


def test_a_tiled_detector_finds_what_its_test_finds(networks, predict, tmp_path):
    image = write_image(tmp_path / "large.jpg", 700, 600)
    assert predict("image", image, "--out", tmp_path / "out") == []
    found = read(tmp_path / "out/large.json")
    config, model, _ = networks("image")
    pipeline = Config.fromfile(config).test_dataloader.dataset.pipeline
    load, _, pack = pipeline
    packed = Compose([load, pack])({"img_path": str(image), "img_id": 0})
    with torch.no_grad():
        (sample,) = model.test_step(pseudo_collate([packed]))
    assert found["tiles"] == 4
    assert len(found["detections"]) == len(sample.pred_instances) > 0
    boxes = np.array([entry["box"] for entry in found["detections"]])
    assert np.abs(boxes - sample.pred_instances.bboxes.numpy()).max() < 0.01
    with Image.open(tmp_path / "out/large.png") as picture:
        assert picture.width == 700


def test_images_that_a_test_would_shrink_too_much_are_cut_and_others_are_not(predict, tmp_path):
    write_image(tmp_path / "in/large.png", 300, 200)
    write_image(tmp_path / "in/small.jpg", 160, 100)
    assert predict("plain", tmp_path / "in", "--out", tmp_path / "out") == []
    large, small = (read(tmp_path / f"out/{name}.json") for name in ("large", "small"))
    assert (large["tiles"], small["tiles"]) == (6, 0)
    boxes = np.array([entry["box"] for entry in large["detections"]])
    assert boxes.min() >= 0
    # Found beyond the first tile, in the coordinates of the whole image.
    assert 128 < boxes[:, 0].max() < boxes[:, 2].max() <= 300
    scores = [entry["score"] for entry in large["detections"]]
    assert scores == sorted(scores, reverse=True)


def test_the_size_of_tiles_may_be_said(predict, tmp_path):
    image = write_image(tmp_path / "small.png", 160, 100)
    assert predict("plain", image, "--out", tmp_path / "out", "--tile-size", 100) == []
    assert read(tmp_path / "out/small.json")["tiles"] == 2


def test_an_image_that_was_cut_short_is_no_image(predict, tmp_path):
    whole = write_image(tmp_path / "whole.jpg", 300, 200).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (problem,) = predict("plain", tmp_path / "cut.jpg", "--out", tmp_path / "out")
    assert problem.startswith(f"{tmp_path}/cut.jpg: it cannot be read: image file is truncated")
    assert names_in(tmp_path / "out") == []


def test_files_of_one_name_keep_their_endings_and_no_result_replaces_an_input(predict, tmp_path):
    for name in ("a.jpg", "a.png", "b.png"):
        write_image(tmp_path / "in" / name, 60, 40)
    before = (tmp_path / "in/b.png").read_bytes()
    assert predict("plain", tmp_path / "in", "--out", tmp_path / "out") == []
    expected = [f"{name}.{end}" for name in ("a.jpg", "a.png", "b") for end in ("json", "png")]
    assert names_in(tmp_path / "out") == sorted(expected)
    (problem,) = predict("plain", tmp_path / "in/b.png", "--out", tmp_path / "in")
    assert f"its result would take the place of {tmp_path}/in/b.png" in problem
    assert (tmp_path / "in/b.png").read_bytes() == before


@pytest.mark.parametrize("neighbour", ["c.png", "c.json"])
def test_no_result_replaces_a_file_beside_its_input(neighbour, predict, tmp_path):
    write_image(tmp_path / "in/c.jpg", 60, 40)
    (tmp_path / "in" / neighbour).write_bytes(b"labels, or another photograph")
    (problem,) = predict("plain", tmp_path / "in/c.jpg", "--out", tmp_path / "in")
    assert f"its result would take the place of {tmp_path}/in/{neighbour}" in problem
    assert names_in(tmp_path / "in") == sorted(["c.jpg", neighbour])
    assert (tmp_path / "in" / neighbour).read_bytes() == b"labels, or another photograph"


def test_a_folder_of_inputs_is_none_of_results(predict, tmp_path):
    write_image(tmp_path / "in/a.jpg", 60, 40)
    (problem,) = predict("plain", tmp_path / "in", "--out", tmp_path / "in")
    assert problem == f"input {tmp_path}/in is in the folder of results: give another by --out"


@pytest.fixture
def by_hook(networks, tmp_path):
    """The plain detector with a Dr2NetHook: its config, and the checkpoint of its training."""
    config, _, _ = networks("plain")
    text = config.read_text() + "model['backbone'] = model['backbone']['backbone']\n"
    path = tmp_path / "by_hook.py"
    path.write_text(text + "custom_hooks = [dict(type='Dr2NetHook')]\n")
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(config.model).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "plain.pth")
    dr2net.convert(model.backbone, 0.75, 0.25)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "dr2net.pth")
    return path, model


def test_a_dr2net_by_hook_predicts_at_the_coefficients_of_its_checkpoint(by_hook, tmp_path):
    config, model = by_hook
    loaded, _ = load_model(Config.fromfile(config), str(tmp_path / "dr2net.pth"), "cpu")
    assert dr2net.get_coefficients(loaded) == (0.75, 0.25)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for found, wanted in zip(loaded.backbone(images), model.backbone(images), strict=True):
            assert torch.equal(found, wanted)


def test_a_plain_checkpoint_is_refused_where_the_hook_makes_a_dr2net(by_hook, tmp_path):
    with pytest.raises(ValueError, match="is a plain network's"):
        load_model(Config.fromfile(by_hook[0]), str(tmp_path / "plain.pth"), "cpu")


@pytest.fixture(scope="module")
def points():
    """A room of 3 × 2 × 1 m: coordinates, and colours from 0 to 255."""
    random = np.random.default_rng(0)
    return random.random((4000, 3)) * (3, 2, 1), random.integers(0, 256, (4000, 3))


def test_a_room_becomes_a_cloud_with_the_class_of_every_point(predict, points, tmp_path):
    coord, color = points
    np.save(tmp_path / "hall.npy", np.column_stack([coord, color]).astype(np.float32))
    assert predict("room", tmp_path / "hall.npy", "--out", tmp_path / "out") == []
    cloud = read_room(tmp_path / "out/hall.ply")
    assert np.array_equal(cloud.coord, coord.astype(np.float32))
    found = read(tmp_path / "out/hall.json")
    counted = {entry["label"]: entry["points"] for entry in found["classes"]}
    labels, counts = np.unique(cloud.segment, return_counts=True)
    assert counted == dict(zip(labels.tolist(), counts.tolist(), strict=True))
    assert found["points"] == sum(counted.values()) == 4000
    assert names_in(tmp_path / "out") == ["hall.json", "hall.ply", "hall.png"]


def test_a_survey_comes_out_where_it_was_and_may_lack_colours(predict, points, tmp_path):
    laspy, open3d = pytest.importorskip("laspy"), pytest.importorskip("open3d")
    las = laspy.create(point_format=0, file_version="1.2")  # without colours
    las.header.offsets, las.header.scales = [500_000, 5_000_000, 0], [0.001] * 3
    las.xyz = points[0] + (500_000, 5_000_000, 100)
    las.write(tmp_path / "site.las")
    assert predict("room", tmp_path / "site.las", "--out", tmp_path / "out") == []
    assert read(tmp_path / "out/site.json")["has_colors"] is False
    cloud = open3d.t.io.read_point_cloud(str(tmp_path / "out/site.ply"))
    assert np.abs(cloud.point.positions.numpy() - las.xyz).max() < 1e-5  # as float32 of metres


def test_random_weights_are_not_predicted_with(networks, tmp_path):
    config, model, _ = networks("video")
    weights = {k: v for k, v in model.state_dict().items() if "cls_head" not in k}
    torch.save({"state_dict": weights}, tmp_path / "headless.pth")
    clip = write_clip(tmp_path / "clip.mp4")
    arguments = [str(config), str(tmp_path / "headless.pth"), str(clip)]
    with pytest.raises(
        ValueError, match=r"2 parameters of the model are not in .*cls_head\.fc_cls"
    ):
        main([*arguments, "--out", str(tmp_path / "out")])


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data in {REAL}")
@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("video", "video/test.avi"),
        ("image", "detection/terrain2.png"),
        ("room", "pointcloud/s3dis_Area_1_office_2_points.bin"),
    ],
)
def test_real_files_are_predicted(kind, file, predict, tmp_path):
    assert predict(kind, REAL / file, "--out", tmp_path) == []
    with Image.open(tmp_path / f"{Path(file).stem}.png") as picture:
        assert len(np.unique(np.array(picture.convert("L")))) > 20
