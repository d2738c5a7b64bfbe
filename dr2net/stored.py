"""Couplings whose activations are stored: the same equations, and autograd keeps what it needs.

The reference that gradients are compared with, kept blocks, and forwards without gradients.
``this_pass`` is a ``coupling.Pass`` throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .block_hooks import after_couplings, before_couplings
from .call import Call
from .streams import combined

__all__ = ["run_without_gradients", "stored_coupling"]


def run_without_gradients(
    this_pass: Any, x: Tensor, after: Callable[[int, Tensor], None]
) -> None:
    """Runs a row of couplings; ``after`` is given the number of each, and x behind it."""
    streams, side, calls = this_pass.streams, this_pass.arguments.side, this_pass.calls
    x = streams.start(x)
    for index, call in enumerate(calls):
        if index == 0 or call.block is not calls[index - 1].block:
            (x,) = before_couplings(call.block, x)
            entered = x
        x, _ = streams.advance(call.stored(x, side), keep_remainder=False)
        if index == len(calls) - 1 or call.block is not calls[index + 1].block:
            (x,) = after_couplings(call.block, entered, x)
        after(index, x)
    streams.drop()


def stored_coupling(
    this_pass: Any, call: Call, x: Tensor, y: Tensor, checkpointed: bool
) -> tuple[Tensor, Tensor]:
    """(x, y) → (x', y') of one coupling; ``checkpointed`` has its module run again, too."""
    for_module, for_y = _Split.apply(this_pass.arithmetic.beta, x)
    # Views, so that gradients of side inputs are summed coupling by coupling. [...] and not
    # view_as, which may give other strides, by which kernels are chosen.
    # The last is made first, as backward reaches views in the reverse order: a tensor given twice
    # has its gradients summed in the order of the recomputation.
    side = [
        tensor[...] if tensor.layout == torch.strided else tensor.clone()  # sparse: has no views
        for tensor in reversed(this_pass.arguments.side)
    ][::-1]
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
