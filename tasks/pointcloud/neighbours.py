"""Farthest-point sampling and nearest neighbours, with the same indices on every device.

Both compute squared distances as ((x - x')² + (y - y')²) + (z - z')² in float32, one rounding after
another. Among equal distances the lowest index comes first.

On a GPU, ``kernels`` does either in a few launches, where Triton is there. Everywhere else, plain
PyTorch does.

On a CPU, where Open3D is installed and the clouds are large, its k-d tree proposes the neighbours,
and what is returned is still decided by the distances above. Its farthest-point sampling returns
points in the order of the cloud instead of the order of selection, and is slower
(results/sampling_time.json). mmcv's compiled operators settle ties by the order of their threads.
So neither of those is used.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from math import isqrt
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["farthest_points", "gather_points", "nearest_points"]

# Elements of the matrix of distances at once: a CPU's cache, and half a gigabyte of a GPU.
CPU_ELEMENTS = 2**18
GPU_ELEMENTS = 2**25
# Pairs of points of one cloud from which on Open3D's tree is faster.
TREE_PAIRS = 2**17
# The tree is asked for this many neighbours more, and its distances are trusted to this accuracy,
# a thousand times more than its rounding in float32.
MORE = 8
TREE_ACCURACY = 2**-12


@torch.no_grad()
def farthest_points(coord: Tensor, count: int) -> Tensor:
    """Samples points, each the farthest from those before it; the first is point 0.

    Eldar et al., "The farthest point strategy for progressive image sampling", 1997. No point is
    taken twice, even where several lie at one place. The first m of the ``count`` points are the
    sample of m points, of the cloud and of the sample itself.

    Args:
        coord: (clouds, points, 3), metres.
        count: how many points of each cloud.

    Returns:
        (clouds, count) int64, in the order of selection.

    Raises:
        ValueError: a cloud has fewer than ``count`` points, or a coordinate is not finite.
    """
    _check_coordinates(coord, "coord")
    points = coord.shape[1]
    if not 1 <= count <= points:
        raise ValueError(f"{count} points were asked for of clouds that have {points}.")
    kernels = _kernels(coord.device)
    return (kernels.farthest_points if kernels else _farthest_by_loop)(coord.float(), count)


def _farthest_by_loop(coord: Tensor, count: int) -> Tensor:
    clouds, points, _ = coord.shape
    # The largest of many is found quickly, its place is not: so it is looked for in the first of
    # the segments that have it. Whole vectors of a CPU's instructions make a segment.
    length = -(-isqrt(points) // 32) * 32
    segments = -(-points // length)
    padding = segments * length - points
    x, y, z = F.pad(coord.permute(2, 0, 1), (0, padding)).contiguous()
    # A selected point, and what pads the last segment, has a distance below all others.
    distance = torch.full_like(x, torch.inf)
    distance[:, points:] = -1
    by_segment = distance.view(clouds, segments, length)
    to_newest, term = torch.empty_like(x), torch.empty_like(x)
    found = torch.empty(clouds, count, dtype=torch.int64, device=coord.device)
    newest = torch.zeros(clouds, 1, dtype=torch.int64, device=coord.device)
    found[:, :1] = newest
    for i in range(1, count):
        torch.sub(x, x.gather(1, newest), out=to_newest).mul_(to_newest)
        for axis in (y, z):
            torch.sub(axis, axis.gather(1, newest), out=term).mul_(term)
            to_newest.add_(term)
        torch.minimum(distance, to_newest, out=distance)
        distance.scatter_(1, newest, -1.0)
        segment = by_segment.amax(2).argmax(1, keepdim=True)
        inside = by_segment.gather(1, segment[:, :, None].expand(-1, 1, length)).argmax(2)
        newest = segment * length + inside
        found[:, i : i + 1] = newest
    return found


@torch.no_grad()
def nearest_points(
    query: Tensor, coord: Tensor, count: int, checked: bool = False
) -> tuple[Tensor, Tensor]:
    """Finds for every query the nearest points of its cloud.

    Args:
        query: (clouds, queries, 3), metres.
        coord: (clouds, points, 3), metres.
        count: how many neighbours.
        checked: the coordinates are known to be finite. To look takes some launches, and waits for
            a GPU.

    Returns:
        Indices into ``coord``, int64, and squared distances, float32, both (clouds, queries,
        count), nearest first.

    Raises:
        ValueError: a cloud has fewer than ``count`` points, or a coordinate is not finite.
    """
    if not checked:
        _check_coordinates(query, "query")
        _check_coordinates(coord, "coord")
    points = coord.shape[1]
    if not 1 <= count <= points:
        raise ValueError(f"{count} neighbours were asked for in clouds that have {points} points.")
    query, coord = query.float(), coord.float()
    if kernels := _kernels(coord.device):
        return kernels.nearest_points(query, coord, count)
    large = query.shape[1] * points >= TREE_PAIRS and points > count + MORE
    if large and query.device.type == "cpu" and (open3d := _open3d()):
        clouds = zip(query, coord, strict=True)
        keys = torch.stack([_keys_from_tree(open3d, q, c, count) for q, c in clouds])
    else:
        keys = _keys_of_all_pairs(query, coord, count)
    return _of_keys(keys)


def gather_points(values: Tensor, index: Tensor) -> Tensor:
    """Returns ``values`` (clouds, points, channels) at ``index`` (clouds, ...): (..., channels)."""
    clouds, points, _ = values.shape
    offset = torch.arange(0, clouds * points, points, device=index.device)
    rows = index + offset.view(-1, *[1] * (index.ndim - 1))
    return values.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, index.shape)


def _check_coordinates(coord: Tensor, name: str) -> None:
    if coord.ndim != 3 or coord.shape[2] != 3 or not coord.is_floating_point():
        raise ValueError(
            f"{name} has to be (clouds, points, 3) in floating point, got {tuple(coord.shape)} of "
            f"{coord.dtype}."
        )
    finite = coord.isfinite().all(2)
    if not finite.all():
        cloud, point = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"{name} is {coord[cloud, point].tolist()} at point {point} of cloud {cloud}: remove "
            "points whose coordinates are not finite."
        )


# A distance and an index as one whole number, which orders pairs by distance and then by index: the
# bits of floats that are not negative are ordered as the floats are.
def _keys(query: Tensor, coord: Tensor, index: Tensor) -> Tensor:
    """Keys of pairs; the shapes (..., 3), (..., 3) and (...) are broadcast."""
    distance, *terms = ((query[..., i] - coord[..., i]).square_() for i in range(3))
    for term in terms:
        distance = distance.add_(term)
    return distance.view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(index)


def _of_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and distances."""
    return keys & 0xFFFFFFFF, (keys >> 32).int().view(torch.float32)


