"""Voxels: one point of each for training, every point of each over several passes for testing."""

import numpy as np


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


def random_points(coord: np.ndarray, voxel_size: float) -> np.ndarray:
    """Draw one point of each voxel from numpy's global random state; indices, int64 (V,)."""
    order = np.random.permutation(len(coord))  # noqa: NPY002 - seeded by the sampler
    # The first of each voxel in a random order of all.
    _, first = np.unique(voxel_keys(coord, voxel_size)[order], return_index=True)
    return order[first]


def passes(coord: np.ndarray, voxel_size: float) -> np.ndarray:
    """Divide a cloud into passes that take one point of every voxel each, and all points together.

    There are as many passes as the fullest voxel has points; the points of the others come again.

    Returns:
        Indices of points, int64 (passes, V), those of each pass in the order of the cloud.
    """
    keys = voxel_keys(coord, voxel_size)
    order = np.argsort(keys, kind="stable")
    _, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
    turns = np.arange(counts.max())[:, None]
    return np.sort(order[starts + turns % counts], axis=1)


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
