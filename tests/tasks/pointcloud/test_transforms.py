import logging

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
from mmengine.registry import TRANSFORMS

import tasks.pointcloud  # noqa: F401
from tasks.pointcloud.grouping import group_points
from tasks.pointcloud.voxels import voxel_keys

RANDOM = [
    {"type": "VoxelSubsample", "voxel_size": 0.5},
    {"type": "SphereCrop", "num_points": 300},
    {"type": "BlockCrop", "num_points": 300},
    {"type": "RotatePoints"},
    {"type": "ScalePoints"},
    {"type": "JitterPoints"},
    {"type": "ContrastColors", "prob": 1},
    {"type": "JitterColors", "prob": 1},
]
FIXED = [{"type": "AddHeight"}, {"type": "CenterOnFloor"}, {"type": "DropColors", "prob": 1}]


def make_room(count=2000, seed=0):
    random = np.random.default_rng(seed)
    return {
        "coord": random.uniform((10, 20, 1), (14, 23, 4), (count, 3)).astype(np.float32),
        "color": random.integers(40, 200, (count, 3)).astype(np.float32),
        "segment": random.integers(0, 13, count),
        "name": "Area_1/office_1",
        "area": 1,
        "path": "data/Area_1/office_1",
    }


def apply(config, room, seed=0):
    np.random.seed(seed)  # noqa: NPY002
    return TRANSFORMS.build(config)(room)


def rows(room):
    """Its points as a set, to see which are there."""
    return {tuple(row) for row in np.column_stack([room["coord"], room["color"], room["segment"]])}


@pytest.mark.parametrize("config", RANDOM + FIXED, ids=lambda config: config["type"])
def test_the_room_that_comes_in_is_not_changed(config):
    room = make_room()
    before = {key: np.copy(room[key]) for key in ("coord", "color", "segment")}
    apply(config, room)
    assert all(np.array_equal(room[key], value) for key, value in before.items())


@pytest.mark.parametrize("config", RANDOM + FIXED, ids=lambda config: config["type"])
def test_types_and_lengths_stay_those_of_a_room(config):
    found = apply(config, make_room())
    assert found["coord"].dtype == found["color"].dtype == np.float32
    assert found["segment"].dtype == np.int64
    assert len(found["coord"]) == len(found["color"]) == len(found["segment"])
    assert found["name"] == "Area_1/office_1"


@pytest.mark.parametrize("config", RANDOM, ids=lambda config: config["type"])
def test_the_seed_decides_what_is_drawn(config):
    once, again, other = (apply(config, make_room(), seed) for seed in (1, 1, 2))
    keys = ("coord", "color", "segment")
    assert all(np.array_equal(once[key], again[key]) for key in keys)
    assert not all(np.array_equal(once[key], other[key]) for key in keys)


def test_voxel_subsample_keeps_one_point_of_each_voxel():
    room = make_room()
    found = apply({"type": "VoxelSubsample", "voxel_size": 0.5}, room)
    assert rows(found) < rows(room)
    # A grid of its own would begin at another corner.
    corner = room["coord"].min(axis=0)
    keys = voxel_keys(np.vstack([corner, found["coord"]]), 0.5)[1:]
    assert len(set(keys)) == len(keys) == len(set(voxel_keys(room["coord"], 0.5)))


def test_sphere_crop_keeps_the_points_nearest_to_one_of_them():
    room = make_room()
    found = apply({"type": "SphereCrop", "num_points": 300}, room)
    assert len(rows(found)) == 300
    assert rows(found) < rows(room)
    distances = np.linalg.norm(found["coord"][:, None] - room["coord"][None], axis=2)
    reach = np.sort(distances, axis=1)[:, 299]
    inside = np.linalg.norm(found["coord"][:, None] - found["coord"][None], axis=2).max(axis=1)
    assert (inside <= reach + 1e-6).any()


def test_block_crop_keeps_what_stands_on_a_square():
    room = make_room(20_000)
    found = apply({"type": "BlockCrop", "num_points": 500, "block_size": 1.0}, room)
    assert len(rows(found)) == 500
    assert (np.ptp(found["coord"][:, :2], axis=0) <= 1.0 + 1e-5).all()
    assert np.ptp(found["coord"][:, 2]) > 2.5


@pytest.mark.parametrize("kind", ["SphereCrop", "BlockCrop"])
def test_a_room_smaller_than_a_crop_is_repeated_and_named_once(kind, caplog):
    transform = TRANSFORMS.build({"type": kind, "num_points": 500})
    room = make_room(200)
    room["coord"] = room["coord"] / 4
    with caplog.at_level(logging.WARNING, logger="mmengine"):
        found = [transform(room) for _ in range(2)]
    assert all(len(crop["coord"]) == 500 for crop in found)
    assert rows(found[0]) == rows(room)
    assert np.array_equal(found[0]["coord"][:200], room["coord"])


