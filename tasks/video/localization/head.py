"""ActionFormer's head: every position of every level scores the classes and gives an action's ends.

Zhang et al., "ActionFormer", https://arxiv.org/abs/2202.07925, sections 3.3 and 3.4. Times are in
positions of the finest level here; the localizer has the seconds.
"""

from collections.abc import Sequence
from math import inf, log
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.registry import MODELS
from torch import Tensor, nn

from .pyramid import ConvNormReLU, convolution


class Points(NamedTuple):
    """Positions of all levels, one after the other: float32 (points) each."""

    time: Tensor
    stride: Tensor
    shortest: Tensor
    longest: Tensor


class Targets(NamedTuple):
    """What the points of the windows of a batch are to say."""

    classes: Tensor  # float32 (windows, points, classes), 1 where an action of the class is
    segments: Tensor  # float32 (windows, points, 2), start and end of the action


@MODELS.register_module()
class ActionFormerHead(nn.Module):
    """Classification and regression by convolutions that all levels share.

    Args:
        num_classes: Classes, or 1 for class-agnostic actions.
        channels: Of the pyramid.
        ranges: For each level, the smallest and largest distance from a position to the farther
            end of an action that it is to find.
        radius: Positions within so many strides of an action's middle are to find it.
        label_smoothing: As in ActionFormer.
        regression_weight: Of the regression loss beside that of classification.
        normalizer: What the sums of losses are divided by at first; a running mean of the number
            of positive points, of all processes, comes in its place.
        momentum: Of that mean.
        prior: Score of every class at the start.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 512,
        ranges: Sequence[Sequence[float]] = (
            (0, 4),
            (4, 8),
            (8, 16),
            (16, 32),
            (32, 64),
            (64, 10000),
        ),
        radius: float = 1.5,
        label_smoothing: float = 0.0,
        regression_weight: float = 1.0,
        normalizer: float = 100.0,
        momentum: float = 0.9,
        prior: float = 0.01,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ranges = ranges
        self.radius = radius
        self.label_smoothing = label_smoothing
        self.regression_weight = regression_weight
        self.momentum = momentum
        self.cls_convs = nn.ModuleList(ConvNormReLU(channels, channels) for _ in range(2))
        self.reg_convs = nn.ModuleList(ConvNormReLU(channels, channels) for _ in range(2))
        self.cls_out = convolution(channels, num_classes)
        nn.init.constant_(self.cls_out.bias, -log((1 - prior) / prior))
        self.reg_out = convolution(channels, 2)
        self.scale = nn.Parameter(torch.ones(len(ranges)))
        self.register_buffer("normalizer", torch.tensor(float(normalizer)))

    def forward(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Points]:
        """Return logits, segments and the points that they belong to.

        Args:
            features: (windows, channels, positions) of each level.
            masks: Bool (windows, positions) of each.

        Returns:
            Float32 (windows, points, classes) and (windows, points, 2), and the points.
        """
        if len(features) != len(self.ranges):
            raise ValueError(f"{len(features)} levels of features for {len(self.ranges)} ranges")
        logits, distances = [], []
        for x, mask, scale in zip(features, masks, self.scale, strict=True):
            classified = regressed = x
            for layer in self.cls_convs:
                classified = layer(classified, mask)
            for layer in self.reg_convs:
                regressed = layer(regressed, mask)
            # In bfloat16 the ends of a long action would be rounded to 1/256 of its length.
            with torch.autocast(x.device.type, enabled=False):
                logits.append(self.cls_out(classified.float()))
                distances.append((self.reg_out(regressed.float()) * scale).relu())
        points = self.points([mask.shape[1] for mask in masks], features[0].device)
        ends = torch.cat(distances, 2) * points.stride
        segments = torch.stack([points.time - ends[:, 0], points.time + ends[:, 1]], dim=-1)
        return torch.cat(logits, 2).transpose(1, 2), segments, points

    def points(self, positions: Sequence[int], device: torch.device | None = None) -> Points:
        """The points of levels of so many positions."""
        levels = []
        for level, (count, reach) in enumerate(zip(positions, self.ranges, strict=True)):
            time = torch.arange(count, device=device).float() * 2**level
            levels.append([time, *(torch.full_like(time, value) for value in (2**level, *reach))])
        return Points(*(torch.cat(column) for column in zip(*levels, strict=True)))

    def loss(
        self,
        features: list[Tensor],
        masks: list[Tensor],
        segments: list[Tensor],
        labels: list[Tensor],
    ) -> dict[str, Tensor]:
        """Focal loss of the classes and DIoU loss of the ends.

        Args:
            features: As in ``forward``.
            masks: As in ``forward``.
            segments: Actions of each window, float32 (actions, 2) in positions.
            labels: Their classes, int64 (actions).
        """
        logits, found, points = self(features, masks)
        targets = [
            assign(points, *of_window, self.num_classes, self.radius)
            for of_window in zip(segments, labels, strict=True)
        ]
        classes, wanted = (torch.stack(column) for column in zip(*targets, strict=True))
        valid = torch.cat(masks, 1)
        positive = (classes.sum(-1) > 0) & valid
        # Without waiting for the device: what is not positive has weight 0 below.
        count = positive.sum().float()
        normalizer = count.clamp(min=1)
        if self.training:
            all_reduce(count, op="mean")
            self.normalizer.mul_(self.momentum).add_((1 - self.momentum) * count.clamp(min=1))
            normalizer = self.normalizer.clone()
        smooth = classes * (1 - self.label_smoothing) + self.label_smoothing / (
            self.num_classes + 1
        )
        classification = (focal_loss(logits, smooth) * valid[..., None]).sum()
        # Ends of other points may be anything: they are replaced, not multiplied by 0.
        found = torch.where(positive[..., None], found, wanted)
        regression = (diou_loss(found, wanted) * positive).sum()
        return {
            "loss_cls": classification / normalizer,
            "loss_reg": self.regression_weight * regression / normalizer,
        }


@torch.no_grad()
def assign(
    points: Points, segments: Tensor, labels: Tensor, num_classes: int, radius: float
) -> Targets:
    """What each point of one window is to say.

    A point is to find an action if it lies inside, within ``radius`` strides of the middle, and
    the farther end is in the point's range. Of several the shortest counts, and the classes of
    all that are as short within 1e-3.

    Args:
        points: Of all levels.
        segments: Float32 (actions, 2) in positions.
        labels: Int64 (actions).
        num_classes: Classes.
        radius: In strides.

    Returns:
        (points, classes) and (points, 2); a point that is to find nothing has (time, time + 1).
    """
    time = points.time
    nothing = torch.stack([time, time + 1], dim=-1)
    if len(segments) == 0:
        return Targets(time.new_zeros(len(time), num_classes), nothing)
    start, end = segments.T[:, None]  # (1, actions) each
    to_start, to_end = time[:, None] - start, end - time[:, None]
    middle, reach = (start + end) / 2, points.stride[:, None] * radius
    inside = (time[:, None] > torch.maximum(middle - reach, start)) & (
        time[:, None] < torch.minimum(middle + reach, end)
    )
    farther = torch.maximum(to_start, to_end)
    in_range = (farther >= points.shortest[:, None]) & (farther <= points.longest[:, None])
    lengths = torch.where(inside & in_range, end - start, inf)
    shortest, which = lengths.min(dim=1)
    chosen = (lengths <= shortest[:, None] + 1e-3) & (lengths < inf)
    classes = (chosen.float() @ F.one_hot(labels, num_classes).float()).clamp(max=1)
    found = chosen.any(dim=1)[:, None]
    return Targets(classes, torch.where(found, segments[which], nothing))


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss, element by element (Lin et al., https://arxiv.org/abs/1708.02002)."""
    score = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    missed = score * (1 - targets) + (1 - score) * targets
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * missed**gamma * entropy


def diou_loss(found: Tensor, wanted: Tensor, smallest: float = 1e-8) -> Tensor:
    """1 − IoU + (distance of middles / length of the hull)² of segments (..., 2).

    Zheng et al., "Distance-IoU loss", https://arxiv.org/abs/1911.08287, in one dimension.
    """
    starts, ends = torch.stack([found, wanted]).unbind(-1)
    shared = (ends.amin(0) - starts.amax(0)).clamp(min=0)
    union = (ends - starts).sum(0) - shared
    hull = ends.amax(0) - starts.amin(0)
    apart = (starts[0] + ends[0] - starts[1] - ends[1]) / 2
    iou = shared / union.clamp(min=smallest)
    return 1 - iou + apart**2 / (hull**2).clamp(min=smallest)
