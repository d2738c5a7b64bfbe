"""mmdetection's ``SwinTransformer``.

Liu et al., "Swin Transformer", https://arxiv.org/abs/2103.14030
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mmcv.cnn.bricks.transformer import FFN
from mmdet.models.backbones.swin import SwinBlock, SwinBlockSequence, SwinTransformer
from torch import Tensor

from ..branches import residual
from . import register_adapter
from .openmmlab_chain import OpenMMLabChain
from .subclass import replace_methods


@partial(residual, shortcut_first=False)
def attention(block: Any, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    return block.attn(block.norm1(x), hw_shape)


@partial(residual, tokenwise=("norm2", "ffn"), drop_path="ffn.dropout_layer")
def mlp(block: Any, x: Tensor) -> Tensor:
    ffn = block.ffn  # called as a whole it would add its shortcut
    return ffn.gamma2(ffn.layers(block.norm2(x)))


@register_adapter(SwinTransformer)
def split(model: Any) -> None:
    """Splits each stage's blocks into attention and MLP; ``with_cp`` has no further effect."""
    for stage in model.stages:
        for block in stage.blocks:
            if type(block) is not SwinBlock or type(block.ffn) is not FFN:
                raise ValueError(
                    f"mmdetection's SwinTransformer with a {type(block).__name__} has no adapter: "
                    "blocks must be SwinBlock with mmcv's FFN."
                )
        stage.blocks = OpenMMLabChain(stage.blocks, (attention, mlp))
        replace_methods(stage, SwinBlockSequence, forward)


def forward(self: Any, x: Tensor, hw_shape: tuple[int, int]) -> tuple:
    """A stage as mmdetection's, with its loop over the blocks replaced by the chain.

    Returns:
        What enters the next stage and its height and width, then the stage's feature and its.
    """
    x = self.blocks(x, hw_shape)
    following = self.downsample(x, hw_shape) if self.downsample else (x, hw_shape)
    return *following, x, hw_shape
