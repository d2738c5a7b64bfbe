"""mmaction2's ``MViT``.

Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and Detection",
https://arxiv.org/abs/2112.01526
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import Any

import torch
from mmaction.models.backbones.mvit import MultiScaleBlock, MViT, resize_pos_embed
from torch import Tensor, nn

from ..branches import residual
from . import register_adapter
from .openmmlab_chain import OpenMMLabChain
from .subclass import replace_methods

Size = tuple[int, int, int]
"""Frames, height and width of a grid of tokens."""


@residual
def attention(block: Any, x: Tensor, in_size: Size) -> Tensor:
    attended, _ = block.attn(block.norm1(x), in_size)
    return block.drop_path(attended)


@partial(residual, tokenwise=("norm2", "mlp"), drop_path="drop_path")
def mlp(block: Any, x: Tensor) -> Tensor:
    return block.mlp(block.norm2(x))


@register_adapter(MViT)
def split(model: Any) -> None:
    """Splits blocks into attention and MLP, but for those that pool or change the width."""
    kinds = {type(block).__name__ for block in model.blocks if type(block) is not MultiScaleBlock}
    if kinds:
        raise ValueError(
            f"mmaction2's MViT with blocks {sorted(kinds)} has no adapter: blocks must be "
            "MultiScaleBlock."
        )
    ordinary = [
        name
        for name, block in model.blocks.named_children()
        if block.pool_skip is not None or block.proj is not None
    ]
    model.blocks = OpenMMLabChain(model.blocks, (attention, mlp), ordinary)
    replace_methods(model, MViT, forward)


def forward(self: Any, x: Tensor) -> tuple:
    """As mmaction2's, with its loop over the blocks running stretches of the chain.

    A stage ends where the chain has an ordinary block, so that its norm, whose output is the next
    stage's input, stands between stretches.

    Args:
        x: clips of shape (batch, channels, frames, height, width).
    """
    x, size = self.patch_embed(x)
    x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)
    if self.use_abs_pos_embed:
        x = x + resize_pos_embed(
            self.pos_embed,
            self.patch_resolution,
            size,
            mode=self.interpolate_mode,
            num_extra_tokens=self.num_extra_tokens,
        )
    if not self.with_cls_token:
        x = x[:, 1:]
    outputs = []
    for part, last in _parts(self.blocks):
        if isinstance(part, OpenMMLabChain):
            x = part(x, size)
        else:
            x, size = part(x, size)
        scale = self.stage_indices.get(last)
        if scale in self.out_scales:
            x = getattr(self, f"norm{scale}")(x)
            outputs.append(_feature(self, x, size))
    return tuple(outputs)


def _parts(chain: OpenMMLabChain) -> Iterator[tuple[nn.Module, int]]:
    """The stretches of couplings and the ordinary blocks, each with the index of its last block."""
    first = 0
    for is_ordinary, group in groupby(chain._modules, chain.ordinary.__contains__):
        indices = range(first, first + len(list(group)))
        first = indices.stop
        if is_ordinary:
            yield from ((chain[index], index) for index in indices)
        else:
            yield chain[indices.start : indices.stop], indices[-1]


def _feature(model: Any, x: Tensor, size: Size) -> Tensor | list[Tensor | None]:
    """A stage's tokens as a map (batch, channels, frames, height, width), with or without class."""
    tokens = x.transpose(1, 2)
    classes = tokens[:, :, 0] if model.with_cls_token else None
    patches = tokens[:, :, 1:] if model.with_cls_token else tokens
    feature = patches.reshape(*patches.shape[:2], *size)
    return [feature, classes] if model.output_cls_token else feature
