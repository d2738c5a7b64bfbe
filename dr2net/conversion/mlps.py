"""MLPs that run over slices of their tokens: the hidden activations of one slice live at a time.

What a reversible chain keeps does not grow with its depth; the peak is then the recomputation of
one module, of an MLP mostly, whose hidden activations are several times as wide as the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ..branches import Slices, Tokenwise
from . import require_chains

__all__ = ["MLPS", "can_be_sliced", "slice_mlps"]

# Qualified names of classes. Not those derived from them, which may compute anything.
MLPS = {
    "mmaction.models.backbones.mvit.MLP",
    "mmaction.models.backbones.swin.Mlp",
    "mmcv.cnn.bricks.transformer.FFN",
    "timm.layers.mlp.GluMlp",
    "timm.layers.mlp.Mlp",
    "timm.layers.mlp.SwiGLU",
    "transformers.models.dinov2.modeling_dinov2.Dinov2MLP",
    "transformers.models.dinov2.modeling_dinov2.Dinov2SwiGLUFFN",
    "transformers.models.videomae.modeling_videomae.VideoMAEIntermediate",
    "transformers.models.vit.modeling_vit.ViTMLP",
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


def slice_mlps(model: nn.Module, tokens: int | None) -> None:
    """Has the MLPs in the chains of ``model`` train over slices of at most ``tokens`` tokens.

    A coupling that is no more than an MLP and what stands around it (norm, scale, stochastic depth)
    runs in slices as a whole, forward and backward of one before the next, and computes nothing
    more often than without slices: the hidden activations of one slice live at a time. An MLP
    beside other things in one module (behind ConvNeXt's convolution) stays whole.

    Gradients are the same with activations rebuilt and stored, bit for bit; to those of whole MLPs
    they are equal up to the order in which parameters' gradients are summed over tokens, and up to
    the dropout masks, which are drawn slice by slice. Without gradients in eval mode, and in
    exports, MLPs run whole.

    Args:
        model: a converted network.
        tokens: of all images or clips of a batch together; all dimensions of an MLP's input but the
            last (channels) count. None has MLPs run whole again.

    Raises:
        TypeError, ValueError: ``tokens`` is not a positive int.
        ValueError: the network has no chains, or no MLP in them that can be sliced.
    """
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool)):
        raise TypeError(f"tokens={tokens!r}: give a positive int, or None for whole MLPs.")
    if tokens is not None and tokens < 1:
        raise ValueError(f"tokens={tokens}: give a positive int, or None for whole MLPs.")
    chains = require_chains(model)
    sliced = [chain for chain in chains if any(can_be_sliced(*pair) for pair in chain.couplings())]
    if tokens is not None and not sliced:
        blocks = [block for chain in chains for block in chain.reversible_blocks()]
        found = {type(part).__qualname__ for block in blocks for part in block.modules()}
        raise ValueError(
            f"The blocks of this {type(model).__name__}'s chains have no MLP that can be sliced. "
            f"Known are {', '.join(sorted(MLPS))}, without convolutions and buffers, in modules of "
            f"their own; found were {', '.join(sorted(found))}."
        )
    for chain in chains:
        chain.slicer = Slicer(tokens) if tokens is not None and chain in sliced else None


@dataclass(frozen=True)
class Slicer:
    """What a chain asks for slices of a module's input."""

    tokens: int

    def __call__(
        self,
        block: nn.Module,
        branch: Callable[..., Tensor],
        x: Tensor,
        known: dict[Callable[..., Tensor], bool] | None = None,
    ) -> Slices | None:
        """Slices of x, if there are more tokens than ``tokens`` and the module can be sliced.

        Args:
            known: of which branches that was found out, as long as the block stays as it is.
        """
        if x.shape[:-1].numel() <= self.tokens:
            return None
        known = {} if known is None else known
        if branch not in known:
            known[branch] = can_be_sliced(block, branch)
        return Slices(x, self.tokens, draw_mask(block, branch, x)) if known[branch] else None

    def __str__(self) -> str:
        return f"slice_tokens={self.tokens}"


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
        not MLPS.isdisjoint(kinds)
        and kinds <= MLPS | BESIDE_MLPS
        and not any(map(_mixes_tokens, parts))
        and drops
        and inside <= {drop_path}
    )


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
