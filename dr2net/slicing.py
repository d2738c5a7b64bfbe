"""MLPs that run over slices of their tokens: the hidden activations of one slice live at a time.

What a reversible chain keeps does not grow with its depth; the peak is then the recomputation of
one module, of an MLP mostly, whose hidden activations are several times as wide as the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.checkpoint import checkpoint

from .block_state import BlockState
from .conversion import require_chains
from .conversion.subclass import replace_methods, restore_methods

__all__ = ["slice_mlps"]

# Qualified name of a class whose modules compute every token by itself → where its MLP is: the
# module, or, if it also does what no slice may do apart (a shortcut, DropPath), the part of it.
MLPS = {
    "timm.layers.mlp.Mlp": "",
    "timm.layers.mlp.GluMlp": "",
    "timm.layers.mlp.SwiGLU": "",
    "mmcv.cnn.bricks.transformer.FFN": "layers",
    "mmaction.models.backbones.swin.Mlp": "",
    "mmaction.models.backbones.mvit.MLP": "",
    "transformers.models.vit.modeling_vit.ViTMLP": "",
    "transformers.models.dinov2.modeling_dinov2.Dinov2MLP": "",
    "transformers.models.dinov2.modeling_dinov2.Dinov2SwiGLUFFN": "",
}


def slice_mlps(model: nn.Module, tokens: int | None) -> None:
    """Has the MLPs in the chains of ``model`` run over slices of at most ``tokens`` tokens, or not.

    In training the hidden activations of one slice live at a time, for one more computation of
    each MLP's first half. Gradients are the same with activations rebuilt and stored, bit for bit;
    to those of whole MLPs they are equal up to the order in which parameters' gradients are summed
    over tokens, and up to the dropout masks, which are drawn slice by slice.

    Args:
        model: a converted network.
        tokens: of each image or clip; all dimensions of an MLP's input but the first (batch) and
            the last (channels) count. None has MLPs run whole again, as the classes they are of.

    Raises:
        TypeError, ValueError: ``tokens`` is not a positive int.
        ValueError: the network has no chains, or no MLP in them that can be sliced.
    """
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool)):
        raise TypeError(f"tokens={tokens!r}: give a positive int, or None for whole MLPs.")
    if tokens is not None and tokens < 1:
        raise ValueError(f"tokens={tokens}: give a positive int, or None for whole MLPs.")
    blocks = [block for chain in require_chains(model) for block in chain.reversible_blocks()]
    for part in (part for block in blocks for part in block.modules()):
        if hasattr(part, "slice_tokens"):
            restore_methods(part)
    mlps = list(dict.fromkeys(mlp for block in blocks for mlp in _mlps_in(block)))
    if tokens is not None and not mlps:
        found = {type(part).__qualname__ for block in blocks for part in block.modules()}
        raise ValueError(
            f"The blocks of this {type(model).__name__}'s chains have no MLP that can be sliced. "
            f"Known are {', '.join(MLPS)}, without convolutions and buffers; "
            f"found were {', '.join(sorted(found))}."
        )
    if tokens is not None:
        for mlp in mlps:
            replace_methods(mlp, type(mlp), forward, slice_tokens=tokens)


def _mlps_in(block: nn.Module) -> Iterator[nn.Module]:
    for module in block.modules():
        kind = type(module)  # not one derived from those known, which may compute anything
        place = MLPS.get(f"{kind.__module__}.{kind.__qualname__}")
        # Buffers are state that tokens share (BatchNorm, spectral norm).
        apart = any(isinstance(part, _ConvNd) or part._buffers for part in module.modules())
        if place is not None and not apart:
            yield module.get_submodule(place)


def forward(self: Any, x: Tensor) -> Tensor:
    """As the MLP's own, over slices of the tokens of ``x``, (batch, …, channels)."""
    run: Callable[[Tensor], Tensor] = partial(self._original_class.forward, self)
    if x.shape[1:-1].numel() <= self.slice_tokens:
        return run(x)
    if _takes_checkpoints():
        run = _keeping_nothing(self, run)
    slices = x.flatten(1, -2).split(self.slice_tokens, dim=1)
    return torch.cat([run(part) for part in slices], dim=1).unflatten(1, x.shape[1:-1])


def _takes_checkpoints() -> bool:
    elsewhere = torch.compiler.is_exporting() or torch.jit.is_tracing()
    in_functional = torch._C._are_functorch_transforms_active()  # has no hooks on saved tensors
    return torch.is_grad_enabled() and not elsewhere and not in_functional


def _keeping_nothing(mlp: nn.Module, run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``run``, of whose calls autograd keeps their inputs alone: backward computes them again."""
    if torch.compiler.is_compiling():  # the compiled graph holds on to its parameters itself
        return partial(checkpoint, run, use_reentrant=False)
    state = BlockState(mlp)
    # Views, so that a parameter's gradients of all the slices are summed before those of other
    # calls are added, as a chain that rebuilds does.
    views = {id(parameter): parameter[...] for parameter, _ in state.parameters}

    def run_with_these(part: Tensor) -> Tensor:
        with state.put_back(f"this {type(mlp).__name__}", views):
            return run(part)

    return partial(checkpoint, run_with_these, use_reentrant=False)
