"""Voxels: one point of each for training, every point of each over several passes for testing."""

from collections.abc import Iterator

import numpy as np
import torch

from .neighbours import nearest_points

# A voxel is crowded that has more points than this, and than so many times the points that one
# voxel of a hundred has or exceeds. The fullest voxels of rooms have up to 3.2 times those, by the
# rooms that tools/demos/furnished_rooms.py makes and a real one (ScanNet), in voxels of 0.02 to
# 0.5 m.
FEW = 32
CROWDED = 5


def voxel_keys(coord: np.ndarray, voxel_size: float) -> np.ndarray:
    """Number the voxels of points: int64 (N,), equal for points of the same voxel.

    The grid starts at the lowest coordinates of the points.

    Args:
        coord: Float (N, 3), metres.
        voxel_size: The edge of a voxel, metres.

    Raises:
        ValueError: ``voxel_size`` is not positive, or so small that voxels cannot be numbered.
    """
    if not voxel_size > 0:
        raise ValueError(f"voxel_size is a length in metres above 0, got {voxel_size}")
    place = np.floor((coord - coord.min(axis=0)) / np.float64(voxel_size))
    counts = place.max(axis=0) + 1
    if np.prod(counts) >= 2**62:
        raise ValueError(
            f"voxel_size={voxel_size} divides the cloud into more voxels than 64 bits can number; "
            "its points are spread too far, or voxels are far too small"
        )
    x, y, z = place.astype(np.int64).T
    return (x * int(counts[1]) + y) * int(counts[2]) + z


def voxel_numbers(coord: np.ndarray, voxel_size: float) -> np.ndarray:
    """Number the voxels that have points from 0 on, in the order of their keys: int32 (N,)."""
    return np.unique(voxel_keys(coord, voxel_size), return_inverse=True)[1].astype(np.int32)


def random_points(numbers: np.ndarray) -> np.ndarray:
    """Draw one point of each voxel from numpy's global random state; indices, int64 (V,).

    Args:
        numbers: Of the points' voxels, as ``voxel_numbers`` gives them.
    """
    order = np.random.permutation(len(numbers))  # noqa: NPY002 - seeded by the sampler
    # The first of each voxel in a random order of all, which is written last.
    drawn = np.empty(numbers.max() + 1, np.int64)
    drawn[numbers[order[::-1]]] = order[::-1]
    return drawn


class Passes:
    """Divides a cloud into passes of one point of every voxel each, together of every point.

    There are as many passes as the fullest voxel has points; the points of the others come again.

    A crowded voxel, such as the origin where a scanner puts what it has missed, asks for no more
    passes than the others do. What is left of its points is in none: ``left_out`` are their indices
    and ``stand_ins`` those of the nearest point of the voxel that is in one, both int64 (M,).

    Iterating gives the indices of the points of one pass after the other, int64 (V,), in the order
    of the cloud.

    Args:
        coord: Float (N, 3), metres.
        voxel_size: The edge of a voxel, metres.

    Attributes:
        limit: The most points of a voxel that is not crowded.
    """

    def __init__(self, coord: np.ndarray, voxel_size: float) -> None:
        keys = voxel_keys(coord, voxel_size)
        self._order = np.argsort(keys, kind="stable")
        _, self._starts, self._counts = np.unique(
            keys[self._order], return_index=True, return_counts=True
        )
        # Of fewer than a hundred voxels, the fullest does not decide what is crowded.
        many = int(np.percentile(self._counts, 99, method="lower"))
        self.limit = max(FEW, CROWDED * many)
        self._number = int(self._counts[self._counts <= self.limit].max())
        self.left_out, self.stand_ins = self._replace_points(coord)

    def _replace_points(self, coord: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        left_out, stand_ins = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for voxel in np.flatnonzero(self._counts > self.limit):
            points = self._order[self._starts[voxel] :][: self._counts[voxel]]
            taken, left = points[: self._number], points[self._number :]
            near, far = (torch.from_numpy(coord[some])[None] for some in (taken, left))
            nearest, _ = nearest_points(far, near, 1)
            left_out.append(left)
            stand_ins.append(taken[nearest.flatten().numpy()])
        return np.concatenate(left_out), np.concatenate(stand_ins)

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[np.ndarray]:
        for turn in range(self._number):
            yield np.sort(self._order[self._starts + turn % self._counts])


def crops(coord: np.ndarray, max_points: int) -> list[np.ndarray]:
    """Cover a cloud by overlapping spheres of ``max_points`` points; the whole if it has no more.

    The next sphere is around the point that those before have covered least: far from their
    centres, or not at all.

    Returns:
        Indices of points, int64 (max_points,) each, in the order of the cloud; every point is in
        one of them at least.
    """
    count = len(coord)
    if count <= max_points:
        return [np.arange(count)]
    coord = coord.astype(np.float64)
    covered = np.zeros(count)
    found = []
    while covered.min() == 0:
        centre = covered.argmin()
        distances = np.square(coord - coord[centre]).sum(axis=1)
        distances[centre] = -1  # in the sphere, even where others are at the same place
        nearest = np.sort(np.argpartition(distances, max_points - 1)[:max_points])
        reach = distances[nearest].max()
        # From 1 at the centre to just above 0 at the edge.
        covered[nearest] += 1.001 - distances[nearest] / max(reach, 1e-9)
        found.append(nearest)
    return found
