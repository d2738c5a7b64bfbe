"""Layers and networks of which channels are trained, and full training with the others masked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import dr2net
from dr2net import ReversibleChain, residual

# (layer, shape of its input)
LAYERS = {
    "linear": (lambda: nn.Linear(24, 16), (3, 5, 24)),
    "linear, no bias": (lambda: nn.Linear(24, 16, bias=False), (3, 5, 24)),
    "linear, rows": (lambda: nn.Linear(24, 16), (7, 24)),
    "linear, one vector": (lambda: nn.Linear(24, 16), (24,)),
    "linear, many tokens": (lambda: nn.Linear(192, 768), (2, 392, 192)),
    "conv 1d": (lambda: nn.Conv1d(12, 8, 3), (2, 12, 9)),
    "conv 2d": (lambda: nn.Conv2d(12, 8, 3, stride=2, padding=1), (2, 12, 9, 8)),
    "conv 2d, pointwise": (lambda: nn.Conv2d(12, 8, 1), (2, 12, 9, 8)),
    "conv 2d, one sample": (lambda: nn.Conv2d(12, 8, 3), (12, 9, 8)),
    "conv 2d, same": (lambda: nn.Conv2d(12, 8, (2, 3), padding="same"), (2, 12, 9, 8)),
    "conv 2d, valid": (lambda: nn.Conv2d(12, 8, 3, padding="valid", dilation=2), (2, 12, 9, 8)),
    "conv 2d, reflect": (
        lambda: nn.Conv2d(12, 8, 3, padding=(2, 1), padding_mode="reflect"),
        (2, 12, 9, 8),
    ),
    "conv 2d, circular and same": (
        lambda: nn.Conv2d(12, 8, 4, padding="same", padding_mode="circular"),
        (2, 12, 9, 8),
    ),
    "conv 3d": (lambda: nn.Conv3d(12, 8, 3, padding=1), (2, 12, 4, 5, 6)),
}


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.spatial = nn.Conv2d(width, width, 3, padding=1)
        self.first = nn.Linear(width, 3 * width)
        self.second = nn.Linear(3 * width, width)


@residual
def convolve(block: Block, x: Tensor) -> Tensor:
    return torch.tanh(block.spatial(block.norm(x)))


@residual
def mlp(block: Block, x: Tensor) -> Tensor:
    hidden = torch.tanh(block.first(x.permute(0, 2, 3, 1)))
    return block.second(hidden).permute(0, 3, 1, 2)


class Network(nn.Module):
    """A convolution, couplings of convolutions and linear layers, and a classifier."""

    def __init__(self, reversible: bool = True, width: int = 8):
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, width, 3, stride=2)
        blocks = nn.Sequential(*[Block(width) for _ in range(3)])
        self.blocks = ReversibleChain(blocks, (convolve, mlp))
        self.head = nn.Linear(width, 5)
        dr2net.set_coefficients(self, 0.875, 0.125)
        dr2net.set_reversible(self, reversible)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def images(step: int = 0) -> Tensor:
    return torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(step))


def loss_of(model: nn.Module, step: int = 0) -> Tensor:
    outputs = model(images(step).to(next(model.parameters()).dtype))
    return nn.functional.cross_entropy(outputs.float(), torch.arange(4))


def select(model: nn.Module, budget: int | str | None = "40%", **options) -> dr2net.Selection:
    options = {"share": 1.0, "batches": 1, **options}
    return dr2net.select_channels(model, lambda: loss_of(model), budget, **options)
