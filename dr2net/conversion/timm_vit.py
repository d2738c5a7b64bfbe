"""timm's ``VisionTransformer`` (ViT, DeiT, DINOv2, CLIP and SigLIP image towers, ...).

Dosovitskiy et al., "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929
Parallel blocks: Dehghani et al., "Scaling Vision Transformers to 22 Billion Parameters",
https://arxiv.org/abs/2302.05442, and Touvron et al., "Three things everyone should know about
Vision Transformers", https://arxiv.org/abs/2203.09795
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models import vision_transformer
from timm.models.vision_transformer import (
    Block,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor

from ..branches import residual
from ..chain import ReversibleChain
from . import register_adapter
from .subclass import replace_methods
from .timm_shared import attention_options, check_blocks, intermediates


@residual
def attention(block: Any, x: Tensor, **options: Any) -> Tensor:
    return block.drop_path1(block.ls1(block.attn(block.norm1(x), **options)))


@partial(residual, tokenwise=("norm2", "mlp", "ls2"), drop_path="drop_path2")
def mlp(block: Any, x: Tensor) -> Tensor:
    return block.ls2(block.mlp(block.norm2(x)))


@residual
def attention_post_norm(block: Any, x: Tensor, **options: Any) -> Tensor:
    return block.drop_path1(block.norm1(block.attn(x, **options)))


@partial(residual, tokenwise=("mlp", "norm2"), drop_path="drop_path2")
def mlp_post_norm(block: Any, x: Tensor) -> Tensor:
    return block.norm2(block.mlp(x))


@residual
def parallel(block: Any, x: Tensor, **options: Any) -> Tensor:
    """Attention and MLP at once: what the block's own forward would add to ``x``."""
    added = []

    def keep(output: Tensor) -> int:
        added.append(block.drop_path(output))
        return 0

    # A copy that shares all modules, where ``keep`` stands before the sum. Not by copy(), which
    # FSDP2 makes call __init__ where it has sharded the block.
    part = object.__new__(type(block))
    vars(part).update(vars(block), drop_path=keep)
    type(block).forward(part, x, **options)
    return added[0]


@residual
def attentions(block: Any, x: Tensor, **options: Any) -> Tensor:
    attended = (
        part.drop_path(part.ls(part.attn(part.norm(x), **options))) for part in block.attns
    )
    return torch.stack(list(attended)).sum(dim=0)


@residual
def mlps(block: Any, x: Tensor, **options: Any) -> Tensor:
    return torch.stack([part(x) for part in block.ffns]).sum(dim=0)


BRANCHES = {
    Block: (attention, mlp),
    ResPostBlock: (attention_post_norm, mlp_post_norm),
    ParallelScalingBlock: (parallel,),
    ParallelThingsBlock: (attentions, mlps),
}
if hasattr(vision_transformer, "DiffParallelScalingBlock"):  # not in timm 1.0.15
    BRANCHES[vision_transformer.DiffParallelScalingBlock] = (parallel,)


@register_adapter(VisionTransformer)
def split(model: Any) -> None:
    kind = check_blocks(model, model.blocks, BRANCHES)
    model.blocks = ReversibleChain(model.blocks, BRANCHES[kind])
    replace_methods(model, VisionTransformer, forward_features, forward_intermediates)


def forward_features(
    self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    x = _embed(self, x)
    return self.norm(self.blocks(x, **attention_options(attn_mask, is_causal)))


def forward_intermediates(
    self: Any,
    x: Tensor,
    indices: int | list[int] | None = None,
    return_prefix_tokens: bool = False,
    norm: bool = False,
    stop_early: bool = False,
    output_fmt: str = "NCHW",
    intermediates_only: bool = False,
    output_dict: bool = False,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Any:
    """As timm's method of this name; see ``intermediates``."""
    return intermediates(
        self,
        x,
        _embed(self, x),
        attention_options(attn_mask, is_causal),
        indices,
        return_prefix_tokens,
        norm,
        stop_early,
        output_fmt,
        intermediates_only,
        output_dict,
    )


def _embed(model: Any, x: Tensor) -> Tensor:
    """The tokens that enter the blocks."""
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
