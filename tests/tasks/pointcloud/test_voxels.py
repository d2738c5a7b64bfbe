import numpy as np
import pytest

pytest.importorskip("mmengine")
from tasks.pointcloud.voxels import crops, passes, random_points, voxel_keys


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
        indices = random_points(coord, 1.0)
        assert np.array_equal(np.sort(keys[indices]), np.unique(keys))
        drawn.update(indices.tolist())
    assert drawn == set(range(60))


def test_every_pass_has_one_point_of_every_voxel_and_all_together_every_point():
    coord = cloud()
    keys = voxel_keys(coord, 0.2)
    found = passes(coord, 0.2)
    assert len(found) == np.unique(keys, return_counts=True)[1].max()
    for indices in found:
        assert np.array_equal(np.sort(keys[indices]), np.unique(keys))
    assert set(found.ravel()) == set(range(len(coord)))


def test_points_of_a_voxel_come_equally_often():
    coord = cloud()
    times = np.bincount(passes(coord, 0.2).ravel())
    keys = voxel_keys(coord, 0.2)
    for key in np.unique(keys):
        assert np.ptp(times[keys == key]) <= 1


def test_one_pass_where_no_voxel_has_two_points():
    coord = cloud(50)
    assert passes(coord, 1e-4).shape == (1, 50)


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
