"""What a dataset says of one point cloud beside its points, and what a model says of it."""

from __future__ import annotations

from mmengine.structures import BaseDataElement
from torch import Tensor

__all__ = ["IGNORE", "NOT_FINITE", "PointCloudSample"]

# The label of points that are neither learned nor counted.
IGNORE = 255
NOT_FINITE = (
    "the network returned NaN or infinity, which is no prediction. Look for NaN in the checkpoint "
    "and in the training's loss"
)


class PointCloudSample(BaseDataElement):
    """Labels of the N points of one cloud, in the order of its coordinates.

    ``gt_segment`` and ``pred_segment`` are int64 (N,), ``pred_logits``, where a model gives it,
    float (classes, N). Meta information says where the points come from, ``name`` first of all.
    """

    gt_segment: Tensor
    pred_segment: Tensor
    pred_logits: Tensor
