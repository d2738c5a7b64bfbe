"""Modules that compute every token by itself, and run over slices of their tokens.

Where backward rebuilds, each slice runs forward and backward before the next begins, so that its
activations are all that live: the gradient of a coupling's output is known before its module is
recomputed. No slice is computed more often than the whole module would be.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

__all__ = ["MLPS_IN_BRANCHES", "Slices", "can_be_sliced", "is_mlp", "slice_lengths", "tokenwise"]

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
class _Declared:
    """What ``tokenwise`` was told of a branch."""

    parts: tuple[str, ...]
    drop_path: str | None


def tokenwise(
    *parts: str, drop_path: str | None = None
) -> Callable[[Callable[[Any, Tensor], Tensor]], Callable[..., Tensor]]:
    """Makes a branch, for ``residual``, of an ``F(block, x)`` that computes each token by itself.

    F takes x of (…, channels) and none of the chain's further arguments. ``slice_mlps`` runs it
    over slices where ``parts`` are of classes known to mix no tokens, an MLP among them.

    Args:
        parts: names, within the block, of the modules that F calls.
        drop_path: name of the module called on F's output that drops whole samples (stochastic
            depth), if there is one. It draws once for all slices.
    """

    def decorate(function: Callable[[Any, Tensor], Tensor]) -> Callable[..., Tensor]:
        @wraps(function)
        def branch(
            block: Any, x: Tensor, *_: Any, drop_mask: Tensor | None = None, **__: Any
        ) -> Tensor:
            output = function(block, x)
            if drop_mask is not None:
                return output * drop_mask.to(output.dtype)
            return output if drop_path is None else block.get_submodule(drop_path)(output)

        branch.tokenwise = _Declared(parts, drop_path)  # type: ignore[attr-defined]
        return branch

    return decorate


def can_be_sliced(block: nn.Module, branch: Callable[..., Tensor]) -> bool:
    """Whether ``branch`` computes each token of ``block`` by itself, with an MLP."""
    declared: _Declared | None = getattr(branch, "tokenwise", None)
    if declared is None:
        return False
    parts = [block.get_submodule(name) for name in declared.parts]
    mlps = [part for part in parts if is_mlp(part, MLPS_IN_BRANCHES)]
    others = {_qualified_name(part) for part in parts if part not in mlps}
    drop_path = None if declared.drop_path is None else block.get_submodule(declared.drop_path)
    drops = drop_path is None or type(drop_path) is nn.Identity or _is_drop_path(drop_path)
    # Another one would draw for each slice by itself.
    inside = {part for part in parts for part in part.modules() if _is_drop_path(part)}
    return bool(mlps) and others <= BESIDE_MLPS and drops and inside <= {drop_path}


def is_mlp(module: nn.Module, known: Collection[str] = MLPS) -> bool:
    """Whether ``module`` is of a ``known`` class, and its tokens have nothing in common."""
    mixing = (_ConvNd, _NormBase, nn.GroupNorm)
    return _qualified_name(module) in known and not any(
        # Buffers are state, such as that of a spectral norm.
        isinstance(part, mixing) or part._buffers
        for part in module.modules()
    )


def _is_drop_path(module: nn.Module) -> bool:
    return _qualified_name(module) in DROP_PATHS


def _qualified_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def slice_lengths(tokens: int, most: int) -> list[int]:
    """Lengths of the fewest slices of at most ``most`` of ``tokens`` tokens, as even as can be."""
    count = -(-tokens // most)
    return [(tokens + place) // count for place in range(count)][::-1]


class Slices:
    """One call of a branch over slices of at most ``tokens`` tokens, of all samples together.

    Slices are of shape (1, tokens, channels) and lie in one piece of memory each.
    """

    def __init__(self, block: nn.Module, branch: Callable[..., Tensor], x: Tensor, tokens: int):
        self.shape = x.shape
        self.lengths = slice_lengths(x.shape[:-1].numel(), tokens)
        self.mask: Tensor | None = None
        """What (batch, 1, 1) samples are multiplied by, if some of them may be dropped."""
        drop_path = branch.tokenwise.drop_path  # type: ignore[attr-defined]
        if drop_path is not None:
            ones = x.new_ones(len(x), 1, 1)
            with torch.no_grad():
                mask = block.get_submodule(drop_path)(ones)
            self.mask = None if mask is ones else mask

    def cut(self, tensor: Tensor) -> Sequence[Tensor]:
        """Slices of a tensor of x's shape."""
        return tensor.reshape(1, -1, self.shape[-1]).split(self.lengths, dim=1)

    def masks(self) -> Sequence[Tensor | None]:
        """For each slice, what the tokens' outputs are multiplied by, of shape (1, tokens, 1)."""
        if self.mask is None:
            return [None] * len(self.lengths)
        of_tokens = self.mask.expand(-1, sum(self.lengths) // len(self.mask), -1)
        return of_tokens.reshape(1, -1, 1).split(self.lengths, dim=1)

    def join(self, slices: Sequence[Tensor]) -> Tensor:
        """The tensor of x's shape that the slices make."""
        return torch.cat(list(slices), dim=1).reshape(self.shape)
