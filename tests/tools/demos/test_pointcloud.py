import pytest

pytest.importorskip("mmengine")
pytest.importorskip("timm")
import tasks.pointcloud  # noqa: F401  # isort: skip

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from tools.demos import pointcloud, ways
from tools.demos.pointcloud import DEMO, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One room an area of about 600 points, which tests must not change."""
    folder = tmp_path_factory.mktemp("demo") / "rooms"
    write_data(folder, 20)
    return folder


def rooms(data, part="finetune"):
    return sorted((data / part / "rooms").glob("Area_*/*"))


def test_both_parts_have_rooms_of_six_areas(data):
    for part in ("pretrain", "finetune"):
        assert [room.parent.name for room in rooms(data, part)] == [
            f"Area_{i}" for i in range(1, 7)
        ]
    names = {part: rooms(data, part)[0].name for part in ("pretrain", "finetune")}
    assert names == {"pretrain": "lounge_1", "finetune": "office_1"}


def test_data_that_is_there_is_kept_and_that_of_other_settings_replaced(data, tmp_path):
    folder = tmp_path / "rooms"
    write_data(folder, 20)
    first = [room.stat().st_ino for room in rooms(folder)]
    write_data(folder, 20)
    assert [room.stat().st_ino for room in rooms(folder)] == first
    before = len(np.load(rooms(folder)[0] / "coord.npy"))
    write_data(folder, 30)
    assert len(np.load(rooms(folder)[0] / "coord.npy")) < before


def test_training_and_testing_use_the_areas_of_the_protocol():
    for path in (DEMO.pretraining, *DEMO.ways.values()):
        config = Config.fromfile(path)
        few = path != DEMO.pretraining
        assert config.train_dataloader.dataset.areas == ([1] if few else [1, 2, 3, 4, 6])
        assert config.val_dataloader.dataset.areas == config.test_dataloader.dataset.areas == [5]
        # What makes a validation one of every original point.
        assert config.val_dataloader.dataset.pipeline == config.test_dataloader.dataset.pipeline
        assert config.model.voxel_size == config.train_dataloader.dataset.pipeline[1].voxel_size
        assert config.model.max_points == config.train_dataloader.dataset.pipeline[2].num_points


def test_picture_has_the_curves_and_a_room(data, tmp_path):
    config = Config.fromfile(DEMO.ways[ways.HELD])
    with DefaultScope.overwrite_default_scope("mmengine"):
        checkpoint = tmp_path / "weights.pth"
        torch.save({"state_dict": MODELS.build(config.model).state_dict()}, checkpoint)
        runs = tmp_path / "runs"
        folder = ways.work_folder(runs, DEMO.ways[ways.HELD], 0)
        folder.mkdir(parents=True)
        (folder / "last_checkpoint").write_text(str(checkpoint))
        curve = {"iter": [5, 10], "loss": [2.0, 1.0], "epoch": [1, 2], "mIoU": [0.2, 0.4]}
        result = {
            "figures": {name: {"mIoU": [0.4]} for name in DEMO.ways},
            "measured": {name: [{"peak_bytes": 1e6}] for name in DEMO.ways},
            "curves": {name: [curve] for name in DEMO.ways},
        }
        pointcloud.draw(tmp_path / "picture.png", result, runs, data)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.format == "PNG"
        assert picture.height > picture.width / 2
        assert len(picture.getcolors(picture.width * picture.height)) > 100
