from importlib.util import find_spec

import numpy as np
import pytest
import torch

from tests.pointcloud_alone import CLOUDS, neighbours

farthest_points, nearest_points = neighbours.farthest_points, neighbours.nearest_points
gather_points = neighbours.gather_points
EVERY_CLOUD = pytest.mark.parametrize("cloud", list(CLOUDS))


def squared_distances(a, b):
    """In float32, rounded as the module states."""
    x, y, z = np.moveaxis(np.square(a - b), -1, 0)
    return (x + y) + z


def sample_by_definition(cloud, count):
    found, distance = [0], np.full(len(cloud), np.inf, dtype=np.float32)
    while len(found) < count:
        distance = np.minimum(distance, squared_distances(cloud, cloud[found[-1]]))
        left = [i for i in range(len(cloud)) if i not in found]
        found.append(max(left, key=lambda i: (distance[i], -i)))
    return found


@EVERY_CLOUD
@pytest.mark.parametrize(("points", "count"), [(1, 1), (7, 7), (100, 25), (333, 120)])
def test_each_sampled_point_is_the_farthest_and_ties_go_to_the_lowest_index(cloud, points, count):
    coord = CLOUDS[cloud](points)
    expected = [sample_by_definition(one, count) for one in coord.numpy()]
    assert farthest_points(coord, count).tolist() == expected


@EVERY_CLOUD
def test_the_sample_of_a_sample_is_its_beginning(cloud):
    coord = CLOUDS[cloud](256)
    sample = farthest_points(coord, 64)
    assert torch.equal(farthest_points(coord, 16), sample[:, :16])
    again = farthest_points(gather_points(coord, sample), 16)
    assert torch.equal(again, torch.arange(16).expand(2, -1))


def test_no_point_is_sampled_twice():
    sample = farthest_points(torch.ones(1, 50, 3), 50)
    assert torch.equal(sample, torch.arange(50)[None])


def test_sampled_points_are_those_of_open3d():
    open3d = pytest.importorskip("open3d")
    # Open3D samples in double precision. In sixteenths of a metre no distance is rounded.
    coord = torch.randint(0, 256, (1, 4000, 3)).unique(dim=1)[:, torch.randperm(3990)] / 16
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(coord[0].double().numpy()))
    theirs = np.asarray(cloud.farthest_point_down_sample(500).points)
    ours = gather_points(coord, farthest_points(coord, 500))[0].double().numpy()
    assert {tuple(point) for point in theirs} == {tuple(point) for point in ours}