@pytest.mark.parametrize("kind", ["SphereCrop", "BlockCrop"])
def test_the_message_about_a_small_room_says_what_to_do(kind, monkeypatch):
    said = []
    module = TRANSFORMS.get(kind).__module__
    monkeypatch.setattr(f"{module}.print_log", lambda message, **_: said.append(message))
    transform = TRANSFORMS.build({"type": kind, "num_points": 500})
    for _ in range(3):
        transform(make_room(200))
    (message,) = said
    assert message.startswith(
        "Area_1/office_1 has 200 points after subsampling, fewer than the 500"
    )
    assert "A smaller voxel_size or num_points avoids that" in message


def test_a_block_with_few_points_in_a_large_room_is_no_small_room(monkeypatch):
    said = []
    module = TRANSFORMS.get("BlockCrop").__module__
    monkeypatch.setattr(f"{module}.print_log", lambda message, **_: said.append(message))
    found = apply({"type": "BlockCrop", "num_points": 1000, "block_size": 0.5}, make_room())
    assert len(found["coord"]) == 1000
    assert said == []


def test_a_crop_of_no_points_is_an_error():
    with pytest.raises(ValueError, match="num_points is the size of a crop"):
        TRANSFORMS.build({"type": "SphereCrop", "num_points": 0})


def test_height_is_that_above_the_lowest_point():
    room = make_room()
    found = apply({"type": "AddHeight"}, room)
    assert found["height"].min() == 0
    assert np.array_equal(found["height"], room["coord"][:, 2] - room["coord"][:, 2].min())


def test_height_stays_that_of_the_room_in_crops_and_under_augmentation():
    room = apply({"type": "AddHeight"}, make_room())
    by_color = {tuple(c): h for c, h in zip(room["color"], room["height"], strict=True)}
    for config in ({"type": "SphereCrop", "num_points": 50}, {"type": "ScalePoints"}, FIXED[1]):
        room = apply(config, room)
    assert len(room["height"]) == 50
    for color, height in zip(room["color"], room["height"], strict=True):
        assert by_color[tuple(color)] == height


def test_centred_on_the_floor():
    room = make_room()
    found = apply({"type": "CenterOnFloor"}, room)["coord"]
    assert np.abs(found[:, :2].mean(axis=0)).max() < 1e-5
    assert found[:, 2].min() == 0
    moves = room["coord"] - found
    assert np.abs(moves - moves[0]).max() < 1e-5


def test_rotation_keeps_heights_and_distances_from_the_axis():
    room = make_room()
    found = apply({"type": "RotatePoints"}, room)["coord"]
    assert np.array_equal(found[:, 2], room["coord"][:, 2])
    radii = [np.linalg.norm(c[:, :2].astype(np.float64), axis=1) for c in (found, room["coord"])]
    assert np.abs(radii[0] - radii[1]).max() < 1e-5
    assert np.abs(found - room["coord"]).max() > 0.1


def test_rotation_stays_within_its_largest_angle():
    for seed in range(50):
        room = {"coord": np.array([[1, 0, 0]], np.float32)}
        ((x, y, _),) = apply({"type": "RotatePoints", "max_angle": 30}, room, seed)["coord"]
        assert abs(np.degrees(np.arctan2(y, x))) <= 30


def test_scaling_has_a_factor_for_each_axis():
    room = make_room()
    factors = apply({"type": "ScalePoints", "factors": (0.8, 1.25)}, room)["coord"] / room["coord"]
    assert np.abs(factors - factors[0]).max() < 1e-5
    assert (factors[0] >= 0.8).all()
    assert (factors[0] <= 1.25).all()
    assert len(set(factors[0].round(4))) == 3


def test_points_move_a_little_and_not_far():
    room = make_room(20_000)
    moves = apply({"type": "JitterPoints", "sigma": 0.01, "clip": 0.02}, room)["coord"].astype(
        np.float64
    ) - room["coord"].astype(np.float64)
    assert np.abs(moves).max() <= 0.02 + 2e-6
    # A normal distribution cut at two deviations has 0.88 of them, its edges counted as they are.
    assert 0.009 < moves.std() < 0.01


