import json

import numpy as np
import pytest

pytest.importorskip("mmengine")
from tasks.pointcloud.class_names import CLASSES
from tasks.pointcloud.confusion import figures, write_confusion
from tools.sum_folds import main


@pytest.fixture
def folds(tmp_path):
    """Six files of one room each, and the sum of their matrices."""
    random = np.random.default_rng(0)
    files, matrices = [], []
    for area in range(1, 7):
        matrices.append(random.integers(0, 1000, (13, 13)))
        files.append(tmp_path / f"fold_{area}.json")
        rooms = [f"Area_{area}/office_1"]
        write_confusion(files[-1], matrices[-1], CLASSES, "full_resolution", rooms)
    return [str(file) for file in files], np.sum(matrices, axis=0)


def test_six_folds_have_the_figures_of_the_sum_of_their_matrices(folds, tmp_path, capsys):
    files, total = folds
    main([*files, "--out", str(tmp_path / "six.json")])
    found = json.loads((tmp_path / "six.json").read_text())
    assert found.pop("areas") == [f"Area_{k}" for k in range(1, 7)]
    assert found == figures(total, CLASSES)
    out = capsys.readouterr().out
    assert f"OA {100 * found['OA']:.2f} %" in out
    assert "not all six areas" not in out


def test_figures_of_missing_classes_are_null(tmp_path):
    matrix = np.zeros((13, 13), int)
    matrix[0, 0] = 5
    file, out = tmp_path / "fold.json", tmp_path / "out.json"
    write_confusion(file, matrix, CLASSES, "full_resolution", ["Area_1/office_1"])
    main([str(file), "--out", str(out)])
    found = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert found["mIoU"] == found["IoU_ceiling"] == 1
    assert found["IoU_floor"] is None


def test_missing_areas_are_said(folds, capsys):
    main(folds[0][1:3])
    out = capsys.readouterr().out
    assert "not all six areas, only Area_2, Area_3" in out
    assert "rooms: Area_2 1, Area_3 1" in out


def test_subsampled_validations_are_refused(folds, tmp_path):
    file = tmp_path / "val.json"
    write_confusion(file, folds[1], CLASSES, "val_subsampled", ["Area_1/office_9"])
    with pytest.raises(SystemExit, match=r"val\.json is of predictions of val_subsampled clouds"):
        main([*folds[0][1:], str(file)])


def test_a_room_that_is_counted_twice_is_refused(folds, tmp_path):
    file = tmp_path / "again.json"
    write_confusion(file, folds[1], CLASSES, "full_resolution", ["Area_3/office_1"])
    with pytest.raises(SystemExit, match="1 rooms are in several of the files, such as Area_3/off"):
        main([*folds[0], str(file)])


def test_a_file_that_is_given_twice_is_refused(folds):
    with pytest.raises(SystemExit, match="1 rooms are in several of the files, such as Area_2/off"):
        main([*folds[0], folds[0][1]])


@pytest.mark.parametrize(
    ("text", "named"),
    [("", "is no JSON"), ("[]", "has not the keys kind, "), ('{"kind": "a"}', "has not the keys")],
)
def test_a_file_of_something_else_is_named(folds, tmp_path, text, named):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(SystemExit, match=rf"bad\.json {named}"):
        main([*folds[0], str(tmp_path / "bad.json")])


def test_other_orders_of_classes_are_refused(folds, tmp_path):
    file = tmp_path / "other.json"
    write_confusion(file, folds[1], CLASSES[::-1], "full_resolution", ["Area_1/office_9"])
    with pytest.raises(SystemExit, match=r"other\.json has other classes, or another order"):
        main([*folds[0], str(file)])


def test_a_missing_file_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["nowhere.json"])
    assert "nowhere.json does not exist" in capsys.readouterr().err
