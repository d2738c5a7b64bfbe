"""timm's ``ConvNeXt`` (and ConvNeXt V2): one chain per stage, behind its downsampling.

Liu et al., "A ConvNet for the 2020s", https://arxiv.org/abs/2201.03545
Woo et al., "ConvNeXt V2", https://arxiv.org/abs/2301.00808
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models.convnext import ConvNeXt, ConvNeXtBlock, ConvNeXtStage
from torch import Tensor, nn

from ..branches import residual
from ..chain import ReversibleChain
from . import register_adapter
from .subclass import replace_methods
from .timm_shared import check_blocks, forward


@partial(residual, shortcut_first=False)
def convolution_and_mlp(block: Any, x: Tensor) -> Tensor:
    output = block.conv_dw(x)
    if block.use_conv_mlp:
        output = block.mlp(block.norm(output))
    else:
        output = block.mlp(block.norm(output.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    if block.gamma is not None:
        output = output.mul(block.gamma.reshape(1, -1, 1, 1))
    return block.drop_path(output)


@register_adapter(ConvNeXt)
def split(model: Any) -> None:
    for stage in model.stages:
        check_blocks(model, stage.blocks, (ConvNeXtBlock,))
        reshaping = [
            name
            for name, block in stage.blocks.named_children()
            if not isinstance(block.shortcut, nn.Identity)
        ]
        stage.blocks = ReversibleChain(stage.blocks, (convolution_and_mlp,), ordinary=reshaping)
        replace_methods(stage, ConvNeXtStage, forward)
