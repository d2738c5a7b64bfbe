"""Centres of the embedding's stages and their neighbours.

``PointViT`` finds them itself, or is given what ``GroupPoints`` has found in the data set's
workers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .neighbours import farthest_points, gather_points, nearest_points

__all__ = ["GROUPS", "REDUCTION", "STAGES", "group_points"]

# Each of the two stages of the embedding keeps a quarter of the points.
STAGES = 2
REDUCTION = 4
# What ``group_points`` returns, by name.
GROUPS = tuple(
    f"{name}_{stage}" for stage in range(1, STAGES + 1) for name in ("centres", "neighbours")
)


def group_points(coord: Tensor, group_size: int) -> dict[str, Tensor]:
    """Samples the centres of each stage, and finds their neighbours.

    Args:
        coord: (clouds, points, 3), metres.
        group_size: neighbours of a centre.

    Returns:
        For the stages s = 1 and 2, ``centres_s`` (clouds, centres) and ``neighbours_s`` (clouds,
        centres, group_size), int64, indices of the points of the stage before.

    Raises:
        ValueError: a stage has fewer points than ``group_size``, or a coordinate is not finite.
    """
    # The sample of a sample is its beginning, so that one sampling does for both stages.
    centres = farthest_points(coord, coord.shape[1] // REDUCTION)
    groups = {}
    for stage in range(1, STAGES + 1):
        centre = gather_points(coord, centres)
        neighbours, _ = nearest_points(centre, coord, group_size, checked=True)
        groups |= {f"centres_{stage}": centres, f"neighbours_{stage}": neighbours}
        coord, count = centre, centre.shape[1] // REDUCTION
        centres = torch.arange(count, device=coord.device).expand(len(coord), -1)
    return groups
