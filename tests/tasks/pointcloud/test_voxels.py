import tracemalloc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmengine")
from tasks.pointcloud.voxels import Passes, crops, random_points, voxel_keys, voxel_numbers
from tests.rooms import write_converted

SHARED = Path(__file__).parents[4] / "shared/data/real/pointcloud/scannet_scene0000_00.bin"


def cloud(count=3000, seed=0):
    return np.random.default_rng(seed).uniform(5, 7, (count, 3)).astype(np.float32)


def test_points_share_a_key_where_they_share_a_voxel():
    coord = cloud()
    place = np.floor((coord - coord.min(axis=0)).astype(np.float64) / 0.2)
    same = (place[:, None] == place[None]).all(axis=2)
    keys = voxel_keys(coord, 0.2)
    assert np.array_equal(keys[:, None] == keys[None], same)


@pytest.mark.parametrize("size", [0, -0.1, float("nan")])
def test_a_voxel_has_a_size(size):
    with pytest.raises(ValueError, match="voxel_size is a length in metres above 0"):
        voxel_keys(cloud(), size)


def test_voxels_beyond_counting_are_an_error():
    with pytest.raises(ValueError, match="more voxels than 64 bits can number"):
        voxel_keys(cloud(), 1e-7)


def test_one_point_of_each_voxel_is_drawn_and_each_has_its_chance():
    coord = cloud(60)
    keys = voxel_keys(coord, 1.0)
    drawn = set()
    for seed in range(200):
        np.random.seed(seed)  # noqa: NPY002
        indices = random_points(voxel_numbers(coord, 1.0))
        assert np.array_equal(np.sort(keys[indices]), np.unique(keys))
        drawn.update(indices.tolist())
    assert drawn == set(range(60))


@pytest.mark.parametrize("voxel_size", [1e-4, 0.1, 0.5, 10])
def test_points_are_drawn_as_the_first_of_their_voxels_in_a_random_order(voxel_size):
    coord = cloud()
    numbers = voxel_numbers(coord, voxel_size)
    assert numbers.dtype == np.int32
    assert np.array_equal(np.unique(numbers), np.arange(numbers.max() + 1))
    for seed in range(20):
        np.random.seed(seed)  # noqa: NPY002
        found = random_points(numbers)
        np.random.seed(seed)  # noqa: NPY002
        order = np.random.permutation(len(coord))  # noqa: NPY002
        _, first = np.unique(voxel_keys(coord, voxel_size)[order], return_index=True)
        assert np.array_equal(found, order[first])


def passes_of_all(coord, voxel_size):
    """As many passes as the fullest voxel has points, (passes, V), whatever that costs."""
    keys = voxel_keys(coord, voxel_size)
    order = np.argsort(keys, kind="stable")
    _, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
    turns = np.arange(counts.max())[:, None]
    return np.sort(order[starts + turns % counts], axis=1)


def crowded(count=2000):
    """A room of which a scanner left so many points at the origin, in among the others.

    In whole 64ths of a metre, so that voxels of 0.25 m are the same with the origin and without.
    """
    random = np.random.default_rng(1)
    coord = np.round(cloud() * 64) / 64
    coord[0] = 5
    places = np.sort(random.integers(0, len(coord), count))
    at_origin = (random.integers(0, 4, (count, 3)) / 64).astype(np.float32)
    at_origin[0] = 0
    return np.insert(coord, places, at_origin, axis=0)


def test_every_pass_has_one_point_of_every_voxel_and_all_together_every_point():
    coord = cloud()
    keys = voxel_keys(coord, 0.2)
    found = Passes(coord, 0.2)
    assert len(found) == np.unique(keys, return_counts=True)[1].max()
    for indices in found:
        assert np.array_equal(np.sort(keys[indices]), np.unique(keys))
    assert set(np.concatenate(list(found))) == set(range(len(coord)))
    assert len(found.left_out) == len(found.stand_ins) == 0


def test_points_of_a_voxel_come_equally_often():
    coord = cloud()
    times = np.bincount(np.concatenate(list(Passes(coord, 0.2))))
    keys = voxel_keys(coord, 0.2)
    for key in np.unique(keys):
        assert np.ptp(times[keys == key]) <= 1


def test_one_pass_where_no_voxel_has_two_points():
    (indices,) = Passes(cloud(50), 1e-4)
    assert np.array_equal(indices, np.arange(50))


