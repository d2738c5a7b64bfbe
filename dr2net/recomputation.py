"""The run of one coupling's module, from forward to its recomputation and gradients in backward.

Whole, or over slices of its tokens: each slice then runs forward and backward before the next
begins, so that its activations are all that live. The gradient of a coupling's output is known
before its module is recomputed, so that no slice runs more often than the whole module would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .block_state import BlockState
from .replay import RandomState, run_recorded, run_replayed
from .streams import Pass

__all__ = ["Recomputation", "run_stored"]


def run_stored(this_pass: Pass, index: int, x: Tensor, side: Sequence[Tensor]) -> Tensor:
    """The output of coupling ``index``'s module, by whose graph autograd runs backward.

    Parameters' gradients are summed as where modules are recomputed: over each slice first, over
    the slices from the last to the first, and only then over couplings that share a parameter.
    Views of views have autograd do so.
    """
    slices = this_pass.slices(index, x)
    if slices is None:
        return this_pass.call(index, x, side)
    block, _ = this_pass.couplings[index]
    state, name = BlockState(block), this_pass.coupling_names[index]
    of_coupling = {id(p): p[...] for p, _ in state.parameters if p.requires_grad}
    state.keep_what_matters(())
    outputs = []
    for part, mask in slices.pairs(x):
        of_slice = {key: parameter[...] for key, parameter in of_coupling.items()}
        with state.put_back(name, of_slice):
            outputs.append(this_pass.call(index, part, side, mask))
    return slices.join(outputs)


class Recomputation:
    """A run of coupling ``index``'s module on an input like ``x``, to be repeated in backward."""

    def __init__(self, this_pass: Pass, index: int, x: Tensor):
        block, _ = this_pass.couplings[index]
        self.name = this_pass.coupling_names[index]
        self.block_state = BlockState(block)
        self.slices = this_pass.slices(index, x)
        self.call = partial(this_pass.call, index)
        self.retreat = partial(this_pass.retreat, index)
        self.device = this_pass.device
        # What the run, or each slice's, started from.
        self.random_states: list[RandomState | None] = []

    def run(self, x: Tensor, side: Sequence[Tensor]) -> Tensor:
        """The module's output, in forward."""
        pairs = [(x, None)] if self.slices is None else self.slices.pairs(x)
        outputs = []
        for part, mask in pairs:
            output, state = run_recorded(partial(self.call, part, side, mask), self.device)
            outputs.append(output)
            self.random_states.append(state)
        self.output_dtype = outputs[0].dtype
        return outputs[0] if self.slices is None else self.slices.join(outputs)

    def run_back(
        self,
        stream: Tensor,
        inputs: list[Tensor],
        used: Sequence[Tensor],
        grad_output: Tensor | None,
    ) -> list[Tensor | None]:
        """Recomputes the module, and has the pass retreat to ``stream``, its input.

        Args:
            inputs: x and the side inputs: leaves with the values of forward.
            used: the parameters whose gradients are wanted.

        Returns:
            The gradients of the inputs and the parameters.
        """
        # Parameters that functional_call made of others: the way on from them is not ours.
        made = {id(p): p.detach().requires_grad_() for p in used if not p.is_leaf}
        parameters = [made.get(id(p), p) for p in used]
        back = self._whole_back if self.slices is None else self._slices_back
        with self.block_state.put_back(self.name, made) as buffers:
            return back(stream, inputs, parameters, grad_output, buffers)

    def _whole_back(
        self,
        stream: Tensor,
        inputs: list[Tensor],
        parameters: list[Tensor],
        grad_output: Tensor | None,
        buffers: list[Tensor],
    ) -> list[Tensor | None]:
        (state,) = self.random_states
        output = self._recompute(inputs, None, state, buffers)
        self.retreat(stream, output)
        if grad_output is None or not output.requires_grad:
            return [None] * (len(inputs) + len(parameters))
        # The module's backward, where memory has its peak, needs the graph and not the output.
        end = get_gradient_edge(output)
        del output
        return _gradients(end, [*inputs, *parameters], grad_output.to(self.output_dtype))

    def _slices_back(
        self,
        stream: Tensor,
        inputs: list[Tensor],
        parameters: list[Tensor],
        grad_output: Tensor | None,
        buffers: list[Tensor],
    ) -> list[Tensor | None]:
        """In the order in which autograd would come to the slices, from the last to the first.

        So sums over them are of the same bits.
        """
        assert self.slices is not None
        x, *side = inputs
        pairs = self.slices.pairs(x.detach())
        outputs: list[Tensor] = []
        grads_x: list[Tensor | None] = [None] * len(pairs)
        sums: list[Tensor | None] = [None] * len(parameters)
        if grad_output is not None:
            grads_output = self.slices.cut(grad_output.to(self.output_dtype))
        for i in reversed(range(len(pairs))):
            part, mask = pairs[i]
            part = part.detach().requires_grad_(x.requires_grad)
            output = self._recompute([part, *side], mask, self.random_states[i], buffers)
            outputs.append(output.detach())
            if grad_output is not None and output.requires_grad:
                end = get_gradient_edge(output)
                del output
                grads_x[i], *found = _gradients(end, [part, *parameters], grads_output[i])
                sums = list(map(_sum, sums, found))
                del found, end  # before the next slice has its own
        self.retreat(stream, self.slices.join(outputs[::-1]))
        of_x = None
        if any(grad is not None for grad in grads_x):
            filled = zip(grads_x, pairs, strict=True)
            of_x = self.slices.join(
                [torch.zeros_like(p) if g is None else g for g, (p, _) in filled]
            )
        # A branch that works token by token takes no side inputs.
        return [of_x, *[None] * len(side), *sums]

    def _recompute(
        self,
        inputs: list[Tensor],
        drop_mask: Tensor | None,
        state: RandomState | None,
        buffers: list[Tensor],
    ) -> Tensor:
        with torch.enable_grad():
            call = partial(self.call, inputs[0], inputs[1:], drop_mask)
            return run_replayed(call, self.device, state, buffers)


def _sum(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """Their sum, in memory that is no gradient's own: several gradients can be one tensor."""
    if total is None or more is None:
        return total if more is None else more.clone()
    return total.add_(more)


def _gradients(
    end: GradientEdge, tensors: Sequence[Tensor], grad_output: Tensor
) -> list[Tensor | None]:
    """For each of the ``tensors`` its gradient, None where it needs none or has no part in it."""
    wanted = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
    inputs = [tensors[i] for i in wanted]
    with _tensor_hooks_suspended(inputs):
        found = torch.autograd.grad(end, inputs, grad_output, allow_unused=True)
    grads: list[Tensor | None] = [None] * len(tensors)
    for i, grad in zip(wanted, found, strict=True):
        grads[i] = grad
    return grads


@contextmanager
def _tensor_hooks_suspended(tensors: list[Tensor]) -> Iterator[None]:
    """Keeps hooks on parameters for the gradient that autograd will hand them, and them alone."""
    hooks = [tensor._backward_hooks for tensor in tensors]
    for tensor in tensors:
        tensor._backward_hooks = None
    try:
        yield
    finally:
        for tensor, hook in zip(tensors, hooks, strict=True):
            tensor._backward_hooks = hook
