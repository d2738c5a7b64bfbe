"""Backbone over the chunks of a window, pyramid over their features, head: trained end to end."""

import torch
import torch.nn.functional as F
from mmaction.structures import ActionDataSample
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor


@MODELS.register_module()
class ActionLocalizer(BaseModel):
    """Finds actions in windows of a video.

    A window is a batch of chunks for the backbone, whose features are averaged over the frame and
    joined over time, as in AdaTAD (Liu et al., https://arxiv.org/abs/2311.17241).

    Args:
        backbone: From (chunks, 3, frames, height, width) to (chunks, channels, time, y, x).
        pyramid: From (windows, channels, positions) and masks to those of the levels.
        head: As ``ActionFormerHead``.
        positions: Features of a window, to which those of the backbone are interpolated.
        chunks_at_once: So many chunks run through the backbone at once, groups one after the
            other; None runs all of them. With a reversible backbone a window's memory then grows
            by its streams alone. The result is the same but for the order in which gradients of
            weights are summed, and which random numbers stochastic depth draws.
        score_threshold: Predictions below are dropped.
        max_per_window: Predictions of a window at most, over all classes.
        frozen_backbone: The backbone's weights are not trained and it computes as in testing, so
            that nothing of it is kept for backward: training on features as they come.
        data_preprocessor: As in mmengine's ``BaseModel``.
    """

    def __init__(
        self,
        backbone: dict,
        pyramid: dict,
        head: dict,
        positions: int = 768,
        chunks_at_once: int | None = None,
        score_threshold: float = 0.001,
        max_per_window: int = 2000,
        frozen_backbone: bool = False,
        data_preprocessor: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor)
        if chunks_at_once is not None and chunks_at_once < 1:
            raise ValueError(f"chunks_at_once is at least 1 or None, got {chunks_at_once}")
        self.backbone = MODELS.build(backbone)
        self.pyramid = MODELS.build({**pyramid, "positions": positions})
        self.head = MODELS.build(head)
        self.positions = positions
        self.chunks_at_once = chunks_at_once
        self.score_threshold = score_threshold
        self.max_per_window = max_per_window
        self.frozen_backbone = frozen_backbone
        if frozen_backbone:
            self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "ActionLocalizer":
        """As in PyTorch, but that a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.frozen_backbone:
            self.backbone.eval()
        return self

    def forward(
        self, inputs: Tensor, data_samples: list[ActionDataSample], mode: str = "tensor"
    ) -> dict[str, Tensor] | list[ActionDataSample] | tuple[list[Tensor], list[Tensor]]:
        """Losses ("loss"), data samples with ``pred_instances`` ("predict"), or features.

        Args:
            inputs: Float (windows, chunks, 3, frames, height, width).
            data_samples: One for each window; ``PackWindow`` has what they hold.
            mode: "loss", "predict" or "tensor".
        """
        features, masks = self.pyramid(self.extract(inputs), self.masks(inputs, data_samples))
        if mode == "tensor":
            return features, masks
        if mode == "predict":
            return self._predict(features, masks, data_samples)
        if mode != "loss":
            raise ValueError(f"mode is 'loss', 'predict' or 'tensor', got {mode!r}")
        segments, labels = [], []
        for sample in data_samples:
            truth = sample.gt_instances
            start, each = self._times(sample)
            segments.append((truth.segments.to(inputs.device) - start) / each)
            labels.append(truth.labels.to(inputs.device))
        return self.head.loss(features, masks, segments, labels)

    def extract(self, inputs: Tensor) -> Tensor:
        """Features of the backbone, (windows, channels, positions)."""
        chunks = inputs.flatten(0, 1)
        groups = chunks.split(self.chunks_at_once or len(chunks))
        pooled = torch.cat([self.backbone(group).mean((-2, -1)) for group in groups])
        joined = pooled.unflatten(0, inputs.shape[:2]).transpose(1, 2).flatten(2)
        return F.interpolate(joined, size=self.positions, mode="linear", align_corners=False)

    def masks(self, inputs: Tensor, data_samples: list[ActionDataSample]) -> Tensor:
        """Which positions show the video, bool (windows, positions); the others are padding."""
        valid = [
            max(1, sample.valid_frames * self.positions // sample.num_frames)
            for sample in data_samples
        ]
        place = torch.arange(self.positions, device=inputs.device)
        return place < torch.tensor(valid, device=inputs.device)[:, None]

    def _times(self, sample: ActionDataSample) -> tuple[float, float]:
        """Seconds of the first position of a window, and from one position to the next."""
        return sample.start, sample.frame_seconds * sample.num_frames / self.positions

    def _predict(
        self, features: list[Tensor], masks: list[Tensor], data_samples: list[ActionDataSample]
    ) -> list[ActionDataSample]:
        logits, segments, _ = self.head(features, masks)
        scores = logits.sigmoid() * torch.cat(masks, 1)[..., None]
        for sample, of_window, ends in zip(data_samples, scores, segments, strict=True):
            start, each = self._times(sample)
            best, index = of_window.flatten().sort(descending=True, stable=True)
            index = index[best > self.score_threshold][: self.max_per_window]
            point, label = index // of_window.shape[1], index % of_window.shape[1]
            sample.pred_instances = InstanceData(
                segments=(ends[point] * each + start).clamp(0, sample.duration),
                scores=best[: len(index)],
                labels=label,
            )
        return data_samples
