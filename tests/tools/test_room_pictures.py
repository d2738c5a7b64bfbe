import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmengine")
from mmengine.fileio import dump

from tasks.pointcloud.class_names import COLORS
from tasks.pointcloud.room_files import read_room
from tests.rooms import write_converted
from tools.room_pictures import main


@pytest.fixture(scope="module")
def predictions(tmp_path_factory):
    """A file as tools/test.py --dump saves it, of three rooms with a twentieth wrong."""
    folder = tmp_path_factory.mktemp("predictions")
    rooms = write_converted(folder)
    samples = []
    for number in (1, 2, 5):
        path = rooms / f"Area_{number}/office_1"
        truth = torch.from_numpy(read_room(path).segment)
        found = truth.clone()
        found[::20] = 12
        name = f"Area_{number}/office_1"
        sample = {"name": name, "path": str(path), "gt_segment": truth, "pred_segment": found}
        samples.append(sample)
    dump(samples, folder / "predictions.pkl")
    return folder / "predictions.pkl"


def test_every_room_becomes_a_picture(predictions, tmp_path):
    main([str(predictions), str(tmp_path / "pictures")])
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == [f"Area_{number}_office_1.png" for number in (1, 2, 5)]
    with Image.open(tmp_path / "pictures/Area_5_office_1.png") as picture:
        pixels = np.array(picture)
    assert (pixels == COLORS["floor"]).all(axis=-1).sum() > 1000


def test_one_room_as_ply_in_the_colours_of_true_and_predicted_classes(predictions, tmp_path):
    main([str(predictions), str(tmp_path), "--ply", "--rooms", "Area_2/office_1"])
    names = sorted(path.name for path in tmp_path.iterdir())
    stem = "Area_2_office_1"
    assert names == [f"{stem}.png", f"{stem}_predicted.ply", f"{stem}_true.ply"]
    true, predicted = (read_room(tmp_path / f"{stem}_{k}.ply") for k in ("true", "predicted"))
    assert (predicted.segment[::20] == 12).all()
    room = read_room(predictions.parent / "s3dis/Area_2/office_1")
    assert np.array_equal(true.coord, room.coord)
    assert np.array_equal(true.segment, room.segment)
    wall = true.color[true.segment == 2]
    assert (wall == COLORS["wall"]).all()


def test_a_room_that_was_not_tested_is_named(predictions, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(predictions), str(tmp_path), "--rooms", "Area_9/office_1"])
    assert "no predictions of Area_9/office_1; there are Area_1/" in capsys.readouterr().err


def test_predictions_of_subsampled_clouds_are_refused(predictions, tmp_path):
    path = predictions.parent / "s3dis/Area_1/office_1"
    labels = torch.zeros(10, dtype=torch.long)
    sample = {"name": "Area_1/office_1", "path": str(path)}
    dump([sample | {"gt_segment": labels, "pred_segment": labels}], tmp_path / "sub.pkl")
    with pytest.raises(SystemExit, match=r"10 predictions for .* points; pictures are of tests at"):
        main([str(tmp_path / "sub.pkl"), str(tmp_path / "pictures")])


def test_a_window_without_a_display_is_an_error(predictions, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit, match="there is no display"):
        main([str(predictions), "--show", "--rooms", "Area_1/office_1"])


@pytest.mark.parametrize("arguments", [["p.pkl"], ["p.pkl", "--show", "--ply"], ["p.pkl", "out"]])
def test_what_is_asked_for_has_to_be_possible(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "error: " in capsys.readouterr().err
