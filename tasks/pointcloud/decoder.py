"""From the tokens of a backbone back to every point: feature propagation and a classifier.

Qi et al., "PointNet++: Deep Hierarchical Feature Learning on Point Sets in a Metric Space",
https://arxiv.org/abs/1706.02413, section 3.4; class token and global maximum as in Pix4Point,
https://arxiv.org/abs/2208.12259.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from .checkpointing import run_cloud_by_cloud
from .neighbours import gather_points, nearest_points

__all__ = ["FeaturePropagationHead", "interpolate", "interpolation"]


def interpolation(coord: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Finds of what means at ``coord`` are taken: of three neighbours, by inverse distance.

    Args:
        coord: (clouds, points, 3), metres.
        source: (clouds, sources, 3), where values are known.

    Returns:
        Indices of sources and their weights, both (clouds, points, 3), or fewer than three where
        there are fewer sources.
    """
    neighbours, squared = nearest_points(coord, source, min(3, source.shape[1]))
    weights = 1 / (squared.sqrt() + 1e-8)
    return neighbours, weights / weights.sum(dim=2, keepdim=True)


def interpolate(values: Tensor, neighbours: Tensor, weights: Tensor) -> Tensor:
    """Returns means of ``values`` (clouds, sources, channels): (clouds, points, channels)."""
    # One neighbour after the other: all three at once would take three times the memory.
    parts = zip(neighbours.unbind(2), weights.unbind(2), strict=True)
    return sum(gather_points(values, index) * weight[:, :, None] for index, weight in parts)


class FeaturePropagation(nn.Module):
    """Interpolates features to the points of an earlier stage and mixes in what that stage had."""

    def __init__(self, in_channels: int, skip_channels: int, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_channels + skip_channels, channels),
            nn.LayerNorm(channels, eps=1e-6),
            nn.GELU(),
            nn.Linear(channels, channels),
            nn.LayerNorm(channels, eps=1e-6),
            nn.GELU(),
        )

    def forward(self, skip: Tensor, values: Tensor, neighbours: Tensor, weights: Tensor) -> Tensor:
        """Returns (clouds, points, channels); the last three arguments are ``interpolate``'s.

        Args:
            skip: (clouds, points, skip_channels), features of the points.
        """
        return self.mlp(torch.cat([interpolate(values, neighbours, weights), skip], dim=2))


@MODELS.register_module()
class FeaturePropagationHead(BaseModule):
    """Decoder and classifier of every point, for backbones that return what ``PointViT`` does.

    Args:
        in_channels: channels of the backbone's features, from the points to the tokens.
        num_classes: number of classes.
        channels: width of the decoder.
        hidden_channels: width of the classifier's hidden layer.
        dropout: of that layer.
        checkpoint_propagation: compute the decoder again in backward, cloud by cloud, instead of
            keeping it.
        init_cfg: as in mmengine.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (7, 192, 384),
        num_classes: int = 13,
        channels: int = 384,
        hidden_channels: int = 256,
        dropout: float = 0.5,
        checkpoint_propagation: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        *skips, tokens = in_channels
        self.num_classes = num_classes
        self.checkpoint_propagation = checkpoint_propagation
        sources = [tokens] + [channels] * (len(skips) - 1)
        self.propagations = nn.ModuleList(
            FeaturePropagation(source, skip, channels)
            for source, skip in zip(sources, reversed(skips), strict=True)
        )
        # Together a linear layer on a point, the class token and the maximum over the points.
        self.point = nn.Linear(channels, hidden_channels, bias=False)
        self.cloud = nn.Linear(tokens + channels, hidden_channels)
        self.classifier = nn.Sequential(
            nn.LayerNorm(hidden_channels, eps=1e-6),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_channels, num_classes),
        )

    def forward(
        self, coords: Sequence[Tensor], features: Sequence[Tensor], class_token: Tensor
    ) -> Tensor:
        """Returns logits (clouds, num_classes, points) of what the backbone returned."""
        x = features[-1]
        stages = zip(coords[-2::-1], features[-2::-1], coords[:0:-1], strict=True)
        for propagation, (coord, skip, source) in zip(self.propagations, stages, strict=True):
            inputs = (skip, x, *interpolation(coord, source))
            if self.checkpoint_propagation and torch.is_grad_enabled():
                x = run_cloud_by_cloud(propagation, *inputs)
            else:
                x = propagation(*inputs)
        whole = torch.cat([class_token, x.amax(dim=1, keepdim=True)], dim=2)
        return self.classifier(self.point(x) + self.cloud(whole)).transpose(1, 2)
