"""mmaction2's ``VisionTransformer``, the ViT of VideoMAE.

Tong et al., "VideoMAE", https://arxiv.org/abs/2203.12602
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmaction.models.backbones.vit_mae import Attention, Block, VisionTransformer
from torch import Tensor

from ..branches import residual
from ..chain import ReversibleChain
from . import register_adapter
from .subclass import replace_methods


@residual
def attention(block: Any, x: Tensor) -> Tensor:
    return block.drop_path(_scaled(block, "gamma_1", block.attn(block.norm1(x))))


@residual
def attention_fused(block: Any, x: Tensor) -> Tensor:
    attended = scaled_dot_product(block.attn, block.norm1(x))
    return block.drop_path(_scaled(block, "gamma_1", attended))


@partial(residual, tokenwise=("norm2", "mlp"), drop_path="drop_path")
def mlp(block: Any, x: Tensor) -> Tensor:
    return _scaled(block, "gamma_2", block.mlp(block.norm2(x)))


def _scaled(block: Any, gamma: str, output: Tensor) -> Tensor:
    # A block without LayerScale has no gamma_1 and gamma_2.
    return getattr(block, gamma) * output if hasattr(block, gamma) else output


def scaled_dot_product(attn: Attention, x: Tensor) -> Tensor:
    """``attn(x)`` without materialising the attention weights.

    Equal to it up to the order in which sums are rounded: float32 outputs and gradients of a
    12-block ViT agree to a relative 1e-5.

    Args:
        attn: the module whose parameters are used.
        x: (batch, tokens, channels).
    """
    batch, tokens, _ = x.shape
    bias = None
    if hasattr(attn, "q_bias"):  # built with qkv_bias=True: queries and values have one
        bias = torch.cat((attn.q_bias, torch.zeros_like(attn.v_bias), attn.v_bias))
    qkv = F.linear(x, attn.qkv.weight, bias).reshape(batch, tokens, 3, attn.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    dropout = attn.attn_drop.p if attn.training else 0.0
    output = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=attn.scale)
    return attn.proj_drop(attn.proj(output.transpose(1, 2).reshape(batch, tokens, -1)))


@register_adapter(VisionTransformer)
def split(model: Any, fused_attention: bool = False) -> None:
    """Splits blocks into attention and MLP.

    Args:
        fused_attention: send attention through PyTorch's ``scaled_dot_product_attention``.
    """
    for block in model.blocks:
        if type(block) is not Block:
            raise ValueError(
                f"mmaction2's VisionTransformer with a {type(block).__name__} has no adapter: "
                "blocks must be its Block."
            )
        if fused_attention and type(block.attn) is not Attention:
            raise ValueError(
                f"fused_attention=True takes the place of mmaction2's Attention, not of a "
                f"{type(block.attn).__name__}: leave it out."
            )
    attend = attention_fused if fused_attention else attention
    model.blocks = ReversibleChain(model.blocks, (attend, mlp))
    replace_methods(model, VisionTransformer, forward)


def forward(self: Any, x: Tensor) -> Tensor:
    """As mmaction2's, with its loop over the blocks replaced by the chain.

    Args:
        x: clips of shape (batch, channels, frames, height, width).
    """
    batch, _, _, *size = x.shape
    height, width = (pixels // self.patch_size for pixels in size)
    x = self.patch_embed(x)[0]
    x = self.pos_drop(x + _position_embedding(self, height, width))
    x = self.norm(self.blocks(x))
    if self.return_feat_map:
        return x.reshape(batch, -1, height, width, self.embed_dims).permute(0, 4, 1, 2, 3)
    return x[:, 0] if self.fc_norm is None else self.fc_norm(x.mean(1))


def _position_embedding(model: Any, height: int, width: int) -> Tensor:
    """(1, tokens, channels), resized where the grid is not the one the model was built for."""
    if (height, width) == model.grid_size:
        return model.pos_embed
    grid = model.pos_embed.reshape(-1, *model.grid_size, model.embed_dims).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(1, -1, model.embed_dims)
