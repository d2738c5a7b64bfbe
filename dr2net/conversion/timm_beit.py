"""timm's ``Beit`` (BEiT and BEiT v2).

Bao et al., "BEiT: BERT Pre-Training of Image Transformers", https://arxiv.org/abs/2106.08254
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models.beit import Beit, Block
from torch import Tensor

from ..branches import residual
from ..chain import ReversibleChain
from . import register_adapter
from .subclass import replace_methods
from .timm_shared import check_blocks, intermediates


@residual
def attention(block: Any, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
    attended = block.attn(block.norm1(x), shared_rel_pos_bias=shared_rel_pos_bias)
    return block.drop_path1(attended if block.gamma_1 is None else block.gamma_1 * attended)


@partial(residual, tokenwise=("norm2", "mlp"), drop_path="drop_path2")
def mlp(block: Any, x: Tensor) -> Tensor:
    output = block.mlp(block.norm2(x))
    return output if block.gamma_2 is None else block.gamma_2 * output


@register_adapter(Beit)
def split(model: Any) -> None:
    check_blocks(model, model.blocks, (Block,))
    model.blocks = ReversibleChain(model.blocks, (attention, mlp))
    replace_methods(model, Beit, forward_features, forward_intermediates)


def forward_features(self: Any, x: Tensor) -> Tensor:
    tokens = _embed(self, x)
    return self.norm(self.blocks(tokens, **_bias(self)))


def forward_intermediates(
    self: Any,
    x: Tensor,
    indices: int | list[int] | None = None,
    return_prefix_tokens: bool = False,
    norm: bool = False,
    stop_early: bool = False,
    output_fmt: str = "NCHW",
    intermediates_only: bool = False,
) -> Any:
    """As timm's method of this name; see ``intermediates``."""
    return intermediates(
        self,
        x,
        _embed(self, x),
        _bias(self),
        indices,
        return_prefix_tokens,
        norm,
        stop_early,
        output_fmt,
        intermediates_only,
    )


def _embed(model: Any, x: Tensor) -> Tensor:
    """The tokens that enter the blocks."""
    x = model.patch_embed(x)
    x = torch.cat((model.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
    return model.pos_drop(x if model.pos_embed is None else x + model.pos_embed)


def _bias(model: Any) -> dict[str, Tensor | None]:
    """The position bias that all blocks share."""
    return {"shared_rel_pos_bias": None if model.rel_pos_bias is None else model.rel_pos_bias()}
