"""ActionFormer's projection and feature pyramid over time.

Zhang et al., "ActionFormer", https://arxiv.org/abs/2202.07925, sections 3.2 and 4.
Features are (windows, channels, positions); masks, bool (windows, positions), are False where a
window is padding, and features are 0 there after every layer.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (windows, channels, positions)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def convolution(channels_in: int, channels_out: int, **options: object) -> nn.Conv1d:
    """A convolution over 3 positions whose bias, if it has one, starts at 0."""
    conv = nn.Conv1d(channels_in, channels_out, 3, padding=1, **options)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class ConvNormReLU(nn.Module):
    """Convolution over 3 positions, norm and ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = convolution(channels_in, channels_out, bias=False)
        self.norm = ChannelNorm(channels_out, eps=1e-6)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        keep = mask[:, None]
        return self.norm(self.conv(x) * keep).relu() * keep


class ScaledDropPath(nn.Module):
    """Stochastic depth of a branch that is scaled channel by channel, from near 0 on."""

    def __init__(self, channels: int, rate: float, init: float = 1e-4) -> None:
        super().__init__()
        self.rate = rate
        self.scale = nn.Parameter(torch.full((channels, 1), init))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class LocalAttention(nn.Module):
    """Self-attention in which a position attends to those at most ``window // 2`` away.

    Queries, keys and values pass a convolution of each channel, of stride ``stride``, before they
    are projected.

    Args:
        channels: Of input and output.
        heads: Attention heads.
        window: Odd number of positions, or None: attention over the whole window.
        stride: 1, or 2 for half as many positions.
    """

    def __init__(self, channels: int, heads: int, window: int | None, stride: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels {channels} have to be a multiple of heads {heads}")
        if window is not None and (window < 1 or window % 2 == 0):
            raise ValueError(f"window is an odd number of positions or None, got {window}")
        self.heads = heads
        self.window = window

        def shape() -> nn.Sequential:
            conv = convolution(channels, channels, stride=stride, groups=channels, bias=False)
            project = nn.Conv1d(channels, channels, 1)
            nn.init.zeros_(project.bias)
            return nn.Sequential(conv, ChannelNorm(channels), project)

        self.query, self.key, self.value = shape(), shape(), shape()
        self.proj = nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend; ``mask`` is that of the output, (windows, positions / stride)."""
        keep = mask[:, None]

        def by_head(shape: nn.Sequential) -> Tensor:
            conv, norm, project = shape
            return project(norm(conv(x) * keep)).unflatten(1, (self.heads, -1)).transpose(2, 3)

        query, key, value = by_head(self.query), by_head(self.key), by_head(self.value)
        place = torch.arange(mask.shape[1], device=mask.device)
        distance = (place[:, None] - place[None]).abs()
        near = distance <= (mask.shape[1] if self.window is None else self.window // 2)
        # Padding attends to itself, for a softmax over nothing is NaN; it becomes 0 below.
        allowed = (near & mask[:, None]) | (distance == 0)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed[:, None])
        return self.proj(out.transpose(2, 3).flatten(1, 2)) * keep


class PyramidBlock(nn.Module):
    """A transformer block: attention, MLP, and max pooling of the residual where it strides."""

    def __init__(
        self, channels: int, heads: int, window: int | None, stride: int, drop_path: float
    ) -> None:
        super().__init__()
        self.stride = stride
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.attn = LocalAttention(channels, heads, window, stride)
        self.mlp = nn.Sequential(
            nn.Conv1d(channels, 4 * channels, 1), nn.GELU(), nn.Conv1d(4 * channels, channels, 1)
        )
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.zeros_(layer.bias)
        self.drop_path1 = ScaledDropPath(channels, drop_path)
        self.drop_path2 = ScaledDropPath(channels, drop_path)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        attended_from = self.norm1(x)
        if self.stride > 1:
            x = F.max_pool1d(x, self.stride + 1, self.stride, padding=(self.stride + 1) // 2)
            mask = mask[:, :: self.stride]
        x = x * mask[:, None] + self.drop_path1(self.attn(attended_from, mask))
        return x + self.drop_path2(self.mlp(self.norm2(x)) * mask[:, None]), mask


@MODELS.register_module()
class ActionFormerPyramid(nn.Module):
    """Features of one rate to features of several: convolutions, then attention that strides.

    Args:
        in_channels: Of the backbone's features.
        channels: Of all levels.
        positions: Positions of a window; a multiple of 2 to the power of ``levels - 1``.
        levels: Each of half as many positions as the one before it.
        heads: Attention heads.
        window: Positions that one attends to, odd: a number for all levels, or one for each
            level. None is all. ActionFormer's are 19 (THUMOS14) and 7, AdaTAD's None.
        drop_path: Rate of stochastic depth.
        input_dropout: Rate at which whole channels of the input are dropped.
        position_embedding: Add a sinusoidal one.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 512,
        positions: int = 768,
        levels: int = 6,
        heads: int = 4,
        window: int | Sequence[int | None] | None = None,
        drop_path: float = 0.1,
        input_dropout: float = 0.0,
        position_embedding: bool = False,
    ) -> None:
        super().__init__()
        if positions % 2 ** (levels - 1):
            raise ValueError(
                f"positions {positions} have to be a multiple of {2 ** (levels - 1)}, by which the "
                f"last of {levels} levels strides"
            )
        windows = list(window) if isinstance(window, Sequence) else [window] * levels
        if len(windows) != levels:
            raise ValueError(f"window: expected one for each of {levels} levels, got {windows}")
        self.dropout = nn.Dropout1d(input_dropout)
        self.embed = nn.ModuleList(
            [ConvNormReLU(in_channels, channels), ConvNormReLU(channels, channels)]
        )
        table = sinusoids(positions, channels) / channels**0.5 if position_embedding else None
        self.register_buffer("position_embedding", table, persistent=False)
        self.stem = nn.ModuleList(
            PyramidBlock(channels, heads, windows[0], 1, drop_path) for _ in range(2)
        )
        self.branch = nn.ModuleList(
            PyramidBlock(channels, heads, size, 2, drop_path) for size in windows[1:]
        )
        self.norms = nn.ModuleList(ChannelNorm(channels, eps=1e-6) for _ in windows)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Features and masks of every level, finest first.

        Args:
            x: (windows, in_channels, positions).
            mask: Bool (windows, positions).
        """
        x = self.dropout(x)
        for layer in self.embed:
            x = layer(x, mask)
        if self.position_embedding is not None:
            x = x + self.position_embedding * mask[:, None]
        for block in self.stem:
            x, _ = block(x, mask)
        levels = [(x, mask)]
        for block in self.branch:
            levels.append(block(*levels[-1]))
        features = [norm(x) for norm, (x, _) in zip(self.norms, levels, strict=True)]
        return features, [mask for _, mask in levels]


def sinusoids(positions: int, channels: int) -> Tensor:
    """Sines (even channels) and cosines (odd) of the positions: (channels, positions)."""
    rates = 10000 ** (-2 * (np.arange(channels) // 2) / channels)
    angles = rates[:, None] * np.arange(positions)
    angles[0::2], angles[1::2] = np.sin(angles[0::2]), np.cos(angles[1::2])
    return torch.tensor(angles, dtype=torch.float32)
