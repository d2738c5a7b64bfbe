"""A module's run over slices of its tokens: the hidden activations of one slice live at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from .arguments import Arguments
from .branches import Branch, Slices
from .call import Call
from .replay import Inventory, holding

__all__ = ["SlicedCall"]


class SlicedCall(Call):
    """``Call``, over slices of x's tokens where ``slicer`` gives some, whole elsewhere.

    Args:
        slicer: makes Slices of (block, branch, x, what is known), or None where the module runs
            whole: see ``conversion.mlps.Slicer``.
    """

    def __init__(
        self,
        where: tuple[int, str, str],
        block: nn.Module,
        branch: Branch,
        arguments: Arguments,
        slicer: Callable[..., Slices | None],
    ):
        super().__init__(where, block, branch, arguments)
        self.slicer = slicer

    def stored(self, x: Tensor, side: Sequence[Tensor]) -> Tensor:
        """``Call.stored``.

        Parameters' gradients are summed as where modules are recomputed: over each slice first,
        over the slices from the last to the first, and only then over couplings that share a
        parameter. Views of views have autograd do so.
        """
        slices = self.slicer(self.block, self.branch, x)
        if slices is None:
            return self(x, side)
        inventory = Inventory(self.block)
        of_coupling = {id(p): p[...] for p in inventory.parameters if p.requires_grad}
        outputs = []
        for part, mask in slices.pairs(x):
            of_slice = {key: parameter[...] for key, parameter in of_coupling.items()}
            with holding(inventory.exchanged(of_slice)):
                outputs.append(self(part, side, **_masked(mask)))
        return slices.join(outputs)

    def run(self, x: Tensor, side: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """``Call.run``."""
        self._slices = self.slicer(self.block, self.branch, x, self.inventory.sliceable)
        if self._slices is None:
            return super().run(x, side)
        self.settings.random = None  # a mask may have been drawn
        runs = [
            self.run_once(part, side, **_masked(mask)) for part, mask in self._slices.pairs(x)
        ]
        outputs, self._states, used = zip(*runs, strict=True)
        return self._slices.join(outputs), [*chain(*used)]

    def again(
        self, inputs: Sequence[Tensor], parameters: Sequence[Tensor], grad_output: Tensor | None
    ) -> tuple[Tensor, Callable[[], list[Tensor | None]]]:
        """``Call.again``.

        Each slice runs forward and backward before the next begins, so that its activations are all
        that live, from the last to the first, the order in which autograd would come to them: sums
        over them are of the same bits. The gradient of the output is known before, so that no slice
        runs more often than the whole module would.
        """
        if self._slices is None:
            return super().again(inputs, parameters, grad_output)
        x, *side = inputs
        pairs = self._slices.pairs(x.detach())
        outputs: list[Tensor] = []
        grads_x: list[Tensor | None] = [None] * len(pairs)
        sums: list[Tensor | None] = [None] * len(parameters)
        grads = None if grad_output is None else self._slices.cut(grad_output)
        for i in reversed(range(len(pairs))):
            part, mask = pairs[i]
            part = part.detach().requires_grad_(x.requires_grad)
            output = self.repeat(part, side, self._states[i], **_masked(mask))
            outputs.append(output.detach())
            if grads is not None:
                end = get_gradient_edge(output) if output.requires_grad else None
                del output
                grads_x[i], *found = self.gradients(end, [part, *parameters], grads[i])
                sums = list(map(_sum, sums, found))
                del found, end  # before the next slice has its own
        of_x = None
        if any(grad is not None for grad in grads_x):
            filled = zip(grads_x, pairs, strict=True)
            of_x = self._slices.join(
                [torch.zeros_like(p) if g is None else g for g, (p, _) in filled]
            )
        # A branch that works token by token takes no side inputs.
        result = [of_x, *[None] * len(side), *sums]
        return self._slices.join(outputs[::-1]), lambda: result


def _masked(mask: Tensor | None) -> dict[str, Any]:
    """What a branch is told of the samples that stochastic depth drops."""
    return {} if mask is None else {"_drop_mask": mask}


def _sum(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """Their sum, in memory that is no gradient's own: several gradients can be one tensor."""
    if total is None or more is None:
        return total if more is None else more.clone()
    return total.add_(more)
