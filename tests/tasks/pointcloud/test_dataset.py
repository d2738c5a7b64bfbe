import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

from dr2net.openmmlab.random_state import SeededSampler
from tasks.pointcloud import RoomDataset
from tasks.pointcloud.class_names import CLASS_ORDERS, CLASSES
from tasks.pointcloud.room_files import BadRoomError
from tests.rooms import write_converted

PIPELINE = [
    {"type": "AddHeight"},
    {"type": "VoxelSubsample", "voxel_size": 0.1},
    {"type": "SphereCrop", "num_points": 200},
    {"type": "ContrastColors"},
    {"type": "ScalePoints"},
    {"type": "CenterOnFloor"},
    {"type": "RotatePoints"},
    {"type": "JitterPoints"},
    {"type": "DropColors"},
    {"type": "PackPoints"},
]
WHOLE = [{"type": "AddHeight"}, {"type": "PackRoom"}]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Two converted rooms an area, which tests must not change."""
    return write_converted(tmp_path_factory.mktemp("rooms"), rooms=2, points=800)


@pytest.fixture
def room(rooms, tmp_path):
    """A copy of one room, to be spoilt."""
    shutil.copytree(rooms / "Area_1/office_1", tmp_path / "Area_1/office_1")
    return tmp_path / "Area_1/office_1"


def test_items_are_the_rooms_of_the_areas(rooms):
    dataset = RoomDataset(data_root=str(rooms), areas=(5, 2), pipeline=WHOLE)
    names = [dataset[index]["data_samples"].name for index in range(len(dataset))]
    assert names == ["Area_2/office_1", "Area_2/office_2", "Area_5/office_1", "Area_5/office_2"]
    assert [dataset[index]["data_samples"].area for index in range(4)] == [2, 2, 5, 5]


def test_by_default_area_5_is_left_out(rooms):
    dataset = RoomDataset(data_root=str(rooms), pipeline=WHOLE)
    assert {dataset.get_data_info(i)["area"] for i in range(10)} == {1, 2, 3, 4, 6}


def test_rooms_are_counted_and_an_unfinished_conversion_is_said(room, monkeypatch):
    messages = []
    monkeypatch.setattr(
        "tasks.pointcloud.dataset.print_log", lambda text, **_: messages.append(text)
    )
    root = room.parents[1]
    RoomDataset(data_root=str(root), areas=[1], pipeline=WHOLE)
    assert messages == [f"{root}: 1 rooms, Area_1 1"]
    (root / "Area_1/office_2.77.partial").mkdir()
    RoomDataset(data_root=str(root), areas=[1], pipeline=WHOLE)
    assert "office_2.77.partial is of a conversion that goes on or was cut short" in messages[-1]


def test_an_item_has_the_points_of_the_files(rooms):
    item = RoomDataset(data_root=str(rooms), areas=[3], pipeline=WHOLE)[1]
    folder = rooms / "Area_3/office_2"
    assert np.array_equal(item["inputs"]["coord"], np.load(folder / "coord.npy"))
    assert np.array_equal(item["inputs"]["color"], np.load(folder / "color.npy"))
    assert np.array_equal(item["data_samples"].gt_segment, np.load(folder / "segment.npy"))


def test_a_loop_goes_through_the_rooms_again_with_other_random_numbers(rooms):
    dataset = RoomDataset(data_root=str(rooms), areas=[1], loop=3, pipeline=PIPELINE)
    assert len(dataset) == 6
    items = [dataset[index] for index in SeededSampler(dataset, shuffle=False, seed=0)]
    names = [item["data_samples"].name for item in items]
    assert names == ["Area_1/office_1", "Area_1/office_2"] * 3
    first = [items[index]["inputs"]["coord"] for index in (0, 2, 4)]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


def test_rooms_are_read_when_they_are_needed(room, rooms):
    (room / "coord.npy").write_bytes(b"")
    dataset = RoomDataset(data_root=str(room.parents[1]), areas=[1], pipeline=WHOLE)
    assert len(dataset) == 1
    with pytest.raises(BadRoomError, match=r"coord\.npy is not a whole"):
        dataset[0]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_epochs_are_the_same_whatever_the_workers(rooms, workers):
    def epochs(numbers, num_workers):
        dataset = RoomDataset(data_root=str(rooms), areas=[1, 2], loop=2, pipeline=PIPELINE)
        sampler = SeededSampler(dataset, seed=5)
        loader = DataLoader(
            dataset,
            batch_size=2,
            sampler=sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            collate_fn=pseudo_collate,
        )
        result = []
        for number in numbers:
            sampler.set_epoch(number)
            inputs = [batch["inputs"] for batch in loader]
            result.append(torch.cat([torch.stack(i[key]).flatten() for i in inputs for key in i]))
        return result

    unbroken = epochs([0, 1], 0)
    assert not torch.equal(*unbroken)
    (resumed,) = epochs([1], workers)
    assert torch.equal(resumed, unbroken[1])


def test_labels_come_in_the_order_asked_for(rooms):
    order = CLASS_ORDERS["openpoints"]
    dataset = RoomDataset(
        data_root=str(rooms),
        areas=[1],
        pipeline=WHOLE,
        class_order="pointcept",
        metainfo={"classes": order},
    )
    assert dataset.metainfo["classes"] == order
    found = dataset[0]["data_samples"].gt_segment.tolist()
    stored = np.load(rooms / "Area_1/office_1/segment.npy")
    assert [order[label] for label in found] == [CLASSES[label] for label in stored]


def test_files_in_another_order_are_an_error_that_names_the_room(rooms):
    dataset = RoomDataset(data_root=str(rooms), areas=[1], pipeline=WHOLE, class_order="kpconv")
    with pytest.raises(BadRoomError, match="Area_1/office_1 says that its labels are in the order"):
        dataset[0]


def test_colours_of_another_range_are_read_by_what_is_white(room):
    color = np.load(room / "color.npy")
    np.save(room / "color.npy", (color / 255).astype(np.float32))
    options = {"data_root": str(room.parents[1]), "areas": [1], "pipeline": WHOLE}
    with pytest.raises(BadRoomError, match=r"Area_1/office_1: colours .* say white=1"):
        RoomDataset(**options)[0]
    assert np.array_equal(RoomDataset(**options, white=1)[0]["inputs"]["color"], color)


def test_a_room_without_labels_is_named(room):
    (room / "segment.npy").unlink()
    dataset = RoomDataset(data_root=str(room.parents[1]), areas=[1], pipeline=WHOLE)
    with pytest.raises(BadRoomError, match="Area_1/office_1 has no labels"):
        dataset[0]


def test_missing_areas_are_named(room):
    with pytest.raises(FileNotFoundError, match="no room of Area_5, it has Area_1"):
        RoomDataset(data_root=str(room.parents[1]), areas=[1, 5], pipeline=WHOLE)
