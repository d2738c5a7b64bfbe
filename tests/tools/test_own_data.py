"""The pages on own data: their configs and commands, in small, on data that is made here."""

import json
import re
import shlex
import shutil
import uuid
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmdet")
pytest.importorskip("decord")
pytest.importorskip("laspy")
import laspy
from mmengine.fileio import load

from tests.tools.test_detection_sets import coco_file, draw_images
from tests.video_clips import write_clip
from tools.test import main as run_test

ROOT = Path(__file__).parents[2]
# What makes the pages' networks, inputs and schedules small; written under their configs.
SMALL = """
local = dict(num_workers=0, persistent_workers=False)
for loader in (train_dataloader, val_dataloader, test_dataloader):
    loader.update(local)
train_dataloader["batch_size"] = 2
train_cfg = dict(max_epochs=1, val_begin=1, val_interval=1)
param_scheduler = [dict(type="ConstantLR", factor=1.0)]
auto_scale_lr = dict(enable=False)
load_from = None
del loader
"""
SMALL_VIDEOS = """
sample = dict(type="SampleFrames", clip_len=4, frame_interval=1)
ends = [dict(type="FormatShape", input_format="NCTHW"), dict(type="PackActionInputs")]
opened = [dict(type="DecordOpen"), sample, dict(type="DecordDecode")]
resized = [dict(type="Resize", scale=(32, 32), keep_ratio=False)]
train_dataloader["dataset"]["pipeline"] = [*opened, *resized, *ends]
opened = [dict(type="DecordOpen"), dict(sample, test_mode=True), dict(type="DecordDecode")]
val_dataloader["dataset"]["pipeline"] = [*opened, *resized, *ends]
test_dataloader["dataset"]["pipeline"] = [*opened, *resized, *ends]
model = dict(
    backbone=dict(
        backbone=dict(img_size=32, embed_dims=48, depth=2, num_heads=3, num_frames=4)
    ),
    cls_head=dict(in_channels=48),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=2))
"""
SMALL_IMAGES = """
resize = dict(type="Resize", scale=(160, 96), keep_ratio=True)
opened, boxes = dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True)
train_dataloader["dataset"]["pipeline"] = [opened, boxes, resize, dict(type="PackDetInputs")]
val_dataloader["dataset"]["pipeline"] = [opened, resize, boxes, dict(type="PackDetInputs")]
model = dict(
    backbone=dict(
        backbone=dict(
            embed_dims=8,
            depths=(2, 2, 2, 2),
            num_heads=(1, 2, 4, 8),
            window_size=4,
            init_cfg=None,
        )
    ),
    neck=dict(in_channels=[16, 32, 64], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1),
)
"""
SMALL_ROOMS = """
train_dataloader["dataset"]["loop"] = 2
model = dict(
    segmentor=dict(
        backbone=dict(backbone=dict(embed_dims=24, depth=2, num_heads=2, group_size=8)),
        decode_head=dict(in_channels=(7, 12, 24), channels=16, hidden_channels=16),
    ),
    voxel_size=0.2,
    max_points=256,
)
pack = dict(type="PackPoints")
voxels = [dict(type="AddHeight"), dict(type="VoxelSubsample", voxel_size=0.2)]
crop = dict(type="SphereCrop", num_points=256)
train_dataloader["dataset"]["pipeline"] = [*voxels, crop, dict(type="CenterOnFloor"), pack]
val_dataloader["dataset"]["pipeline"] = [*voxels, dict(type="CenterOnFloor"), pack]
"""


def write_videos(folder):
    data = folder / "data/gestures"
    for number in range(4):
        write_clip(data / f"videos/a day/clip {number}.mp4", speed=1 + number % 2)
    lines = "".join(f"a day/clip {number}.mp4 {number % 2}\n" for number in range(4))
    for name, text in {"train": lines, "val": lines, "classes": "to the left\nwave\n"}.items():
        (data / f"{name}.txt").write_text(text)
    write_clip(folder / "new.mp4")
    write_clip(folder / "more_videos/another.avi")


def write_images(folder):
    data = folder / "data/parts"
    for seed, split in enumerate(("train", "val")):
        images = draw_images(data / "images", 4, seed)
        coco_file(data / f"{split}.json", images, ["bolt", "nut"])
    (folder / "photographs").mkdir()
    for number, place in enumerate(("new.jpg", "photographs/another.jpg")):
        shutil.copy(data / f"images/0_{number}.jpg", folder / place)


def write_clouds(folder):
    random = np.random.default_rng(0)
    places = ("data/site/train/a", "data/site/train/b", "data/site/val/c", "new", "more_clouds/d")
    for place in places:
        las = laspy.create(point_format=2, file_version="1.2")
        las.header.offsets, las.header.scales = [500_000, 5_000_000, 0], [0.001] * 3
        las.xyz = random.random((3000, 3)) * (4, 4, 2) + (500_000, 5_000_000, 100)
        las.red, las.green, las.blue = random.integers(0, 65536, (3, 3000))
        if "site" in place:
            las.classification = random.choice([1, 2, 5, 6], 3000).astype(np.uint8)
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        las.write(folder / f"{place}.las")


PAGES = {
    "videos": ("video/gestures.py", write_videos, SMALL_VIDEOS),
    "images": ("detection/parts.py", write_images, SMALL_IMAGES),
    "rooms": ("pointcloud/site.py", write_clouds, SMALL_ROOMS),
}


