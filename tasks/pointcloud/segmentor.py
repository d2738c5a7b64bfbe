"""A model that gives every point of a cloud a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor

from .grouping import GROUPS
from .structures import IGNORE, NOT_FINITE, PointCloudSample

__all__ = ["PointCloudSegmentor"]


@MODELS.register_module()
class PointCloudSegmentor(BaseModel):
    """Backbone and head under cross-entropy.

    Args:
        backbone: config of a backbone, called with coordinates and features, and with what
            ``GroupPoints`` has put into the inputs as ``groups``.
        decode_head: config of a head, called with what the backbone returns.
        label_smoothing: share of the target that is spread over all classes.
        class_weight: one weight for each class.
        data_preprocessor, init_cfg: as in mmengine.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        decode_head: dict[str, Any],
        label_smoothing: float = 0.0,
        class_weight: Sequence[float] | None = None,
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor or {"type": "PointCloudDataPreprocessor"}, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.decode_head = MODELS.build(decode_head)
        self.label_smoothing = label_smoothing
        if class_weight is not None and len(class_weight) != self.decode_head.num_classes:
            raise ValueError(
                f"class_weight has {len(class_weight)} weights for "
                f"{self.decode_head.num_classes} classes."
            )
        weight = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float32)
        self.register_buffer("class_weight", weight, persistent=False)

    def forward(
        self,
        inputs: dict[str, Tensor],
        data_samples: list[PointCloudSample] | None = None,
        mode: str = "tensor",
    ) -> Tensor | dict[str, Tensor] | list[PointCloudSample]:
        """Runs the model.

        Args:
            inputs: ``coord`` (clouds, points, 3) and ``feat`` (clouds, points, channels); and what
                ``GroupPoints`` has found, where it is in the pipeline.
            data_samples: of each cloud; in the mode "loss" with ``gt_segment``.
            mode: as in mmengine.

        Returns:
            "tensor": logits, (clouds, classes, points). "loss": the loss, over the points whose
            label is not ``IGNORE``. "predict": the data samples with ``pred_segment`` and
            ``pred_logits``.
        """
        groups = {name: inputs[name] for name in GROUPS if name in inputs}
        given = {"groups": groups} if groups else {}
        logits = self.decode_head(*self.backbone(inputs["coord"], inputs["feat"], **given))
        if mode == "tensor":
            return logits
        if data_samples is None or mode not in ("loss", "predict"):
            raise ValueError(
                "forward takes mode='tensor', or 'loss' or 'predict' with data_samples; got "
                f"mode={mode!r}{' without data_samples' if data_samples is None else ''}."
            )
        if mode == "loss":
            target = torch.stack([sample.gt_segment for sample in data_samples])
            return {"loss_segment": self._loss(logits, target)}
        for sample, scores in zip(data_samples, logits, strict=True):
            if not scores.isfinite().all():
                raise ValueError(f"{sample.get('name')}: {NOT_FINITE}")
            sample.pred_logits = scores
            sample.pred_segment = scores.argmax(0)
        return data_samples

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        # Point by point: that of whole clouds has no deterministic form on a GPU.
        total = F.cross_entropy(
            logits.float().transpose(1, 2).flatten(0, 1),
            target.flatten(),
            self.class_weight,
            ignore_index=IGNORE,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        labelled = target != IGNORE
        if self.class_weight is None:
            count = labelled.sum()
        else:
            count = (self.class_weight[target.where(labelled, 0)] * labelled).sum()
        # A batch without a label has the loss 0, where the mean would be NaN.
        return total / count.clamp(min=torch.finfo(torch.float32).tiny)
