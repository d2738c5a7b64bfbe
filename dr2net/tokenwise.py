"""Branches that compute every token by itself, and so can run over slices of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

__all__ = ["MLPS_IN_BRANCHES", "Slices", "Tokenwise", "can_be_sliced", "draw_mask", "is_mlp"]

# Qualified names of classes. Not those derived from them, which may compute anything.
MLPS = {
    "mmaction.models.backbones.mvit.MLP",
    "mmaction.models.backbones.swin.Mlp",
    "timm.layers.mlp.GluMlp",
    "timm.layers.mlp.Mlp",
    "timm.layers.mlp.SwiGLU",
    "transformers.models.dinov2.modeling_dinov2.Dinov2MLP",
    "transformers.models.dinov2.modeling_dinov2.Dinov2SwiGLUFFN",
    "transformers.models.vit.modeling_vit.ViTMLP",
}
# More than an MLP, or half of one: only in a branch that is declared.
MLPS_IN_BRANCHES = {
    *MLPS,
    "mmcv.cnn.bricks.transformer.FFN",
    "transformers.models.videomae.modeling_videomae.VideoMAEIntermediate",
}
BESIDE_MLPS = {
    "mmcv.cnn.bricks.scale.LayerScale",
    "timm.layers.layer_scale.LayerScale",
    "timm.layers.norm.LayerNorm",
    "timm.layers.norm.LayerNormFp32",
    "timm.layers.norm.RmsNorm",
    "torch.nn.modules.dropout.Dropout",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.normalization.LayerNorm",
    "torch.nn.modules.normalization.RMSNorm",
    "transformers.models.dinov2.modeling_dinov2.Dinov2LayerScale",
}
DROP_PATHS = {
    "mmcv.cnn.bricks.drop.DropPath",
    "timm.layers.drop.DropPath",
    "transformers.models.dinov2.modeling_dinov2.Dinov2DropPath",
}


@dataclass(frozen=True)
class Tokenwise:
    """What ``residual`` was told of a branch: the modules it calls, and what drops samples."""

    parts: tuple[str, ...]
    drop_path: str | None


def can_be_sliced(block: nn.Module, branch: Callable[..., Tensor]) -> bool:
    """Whether ``branch`` computes each token of ``block`` by itself, with an MLP."""
    declared: Tokenwise | None = getattr(branch, "tokenwise", None)
    if declared is None:
        return False
    parts = [block.get_submodule(name) for name in declared.parts]
    kinds = set(map(_qualified_name, parts))
    drop_path = None if declared.drop_path is None else block.get_submodule(declared.drop_path)
    drops = drop_path is None or type(drop_path) is nn.Identity or _is_drop_path(drop_path)
    # Another one would draw for each slice by itself.
    inside = {part for part in parts for part in part.modules() if _is_drop_path(part)}
    return (
        not MLPS_IN_BRANCHES.isdisjoint(kinds)
        and kinds <= MLPS_IN_BRANCHES | BESIDE_MLPS
        and not any(map(_mixes_tokens, parts))
        and drops
        and inside <= {drop_path}
    )


def is_mlp(module: nn.Module) -> bool:
    """Whether ``module`` is an MLP in which tokens have nothing in common."""
    return _qualified_name(module) in MLPS and not _mixes_tokens(module)


def _mixes_tokens(module: nn.Module) -> bool:
    """Whether there is something in ``module`` that tokens share."""
    mixing = (_ConvNd, _NormBase, nn.GroupNorm)
    return any(
        isinstance(part, mixing)
        or part._buffers  # state, such as that of a spectral norm
        or len(getattr(part, "normalized_shape", "C")) > 1  # of a norm over more than channels
        for part in module.modules()
    )


def _is_drop_path(module: nn.Module) -> bool:
    return _qualified_name(module) in DROP_PATHS


def _qualified_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def draw_mask(block: nn.Module, branch: Callable[..., Tensor], x: Tensor) -> Tensor | None:
    """What samples are multiplied by, of shape (batch, 1, 1), if some of them may be dropped."""
    drop_path = branch.tokenwise.drop_path  # type: ignore[attr-defined]
    if drop_path is None:
        return None
    ones = x.new_ones(len(x), 1, 1)
    with torch.no_grad():
        mask = block.get_submodule(drop_path)(ones)
    return None if mask is ones else mask


class Slices:
    """One call over slices of at most ``tokens`` tokens of x, of all samples together.

    The fewest slices, as even as can be; each is of shape (1, tokens, channels) and lies in one
    piece of memory.
    """

    def __init__(self, x: Tensor, tokens: int, mask: Tensor | None = None):
        self.shape, self.mask = x.shape, mask
        count = x.shape[:-1].numel()
        slices = -(-count // tokens)
        self.lengths = [(count + place) // slices for place in range(slices)][::-1]

    def cut(self, tensor: Tensor) -> Sequence[Tensor]:
        """Slices of a tensor of x's shape."""
        return tensor.reshape(1, -1, self.shape[-1]).split(self.lengths, dim=1)

    def pairs(self, x: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Slices of x, each with what its output is multiplied by, of shape (1, tokens, 1)."""
        if self.mask is None:
            return [(part, None) for part in self.cut(x)]
        of_tokens = self.mask.expand(-1, sum(self.lengths) // len(self.mask), -1)
        masks = of_tokens.reshape(1, -1, 1).split(self.lengths, dim=1)
        return list(zip(self.cut(x), masks, strict=True))

    def join(self, slices: Sequence[Tensor]) -> Tensor:
        """The tensor of x's shape, but for the channels, that the slices make."""
        joined = torch.cat(list(slices), dim=1)
        return joined.reshape(*self.shape[:-1], joined.shape[-1])
