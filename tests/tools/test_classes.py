"""The classes of a config are said once."""

from pathlib import Path

import pytest

pytest.importorskip("mmengine")
from mmengine.config import Config

from tools.classes import spread_classes

CONFIGS = Path(__file__).parents[2] / "configs"


def spread(path, classes):
    config = Config.fromfile(CONFIGS / path)
    config.classes = classes
    spread_classes(config)
    return config


def numbers_in(part):
    """All values of ``num_classes``."""
    if isinstance(part, dict):
        here = [part["num_classes"]] if "num_classes" in part else []
        return here + [n for value in part.values() for n in numbers_in(value)]
    return [n for value in part for n in numbers_in(value)] if isinstance(part, list) else []


def test_a_number_takes_the_place_of_all_six():
    config = spread("video/dr2net_vitb_k400.py", 8)
    found = numbers_in(config.model)
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        found += numbers_in(config[loader])
    assert found == [8] * 6


@pytest.mark.parametrize(
    "path",
    [
        "detection/conventional_retinanet_swint_sodad.py",
        "detection/dr2net_dino4scale_swint_coco.py",
        "pointcloud/dr2net_pix4point_s3dis.py",
    ],
)
def test_names_go_into_the_data_and_their_number_into_the_model(path):
    config = spread(path, ["bolt", "left nut"])
    assert set(numbers_in(config.model)) == {2}
    inner = config.train_dataloader.dataset
    inner = inner.get("dataset", inner)
    assert inner.metainfo["classes"] == ("bolt", "left nut")
    assert config.test_dataloader.dataset.metainfo["classes"] == ("bolt", "left nut")


def test_names_come_from_a_file(tmp_path):
    (tmp_path / "classes.txt").write_text("wave\n point left \n\n", encoding="utf-8")
    config = spread("video/conventional_vits_ssv2.py", str(tmp_path / "classes.txt"))
    assert config.val_dataloader.dataset.metainfo["classes"] == ("wave", "point left")
    assert config.model.cls_head.num_classes == 2


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("nowhere.txt", "nowhere.txt' is no file. It is to be a text file"),
        (["a", "b", "a"], "has a more than once"),
        ([], "expected names of classes"),
        ([1, 2], "expected names of classes"),
        (0, "there has to be one class at least"),
    ],
)
def test_what_is_no_list_of_classes_is_an_error(classes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        spread("video/dr2net_vitb_k400.py", classes)


def test_a_training_on_other_classes_than_the_models_ends_at_once(make_config, train, tmp_path):
    pytest.importorskip("decord")
    config = make_config()
    expected = r"the model has 6 classes \(num_classes of cls_head\), the train set 5 classes"
    with pytest.raises(ValueError, match=expected):
        train(config, tmp_path, settings=["train_dataloader.dataset.num_classes=5"])


def test_classes_without_a_video_are_remarked(make_config, train, tmp_path):
    pytest.importorskip("decord")
    run = train(make_config(), tmp_path, settings=["train_cfg.max_epochs=1", "classes=7"])
    (log,) = Path(run.work_dir).glob("*/*.log")
    assert "has videos of 2 of the 7 classes, labels up to 1" in log.read_text()
