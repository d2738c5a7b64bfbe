"""Rooms of other sets than S3DIS: their classes, folders, colours and labels."""

import numpy as np
import pytest

pytest.importorskip("mmengine")
import torch

from tasks.pointcloud import PointSegmentationMetric, RoomDataset
from tasks.pointcloud.room_files import BadRoomError, find_rooms, read_room
from tasks.pointcloud.room_writing import write_ply
from tasks.pointcloud.structures import IGNORE

CLASSES = ("ground", "building", "high tree")
COORD = np.random.default_rng(0).random((6, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 2, 1, 0])


def write_cloudcompare(file, labels, name="scalar_Classification"):
    """An ASCII .ply as CloudCompare saves a cloud with one scalar field and no colours."""
    header = ["ply", "format ascii 1.0", "comment Created by CloudCompare", "element vertex 6"]
    header += [f"property float {axis}" for axis in "xyz"] + [f"property float {name}"]
    lines = [
        " ".join(map(str, [*point, label])) for point, label in zip(COORD, labels, strict=True)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*header, "end_header", *lines]) + "\n")
    return file


def test_cloudcompares_labels_count_in_the_order_of_own_classes(tmp_path):
    pytest.importorskip("open3d")
    labels = [0.0, 1.0, 2.0, 2.0, float("nan"), 0.0]
    file = write_cloudcompare(tmp_path / "site.ply", labels)
    room = read_room(file, CLASSES, colors=False)
    assert room.segment.tolist() == [0, 1, 2, 2, IGNORE, 0]
    assert not room.color.any()
    assert not room.has_colors


def test_files_without_colours_are_refused_with_the_remedy(tmp_path):
    pytest.importorskip("open3d")
    file = write_cloudcompare(tmp_path / "site.ply", LABELS)
    with pytest.raises(BadRoomError, match=r"site\.ply has no colours.*colors=False"):
        read_room(file, CLASSES)
    np.save(tmp_path / "coord.npy", COORD)
    with pytest.raises(FileNotFoundError, match=r"color\.npy does not exist.*colors=False"):
        read_room(tmp_path, CLASSES)
    assert not read_room(tmp_path, CLASSES, colors=None).has_colors


def test_labels_of_the_file_are_numbered_anew(tmp_path):
    pytest.importorskip("open3d")
    file = write_cloudcompare(tmp_path / "site.ply", [2, 6, 5, 5, 1, 2])
    room = read_room(file, CLASSES, colors=False, numbers=[2, 6, 5])
    assert room.segment.tolist() == [0, 1, 2, 2, IGNORE, 0]
    with pytest.raises(BadRoomError, match=r"labels are out of range: 5, 6.*numbers="):
        read_room(file, CLASSES, colors=False)
    with pytest.raises(ValueError, match="has to be 3 different labels, one for each of ground"):
        read_room(file, CLASSES, colors=False, numbers=[2, 6])
    with pytest.raises(BadRoomError, match=r"none of its labels is one of numbers=\[7, 8, 9\]"):
        read_room(file, CLASSES, colors=False, numbers=[7, 8, 9])


def test_the_classes_of_s3dis_still_need_an_order(tmp_path):
    np.save(tmp_path / "room.npy", np.column_stack([COORD, COORD * 255, LABELS]))
    with pytest.raises(BadRoomError, match="does not say which class its labels mean"):
        read_room(tmp_path / "room.npy")
    assert read_room(tmp_path / "room.npy", class_order="openpoints").segment.tolist() == [*LABELS]


@pytest.mark.parametrize("columns", [3, 6, 7])
def test_a_npy_file_may_have_colours_and_labels(columns, tmp_path):
    values = np.column_stack([COORD, np.full((6, 3), 200), LABELS]).astype(np.float32)
    np.save(tmp_path / "room.npy", values[:, :columns])
    room = read_room(tmp_path / "room.npy", CLASSES, colors=None)
    assert np.array_equal(room.coord, COORD)
    assert (room.color == (200 if columns > 3 else 0)).all()
    assert (room.segment is None) == (columns < 7)


def test_a_npy_file_of_another_shape_is_named(tmp_path):
    np.save(tmp_path / "room.npy", np.zeros((6, 4)))
    with pytest.raises(BadRoomError, match=r"room\.npy has the shape \(6, 4\), expected"):
        read_room(tmp_path / "room.npy")