def test_contrast_stretches_each_channel_towards_the_full_range_by_a_random_share():
    room = make_room()
    room["color"][:, 2] = room["color"][:, 2] / 4 + 90
    low, high = room["color"].min(axis=0), room["color"].max(axis=0)
    shares = []
    for seed in range(5):
        found = apply({"type": "ContrastColors", "prob": 1}, room, seed)["color"]
        # The darkest goes towards 0 and the brightest towards 255, all channels alike.
        share = 1 - found.min(axis=0) / low
        np.testing.assert_allclose(share, share[0], atol=1e-4)
        np.testing.assert_allclose(found.max(axis=0), high + share * (255 - high), atol=1e-2)
        shares.append(share[0])
    assert min(shares) > 0
    assert max(shares) < 1
    assert len(set(shares)) == 5


def test_contrast_leaves_a_channel_of_one_value():
    room = make_room()
    room["color"][:, 1] = 77
    found = apply({"type": "ContrastColors", "prob": 1}, room)["color"]
    assert np.isfinite(found).all()
    assert (found[:, 1] == 77).all()


def test_colour_jitter_stays_within_the_range():
    room = make_room()
    room["color"][::2], room["color"][1::2] = 0, 255
    found = apply({"type": "JitterColors", "sigma": 5, "prob": 1}, room)["color"]
    assert found.min() == 0
    assert found.max() == 255
    assert len(np.unique(found)) > 100


def test_dropped_colours_are_black():
    assert not apply({"type": "DropColors", "prob": 1}, make_room())["color"].any()


@pytest.mark.parametrize("kind", ["ContrastColors", "JitterColors", "DropColors"])
def test_colours_are_changed_as_often_as_asked_for(kind):
    room = make_room(50)
    transform = TRANSFORMS.build({"type": kind, "prob": 0.3})
    np.random.seed(0)  # noqa: NPY002
    times = sum(not np.array_equal(transform(room)["color"], room["color"]) for _ in range(1000))
    assert 250 < times < 350


def test_packed_points_are_what_the_network_takes():
    room = apply({"type": "AddHeight"}, make_room())
    packed = apply({"type": "PackPoints", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}, room)
    coord, feat = packed["inputs"]["coord"], packed["inputs"]["feat"]
    assert coord.dtype == feat.dtype == torch.float32
    assert np.array_equal(coord.numpy(), room["coord"])
    normal = (room["color"] / 255 - (0.5, 0.4, 0.3)) / (0.2, 0.2, 0.1)
    np.testing.assert_allclose(feat[:, :3].numpy(), normal, atol=1e-6)
    assert np.array_equal(feat[:, 3].numpy(), room["height"])
    sample = packed["data_samples"]
    assert sample.gt_segment.dtype == torch.int64
    assert np.array_equal(sample.gt_segment.numpy(), room["segment"])
    assert (sample.name, sample.area, sample.path) == (room["name"], 1, room["path"])


def test_groups_are_those_of_the_points_that_the_network_gets():
    room = apply({"type": "AddHeight"}, make_room(300))
    packed = apply({"type": "PackPoints"}, apply({"type": "ScalePoints"}, room))
    found = apply({"type": "GroupPoints", "group_size": 8}, packed)
    assert found["data_samples"] is packed["data_samples"]
    inputs = found["inputs"]
    expected = group_points(inputs["coord"][None], 8)
    assert inputs.keys() == {"coord", "feat", *expected}
    shapes = {name: tuple(values.shape) for name, values in inputs.items() if name in expected}
    assert shapes == {
        "centres_1": (75,), "neighbours_1": (75, 8), "centres_2": (18,), "neighbours_2": (18, 8)
    }  # fmt: skip
    assert all(torch.equal(inputs[name], values[0]) for name, values in expected.items())


def test_groups_of_a_room_that_is_not_packed_are_an_error():
    with pytest.raises(ValueError, match="put it after PackPoints"):
        apply({"type": "GroupPoints"}, make_room())


def test_packing_without_height_says_what_is_missing():
    with pytest.raises(ValueError, match=r"put dict\(type='AddHeight'\) into the pipeline"):
        apply({"type": "PackPoints"}, make_room())


def test_a_packed_room_has_all_points_as_they_are():
    room = apply({"type": "AddHeight"}, make_room())
    packed = apply({"type": "PackRoom"}, room)
    assert packed["inputs"].keys() == {"coord", "color", "height"}
    for key, values in packed["inputs"].items():
        assert np.array_equal(values.numpy(), room[key])
    assert np.array_equal(packed["data_samples"].gt_segment.numpy(), room["segment"])


def test_rooms_without_labels_are_packed_without():
    room = apply({"type": "AddHeight"}, make_room())
    del room["segment"]
    for kind in ("PackPoints", "PackRoom"):
        assert "gt_segment" not in apply({"type": kind}, room)["data_samples"]
