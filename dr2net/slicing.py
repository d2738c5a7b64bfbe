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
from torch.utils.checkpoint import checkpoint

from .block_state import BlockState
from .chain import ReversibleChain
from .conversion import require_chains
from .conversion.subclass import replace_methods, restore_methods
from .tokenwise import MLPS_IN_BRANCHES, Slices, can_be_sliced, is_mlp

__all__ = ["slice_mlps"]


def slice_mlps(model: nn.Module, tokens: int | None) -> None:
    """Has the MLPs in the chains of ``model`` train over slices of at most ``tokens`` tokens.

    Where activations are rebuilt, the hidden ones of one slice live at a time. A coupling that is
    no more than an MLP and what stands around it (norm, scale, stochastic depth) runs in slices as
    a whole, forward and backward of one before the next, and computes nothing more often than
    without slices. An MLP beside other things (behind ConvNeXt's convolution) costs one more
    computation of its first half.

    Gradients are the same with activations rebuilt and stored, bit for bit; to those of whole MLPs
    they are equal up to the order in which parameters' gradients are summed over tokens, and up to
    the dropout masks, which are drawn slice by slice. In eval mode and exports MLPs run whole.

    To be called last, after modules have been exchanged for others (adapters of LoRA).

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
    blocks = [block for chain in chains for block in chain.reversible_blocks()]
    for part in (part for block in blocks for part in block.modules()):
        if hasattr(part, "slice_tokens"):
            restore_methods(part)
    whole = [chain for chain in chains if any(can_be_sliced(*pair) for pair in chain.couplings())]
    apart = list(dict.fromkeys(mlp for chain in chains for mlp in _mlps_beside_others(chain)))
    if tokens is not None and not whole and not apart:
        found = {type(part).__qualname__ for block in blocks for part in block.modules()}
        raise ValueError(
            f"The blocks of this {type(model).__name__}'s chains have no MLP that can be sliced. "
            f"Known are {', '.join(sorted(MLPS_IN_BRANCHES))}, without convolutions and buffers; "
            f"found were {', '.join(sorted(found))}."
        )
    for chain in chains:
        chain.slice_tokens = tokens if chain in whole else None
    if tokens is not None:
        for mlp in apart:
            replace_methods(mlp, type(mlp), forward, slice_tokens=tokens)


def _mlps_beside_others(chain: ReversibleChain) -> Iterator[nn.Module]:
    """Of the chain's blocks that have no coupling to be sliced as a whole."""
    for block in chain.reversible_blocks():
        if not any(can_be_sliced(block, branch) for branch in chain.branches):
            yield from filter(is_mlp, block.modules())


def forward(self: Any, x: Tensor) -> Tensor:
    """As the MLP's own; in training over slices of the tokens of ``x``, (…, channels)."""
    run: Callable[[Tensor], Tensor] = partial(self._original_class.forward, self)
    if not self.training or x.shape[:-1].numel() <= self.slice_tokens or _is_exporting():
        return run(x)
    if torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
        run = _keeping_nothing(self, run)  # not in transforms, which have no hooks on saved tensors
    slices = Slices(x, self.slice_tokens)
    return slices.join([run(part) for part in slices.cut(x)])


def _is_exporting() -> bool:
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def _keeping_nothing(mlp: nn.Module, run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``run``, of whose calls autograd keeps their inputs alone: backward computes them again."""
    if torch.compiler.is_compiling():  # the compiled graph holds on to its parameters itself
        return partial(checkpoint, run, use_reentrant=False)
    state = BlockState(mlp)
    # Views, so that a parameter's gradients of all the slices are summed before those of other
    # calls are added, as a chain that rebuilds does.
    views = {id(p): p[...] for p, _ in state.parameters if p.requires_grad}

    def run_with_these(part: Tensor) -> Tensor:
        with state.put_back(f"this {type(mlp).__name__}", views):
            return run(part)

    return partial(checkpoint, run_with_these, use_reentrant=False)