def test_rooms_are_found_in_folders_of_any_name(tmp_path):
    for place in ("north/a.npy", "north/b.npy", "south/c/coord.npy", "d.npy"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / place, COORD)
    names = [room.full_name for room in find_rooms(tmp_path, ["north", "south", "."])]
    assert names == ["north/a", "north/b", "south/c", "./d"]
    with pytest.raises(FileNotFoundError, match="east does not exist or is empty"):
        find_rooms(tmp_path, ["east"])
    (tmp_path / "north/a.ply").touch()
    with pytest.raises(BadRoomError, match="north/a is there twice"):
        find_rooms(tmp_path, ["north"])


def test_names_with_spaces_come_back_from_a_ply_file(tmp_path):
    pytest.importorskip("open3d")
    color = np.full((6, 3), 200, np.uint8)
    write_ply(tmp_path / "site.ply", COORD, color, LABELS, CLASSES)
    assert read_room(tmp_path / "site.ply", CLASSES).segment.tolist() == LABELS.tolist()
    with pytest.raises(BadRoomError, match="has its labels in the order ground, building, high"):
        read_room(tmp_path / "site.ply", (*CLASSES[:2], "low tree"))


def test_where_a_survey_lies_is_kept(tmp_path):
    place = np.array([500_000, 5_000_000, 0])
    np.save(tmp_path / "coord.npy", COORD.astype(np.float64) + place)
    room = read_room(tmp_path, CLASSES, colors=False)
    assert room.origin == (500_000, 5_000_000, 0)
    assert np.abs(room.coord - COORD).max() < 1e-6


def dataset(root, **settings):
    return RoomDataset(
        data_root=str(root),
        areas=["."],
        metainfo={"classes": CLASSES},
        colors=False,
        pipeline=[{"type": "AddHeight"}, {"type": "PackRoom"}],
        **settings,
    )


def test_rooms_without_labels_are_for_tests_alone(tmp_path):
    np.save(tmp_path / "room.npy", COORD)
    assert "gt_segment" not in dataset(tmp_path, test_mode=True)[0]["data_samples"]
    with pytest.raises(BadRoomError, match=r"room\.npy has no labels: training needs them"):
        dataset(tmp_path)[0]


def test_rooms_without_labels_are_left_out_of_the_figures(tmp_path):
    metric = PointSegmentationMetric(label_folder=str(tmp_path))
    metric.dataset_meta = {"classes": CLASSES}
    found = torch.tensor([0, 1, 2])
    unknown = {"name": "./hall", "pred_segment": found, "full_resolution": True}
    metric.process({}, [unknown])
    assert metric.compute_metrics(metric.results) == {}
    metric.process({}, [{**unknown, "name": "./office", "gt_segment": found.clone()}])
    assert metric.compute_metrics(metric.results)["full_resolution/mIoU"] == 1
    assert (tmp_path / "._hall.txt").read_text() == "0\n1\n2\n"
    with pytest.raises(ValueError, match=r"office: label_folder is for labels of every point"):
        metric.process({}, [{**unknown, "name": "./office", "full_resolution": False}])


def test_written_labels_have_the_figures_of_the_metric(tmp_path):
    metric = PointSegmentationMetric(label_folder=str(tmp_path / "labels"))
    metric.dataset_meta = {"classes": CLASSES}
    truth = {f"Area_5/office_{n}": torch.randint(0, 3, (50 * n,)) for n in (1, 2)}
    for name, labels in truth.items():
        found = torch.where(torch.rand(len(labels)) < 0.3, (labels + 1) % 3, labels)
        sample = {"name": name, "gt_segment": labels, "pred_segment": found}
        metric.process({}, [{**sample, "full_resolution": True}])
    figures = metric.compute_metrics(metric.results)
    files = sorted((tmp_path / "labels").iterdir())
    assert [file.name for file in files] == ["Area_5_office_1.txt", "Area_5_office_2.txt"]
    # A line a point, in the order of the room's.
    found = np.concatenate([np.loadtxt(file, dtype=int) for file in files])
    wanted = np.concatenate([labels.numpy() for labels in truth.values()])
    ious = [
        ((found == n) & (wanted == n)).sum() / ((found == n) | (wanted == n)).sum()
        for n in range(3)
    ]
    assert figures["full_resolution/mIoU"] == pytest.approx(np.mean(ious), rel=1e-12)
    assert figures["full_resolution/OA"] == pytest.approx((found == wanted).mean(), rel=1e-12)
