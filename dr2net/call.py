"""One module's run in a chain: the first in forward, the same again in backward, its gradients.

A module that runs again returns the bits of its first run if it computes the same: from the same
input, with the parameters and buffers that its block held then, the same random numbers, in the
same precision, by the same kernels. ``replay.py`` has what it takes to put all this back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .arguments import Arguments
from .branches import Branch, ShapeError, check_shape
from .graph_walk import parameters_behind, refuse_lost_gradients, refuse_tensors_from_forward
from .layout import view_of
from .replay import (
    RECOMPUTING,
    Inventory,
    RandomState,
    Settings,
    WatchedBuffers,
    holding,
    random_state,
    set_random_state,
    undo,
)

__all__ = ["Call"]


class Call:
    """The module of one coupling, in one pass; ``sliced_call.py`` has one over slices of tokens.

    Args:
        where: number of the coupling, name of the chain, name of the block: for messages.
    """

    def __init__(
        self, where: tuple[int, str, str], block: nn.Module, branch: Branch, arguments: Arguments
    ):
        self.where, self.block, self.branch, self.arguments = where, block, branch, arguments
        self.is_exposed = False  # whether others than the modules of the chain see the input

    @property
    def name(self) -> str:
        """Number, path and branch, for messages."""
        number, chain, key = self.where
        return f"coupling {number} ({chain}.{key}, {getattr(self.branch, '__name__', self.branch)})"

    def __call__(self, x: Tensor, side: Sequence[Tensor], **further: Any) -> Tensor:
        """Returns G(x; α)."""
        args, kwargs = self.arguments.with_side(side)
        if further:
            kwargs = {**kwargs, **further}
        try:
            output = self.branch(self.block, x, self.arguments.alpha, *args, **kwargs)
            if not isinstance(output, Tensor) or output.shape != x.shape:
                check_shape(output, x)
        except ShapeError as error:
            raise ShapeError(f"{self.name}: {error}") from None
        return output

    def stored(self, x: Tensor, side: Sequence[Tensor]) -> Tensor:
        """The run in forward, by whose graph autograd runs backward."""
        return self(x, side)

    def first(
        self, x: Tensor, side: Sequence[Tensor], inventory: Inventory, settings: Settings
    ) -> Tensor:
        """The run in forward, with gradients on, so that PyTorch chooses the kernels of backward.

        Its graph is dropped at once, but for what others hold of it: a tensor that the module made
        and that takes part in a loss has its gradients by that graph.

        Returns:
            The output, detached. ``used`` are now the parameters it depends on with a gradient.

        Raises:
            RuntimeError: it depends on a leaf that is neither a parameter nor an input, whose
                gradient would be lost; or x was changed in place.
        """
        self.settings, self.inventory = settings, inventory
        buffers = WatchedBuffers(inventory, (self.branch,)) if inventory.buffers else None
        version = x._version
        output, used = self.run(x, side)
        if x._version != version:
            raise RuntimeError(
                f"{self.name} changed its input, the stream, by an inplace operation: it must "
                "leave it as it is and return a new tensor."
            )
        self.used, self._steady = inventory.use(self.branch, used)
        self._versions = [p._version for p in self._steady]
        self._copies = buffers.moved() if buffers else []
        return output

    def run(self, x: Tensor, side: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """Runs the module; returns its output, detached, and the ids of the parameters behind."""
        output, self._state, used = self.run_once(x, side)
        return output, used

    def run_once(
        self, x: Tensor, side: Sequence[Tensor], **further: Any
    ) -> tuple[Tensor, RandomState | None, list[int]]:
        """``run``, and between the two the random state before, if the module has drawn."""
        before = self.settings.random or random_state(x.device)
        # Views, so that what comes from them is told from what was made of x or them elsewhere.
        inputs = [view_of(x) if self.is_exposed else x, *map(view_of, side)]
        output = self(inputs[0], inputs[1:], **further)
        self.settings.random = after = random_state(x.device)
        state = None if all(map(torch.equal, before, after)) else before
        self.output_dtype, used = output.dtype, []
        if output.requires_grad:
            used = parameters_behind(output, inputs, (x, *side) if self.is_exposed else side, self)
        return output.detach(), state, used

    def put_back(self) -> AbstractContextManager[Sequence[Tensor]]:
        """Has the block hold again what it held in forward; gives the used parameters' leaves.

        Raises:
            RuntimeError: parameters were changed in place or freed. As autograd does for tensors
                that it keeps: a recomputation with other weights is wrong.
        """
        # Parameters that functional_call made of others: the way on from them is not ours.
        moved, freed = [], False
        made: dict[int, Tensor] = {}
        if self._copies or self.inventory.made or not self.inventory.is_current():
            made = {id(p): p.detach().requires_grad_() for p in self.inventory.made}
            instead = made | {id(buffer): old.clone() for buffer, old in self._copies}
            moved = self.inventory.exchanged(instead)
            tensors = (t for _, _, t in moved if isinstance(t, Tensor) and t.numel())
            freed = any(not tensor.untyped_storage().nbytes() for tensor in tensors)
        if freed or [p._version for p in self._steady] != self._versions:
            raise RuntimeError(
                f"The parameters of {self.name} were changed between forward and backward: run "
                "backward before the optimizer's step, or call "
                "dr2net.set_reversible(model, False)."
            )
        leaves = [made.get(id(p), p) for p in self.used] if made else self.used
        return holding(moved, leaves) if moved else nullcontext(leaves)

    def again(
        self, inputs: Sequence[Tensor], parameters: Sequence[Tensor], grad_output: Tensor | None
    ) -> tuple[Tensor, Callable[[], list[Tensor | None]]]:
        """The run in backward, to be called where ``put_back`` holds.

        Args:
            inputs: x and the side inputs: leaves with the values of forward.
            parameters: those whose gradients are wanted.

        Returns:
            The output, and what then gives the gradients of the inputs and the parameters. The
            module's backward, where memory has its peak, needs the graph and not the output.
        """
        output = self.repeat(inputs[0], inputs[1:], self._state)
        end = get_gradient_edge(output) if output.requires_grad else None
        if self.arguments.objects and end is not None:
            refuse_tensors_from_forward(end, inputs, self.inventory, self.arguments, self.name)
        return output.detach(), partial(self.gradients, end, [*inputs, *parameters], grad_output)

    def repeat(
        self, x: Tensor, side: Sequence[Tensor], state: RandomState | None, **further: Any
    ) -> Tensor:
        """Runs the module by the settings of forward, from the random state ``state``."""
        with RECOMPUTING:
            outside = None if state is None else random_state(x.device)
            changed, mode = self.settings.apply(), torch.is_grad_enabled()
            torch._C._set_grad_enabled(True)
            try:
                if state is not None:
                    set_random_state(x.device, state)
                return self(x, side, **further)
            finally:
                torch._C._set_grad_enabled(mode)
                undo(changed)
                if outside is not None:
                    set_random_state(x.device, outside)

    def gradients(
        self, end: GradientEdge | None, tensors: Sequence[Tensor], grad_output: Tensor | None
    ) -> list[Tensor | None]:
        """For each of the ``tensors`` its gradient, None where it needs none or has no part in it.

        Raises:
            RuntimeError: a parameter that forward used had no part in the recomputation.
        """
        grads: list[Tensor | None] = [None] * len(tensors)
        if grad_output is None:
            return grads
        if end is not None:
            wanted = [tensor.requires_grad for tensor in tensors]
            leaves = tuple(compress(tensors, wanted))
            # Hooks on parameters are for the gradient that autograd will hand them, and it alone.
            hooks = [(leaf, leaf._backward_hooks) for leaf in leaves if leaf._backward_hooks]
            for leaf, _ in hooks:
                leaf._backward_hooks = None
            try:
                # What torch.autograd.grad calls, without what that checks for each of the leaves.
                grads_output = (grad_output.to(self.output_dtype),)
                found = Variable._execution_engine.run_backward(
                    (end,), grads_output, False, False, leaves, True, accumulate_grad=False
                )
            finally:
                for leaf, hook in hooks:
                    leaf._backward_hooks = hook
            each = iter(found)
            grads = [next(each) if is_wanted else None for is_wanted in wanted]
        of_used = slice(len(tensors) - len(self.used), None)
        if any(grad is None for grad in grads[of_used]):
            refuse_lost_gradients(
                end, tensors[of_used], grads[of_used], self.used, self.block, self.name
            )
        return grads
