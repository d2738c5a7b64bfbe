"""Couplings whose activations are stored: the same equations, and autograd keeps what it needs.

The reference that gradients are compared with, kept blocks, and forwards without gradients.
``this_pass`` is a ``coupling.Pass`` throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .block_hooks import after_couplings, before_couplings
from .branches import Branch
from .call import Call
from .layout import view_of
from .streams import combined

__all__ = ["run_plain", "run_without_gradients", "stored_coupling"]


def run_without_gradients(this_pass: Any, calls: Sequence[Call], x: Tensor) -> Tensor:
    """Runs the couplings of one block; returns x behind them."""
    for call in calls:
        output = call.stored(x, call.arguments.side)
        x, _ = this_pass.streams.advance(output, keep_remainder=False)
    return x


def run_plain(
    blocks: Iterable[tuple[str, nn.Module]],
    branches: Sequence[Branch],
    alpha: float,
    x: Tensor,
    args: tuple,
    kwargs: dict[str, Any],
    checkpointed: bool,
    take: Callable[[str, Tensor], None],
) -> Tensor:
    """Runs blocks at β = 0, one after the other as autograd has it; ``take`` is given x by name."""

    def run(block: nn.Module, x: Tensor) -> Tensor:
        for branch in branches:
            x = branch(block, x, alpha, *args, **kwargs)
        return x

    for key, block in blocks:
        (entered,) = before_couplings(block, x)
        if checkpointed:
            x = checkpoint(run, block, entered, use_reentrant=False)
        else:
            x = run(block, entered)
        (x,) = after_couplings(block, entered, x)
        take(key, x)
    return x


def stored_coupling(
    this_pass: Any, call: Call, x: Tensor, y: Tensor, checkpointed: bool
) -> tuple[Tensor, Tensor]:
    """(x, y) → (x', y') of one coupling; ``checkpointed`` has its module run again, too."""
    for_module, for_y = _Split.apply(this_pass.arithmetic.beta, x)
    # Views, so that gradients of side inputs are summed coupling by coupling. The last is made
    # first, as backward reaches views in the reverse order: a tensor given twice has its gradients
    # summed in the order of the recomputation.
    side = [view_of(tensor) for tensor in reversed(call.arguments.side)][::-1]
    if checkpointed:
        output = checkpoint(call.stored, for_module, side, use_reentrant=False)
    else:
        output = call.stored(for_module, side)
    return _StoredCoupling.apply(this_pass, output, for_y, y)


class _Split(torch.autograd.Function):
    """The input of a stored coupling, once for its module and once for the stream y."""

    @staticmethod
    def forward(ctx: Any, beta: float, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.beta = beta
        return x.detach(), x.detach()

    @staticmethod
    def backward(ctx: Any, grad_module: Tensor | None, grad_y: Tensor | None) -> tuple:
        return None, combined(grad_module, grad_y, ctx.beta)


class _StoredCoupling(torch.autograd.Function):
    """(module output, x, y) → (x', y'), the straight-through derivative of the arithmetic."""

    @staticmethod
    def forward(ctx: Any, this_pass: Any, output: Tensor, x: Tensor, y: Tensor) -> tuple:
        ctx.set_materialize_grads(False)
        ctx.output_dtype = output.dtype
        value, _ = this_pass.streams.advance(output, keep_remainder=False)
        return value, this_pass.stand_in(value)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, grad_y: Tensor | None) -> tuple:
        grad_output = None if grad_x is None else grad_x.to(ctx.output_dtype)
        return None, grad_output, grad_y, grad_x  # _Split multiplies grad_y by β