def page(kind):
    return (ROOT / f"docs/own_{kind}.md").read_text(encoding="utf-8")


def run(command, folder, config, *options):
    """Run a command of a page in ``folder``, with the small config in place of the page's."""
    script, *arguments = shlex.split(command)[1:]
    (checkpoint,) = [*folder.glob("work_dirs/*/epoch_1.pth")] or [None]
    given = {f"configs/{PAGES[config.stem][0]}": config, "CHECKPOINT": checkpoint}
    arguments = [str(given.get(argument, argument)) for argument in arguments]
    module = import_module(script.removesuffix(".py").replace("/", "."))
    if Path(script).stem in ("train", "test"):
        options = (*options, "--cfg-options", f"experiment_name={uuid.uuid4().hex}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return module.main([*arguments, *options])


@pytest.fixture(scope="module", params=PAGES)
def followed(request, tmp_path_factory):
    """A page's kind, and the folder in which its commands were run, with its small config."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    path, write, small = PAGES[kind]
    write(folder)
    (text,) = re.findall(r"```python\n(.*?)```", page(kind), re.DOTALL)
    base = (ROOT / "configs" / path).parent.as_posix()
    assert '_base_ = "./' in text
    config = folder / f"{kind}.py"
    config.write_text(text.replace('_base_ = "./', f'_base_ = "{base}/') + SMALL + small)
    commands = re.findall(r"^    (python tools/.*)$", page(kind), re.MULTILINE)
    assert [command.split()[1] for command in commands] == [
        f"tools/{name}.py" for name in ("browse_dataset", "train", "test", "predict")
    ]
    outcomes = [run(command, folder, config) for command in commands]
    assert outcomes[-1] == []  # no input that could not be predicted
    return kind, folder, config, outcomes[2]


def test_the_commands_of_a_page_train_test_and_predict(followed):
    kind, folder, _, metrics = followed
    figure = {
        "videos": "acc/top1",
        "images": "detection/AP",
        "rooms": "full_resolution/mIoU",
    }[kind]
    assert figure in metrics
    assert len(list((folder / "pictures").glob("train_*.png"))) >= 2
    assert len(list((folder / "tested").glob("*.png"))) == {"rooms": 1}.get(kind, 4)
    predicted = {path.relative_to(folder / "predicted") for path in folder.glob("predicted/*.json")}
    assert len(predicted) == 2


def test_predictions_have_the_names_of_the_classes(followed):
    kind, folder, _, _ = followed
    found = json.loads((folder / "predicted/new.json").read_text())
    entries = found["detections" if kind == "images" else "classes"]
    known = {
        "videos": {"to the left", "wave"},
        "images": {"bolt", "nut"},
        "rooms": {"ground", "building", "tree"},
    }[kind]
    assert {entry["class"] for entry in entries} <= known


def test_files_for_leaderboards_need_no_labels(followed):
    kind, folder, config, _ = followed
    (checkpoint,) = folder.glob("work_dirs/*/epoch_1.pth")
    settings = [f"experiment_name={uuid.uuid4().hex}"]
    out = folder / "submission"
    if kind == "videos":
        (folder / "data/gestures/test.txt").write_text("a day/clip 0.mp4\na day/clip 1.mp4\n")
        settings += ["test_dataloader.dataset.ann_file=test.txt"]
        settings += ["test_dataloader.dataset.labels=False"]
    elif kind == "images":
        coco = load(folder / "data/parts/val.json")
        del coco["annotations"]
        secret = folder / "data/parts/secret.json"
        secret.write_text(json.dumps(coco))
        settings += ["test_dataloader.dataset.ann_file=secret.json"]
        settings += [f"test_evaluator.ann_file={secret}"]
    else:
        settings += ["test_dataloader.dataset.data_root=.", "test_dataloader.dataset.areas=['.']"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        metrics = run_test(
            [str(config), str(checkpoint), "--format-only", str(out), "--cfg-options", *settings]
        )
    assert metrics == {}
    if kind == "videos":
        lines = (out / "something_something_v2.csv").read_text().splitlines()
        assert [line.split(";")[0] for line in lines] == ["clip 0", "clip 1"]
        assert {*lines[0].split(";")[1:]} == {"0", "1"}
        results = load(out / "kinetics.json")["results"]
        assert {entry["label"] for entry in results["clip 1"]} == {"to the left", "wave"}
    elif kind == "images":
        found = load(out / "detections.bbox.json")
        assert {entry["image_id"] for entry in found} <= {0, 1, 2, 3}
        assert {entry["category_id"] for entry in found} <= {1, 2}
    else:
        labels = (out / "._new.txt").read_text().split()
        assert len(labels) == 3000
        assert {*labels} <= {"0", "1", "2"}


def test_a_detector_is_tested_on_mirror_images_too(followed):
    kind, folder, config, plain = followed
    (checkpoint,) = folder.glob("work_dirs/*/epoch_1.pth")
    arguments = [str(config), str(checkpoint), "--tta", "--cfg-options"]
    arguments += [f"experiment_name={uuid.uuid4().hex}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if kind == "images":
            saved = ["--out", str(folder / "tta.pkl")]
            assert run_test([*arguments[:2], *saved, *arguments[2:]]).keys() == plain.keys()
            assert len(load(folder / "tta.pkl")) == 4
        else:
            with pytest.raises(SystemExit):
                run_test(arguments)
