"""What the adapters of timm's families share."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from timm.models._features import feature_take_indices
from torch import Tensor, nn

__all__ = ["attention_options", "check_blocks", "forward", "intermediates"]


def check_blocks(
    network: nn.Module, blocks: Iterable[nn.Module], accepted: Collection[type]
) -> type:
    """Returns the one class of all the blocks.

    Raises:
        ValueError: they are not all of one of the ``accepted`` classes.
    """
    kinds = {type(block) for block in blocks}
    if len(kinds) != 1 or not kinds <= set(accepted):
        raise ValueError(
            f"timm's {type(network).__name__} with blocks "
            f"{sorted(kind.__name__ for kind in kinds)} has no adapter: blocks must all be of one "
            f"of {[kind.__name__ for kind in accepted]}."
        )
    return kinds.pop()


def forward(self: Any, x: Tensor) -> Tensor:
    """A stage whose chain follows its downsampling: Swin's, ConvNeXt's."""
    return self.blocks(self.downsample(x))


def attention_options(attn_mask: Tensor | None, is_causal: bool) -> dict[str, Any]:
    """Those that are given: timm 1.0.25 does not know ``is_causal`` yet."""
    options: dict[str, Any] = {} if attn_mask is None else {"attn_mask": attn_mask}
    return options | {"is_causal": True} if is_causal else options


def intermediates(
    model: Any,
    image: Tensor,
    tokens: Tensor,
    side: dict[str, Any],
    indices: int | list[int] | None,
    return_prefix_tokens: bool,
    norm: bool,
    stop_early: bool,
    output_fmt: str,
    intermediates_only: bool,
    output_dict: bool = False,
) -> Any:
    """What ``forward_intermediates`` of timm's ViTs returns, with the features of the chain.

    ``stop_early`` runs the chain no further than the last feature; without the final features
    (``intermediates_only``) it never runs further.

    Args:
        model: its ``blocks`` are the chain.
        image: what the network was given.
        tokens: what enters the blocks.
        side: further arguments of the chain.
    """
    if output_fmt not in ("NCHW", "NLC"):
        raise ValueError(f"output_fmt={output_fmt!r}: use 'NCHW' or 'NLC'.")
    taken = sorted(feature_take_indices(len(model.blocks), indices)[0])
    last = len(model.blocks) - 1
    wanted = taken if stop_early or intermediates_only or last in taken else [*taken, last]
    # The pair: the stream itself, and what is made of it, in the order of timm's own loop.
    pairs = model.blocks.features(
        tokens,
        blocks=wanted,
        apply=lambda feature: (feature, model.norm(feature) if norm else feature),
        **side,
    )
    final = pairs[-1][0]
    maps = [feature for _, feature in pairs[: len(taken)]]
    prefixes = [feature[:, : model.num_prefix_tokens] for feature in maps]
    maps = [feature[:, model.num_prefix_tokens :] for feature in maps]
    if output_fmt == "NCHW":
        batch, _, height, width = image.shape
        grid = model.patch_embed.dynamic_feat_size((height, width))
        maps = [m.reshape(batch, *grid, -1).permute(0, 3, 1, 2).contiguous() for m in maps]
    return_prefix_tokens = return_prefix_tokens and model.num_prefix_tokens > 0
    if output_dict:
        result: dict[str, Any] = {"image_intermediates": maps}
        if return_prefix_tokens:
            result["image_intermediates_prefix"] = prefixes
        if not intermediates_only:
            result["image_features"] = model.norm(final)
        return result
    found: list[Any] = list(zip(maps, prefixes, strict=True)) if return_prefix_tokens else maps
    return found if intermediates_only else (model.norm(final), found)
