"""timm's ``SwinTransformer``: one chain per stage, behind its patch merging.

Liu et al., "Swin Transformer", https://arxiv.org/abs/2103.14030
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models.swin_transformer import (
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerStage,
)
from torch import Tensor

from ..branches import residual
from ..chain import ReversibleChain
from . import register_adapter
from .subclass import replace_methods
from .timm_shared import check_blocks, forward


@residual
def attention(block: Any, x: Tensor) -> Tensor:
    return block.drop_path1(block._attn(block.norm1(x)))


@partial(residual, tokenwise=("norm2", "mlp"), drop_path="drop_path2")
def mlp(block: Any, x: Tensor) -> Tensor:
    # Without the grid, as timm does: kernels are chosen by the number of dimensions.
    tokens = x.reshape(len(x), -1, x.shape[-1])
    return block.mlp(block.norm2(tokens)).reshape(x.shape)


@register_adapter(SwinTransformer)
def split(model: Any) -> None:
    for stage in model.layers:
        check_blocks(model, stage.blocks, (SwinTransformerBlock,))
        stage.blocks = ReversibleChain(stage.blocks, (attention, mlp))
        replace_methods(stage, SwinTransformerStage, forward)
