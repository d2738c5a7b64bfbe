"""configs/pointcloud through the tools: generated rooms in, a tiny network, the figures out."""

import json
import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("timm")
pytest.importorskip("mmengine")
from mmengine.fileio import load

from tasks.pointcloud.class_names import CLASSES
from tasks.pointcloud.confusion import figures
from tests.rooms import write_converted
from tools import room_pictures, sum_folds
from tools.test import main

CONFIGS = Path(__file__).parents[2] / "configs/pointcloud"


def tiny(kind, rooms):
    """What is changed of a config for a network and rooms of a test's size."""
    backbone = "model.segmentor.backbone." + ("" if kind == "conventional" else "backbone.")
    settings = [
        *(f"{backbone}{name}" for name in ("embed_dims=24", "depth=2", "num_heads=2")),
        f"{backbone}group_size=8",
        "model.segmentor.decode_head.in_channels=(7,12,24)",
        "model.segmentor.decode_head.channels=16",
        "model.segmentor.decode_head.hidden_channels=16",
        "model.voxel_size=0.2",
        "model.max_points=256",
        "train_dataloader.dataset.pipeline.1.voxel_size=0.2",
        "train_dataloader.dataset.pipeline.2.num_points=256",
        "val_dataloader.dataset.pipeline.1.voxel_size=0.2",
        "train_dataloader.batch_size=2",
        "train_dataloader.dataset.loop=1",
        "train_cfg.max_epochs=2",
        # Warm-up ends with the first epoch.
        "param_scheduler.0.end=1",
        "param_scheduler.1.begin=1",
        "default_hooks.logger.interval=1",
        "load_from=None",
    ]
    for part in ("train", "val", "test"):
        settings += [
            f"{part}_dataloader.dataset.data_root={rooms}",
            f"{part}_dataloader.num_workers=0",
            f"{part}_dataloader.persistent_workers=False",
        ]
    return settings


def config(kind):
    return CONFIGS / f"{kind}_pix4point_s3dis.py"


def evaluate(kind, rooms, checkpoint, work_dir, *options, settings=()):
    settings = [*tiny(kind, rooms), *settings, f"experiment_name={uuid.uuid4().hex}"]
    arguments = [str(config(kind)), str(checkpoint), "--work-dir", str(work_dir), *options]
    return main([*arguments, "--cfg-options", *settings])


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """One converted room an area, which tests must not change."""
    return write_converted(tmp_path_factory.mktemp("rooms"))


@pytest.fixture(scope="module")
def trained(rooms, tmp_path_factory):
    """A run of two epochs of the Dr²Net: its work folder, which tests must not change."""
    from tests.tools.conftest import run_train

    folder = tmp_path_factory.mktemp("trained")
    run_train(config("dr2net_paper"), folder, settings=tiny("dr2net_paper", rooms))
    return folder


def test_training_logs_losses_coefficients_and_a_validation_by_its_name(trained, logged):
    losses = logged(trained)
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert len(logged(trained, "beta")) == 4
    validated = logged(trained, "val_subsampled/mIoU")
    assert len(validated) == 2
    assert 0 <= validated[-1] <= 1
    assert logged(trained, "full_resolution/mIoU") == []
    assert len(list(trained.glob("best_val_subsampled_mIoU_epoch_*.pth"))) == 1


def test_a_resumed_run_goes_on_with_the_losses_of_the_unbroken_one(
    trained, rooms, train, logged, tmp_path
):
    shutil.copy(trained / "epoch_1.pth", tmp_path)  # as a kill in the second epoch leaves it
    train(config("dr2net_paper"), tmp_path, "--resume", settings=tiny("dr2net_paper", rooms))
    unbroken, resumed = logged(trained), logged(tmp_path)
    assert resumed == unbroken[2:]
    # That of the first epoch too, which a kill may have taken.
    assert logged(tmp_path, "val_subsampled/mIoU") == logged(trained, "val_subsampled/mIoU")


def test_a_test_is_of_every_original_point_and_its_predictions_become_pictures(
    trained, rooms, tmp_path
):
    dump, matrix = tmp_path / "predictions.pkl", tmp_path / "confusion.json"
    metrics = evaluate(
        "dr2net_paper",
        rooms,
        trained / "epoch_2.pth",
        tmp_path / "test",
        "--dump",
        str(dump),
        settings=[f"test_evaluator.confusion_file={matrix}"],
    )
    points = len(np.load(rooms / "Area_5/office_1/coord.npy"))
    (prediction,) = load(dump)
    assert len(prediction["pred_segment"]) == points
    content = json.loads(matrix.read_text())
    assert np.sum(content["confusion"]) == points
    assert content["rooms"] == ["Area_5/office_1"]
    expected = figures(np.array(content["confusion"]), CLASSES)
    assert metrics == {f"full_resolution/{name}": value for name, value in expected.items()}
    room_pictures.main([str(dump), str(tmp_path / "pictures"), "--ply"])
    assert len(list((tmp_path / "pictures").iterdir())) == 3
    sum_folds.main([str(matrix)])


def test_a_pipeline_that_packs_for_validation_is_no_test(trained, rooms, tmp_path):
    with pytest.raises(ValueError, match="FullResolutionSegmentor subsamples rooms itself"):
        evaluate(
            "dr2net_paper",
            rooms,
            trained / "epoch_2.pth",
            tmp_path,
            settings=["test_dataloader.dataset.pipeline.1.type=PackPoints"],
        )


def test_another_fold_is_a_matter_of_the_areas(trained, rooms, tmp_path):
    matrix = tmp_path / "confusion.json"
    evaluate(
        "dr2net_paper",
        rooms,
        trained / "epoch_2.pth",
        tmp_path,
        settings=[
            "test_dataloader.dataset.areas=[2]",
            f"test_evaluator.confusion_file={matrix}",
        ],
    )
    assert json.loads(matrix.read_text())["rooms"] == ["Area_2/office_1"]


@pytest.mark.parametrize("kind", ["conventional", "previous_reversible"])
def test_its_siblings_train_and_test_too(kind, rooms, train, logged, tmp_path):
    train(config(kind), tmp_path, settings=tiny(kind, rooms))
    assert len(logged(tmp_path)) == 4
    metrics = evaluate(kind, rooms, tmp_path / "epoch_2.pth", tmp_path / "test")
    assert 0 <= metrics["full_resolution/mIoU"] <= 1


def test_the_order_of_classes_in_a_file_is_checked_by_the_run(rooms, trained, tmp_path):
    with pytest.raises(ValueError, match="Area_5/office_1 says that its labels are in the order"):
        evaluate(
            "dr2net_paper",
            rooms,
            trained / "epoch_2.pth",
            tmp_path,
            settings=["test_dataloader.dataset.class_order=openpoints"],
        )