def _keys_of_all_pairs(query: Tensor, coord: Tensor, count: int) -> Tensor:
    """The ``count`` lowest keys of each query, in order."""
    clouds, points, _ = coord.shape
    index = torch.arange(points, device=coord.device)
    elements = CPU_ELEMENTS if coord.device.type == "cpu" else GPU_ELEMENTS
    found = [
        _keys(some[:, :, None], coord[:, None], index).topk(count, largest=False).values
        for some in query.split(max(1, elements // (clouds * points)), dim=1)
    ]
    return torch.cat(found, dim=1)


@cache
def _open3d() -> Any:
    try:
        import open3d
    except (ImportError, OSError):  # not installed, or without the system libraries that it needs
        return None
    return open3d


def _keys_from_tree(open3d: Any, query: Tensor, coord: Tensor, count: int) -> Tensor:
    """As ``_keys_of_all_pairs``, of one cloud without its dimension."""
    arrays = [open3d.core.Tensor(points.contiguous().numpy()) for points in (coord, query)]
    tree = open3d.core.nns.NearestNeighborSearch(arrays[0])
    tree.knn_index()
    index, distance = (
        torch.from_numpy(found.numpy()) for found in tree.knn_search(arrays[1], count + MORE)
    )
    index = index.long()
    keys = _keys(query[:, None], coord[index], index).sort(1).values[:, :count]
    # Points that the tree has not returned are no nearer than the last that it has, up to rounding:
    # where that one is not clearly farther than those found, all points are gone through.
    farthest = (keys[:, -1] >> 32).int().view(torch.float32)
    unsure = farthest >= distance[:, -1] * (1 - TREE_ACCURACY)
    if unsure.any():
        keys[unsure] = _keys_of_all_pairs(query[unsure][None], coord[None], count)[0]
    return keys


def _kernels(device: torch.device) -> ModuleType | None:
    """Returns ``kernels`` where they serve on ``device``, else None, which is said once."""
    return _kernels_of(device) if device.type == "cuda" else None


@cache
def _kernels_of(device: torch.device) -> ModuleType | None:
    """The kernels, once they have given the loop's bits on ``device``."""
    try:
        from dr2net.kernels.trial import kernels_that_serve
    except ImportError:  # where a network was published, these files are without dr2net
        _do_without("dr2net is not installed, which tries them")
        return None
    return kernels_that_serve(
        device,
        lambda: import_module(".kernels", __package__),
        lambda kernels: _give_the_same_bits(kernels, device),
        _do_without,
    )


def _do_without(reason: str) -> None:
    warnings.warn(
        f"Triton's kernels for sampling and search do not serve ({reason}): PyTorch's operations "
        "take their place, with the same results in more time. GroupPoints at the end of the "
        "pipeline samples in the data set's workers instead (docs/pointcloud.md).",
        stacklevel=2,
    )


def _give_the_same_bits(kernels: ModuleType, device: torch.device) -> bool:
    """Whether ``kernels`` find on ``device`` what a CPU finds, in a cloud where distances tie."""
    coord = torch.arange(2 * 1100 * 3, dtype=torch.float32).sin().view(2, 1100, 3)
    coord[:, 1000:] = coord[:, :100]
    query = coord[:, ::50]
    there, asked = coord.to(device), query.to(device)
    expected = [_farthest_by_loop(coord, 64), *_of_keys(_keys_of_all_pairs(query, coord, 5))]
    found = [kernels.farthest_points(there, 64), *kernels.nearest_points(asked, there, 5)]
    return all(torch.equal(a, b.cpu()) for a, b in zip(expected, found, strict=True))
