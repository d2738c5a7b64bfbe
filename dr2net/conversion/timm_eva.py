"""timm's ``Eva`` (EVA, EVA-02, and the ViTs with rotary position embedding built on its class).

Fang et al., "EVA-02: A Visual Representation for Neon Genesis", https://arxiv.org/abs/2303.11331
Mixed rotary embedding: Heo et al., "Rotary Position Embedding for Vision Transformer",
https://arxiv.org/abs/2403.13298
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from torch import Tensor

from ..branches import residual
from ..chain import ReversibleChain
from . import register_adapter
from .subclass import replace_methods
from .timm_shared import attention_options, check_blocks, intermediates

Rope = Tensor | tuple[Tensor, ...] | None
"""Rotary embedding: none, one for all blocks, or (mixed) one for each."""


@residual
def attention(block: Any, x: Tensor, rope: Rope = None, **options: Any) -> Tensor:
    attended = block.attn(block.norm1(x), rope=_rope_of(block, rope), **options)
    return block.drop_path1(attended if block.gamma_1 is None else block.gamma_1 * attended)


@partial(residual, tokenwise=("norm2", "mlp"), drop_path="drop_path2")
def mlp(block: Any, x: Tensor) -> Tensor:
    output = block.mlp(block.norm2(x))
    return output if block.gamma_2 is None else block.gamma_2 * output


@residual
def attention_post_norm(block: Any, x: Tensor, rope: Rope = None, **options: Any) -> Tensor:
    attended = block.attn(x, rope=_rope_of(block, rope), **options)
    return block.drop_path1(block.norm1(attended))


@partial(residual, tokenwise=("mlp", "norm2"), drop_path="drop_path2")
def mlp_post_norm(block: Any, x: Tensor) -> Tensor:
    return block.norm2(block.mlp(x))


BRANCHES = {EvaBlock: (attention, mlp), EvaBlockPostNorm: (attention_post_norm, mlp_post_norm)}


@register_adapter(Eva)
def split(model: Any) -> None:
    kind = check_blocks(model, model.blocks, BRANCHES)
    for index, block in enumerate(model.blocks):
        block.rope_index = index  # which of the mixed embeddings is the block's
    model.blocks = ReversibleChain(model.blocks, BRANCHES[kind])
    replace_methods(model, Eva, forward_features, forward_intermediates)


def _rope_of(block: Any, rope: Rope) -> Tensor | None:
    return rope[block.rope_index] if isinstance(rope, tuple) else rope


def forward_features(
    self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    x, rope = _embed(self, x)
    return self.norm(self.blocks(x, rope=rope, **attention_options(attn_mask, is_causal)))


def forward_intermediates(
    self: Any,
    x: Tensor,
    indices: int | list[int] | None = None,
    return_prefix_tokens: bool = False,
    norm: bool = False,
    stop_early: bool = False,
    output_fmt: str = "NCHW",
    intermediates_only: bool = False,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Any:
    """As timm's method of this name; see ``intermediates``."""
    tokens, rope = _embed(self, x)
    return intermediates(
        self,
        x,
        tokens,
        {"rope": rope, **attention_options(attn_mask, is_causal)},
        indices,
        return_prefix_tokens,
        norm,
        stop_early,
        output_fmt,
        intermediates_only,
    )


def _embed(model: Any, x: Tensor) -> tuple[Tensor, Rope]:
    """The tokens that enter the blocks, and their rotary embedding."""
    x, rope = model._pos_embed(model.patch_embed(x))
    if hasattr(model, "norm_pre"):  # not in timm 1.0.15, like mixed embeddings
        x = model.norm_pre(x)
    # Those are stacked over the blocks: apart, each coupling has its own alone.
    is_mixed = getattr(model, "rope_mixed", False) and rope is not None
    return x, tuple(rope) if is_mixed else rope