@pytest.mark.parametrize("voxel_size", [0.02, 0.04, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("room", ["real", "office", "home"])
def test_no_voxel_of_a_room_is_crowded(room, voxel_size, rooms):
    if room not in rooms:
        pytest.skip(f"no real room at {SHARED}")
    coord = rooms[room]
    found = Passes(coord, voxel_size)
    assert len(found.left_out) == 0
    assert np.array_equal(np.stack(list(found)), passes_of_all(coord, voxel_size))


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    found = {}
    for look in ("office", "home"):
        folder = write_converted(tmp_path_factory.mktemp(look), points=60_000, look=look)
        found[look] = np.load(next(folder.glob("Area_1/*/coord.npy")))
    if SHARED.is_file():
        found["real"] = np.fromfile(SHARED, np.float32).reshape(-1, 6)[:, :3]
    return found


def test_a_crowded_voxel_asks_for_no_more_passes_than_the_others():
    coord = crowded()
    found = Passes(coord, 0.25)
    at_origin = np.flatnonzero((coord < 1).all(axis=1))
    others = np.setdiff1d(np.arange(len(coord)), at_origin)
    # Those of the other points alone, and with each a point at the origin.
    alone = passes_of_all(coord[others], 0.25)
    assert len(found) == len(alone) < 32 < 100
    for number, (indices, expected) in enumerate(zip(found, alone, strict=True)):
        assert np.array_equal(np.setdiff1d(indices, at_origin), others[expected])
        assert np.array_equal(np.intersect1d(indices, at_origin), at_origin[number : number + 1])


def test_points_that_are_in_no_pass_have_the_nearest_one_of_their_voxel_that_is():
    coord = crowded()
    keys, found = voxel_keys(coord, 0.25), Passes(coord, 0.25)
    taken = np.unique(np.concatenate(list(found)))
    assert np.array_equal(np.union1d(taken, found.left_out), np.arange(len(coord)))
    assert len(taken) + len(found.left_out) == len(coord)
    for point, stand_in in zip(found.left_out[::50], found.stand_ins[::50], strict=True):
        candidates = taken[keys[taken] == keys[point]]
        distances = np.square(coord[candidates] - coord[point]).sum(axis=1)
        assert stand_in in candidates
        assert np.square(coord[stand_in] - coord[point]).sum() == distances.min()


@pytest.mark.parametrize(("points", "left_out"), [(32, 0), (33, 32)])
def test_a_voxel_of_few_points_is_not_crowded(points, left_out):
    coord = np.concatenate([cloud(50), np.full((points, 3), 6, np.float32)])
    found = Passes(coord, 1e-4)  # in which all others are alone
    assert len(found.left_out) == left_out
    assert len(found) == points - left_out


def test_passes_take_the_memory_of_one():
    coord = np.concatenate([cloud(200_000), np.zeros((2000, 3), np.float32)])
    found = Passes(coord, 0.05)
    tracemalloc.start()
    sizes = [len(indices) for indices in found]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(sizes) > 10
    assert peak < 6 * 8 * sizes[0]


@pytest.mark.parametrize("most", [1, 7, 100, 2999])
def test_crops_cover_every_point_and_have_one_size(most):
    coord = cloud(300 if most < 10 else 3000)
    found = crops(coord, most)
    assert {len(indices) for indices in found} == {most}
    assert {len(set(indices)) for indices in found} == {most}
    assert set(np.concatenate(found)) == set(range(len(coord)))


def test_a_crop_is_a_sphere():
    coord = cloud()
    for indices in crops(coord, 500):
        away = np.setdiff1d(np.arange(len(coord)), indices)
        # The centre is the point whose nearest 500 these are.
        distances = np.linalg.norm(coord[indices][:, None] - coord[None], axis=2)
        inside, outside = distances[:, indices].max(axis=1), distances[:, away].min(axis=1)
        assert (inside <= outside + 1e-6).any()


@pytest.mark.parametrize("most", [3000, 5000])
def test_a_cloud_that_is_small_enough_stays_whole(most):
    (indices,) = crops(cloud(), most)
    assert np.array_equal(indices, np.arange(3000))


def test_points_at_one_place_are_covered_too():
    assert set(np.concatenate(crops(np.ones((40, 3), np.float32), 7))) == set(range(40))
