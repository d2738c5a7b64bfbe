"""One module's run in a chain: the first in forward, the same again in backward, its gradients.

A module that runs again returns the bits of its first run if it computes the same: from the same
input, with the parameters and buffers that its block held then, the same random numbers, in the
same precision, by the same kernels. ``replay.py`` has what it takes to put all this back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils._pytree import tree_flatten, tree_is_leaf, tree_unflatten

from .branches import Branch, ShapeError, Slices, check_shape
from .replay import (
    RECOMPUTING,
    Inventory,
    RandomState,
    Settings,
    holding,
    random_state,
    set_random_state,
    undo,
)

__all__ = ["Arguments", "Call"]


class Arguments:
    """What the modules of a pass are called with beside x: α and the chain's further arguments.

    Attributes:
        side: the tensors among these, which go to autograd to be saved.
        strides: theirs, by which kernels are chosen; None of sparse ones.
    """

    def __init__(self, alpha: float, args: tuple, kwargs: dict[str, Any]):
        self.alpha = alpha
        leaves, spec = tree_flatten((args, kwargs))
        self.side = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.strides = [t.stride() if t.layout == torch.strided else None for t in self.side]
        # Containers among them, and what holds tensors, are made anew for each module.
        is_plain = not self.side and all(map(tree_is_leaf, (*args, *kwargs.values())))
        self._plain = (args, kwargs) if is_plain else None
        self._leaves = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
        self._spec = spec

    def with_side(self, side: Sequence[Tensor]) -> tuple[tuple, dict[str, Any]]:
        """(args, kwargs) with ``side`` in the places of its tensors."""
        if self._plain is not None:
            return self._plain
        tensors = iter(side)
        leaves = [next(tensors) if leaf is None else leaf[0] for leaf in self._leaves]
        return tree_unflatten(leaves, self._spec)


class Call:
    """The module of one coupling, in one pass.

    Args:
        where: number of the coupling, name of the chain, name of the block: for messages.
        slicer: makes Slices of (block, branch, x, what is known), or None where the module runs
            whole: see ``conversion.mlps.Slicer``.
    """

    def __init__(
        self,
        where: tuple[int, str, str],
        block: nn.Module,
        branch: Branch,
        arguments: Arguments,
        slicer: Callable[..., Slices | None] | None,
    ):
        self.where, self.block, self.branch = where, block, branch
        self.arguments, self.slicer = arguments, slicer

    @property
    def name(self) -> str:
        """Number, path and branch, for messages."""
        number, chain, key = self.where
        return f"coupling {number} ({chain}.{key}, {getattr(self.branch, '__name__', self.branch)})"

    def __call__(self, x: Tensor, side: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        """Returns G(x; α), of x or a slice of it."""
        args, kwargs = self.arguments.with_side(side)
        if mask is not None:
            kwargs = {**kwargs, "_drop_mask": mask}
        try:
            output = self.branch(self.block, x, self.arguments.alpha, *args, **kwargs)
            if not isinstance(output, Tensor) or output.shape != x.shape:
                check_shape(output, x)
        except ShapeError as error:
            raise ShapeError(f"{self.name}: {error}") from None
        return output

    def slices(self, x: Tensor, known: dict[Branch, bool] | None = None) -> Slices | None:
        """How the module runs over slices of x's tokens; None: it runs whole."""
        return None if self.slicer is None else self.slicer(self.block, self.branch, x, known)

    def stored(self, x: Tensor, side: Sequence[Tensor]) -> Tensor:
        """The run in forward, by whose graph autograd runs backward.

        Parameters' gradients are summed as where modules are recomputed: over each slice first,
        over the slices from the last to the first, and only then over couplings that share a
        parameter. Views of views have autograd do so.
        """
        slices = self.slices(x)
        if slices is None:
            return self(x, side)
        inventory = Inventory(self.block)
        of_coupling = {id(p): p[...] for p in inventory.parameters if p.requires_grad}
        outputs = []
        for part, mask in slices.pairs(x):
            of_slice = {key: parameter[...] for key, parameter in of_coupling.items()}
            with holding(inventory.exchanged(of_slice)):
                outputs.append(self(part, side, mask))
        return slices.join(outputs)

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
        self.settings, self.inventory, device = settings, inventory, x.device
        if inventory.buffers:
            moving = inventory.moving(self.branch)
            watched = inventory.buffers if moving is None else moving
            copies = [(buffer, buffer.detach().clone()) for buffer in watched]
            versions = [buffer._version for buffer in inventory.buffers]
        version = x._version
        self._slices = sliced = self.slices(x, inventory.sliceable)
        if sliced is not None:
            settings.random = None  # a mask may have been drawn
        parts = [(x, None)] if sliced is None else sliced.pairs(x)
        self._states: list[RandomState | None] = []
        outputs: list[Tensor] = []
        used: list[int] = []
        before = settings.random or random_state(device)
        for part, mask in parts:
            output = self(part, side, mask)
            settings.random = after = random_state(device)
            self._states.append(None if all(map(torch.equal, before, after)) else before)
            before = after
            if output.requires_grad:
                used += self._reached(output, (part, *side))
            outputs.append(output.detach())
        self.output_dtype = output.dtype
        if x._version != version:
            raise RuntimeError(
                f"{self.name} changed its input, the stream, by an inplace operation: it must "
                "leave it as it is and return a new tensor."
            )
        self.used, self._steady = inventory.use(self.branch, used)
        self._versions = [p._version for p in self._steady]
        self._copies: list[tuple[Tensor, Tensor]] = []
        if inventory.buffers:
            self._note_moved(copies, moving, versions)
        return outputs[0] if sliced is None else sliced.join(outputs)

    def _reached(self, output: Tensor, inputs: Sequence[Tensor]) -> list[int]:
        """The ids of the parameters that ``output`` depends on, and of inputs."""
        ends: set[Any] = {t.grad_fn for t in inputs if t.grad_fn is not None}
        # What is no leaf itself (parameters put in by functional_call) has its history elsewhere.
        made: dict[Any, int] = {p.grad_fn: id(p) for p in self.inventory.made}
        leaves, left = _walk(
            output.grad_fn or get_gradient_edge(output).node, ends | made.keys() if made else ends
        )
        for leaf in leaves:
            if id(leaf) not in self.inventory.ids and all(leaf is not t for t in inputs):
                raise RuntimeError(
                    f"{self.name} used a tensor of shape {tuple(leaf.shape)} that requires a "
                    "gradient and is neither a parameter of its block nor an argument of the "
                    "chain, so that the gradient would be lost. Register it in the block, or pass "
                    "it: chain(x, tensor)."
                )
        return [*map(id, leaves), *(made[node] for node in left if node in made)]

    def _note_moved(
        self,
        copies: list[tuple[Tensor, Tensor]],
        moving: list[Tensor] | None,
        versions: list[int],
    ) -> None:
        """Keeps the copies of buffers that forward changed; no other is copied the next time.

        BatchNorm's kernels write its running statistics without a new version, so that the first
        forward compares values, too. A buffer that begins to change later is known from then on;
        backward notices if it mattered.
        """
        changed = {
            id(buffer)
            for buffer, version in zip(self.inventory.buffers, versions, strict=True)
            if buffer._version != version
        }
        if moving is None:
            changed.update(id(buffer) for buffer, old in copies if not torch.equal(buffer, old))
        else:
            changed.update(map(id, moving))
        if moving is None or len(changed) > len(moving):
            self.inventory.learn(self.branch, changed)
        known = set(map(id, self.inventory.moving(self.branch) or ()))
        self._copies = [entry for entry in copies if id(entry[0]) in known]

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

        Over slices each one runs forward and backward before the next begins, so that its
        activations are all that live, from the last to the first, the order in which autograd would
        come to them: sums over them are of the same bits. The gradient of the output is known
        before, so that no slice runs more often than the whole module would.

        Args:
            inputs: x and the side inputs: leaves with the values of forward.
            parameters: those whose gradients are wanted.

        Returns:
            The output, and what then gives the gradients of the inputs and the parameters. The
            module's backward, where memory has its peak, needs the graph and not the output.
        """
        x, *side = inputs
        if self._slices is None:
            output = self._repeat(x, side, None, self._states[0])
            end = get_gradient_edge(output) if output.requires_grad else None
            wanted = [*inputs, *parameters]
            return output.detach(), partial(self._gradients, end, wanted, grad_output)
        pairs = self._slices.pairs(x.detach())
        outputs: list[Tensor] = []
        grads_x: list[Tensor | None] = [None] * len(pairs)
        sums: list[Tensor | None] = [None] * len(parameters)
        grads = None if grad_output is None else self._slices.cut(grad_output)
        for i in reversed(range(len(pairs))):
            part, mask = pairs[i]
            part = part.detach().requires_grad_(x.requires_grad)
            output = self._repeat(part, side, mask, self._states[i])
            outputs.append(output.detach())
            if grads is not None:
                end = get_gradient_edge(output) if output.requires_grad else None
                del output
                grads_x[i], *found = self._gradients(end, [part, *parameters], grads[i])
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

    def _repeat(
        self, x: Tensor, side: Sequence[Tensor], mask: Tensor | None, state: RandomState | None
    ) -> Tensor:
        with RECOMPUTING:
            outside = None if state is None else random_state(x.device)
            changed, mode = self.settings.apply(), torch.is_grad_enabled()
            torch._C._set_grad_enabled(True)
            try:
                if state is not None:
                    set_random_state(x.device, state)
                return self(x, side, mask)
            finally:
                torch._C._set_grad_enabled(mode)
                undo(changed)
                if outside is not None:
                    set_random_state(x.device, outside)

    def _gradients(
        self, end: GradientEdge | None, tensors: Sequence[Tensor], grad_output: Tensor | None
    ) -> list[Tensor | None]:
        """For each of the ``tensors`` its gradient, None where it needs none or has no part in it.

        Raises:
            RuntimeError: a parameter that forward used had no part in the recomputation.
        """
        grads: list[Tensor | None] = [None] * len(tensors)
        if grad_output is None:
            return grads
        first = len(tensors) - len(self.used)
        if end is not None:
            wanted = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
            leaves = tuple(tensors[i] for i in wanted)
            hooks = _suspend_hooks(leaves)
            try:
                # What torch.autograd.grad calls, without what that checks for each of the leaves.
                grads_output = (grad_output.to(self.output_dtype),)
                found = Variable._execution_engine.run_backward(
                    (end,), grads_output, False, False, leaves, True, accumulate_grad=False
                )
            finally:
                for tensor, hook in hooks:
                    tensor._backward_hooks = hook
            for i, grad in zip(wanted, found, strict=True):
                grads[i] = grad
        if any(grad is None for grad in grads[first:]):
            self._refuse_lost_gradients(end, tensors[first:], grads[first:])
        return grads

    def _refuse_lost_gradients(
        self, end: GradientEdge | None, parameters: Sequence[Tensor], grads: list[Tensor | None]
    ) -> None:
        reached = set() if end is None else set(map(id, _walk(end.node)[0]))
        for parameter, used, grad in zip(parameters, self.used, grads, strict=True):
            if grad is None and id(parameter) not in reached:  # else a function returned none
                names = (name for name, p in self.block.named_parameters() if p is used)
                raise RuntimeError(
                    f"{self.name} used its parameter {next(names, 'of another name by now')!r} in "
                    "forward and not when it was recomputed in backward, so that its gradient "
                    "would be lost: something else was switched on in between (another adapter, a "
                    "frozen parameter). Run backward before you switch, or call "
                    "dr2net.set_reversible(model, False)."
                )


def _walk(root: Node, ends: Collection[Node] = ()) -> tuple[list[Tensor], set[Node]]:
    """The leaves that the graph behind ``root`` leads to, and the ``ends`` where it is left."""
    if root in ends:
        return [], {root}
    leaves: list[Tensor] = []
    waiting, seen, left = [root], {root}, set()
    while waiting:
        node = waiting.pop()
        following = node.next_functions
        if not following and (leaf := getattr(node, "variable", None)) is not None:
            leaves.append(leaf)
        for other, _ in following:
            if other is None or other in seen:
                continue
            seen.add(other)
            if other in ends:
                left.add(other)
            else:
                waiting.append(other)
    return leaves, left


def _suspend_hooks(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Any]]:
    """Keeps hooks on parameters for the gradient that autograd will hand them, and them alone."""
    hooks = [(tensor, tensor._backward_hooks) for tensor in tensors if tensor._backward_hooks]
    for tensor, _ in hooks:
        tensor._backward_hooks = None
    return hooks


def _sum(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """Their sum, in memory that is no gradient's own: several gradients can be one tensor."""
    if total is None or more is None:
        return total if more is None else more.clone()
    return total.add_(more)
