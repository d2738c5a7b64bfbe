from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmengine")
from tasks.pointcloud.class_names import CLASSES, COLORS
from tasks.pointcloud.pictures import class_colors, draw_room, show_room

SHARED = Path(__file__).parents[4] / "shared/data/real/pointcloud/scannet_scene0000_00.bin"
SIZE = 240
LABEL = {name: number for number, name in enumerate(CLASSES)}


def plate(low, high, step=0.05):
    """Points on the faces of a box, or on a plate where one side is 0."""
    axes = [
        np.arange(a, b + step / 2, step) if b > a else np.array([a])
        for a, b in zip(low, high, strict=True)
    ]
    return np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 3)


@pytest.fixture
def room():
    """Floor, ceiling, four walls and a table in the middle: coordinates and true labels."""
    parts = {
        "floor": plate((0, 0, 0), (4, 4, 0)),
        "ceiling": plate((0, 0, 3), (4, 4, 3)),
        "wall": np.concatenate(
            [
                plate((0, 0, 0), (4, 0, 3)),
                plate((0, 0, 0), (0, 4, 3)),
                plate((0, 4, 0), (4, 4, 3)),
                plate((4, 0, 0), (4, 4, 3)),
            ]
        ),
        "table": plate((1.5, 1.5, 0.8), (2.5, 2.5, 0.8)),
    }
    coord = np.concatenate(list(parts.values()))
    return coord, np.repeat([LABEL[name] for name in parts], [len(p) for p in parts.values()])


def draw(folder, coord, predicted, truth=None, **options):
    color = np.full((len(coord), 3), 120, np.uint8)
    draw_room(folder / "room.png", coord, color, predicted, truth, size=SIZE, **options)
    with Image.open(folder / "room.png") as picture:
        return np.array(picture.convert("RGB"))


def panels(picture):
    top = np.flatnonzero((picture != 255).any(axis=(1, 2)))
    width = picture.shape[1] // SIZE
    return [picture[:, n * SIZE : (n + 1) * SIZE] for n in range(width)], top


def count(pixels, name):
    return int((pixels == COLORS[name]).all(axis=-1).sum())


def test_colours_truth_and_prediction_stand_in_a_row(room, tmp_path):
    coord, truth = room
    predicted = np.where(truth == LABEL["table"], LABEL["sofa"], truth)
    picture = draw(tmp_path, coord, predicted, truth)
    assert picture.shape[1] == 3 * SIZE
    # Without the legend under the views.
    views, _ = panels(picture[: SIZE + 20])
    assert count(views[0], "floor") == count(views[0], "table") == 0
    assert (views[0] == 120).all(axis=-1).sum() > 5000
    assert count(views[1], "table") > 500
    assert count(views[1], "sofa") == 0
    assert count(views[2], "sofa") == count(views[1], "table")
    assert count(views[2], "table") == 0


def test_without_truth_there_are_two_views(room, tmp_path):
    assert draw(tmp_path, *room).shape[1] == 2 * SIZE


def test_one_sees_into_the_room(room, tmp_path):
    """No ceiling, none of the walls in front, but floor, table and the walls behind."""
    coord, truth = room
    picture = draw(tmp_path, coord, truth, truth)
    view = panels(picture[: SIZE + 20])[0][1]
    assert count(view, "ceiling") == 0
    assert count(view, "floor") > 3000
    assert count(view, "wall") > 3000
    rows = np.flatnonzero((view == COLORS["wall"]).all(axis=-1).any(axis=1))
    table = np.flatnonzero((view == COLORS["table"]).all(axis=-1).any(axis=1))
    assert rows.min() < table.min()


def test_what_is_nearer_hides_what_is_behind(room, tmp_path):
    coord, truth = room
    with_table = draw(tmp_path, coord, truth, truth)[: SIZE + 20, SIZE : 2 * SIZE]
    kept = truth != LABEL["table"]
    without = draw(tmp_path, coord[kept], truth[kept], truth[kept])[: SIZE + 20, SIZE : 2 * SIZE]
    assert count(without, "floor") - count(with_table, "floor") > 0.5 * count(with_table, "table")
    # The order of the points in the file does not matter.
    turned = draw(tmp_path, coord[::-1], truth[::-1], truth[::-1])[: SIZE + 20, SIZE : 2 * SIZE]
    assert (turned != with_table).any(axis=-1).mean() < 0.01


def test_the_legend_has_the_classes_that_are_there_or_predicted(room, tmp_path):
    coord, truth = room
    predicted = truth.copy()
    predicted[:5] = LABEL["bookcase"]
    legend = draw(tmp_path, coord, predicted, truth)[SIZE + 24 :]
    for name in CLASSES:
        there = name in ("floor", "ceiling", "wall", "table", "bookcase")
        assert (count(legend, name) > 60) == there, name


def test_a_title_stands_above(room, tmp_path):
    plain = draw(tmp_path, *room)
    titled = draw(tmp_path, *room, title="Area_5/office_1")
    assert titled.shape[0] > plain.shape[0]
    assert (titled[:18] < 128).any()


def test_ignored_points_are_white():
    assert class_colors(np.array([255, 0])).tolist() == [[255] * 3, list(COLORS["ceiling"])]


def test_a_large_room_is_drawn_of_a_part_of_its_points(room, tmp_path, monkeypatch):
    from tasks.pointcloud import pictures

    monkeypatch.setattr(pictures, "_MOST_POINTS", 1000)
    coord, truth = room
    first = draw(tmp_path, coord, truth, truth)
    assert np.array_equal(first, draw(tmp_path, coord, truth, truth))
    assert count(first[: SIZE + 20, SIZE : 2 * SIZE], "floor") > 1000


def test_a_real_room_is_drawn(tmp_path):
    if not SHARED.is_file():
        pytest.skip(f"no real room at {SHARED}")
    values = np.fromfile(SHARED, np.float32).reshape(-1, 6)
    labels = np.zeros(len(values), int)
    draw_room(tmp_path / "room.png", values[:, :3], values[:, 3:].astype(np.uint8), labels)
    with Image.open(tmp_path / "room.png") as picture:
        pixels = np.array(picture)
    assert (pixels[:660, :640] != 255).any(axis=-1).mean() > 0.2


def test_no_window_without_a_display(room, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(RuntimeError, match="there is no display"):
        show_room(room[0], class_colors(room[1]))


def test_a_window_has_the_room_once_for_each_colouring(room, monkeypatch):
    open3d = pytest.importorskip("open3d")
    monkeypatch.setenv("DISPLAY", ":0")
    shown = []
    monkeypatch.setattr(
        open3d.visualization, "draw_geometries", lambda clouds, **_: shown.extend(clouds)
    )
    coord, truth = room
    show_room(coord, np.full((len(coord), 3), 120, np.uint8), class_colors(truth), title="room")
    first, second = (np.asarray(cloud.points) for cloud in shown)
    assert second[:, 0].min() > first[:, 0].max()
    assert np.allclose(np.asarray(shown[1].colors) * 255, class_colors(truth))
