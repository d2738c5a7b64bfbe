"""Configs of configs/detection on small sets in the published layouts, through the commands."""

import json
import math
import re
import shlex
import sys
import uuid

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmdet")
import tasks.detection  # noqa: F401  # isort: skip

from mmengine.config import Config

from tasks.detection.class_names import METAINFO
from tasks.detection.protocols import PROTOCOLS
from tests.detectors import CONFIGS, small_model
from tests.tools.conftest import ROOT, run_train
from tools.prepare_detection import main as prepare
from tools.test import main as run_test

WIDTH, HEIGHT = 120, 80


def draw_images(folder, count, seed):
    """Write JPEG files with bright boxes on noise; return the name and the boxes of each."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        pixels = random.integers(0, 80, (HEIGHT, WIDTH, 3), np.uint8)
        boxes = []
        for _ in range(4):
            width, height = random.integers(6, 20, 2).tolist()
            left, top = random.integers(0, (WIDTH - width, HEIGHT - height)).tolist()
            pixels[top : top + height, left : left + width] = random.integers(150, 256, 3)
            boxes.append([left, top, width, height])
        Image.fromarray(pixels).save(folder / f"{seed}_{number}.jpg")
        found.append((f"{seed}_{number}.jpg", boxes))
    return found


def coco_file(path, images, classes, ignored=()):
    """Write a COCO file whose boxes are of all categories in turn."""
    names = [*ignored, *classes]
    annotations = [
        {
            "image_id": number,
            "bbox": box,
            "area": box[2] * box[3],
            "category_id": (number + place) % len(names) + 1,
            "iscrowd": 0,
        }
        for number, (_, boxes) in enumerate(images)
        for place, box in enumerate(boxes)
    ]
    coco = {
        "images": [
            {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for number, (name, _) in enumerate(images)
        ],
        "annotations": [{"id": n} | a for n, a in enumerate(annotations, start=1)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, start=1)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(coco))


def write_sodad(root):
    meta = METAINFO["soda-d"]
    for seed, split in enumerate(("train", "val", "test")):
        images = draw_images(root / "Images", 2, seed)
        coco_file(
            root / f"Annotations/{split}.json", images, meta["classes"], meta["ignored_classes"]
        )


def write_visdrone(root):
    for seed, split in enumerate(("train", "val")):
        folder = root / f"VisDrone2019-DET-{split}"
        (folder / "annotations").mkdir(parents=True)
        for number, (name, boxes) in enumerate(draw_images(folder / "images", 4, seed)):
            # An ignored region, then boxes of all classes in turn; the last image has none.
            lines = ["0,0,30,20,0,0,0,0"]
            for place, box in enumerate(boxes if number < 3 else []):
                lines.append(",".join(map(str, [*box, 1, 1 + (number + place) % 10, 0, 0])))
            (folder / f"annotations/{name}").with_suffix(".txt").write_text("\n".join(lines))


def write_aitod(root):
    for seed, split in enumerate(("train", "val", "test")):
        images = draw_images(root / split, 4, seed)
        coco_file(root / f"annotations/aitodv2_{split}.json", images, METAINFO["ai-tod"]["classes"])


def write_coco(root):
    for seed, split in enumerate(("train2017", "val2017")):
        images = draw_images(root / split, 4, seed)
        coco_file(root / f"annotations/instances_{split}.json", images, METAINFO["coco"]["classes"])


# By the end of the configs' names: what writes the published layout, and the name of the protocol.
SETS = {
    "sodad": (write_sodad, "soda-d"),
    "visdrone": (write_visdrone, "visdrone"),
    "aitod": (write_aitod, "ai-tod"),
    "coco": (write_coco, "coco"),
}

# This one, in tiles, is trained and tested by processes of its own, the others by the same
# functions in this one: a process takes longer to start than to train.
BY_COMMAND = "sodad"


def documented_conversions(layout):
    """The arguments of prepare_detection.py in docs/detection.md for a layout, each in a list."""
    text = (ROOT / "docs/detection.md").read_text(encoding="utf-8").replace("\\\n", "")
    loop = rf"for split in ([a-z ]+); do\n +python tools/prepare_detection.py ({layout} .*)\n"
    for splits, command in re.findall(loop, text):
        for split in splits.split():
            yield shlex.split(command.replace("${split}", split).replace("$split", split))


def write_config(folder, name):
    """Write the config of a set for the small set in ``folder``, with every size small."""
    config = Config.fromfile(CONFIGS / f"{name}.py")
    small = small_model(name)
    if "detector" in config.model:
        config.model.update(detector=small, tile_size=64, overlap=16)
        config.train_dataloader.dataset.update(tile_size=64, overlap=16)
    else:
        config.model = small
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.get("dataset", loader.dataset).data_root = str(folder / config.data_root)
        shrink(loader.dataset.pipeline)
    for evaluator in (config.val_evaluator, config.test_evaluator):
        evaluator.ann_file = str(folder / evaluator.ann_file)
    config.train_cfg.max_epochs = 2
    config.default_hooks.logger.interval = 1
    if "coefficients" in config.default_hooks:
        config.default_hooks.coefficients.pop("share")
        config.default_hooks.coefficients.end = 4
    config.auto_scale_lr.enable = False
    config.load_from = None
    path = folder / f"small_{name}.py"
    config.dump(path)
    return path


def shrink(pipeline):
    """Make the sizes that images are resized or cut to an eighth."""
    for step in pipeline:
        if step.type == "RandomChoice":
            for branch in step.transforms:
                shrink(branch)
        for key in ("scale", "crop_size"):
            if key in step:
                step[key] = tuple(side // 8 for side in step[key])
        if "scales" in step:
            step.scales = [tuple(side // 8 for side in scale) for scale in step.scales]


def logged(work_dir):
    """What training and validation logged: by iteration, and by epoch."""
    (path,) = work_dir.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    train = {line["iter"]: line for line in lines if "loss" in line}
    return train, [line for line in lines if "loss" not in line]


def prepared_config(folder, name):
    """Write a config's set in its published layout, prepare it as documented: a small config."""
    write, protocol = SETS[name.split("_")[-1]]
    write(folder / Config.fromfile(CONFIGS / f"{name}.py").data_root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arguments in documented_conversions(protocol):
            prepare(arguments)
    return write_config(folder, name)


@pytest.fixture(params=SETS)
def prepared(request, tmp_path_factory):
    """A set's name, its protocol, and a small config over it."""
    folder = tmp_path_factory.mktemp(request.param)
    config = prepared_config(folder, f"dr2net_paper_dino4scale_swint_{request.param}")
    return request.param, PROTOCOLS[SETS[request.param][1]], config


def test_a_set_in_its_published_layout_trains_resumes_and_is_tested(
    prepared, run_command, tmp_path
):
    name, protocol, config = prepared
    figures = {f"detection/{figure}" for figure in protocol.report}
    if name == BY_COMMAND:
        script = ROOT / "tools/train.py"
        run_command(sys.executable, script, config, "--work-dir", tmp_path / "unbroken")
    else:
        run_train(config, tmp_path / "unbroken")
    unbroken, validations = logged(tmp_path / "unbroken")
    assert all(math.isfinite(line["loss"]) for line in unbroken.values())
    assert unbroken[1]["beta"] == pytest.approx(0.1, abs=2**-16)
    assert unbroken[len(unbroken)]["beta"] > 0.5
    assert len(validations) == 2
    assert figures <= set(validations[0])

    checkpoint = tmp_path / "unbroken/epoch_1.pth"
    run_train(config, tmp_path / "resumed", "--resume", str(checkpoint))
    resumed, revalidated = logged(tmp_path / "resumed")
    assert list(resumed) == list(unbroken)[len(unbroken) // 2 :]
    for iteration, line in resumed.items():
        for key in line:
            if "loss" in key or key in ("alpha", "beta", "grad_norm"):
                assert line[key] == unbroken[iteration][key], (iteration, key)
    for found, expected in zip(revalidated, validations, strict=True):
        assert {key: found[key] for key in figures} == {key: expected[key] for key in figures}

    last = [config, tmp_path / "unbroken/epoch_2.pth", "--work-dir", tmp_path / "tested"]
    if name == BY_COMMAND:
        printed = run_command(sys.executable, ROOT / "tools/test.py", *last)
        assert all(figure in printed.stdout + printed.stderr for figure in figures)
    else:
        experiment = ["--cfg-options", f"experiment_name={uuid.uuid4().hex}"]
        assert figures <= set(run_test([*map(str, last), *experiment]))


def test_a_vit_trains_and_is_tested_on_tiles(tmp_path):
    config = prepared_config(tmp_path, "dr2net_retinanet_vitb_dinov2_sodad")
    run_train(config, tmp_path / "run", settings=["train_cfg.max_epochs=1"])
    trained, validations = logged(tmp_path / "run")
    assert {(line["alpha"], line["beta"]) for line in trained.values()} == {(0.875, 0.125)}
    experiment = ["--cfg-options", f"experiment_name={uuid.uuid4().hex}"]
    checkpoint = str(tmp_path / "run/epoch_1.pth")
    tested = run_test([str(config), checkpoint, "--work-dir", str(tmp_path / "test"), *experiment])
    figures = {f"detection/{figure}" for figure in PROTOCOLS["soda-d"].report}
    assert figures <= {*tested} & {*validations[0]}
