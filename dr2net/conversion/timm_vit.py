"""timm's ``VisionTransformer`` (ViT, DeiT, DINOv2, CLIP and SigLIP image towers, ...).

Dosovitskiy et al., "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929
"""

from __future__ import annotations

from typing import Any

from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor

from ..chain import ReversibleChain, residual
from . import register_adapter
from .subclass import replace_methods


@residual
def attention(
    block: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    attended = block.attn(block.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
    return block.drop_path1(block.ls1(attended))


@residual
def mlp(block: Any, x: Tensor, **attention_options: Any) -> Tensor:
    return block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


@residual
def attention_post_norm(
    block: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    attended = block.attn(x, attn_mask=attn_mask, is_causal=is_causal)
    return block.drop_path1(block.norm1(attended))


@residual
def mlp_post_norm(block: Any, x: Tensor, **attention_options: Any) -> Tensor:
    return block.drop_path2(block.norm2(block.mlp(x)))


BRANCHES = {Block: (attention, mlp), ResPostBlock: (attention_post_norm, mlp_post_norm)}


@register_adapter(VisionTransformer)
def split(model: Any) -> None:
    kinds = {type(block) for block in model.blocks}
    if len(kinds) != 1 or not kinds <= set(BRANCHES):
        raise ValueError(
            f"timm's VisionTransformer with blocks {sorted(kind.__name__ for kind in kinds)} has "
            f"no adapter: blocks must all be of one of {[kind.__name__ for kind in BRANCHES]}."
        )
    model.blocks = ReversibleChain(model.blocks, BRANCHES[kinds.pop()])
    replace_methods(model, VisionTransformer, forward_features, forward_intermediates)


def forward_features(
    self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    x = _embed(self, x)
    return self.norm(self.blocks(x, attn_mask=attn_mask, is_causal=is_causal))


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
    """As timm's method of this name, with the features taken from the chain.

    ``stop_early`` runs the chain no further than the last feature; without the final features
    (``intermediates_only``) it never runs further.
    """
    if output_fmt not in ("NCHW", "NLC"):
        raise ValueError(f"output_fmt={output_fmt!r}: use 'NCHW' or 'NLC'.")
    taken, _ = feature_take_indices(len(self.blocks), indices)
    taken = sorted(taken)
    last = len(self.blocks) - 1
    wanted = taken if stop_early or intermediates_only or last in taken else [*taken, last]
    batch, _, height, width = x.shape
    # The pair: the stream itself, and what is made of it, in the order of timm's own loop.
    pairs = self.blocks.features(
        _embed(self, x),
        blocks=wanted,
        apply=lambda feature: (feature, self.norm(feature) if norm else feature),
        attn_mask=attn_mask,
        is_causal=is_causal,
    )
    final = pairs[-1][0]
    maps = [feature for _, feature in pairs[: len(taken)]]
    prefixes = [feature[:, : self.num_prefix_tokens] for feature in maps]
    maps = [feature[:, self.num_prefix_tokens :] for feature in maps]
    if output_fmt == "NCHW":
        grid = self.patch_embed.dynamic_feat_size((height, width))
        maps = [m.reshape(batch, *grid, -1).permute(0, 3, 1, 2).contiguous() for m in maps]
    if output_dict:
        result: dict[str, Any] = {"image_intermediates": maps}
        if self.num_prefix_tokens and return_prefix_tokens:
            result["image_intermediates_prefix"] = prefixes
        if not intermediates_only:
            result["image_features"] = self.norm(final)
        return result
    intermediates: list[Any] = maps
    if self.num_prefix_tokens and return_prefix_tokens:
        intermediates = list(zip(maps, prefixes, strict=True))
    return intermediates if intermediates_only else (self.norm(final), intermediates)


def _embed(model: Any, x: Tensor) -> Tensor:
    """The tokens that enter the blocks."""
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
