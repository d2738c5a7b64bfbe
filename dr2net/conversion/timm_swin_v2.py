"""timm's ``SwinTransformerV2``: one chain per stage, behind its patch merging.

Liu et al., "Swin Transformer V2", https://arxiv.org/abs/2111.09883
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models.swin_transformer_v2 import (
    SwinTransformerV2,
    SwinTransformerV2Block,
    SwinTransformerV2Stage,
)
from torch import Tensor

from ..branches import residual
from ..chain import ReversibleChain
from . import register_adapter
from .subclass import replace_methods
from .timm_shared import check_blocks, forward


@residual
def attention(block: Any, x: Tensor) -> Tensor:
    return block.drop_path1(block.norm1(block._attn(x)))


@partial(residual, tokenwise=("mlp", "norm2"), drop_path="drop_path2")
def mlp(block: Any, x: Tensor) -> Tensor:
    # Without the grid, as timm does: kernels are chosen by the number of dimensions.
    tokens = x.reshape(len(x), -1, x.shape[-1])
    return block.norm2(block.mlp(tokens)).reshape(x.shape)


@register_adapter(SwinTransformerV2)
def split(model: Any) -> None:
    for stage in model.layers:
        check_blocks(model, stage.blocks, (SwinTransformerV2Block,))
        stage.blocks = ReversibleChain(stage.blocks, (attention, mlp))
        replace_methods(stage, SwinTransformerV2Stage, forward)
