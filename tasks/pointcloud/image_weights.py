"""Vision transformers pretrained on images, for the blocks of ``PointViT``.

timm, DeiT (https://github.com/facebookresearch/deit), MAE (https://github.com/facebookresearch/mae)
and DINOv2 (https://github.com/facebookresearch/dinov2) name the weights of their blocks alike. What
goes with pixels (patch and position embedding, decoder) or with a data set (head) has no place in
a network for points, as in Pix4Point (https://arxiv.org/abs/2208.12259).
"""

import re

from mmengine.logging import print_log
from torch import Tensor

from dr2net.openmmlab.checkpoint import register_checkpoint_converter

__all__ = ["convert_image_checkpoint"]

# Keys that every file of the formats has.
_SIGNATURE = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
_TAKEN = re.compile(
    r"(cls_token|norm\.(weight|bias)"
    r"|blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias))"
)
# LayerScale and the layer whose output it scales.
_SCALE = re.compile(r"(blocks\.\d+\.)(?:ls([12])\.gamma|gamma_([12]))")
_SCALED = {"1": "attn.proj", "2": "mlp.fc2"}


@register_checkpoint_converter
def convert_image_checkpoint(checkpoint: dict) -> dict | None:
    """Convert a checkpoint of an image ViT; None where it is not one.

    Class token, blocks and last norm are taken, and LayerScale is multiplied into the layers that
    it follows. What is taken and what is left is logged.

    Args:
        checkpoint: The opened file, in which the weights stand bare or under ``model`` or
            ``state_dict``. It is recognised by its keys.

    Returns:
        ``{"state_dict": ...}`` with the names of a segmentor's ``backbone``.

    Raises:
        ValueError: The blocks have weights for which ``PointViT`` has no place, so that the rest
            would compute something else.
    """
    weights = next(
        (checkpoint[key] for key in ("model", "state_dict") if key in checkpoint), checkpoint
    )
    if not isinstance(weights, dict) or not all(key in weights for key in _SIGNATURE):
        return None
    # Of videos it has five dimensions.
    if weights["patch_embed.proj.weight"].ndim != 4:
        return None
    taken = {name: value for name, value in weights.items() if _TAKEN.fullmatch(name)}
    scales = {name: found for name in weights if (found := _SCALE.fullmatch(name))}
    left = [name for name in weights if name not in taken and name not in scales]
    homeless = [name for name in left if name.startswith("blocks.")]
    if homeless:
        raise ValueError(
            f"the blocks of this image model have {homeless[0]} and {len(homeless) - 1} more "
            "weights that PointViT has no place for: give a plain ViT, DeiT, MAE or DINOv2."
        )
    for name, found in scales.items():
        layer = found[1] + _SCALED[found[2] or found[3]]
        for kind in ("weight", "bias"):
            taken[f"{layer}.{kind}"] = _scaled(taken[f"{layer}.{kind}"], weights[name])
    print_log(
        f"checkpoint of an image model: {len(taken)} weights of class token, blocks and norm "
        f"taken, {len(scales)} LayerScales multiplied into them, {len(left)} left: "
        f"{', '.join(left) or 'none'}",
        logger="current",
    )
    return {"state_dict": {f"backbone.{name}": value for name, value in taken.items()}}


def _scaled(value: Tensor, gamma: Tensor) -> Tensor:
    """Scales the outputs of a layer by its weight or bias."""
    return value * gamma.view(-1, *[1] * (value.ndim - 1))
