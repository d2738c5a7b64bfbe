"""timm's ``ResNet`` and what is built on its class (ResNeXt, SE, ECA, SK, ResNeSt, Res2Net, ...).

He et al., "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385

The activation comes after the sum, so that a block is one module G(x; α) = act(F(x) + α·x). One
chain per stage; a block with a downsampling shortcut changes the shape and runs as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.res2net import Bottle2neck
from timm.models.resnest import ResNestBottleneck
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.sknet import SelectiveKernelBasic, SelectiveKernelBottleneck
from torch import Tensor

from ..chain import ReversibleChain
from . import register_adapter
from .subclass import replace_methods
from .timm_shared import check_blocks

STAGES = ("layer1", "layer2", "layer3", "layer4")

# The modules of a block in the order of its forward, those it may lack included, and the activation
# after the sum.
MODULES: dict[type, tuple[str, str]] = {
    BasicBlock: ("conv1 bn1 drop_block act1 aa conv2 bn2 se drop_path", "act2"),
    Bottleneck: ("conv1 bn1 act1 conv2 bn2 drop_block act2 aa conv3 bn3 se drop_path", "act3"),
    SelectiveKernelBasic: ("conv1 conv2 se drop_path", "act"),
    SelectiveKernelBottleneck: ("conv1 conv2 conv3 se drop_path", "act"),
    ResNestBottleneck: (
        "conv1 bn1 act1 avd_first conv2 bn2 drop_block act2 avd_last conv3 bn3",
        "act3",
    ),
    Bottle2neck: ("drop_block conv3 bn3 se drop_path", "relu"),  # behind its scales
}


def convolutions(block: Any, x: Tensor, alpha: float) -> Tensor:
    # FSDP2 derives a class from that of a block it shards.
    names, activation = next(MODULES[kind] for kind in type(block).__mro__ if kind in MODULES)
    output = _scales(block, x) if isinstance(block, Bottle2neck) else x
    for name in names.split():
        module = getattr(block, name)
        output = output if module is None else module(output)
    if isinstance(block, ResNestBottleneck) and block.drop_path is not None:
        block.drop_path(x)  # timm drops what it no longer uses: only the random numbers are taken
    # timm sums in place; here under autocast the sum has the precision of the stream.
    output = torch.add(output, x, alpha=alpha) if alpha != 0 else output
    return getattr(block, activation)(output)


def _scales(block: Any, x: Tensor) -> Tensor:
    """The part of a Res2Net block that works at several scales."""
    splits = torch.split(block.relu(block.bn1(block.conv1(x))), block.width, 1)
    outputs: list[Tensor] = []
    for conv, bn, part in zip(block.convs, block.bns, splits, strict=False):
        part = outputs[-1] + part if outputs else part
        outputs.append(block.relu(bn(conv(part))))
    return torch.cat([*outputs, splits[-1]] if block.scale > 1 else outputs, 1)


@register_adapter(ResNet)
def split(model: Any) -> None:
    for name in STAGES:
        stage = getattr(model, name)
        if len(stage) == 0:  # pruned
            continue
        check_blocks(model, stage, MODULES)
        reshaping = [key for key, block in stage.named_children() if block.downsample is not None]
        if len(reshaping) < len(stage):
            setattr(model, name, ReversibleChain(stage, (convolutions,), ordinary=reshaping))
    if not any(isinstance(getattr(model, name), ReversibleChain) for name in STAGES):
        raise ValueError(
            f"This {type(model).__name__} has no block that keeps the shape of its input, and so "
            "none that can be reversed: use one with more blocks in a stage."
        )
    replace_methods(model, ResNet, forward_features, forward_intermediates)


def forward_features(self: Any, x: Tensor) -> Tensor:
    return _without_checkpointing(self, "forward_features", x)


def forward_intermediates(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """As timm's method of this name, with its arguments."""
    return _without_checkpointing(self, "forward_intermediates", x, *args, **kwargs)


def _without_checkpointing(model: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    """Runs timm's own method, which with checkpointing would call blocks one by one."""
    enabled = model.grad_checkpointing
    for name in STAGES:
        getattr(model, name).checkpoints = enabled  # which chains heed
    if enabled:
        model.grad_checkpointing = False
    try:
        return getattr(ResNet, method)(model, *args, **kwargs)
    finally:
        if enabled:
            model.grad_checkpointing = True
