"""mmaction2's ``SwinTransformer3D``.

Liu et al., "Video Swin Transformer", https://arxiv.org/abs/2106.13230
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from mmaction.models.backbones.swin import (
    BasicLayer,
    SwinTransformer3D,
    SwinTransformerBlock3D,
    compute_mask,
    get_window_size,
)
from torch import Tensor

from ..branches import residual
from . import register_adapter
from .openmmlab_chain import OpenMMLabChain
from .subclass import replace_methods


@residual
def attention(block: Any, x: Tensor, mask_matrix: Tensor) -> Tensor:
    return block.drop_path(block.forward_part1(x, mask_matrix))


@partial(residual, tokenwise=("norm2", "mlp"), drop_path="drop_path")
def mlp(block: Any, x: Tensor) -> Tensor:
    return block.mlp(block.norm2(x))


@register_adapter(SwinTransformer3D)
def split(model: Any) -> None:
    """Splits each stage's blocks into attention and MLP; ``with_cp`` has no further effect."""
    for stage in model.layers:
        for block in stage.blocks:
            if type(block) is not SwinTransformerBlock3D:
                raise ValueError(
                    f"mmaction2's SwinTransformer3D with a {type(block).__name__} has no adapter: "
                    "blocks must be SwinTransformerBlock3D."
                )
        stage.blocks = OpenMMLabChain(stage.blocks, (attention, mlp))
        replace_methods(stage, BasicLayer, forward)


def forward(self: Any, x: Tensor, do_downsample: bool = True) -> Tensor:
    """A stage as mmaction2's, with its loop over the blocks replaced by the chain.

    Args:
        x: (batch, channels, frames, height, width).
        do_downsample: whether to merge patches at the end.

    Returns:
        (batch, frames, height, width, channels).
    """
    size = x.shape[2:]
    window, shift = get_window_size(size, self.window_size, self.shift_size)
    padded = [math.ceil(length / side) * side for length, side in zip(size, window, strict=True)]
    mask = compute_mask(*padded, window, shift, x.device)
    if mask.is_inference() and not torch.is_inference_mode_enabled():
        mask = mask.clone()  # mmaction2 keeps masks, and autograd takes none of inference mode
    x = self.blocks(x.permute(0, 2, 3, 4, 1), mask)
    return self.downsample(x) if self.downsample is not None and do_downsample else x