def neighbours_by_definition(query, coord, count):
    distance = squared_distances(query[:, None], coord[None])
    order = np.argsort(distance, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(distance, order, axis=1)


@pytest.fixture(params=["plain", "tree"])
def method(request, monkeypatch):
    if request.param == "tree":
        pytest.importorskip("open3d")
        monkeypatch.setattr(neighbours, "TREE_PAIRS", 1)
    else:
        monkeypatch.setattr(neighbours, "_open3d", lambda: None)


@EVERY_CLOUD
@pytest.mark.parametrize("count", [1, 3, 32])
def test_neighbours_are_ordered_by_distance_and_then_by_index(cloud, count, method):
    coord = CLOUDS[cloud](300)
    # Points of the cloud, among them their own neighbours, and others.
    query = torch.cat([coord[:, ::4], CLOUDS["room"](40)], dim=1)
    index, squared = nearest_points(query, coord, count)
    for i in range(2):
        expected = neighbours_by_definition(query[i].numpy(), coord[i].numpy(), count)
        assert index[i].tolist() == expected[0].tolist()
        assert np.array_equal(squared[i].numpy(), expected[1])


def test_all_points_can_be_neighbours(method):
    coord = CLOUDS["grid"](40)
    index, _ = nearest_points(coord, coord, 40)
    assert torch.equal(index.sort().values, torch.arange(40).expand(2, 40, -1))


def test_neighbours_in_a_large_cloud_do_not_depend_on_the_method(monkeypatch):
    pytest.importorskip("open3d")
    coord = CLOUDS["room"](24000)[:1]
    coord[:, 12000:] = coord[:, :12000]  # as in a crop of a room with fewer points
    query = coord[:, ::80]
    found = nearest_points(query, coord, 32)
    monkeypatch.setattr(neighbours, "_open3d", lambda: None)
    for one, other in zip(found, nearest_points(query, coord, 32), strict=True):
        assert torch.equal(one, other)


def test_the_tree_s_distances_are_only_believed_where_they_decide(monkeypatch):
    """A tree that returns wrong points among equally far ones is put right."""
    pytest.importorskip("open3d")
    coord = torch.ones(1, 300, 3)  # the tree may return any
    asked = []
    plain = neighbours._keys_of_all_pairs
    monkeypatch.setattr(
        neighbours, "_keys_of_all_pairs", lambda q, c, k: asked.append(q.shape[1]) or plain(q, c, k)
    )
    monkeypatch.setattr(neighbours, "TREE_PAIRS", 1)
    index, _ = nearest_points(coord[:, :9], coord, 4)
    assert asked == [9]
    assert torch.equal(index, torch.arange(4).expand(1, 9, -1))


@pytest.mark.parametrize("elements", [1, 1000, 10**9])
def test_neighbours_do_not_depend_on_how_many_distances_are_in_memory(elements, monkeypatch):
    monkeypatch.setattr(neighbours, "_open3d", lambda: None)
    coord = CLOUDS["grid"](200)
    expected = nearest_points(coord, coord, 5)
    monkeypatch.setattr(neighbours, "CPU_ELEMENTS", elements)
    for one, other in zip(nearest_points(coord, coord, 5), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_coordinates_of_other_precision_are_taken(dtype):
    coord = CLOUDS["grid"](100)
    assert torch.equal(farthest_points(coord.to(dtype), 20), farthest_points(coord, 20))
    index, squared = nearest_points(coord.to(dtype), coord.to(dtype), 3)
    assert torch.equal(index, nearest_points(coord, coord, 3)[0])
    assert squared.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("triton", [True, False], ids=["kernels", "loop"])
@EVERY_CLOUD
def test_a_gpu_finds_what_a_cpu_finds(cloud, triton, monkeypatch):
    if not triton:
        monkeypatch.setattr(neighbours, "_kernels", lambda _: None)
    elif find_spec("triton"):
        assert neighbours._kernels(torch.device("cuda")) is not None
    coord = CLOUDS[cloud](1000)
    assert torch.equal(farthest_points(coord.cuda(), 250).cpu(), farthest_points(coord, 250))
    found = nearest_points(coord.cuda(), coord.cuda(), 32)
    for one, other in zip(found, nearest_points(coord, coord, 32), strict=True):
        assert torch.equal(one.cpu(), other)


def test_values_are_gathered_from_their_own_cloud():
    values = torch.arange(24.0).view(2, 4, 3)
    index = torch.tensor([[[3, 0]], [[1, 1]]])
    expected = torch.stack([values[0][index[0]], values[1][index[1]]])
    assert torch.equal(gather_points(values, index), expected)


@pytest.mark.parametrize("count", [0, 11])
def test_too_large_samples_and_neighbourhoods_are_refused(count):
    coord = torch.rand(2, 10, 3)
    with pytest.raises(ValueError, match=f"{count} points were asked for of clouds that have 10"):
        farthest_points(coord, count)
    with pytest.raises(ValueError, match=f"{count} neighbours were asked for in clouds that have"):
        nearest_points(coord, coord, count)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_coordinate_that_is_not_finite_is_named(value):
    coord = torch.rand(2, 10, 3)
    bad = coord.clone()
    bad[1, 7, 2] = value
    with pytest.raises(ValueError, match=r"coord is \[.*\] at point 7 of cloud 1: remove points"):
        farthest_points(bad, 3)
    with pytest.raises(ValueError, match=r"query is .* at point 7 of cloud 1"):
        nearest_points(bad, coord, 3)


@pytest.mark.parametrize(
    "coord", [torch.rand(10, 3), torch.rand(1, 10, 2), torch.ones(1, 9, 3).int()]
)
def test_other_shapes_and_whole_numbers_are_refused(coord):
    with pytest.raises(
        ValueError, match=r"coord has to be \(clouds, points, 3\) in floating point"
    ):
        farthest_points(coord, 3)
