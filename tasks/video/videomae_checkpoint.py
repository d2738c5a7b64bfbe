"""Checkpoints of the original VideoMAE repository, in mmaction2's names.

https://github.com/MCG-NJU/VideoMAE (``modeling_pretrain.py``, ``modeling_finetune.py``) writes
``{"model": {...}}``, or ``{"module": {...}}`` through DeepSpeed. Pretraining files hold the encoder
as ``encoder.*`` beside a decoder; finetuned files hold the network without prefix. mmaction2's
``VisionTransformer`` computes the same function under other names.
"""

import re
from collections import OrderedDict

from mmengine.logging import print_log
from torch import Tensor

from dr2net.openmmlab.checkpoint import register_checkpoint_converter

# Keys that every file of the format has, after "encoder." where there is one, and no other has.
_SIGNATURE = ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.weight")

_RENAMED = (
    (r"^patch_embed\.proj\.", "backbone.patch_embed.projection."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"backbone.blocks.\1.mlp.layers.0.0."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"backbone.blocks.\1.mlp.layers.1."),
    (r"^(blocks\.\d+\.(?:norm1|norm2|attn|gamma_1|gamma_2))", r"backbone.\1"),
    (r"^(fc_norm\.|pos_embed$)", r"backbone.\1"),
    (r"^head\.", "cls_head.fc_cls."),
)


@register_checkpoint_converter
def convert_videomae_checkpoint(checkpoint: dict) -> dict | None:
    """Convert a checkpoint of the original VideoMAE repository; None where it is not one.

    As the repository's own finetuning does, drops what a classifier that averages over positions
    has no use for: the decoder, the mask token and the encoder's last norm. What is dropped is
    logged.

    Args:
        checkpoint: The opened file. It is recognised by its keys.

    Returns:
        ``{"state_dict": ...}`` with mmaction2's names (``backbone.*``, ``cls_head.fc_cls.*``).
    """
    weights = next(
        (checkpoint[key] for key in ("model", "module") if key in checkpoint), checkpoint
    )
    if not isinstance(weights, dict):
        return None
    prefix = "encoder." if "encoder.patch_embed.proj.weight" in weights else ""
    # timm's image models have the same names, but a two-dimensional patch embedding.
    if not all(prefix + key in weights for key in _SIGNATURE):
        return None
    if weights[prefix + "patch_embed.proj.weight"].ndim != 5:
        return None

    converted: OrderedDict[str, Tensor] = OrderedDict()
    dropped: list[str] = []
    for name, value in weights.items():
        renamed = _rename(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if renamed is None:
            dropped.append(name)
        else:
            converted[renamed] = value
    print_log(
        f"checkpoint of the original VideoMAE repository: {len(converted)} weights renamed, "
        f"{len(dropped)} dropped: {_summary(dropped)}",
        logger="current",
    )
    return {"state_dict": converted}


def _rename(name: str) -> str | None:
    for pattern, replacement in _RENAMED:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return None


def _summary(names: list[str]) -> str:
    """Name the top-level parts, as ``decoder.* (78), mask_token``."""
    parts: dict[str, int] = {}
    for name in names:
        part = name.split(".")[0]
        parts[part] = parts.get(part, 0) + 1
    return ", ".join(p if n == 1 else f"{p}.* ({n})" for p, n in parts.items()) or "nothing"
