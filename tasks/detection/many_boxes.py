"""Training on images with thousands of boxes in the memory of those with a hundred.

DINO (https://arxiv.org/abs/2203.03605) makes at least two denoising queries of each box, which all
go through the decoder: mmdetection's ``num_dn_queries`` bounds their groups, and not the boxes of
one group. Assigners hold several matrices of predictions by boxes at a time. AI-TOD and VisDrone
have images of 2,700 boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models import DINO, DINOHead
from mmdet.models.layers.transformer.dino_layers import CdnQueryGenerator
from mmdet.models.task_modules.assigners import BboxOverlaps2D
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

__all__ = ["BoundedDINO", "BoundedDINOHead", "CostInParts", "OverlapsInParts"]

PAIRS_AT_ONCE = 2**20


class BoundedCdnQueryGenerator(CdnQueryGenerator):
    """Makes denoising queries of at most ``num_dn_queries`` boxes an image, drawn anew each time.

    With no more boxes than that it is mmdetection's, to the random numbers that it draws.
    """

    def __call__(self, batch_data_samples: Sequence[DetDataSample]) -> tuple:
        """As mmdetection's; the dict of its result has which boxes were taken, as ``denoised``."""
        samples, denoised = [], []
        for sample in batch_data_samples:
            boxes = sample.gt_instances
            taken = self._take(boxes)
            samples.append(
                DetDataSample(metainfo=sample.metainfo, gt_instances=boxes[taken])
            )
            denoised.append(taken)
        *queries, meta = super().__call__(samples)
        return *queries, {**meta, "denoised": denoised}

    def _take(self, boxes: InstanceData) -> Tensor | slice:
        if not self.dynamic_dn_groups or len(boxes) <= self.num_dn_queries:
            return slice(None)
        order = torch.randperm(len(boxes), device=boxes.labels.device)
        return order[: self.num_dn_queries].sort().values


@MODELS.register_module()
class BoundedDINOHead(DINOHead):
    """``DINOHead`` whose denoising queries may be of some of the boxes only."""

    def get_dn_targets(
        self,
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Sequence[dict],
        dn_meta: dict[str, Any],
    ) -> tuple:
        """As ``DINOHead``'s, of the boxes that queries were made of: all, of another generator."""
        if "denoised" in dn_meta:
            boxes = zip(batch_gt_instances, dn_meta["denoised"], strict=True)
            batch_gt_instances = [b[taken] for b, taken in boxes]
        return super().get_dn_targets(batch_gt_instances, batch_img_metas, dn_meta)


@MODELS.register_module()
class BoundedDINO(DINO):
    """DINO with at most ``dn_cfg.group_cfg.num_dn_queries`` boxes an image to be denoised.

    mmdetection makes queries of all boxes, 5,400 of 2,700, and the decoder's attention grows with
    their square. Names of parameters are the same, and so is everything for images with no more
    boxes than that. All boxes stay what queries are matched with.

    Raises:
        ValueError: its head is not a ``BoundedDINOHead``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.bbox_head, BoundedDINOHead):
            raise ValueError(
                f"BoundedDINO has a {type(self.bbox_head).__name__} for its head: "
                "bbox_head=dict(type='BoundedDINOHead') knows which boxes were denoised."
            )
        # Not built anew, which would draw its weights again.
        self.dn_query_generator.__class__ = BoundedCdnQueryGenerator


@TASK_UTILS.register_module()
class CostInParts:
    """The sum of several match costs, of some boxes after the other where there are many.

    The same values; its result is all that grows with predictions by boxes, and not some ten
    matrices of that size.

    Args:
        costs: configs of the costs, in the order in which they are summed.
        pairs_at_once: predictions by boxes.
    """

    def __init__(self, costs: Sequence[dict], pairs_at_once: int = PAIRS_AT_ONCE) -> None:
        self.costs = [TASK_UTILS.build(cost) for cost in costs]
        self.pairs_at_once = pairs_at_once

    @torch.no_grad()
    def __call__(
        self, pred_instances: InstanceData, gt_instances: InstanceData, **kwargs: Any
    ) -> Tensor:
        """Returns (predictions, boxes)."""
        # Not of some predictions after the other: what a logarithm returns can depend, by its last
        # bit, on where a value lies in a tensor.
        count, columns = len(gt_instances), max(1, self.pairs_at_once // len(pred_instances))
        if count <= columns:
            return self._sum(pred_instances, gt_instances, **kwargs)
        parts = [gt_instances[start : start + columns] for start in range(0, count, columns)]
        return torch.cat([self._sum(pred_instances, part, **kwargs) for part in parts], dim=1)

    def _sum(self, predictions: InstanceData, boxes: InstanceData, **kwargs: Any) -> Tensor:
        costs = [c(pred_instances=predictions, gt_instances=boxes, **kwargs) for c in self.costs]
        return torch.stack(costs).sum(dim=0)


@TASK_UTILS.register_module()
class OverlapsInParts(BboxOverlaps2D):
    """``BboxOverlaps2D`` of some boxes after the other where there are many: the same values.

    Its result is all that grows with boxes by anchors, as in ``CostInParts``.
    """

    def __call__(
        self, bboxes1: Any, bboxes2: Any, mode: str = "iou", is_aligned: bool = False
    ) -> Tensor:
        """As ``BboxOverlaps2D``'s."""
        boxes, others = get_box_tensor(bboxes1), get_box_tensor(bboxes2)
        rows = max(1, PAIRS_AT_ONCE // max(1, len(others)))
        if is_aligned or len(boxes) <= rows:
            return super().__call__(boxes, others, mode, is_aligned)
        overlaps: Tensor | None = None
        for start in range(0, len(boxes), rows):
            part = super().__call__(boxes[start : start + rows], others, mode)
            if overlaps is None:
                overlaps = part.new_empty(len(boxes), len(others))
            overlaps[start : start + rows] = part
        assert overlaps is not None
        return overlaps
