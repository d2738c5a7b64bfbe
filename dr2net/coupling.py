"""Couplings as autograd nodes: the one place that says what happens in which order.

Each coupling is one node, so that the gradients of its parameters leave as soon as they are known
(to the hooks of DDP, for example). ``Row`` is the way through a row of couplings, block by
block; ``_Coupling.forward`` and ``.backward`` are the way of one of them there and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.autograd.graph import saved_tensors_hooks

from .block_hooks import after_couplings, before_couplings
from .call import Call
from .guard import Guard, fingerprint, first_difference
from .kernels.arithmetic import Arithmetic
from .layout import with_strides
from .messages import not_replayed, refuse_gradient_mode
from .pytorch_versions import hooks_module, is_exporting
from .replay import Inventories, Settings
from .stored import run_without_gradients, stored_coupling
from .streams import Peak, Streams, combined

__all__ = ["Pass", "Row"]


@dataclass
class Pass:
    """One pass through a row of couplings: what they share from forward to the end of backward.

    Attributes:
        tolerance: of streams rebuilt in floating point, relative.
    """

    name: str  # of the chain
    calls: list[Call]
    arithmetic: Arithmetic
    guard: Guard
    inventories: Inventories
    tolerance: float = 0.0
    # By the graph task that runs them, as backwards through one graph may run at the same time.
    backwards: dict[int, _Backward] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.streams = Streams(self.arithmetic)
        self.output_peaks: list[Peak] = self.streams.output_peaks
        self.strides: tuple[int, ...] = ()
        self.zero: Tensor
        self.fingerprints: dict[int, Tensor | None] = {}

    def stand_in(self, x: Tensor) -> Tensor:
        """A tensor of the shape of ``x`` that takes no memory, to carry the gradient of y."""
        return self.zero.expand(x.shape)

    def end(self) -> None:
        """Frees the streams and side inputs of forward: autograd has what backward needs."""
        self.streams.drop()
        for call in self.calls:
            call.arguments.side = []

    def pair_at_end(self, index: int, ctx: Any) -> Sequence[Tensor]:
        raise NotImplementedError("only where blocks are called one by one: loop.py")

    def place(self, number: int) -> str:
        """What stands in messages for coupling ``number``; -1 is the input."""
        return self.calls[number].name if number >= 0 else f"the input of {self.name}"


@dataclass
class _Backward:
    """How far a backward has come: the streams before coupling ``position + 1``."""

    streams: Streams
    side: list[Tensor]
    position: int


class Row:
    """Couplings under way: y travels with the row, x with those who run it, block by block."""

    def __init__(self, this_pass: Pass):
        self._pass = this_pass
        self.y: list[Tensor] = []  # none without gradients
        self._hooked = hooks_module() is not None
        self._index = 0
        self._follows = False  # whether streams were rebuilt up to here

    def start(self, x: Tensor) -> Tensor:
        """Returns x_0 of what enters the first coupling."""
        if not torch.is_grad_enabled() or is_exporting():
            return self._pass.streams.start(x)
        self.settings = Settings(x.device)
        x, *self.y = _Start.apply(self._pass, x)
        self._pass.strides = x.stride()
        return x

    def start_from(self, x: Tensor) -> None:
        """Begins behind x, which needs no gradient and whose streams the pass has."""
        self.settings, self._pass.zero = Settings(x.device), x.new_zeros(())
        self.y, self._pass.strides = [self._pass.stand_in(x)], x.stride()

    def run(
        self, calls: Sequence[Call], x: Tensor, rebuilt: bool, ends: bool, checkpointed: bool
    ) -> Tensor:
        """Runs the couplings of one block and returns x behind it.

        Args:
            calls: of its modules.
            rebuilt: whether backward rebuilds their inputs and runs their modules again; autograd
                stores what it needs of the others, which are the reference.
            ends: whether backward may begin here: x leaves the row, or what follows is stored.
            checkpointed: whether modules whose activations are stored are checkpointed.
        """
        tensors = before_couplings(calls[0].block, x, *self.y)
        behind = self.couple(calls, tensors, rebuilt, ends, checkpointed)
        x, *self.y = after_couplings(calls[0].block, tensors[0], *behind)
        return x

    def couple(
        self,
        calls: Sequence[Call],
        tensors: Sequence[Tensor],
        rebuilt: bool,
        ends: bool,
        checkpointed: bool,
    ) -> Sequence[Tensor]:
        """``run`` without the block's hooks, of (x, y), or of (x) without gradients."""
        if not self.y:
            return [run_without_gradients(self._pass, calls, tensors[0])]
        (x, y), this_pass, settings, held = tensors, self._pass, self.settings, None
        for number, call in enumerate(calls):
            side = call.arguments.side
            if not rebuilt:
                x, y = stored_coupling(this_pass, call, x, y, checkpointed)
                settings.random = None  # its module may have drawn
            else:
                # A block's second module finds what the first one did, unless that changed buffers.
                if held is None or held.buffers:
                    held = this_pass.inventories.of(call.where[2], call.block)
                # What the graph of a first run saves is not for the user's hooks (to offload).
                with unhooked() if self._hooked else nullcontext():
                    output = call.first(x, side, held, settings)
                if call.used or x.requires_grad or any(tensor.requires_grad for tensor in side):
                    if not self._follows or not x.requires_grad:
                        this_pass.fingerprints[self._index] = fingerprint(this_pass.streams)
                    keeps = ends and number == len(calls) - 1
                    x, y = _apply_coupling(
                        this_pass, self._index, keeps, output, x, y, *side, *call.used
                    )
                else:  # before the first coupling that needs a gradient nothing is to be rebuilt
                    x, _ = this_pass.streams.advance(output, keep_remainder=False)
                    y = this_pass.stand_in(x)
            self._follows = rebuilt
            self._index += 1
        if ends:
            settings.random = None  # what is done with x may draw
        return [x, y]


class _Start(torch.autograd.Function):
    """x → (x_0, y_0)."""

    @staticmethod
    def forward(ctx: Any, this_pass: Pass, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.beta = this_pass.arithmetic.beta
        x = this_pass.streams.start(x)
        this_pass.zero = x.new_zeros(())
        return x, this_pass.stand_in(x)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, grad_y: Tensor | None) -> tuple:
        return None, combined(grad_x, grad_y, ctx.beta)


class _Coupling(torch.autograd.Function):
    """(x, y, side inputs, used parameters) → (x', y'), keeping no more than the remainder.

    A coupling from which backward starts to rebuild also keeps the pair of streams after it: its x'
    leaves the row, or the next coupling is stored.
    """

    @staticmethod
    def forward(
        ctx: Any,
        this_pass: Pass,
        index: int,
        keeps_streams: bool,
        output: Tensor,
        x: Tensor,
        y: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.this_pass, ctx.index, ctx.keeps_streams = this_pass, index, keeps_streams
        x, remainder = this_pass.streams.advance(output, keep_remainder=True)
        arguments = this_pass.calls[index].arguments
        ctx.saves_side = keeps_streams or arguments.are_own
        pair = this_pass.streams.save() if keeps_streams else ()
        ctx.save_for_backward(remainder, *pair, *(arguments.side if ctx.saves_side else ()))
        return x, this_pass.stand_in(x)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, grad_y: Tensor | None) -> tuple:
        this_pass, index = ctx.this_pass, ctx.index
        call, beta = this_pass.calls[index], this_pass.arithmetic.beta
        refuse_gradient_mode(this_pass.name)
        remainder, *side = ctx.saved_tensors
        pair, side = (side[:2], side[2:]) if ctx.keeps_streams else (None, side)
        backward = this_pass.backwards.get(torch._C._current_graph_task_id())
        if pair or backward is None:
            this_pass.guard.look()
            backward = _begin(this_pass, index, pair or this_pass.pair_at_end(index, ctx))
        if ctx.saves_side:
            backward.side = list(map(with_strides, side, call.arguments.strides))
        needs_x, _, *needs = ctx.needs_input_grad[4:]
        # The input, and the same run again.
        before, x = backward.streams.rebuild(remainder)
        inputs = [x.requires_grad_(needs_x)]
        for tensor, needed in zip(backward.side, needs, strict=False):
            inputs.append(tensor.detach().requires_grad_(needed))
        with call.put_back() as parameters:
            output, gradients = call.again(inputs, parameters, grad_x)
            backward.streams.retreat(before, output)
            backward.position = index - 1
            del before, output, x  # the module's backward is where memory has its peak
            of_x, *grads = gradients()
        if index in this_pass.fingerprints:
            _finish(this_pass, index)
        return *[None] * 4, combined(of_x, grad_y, beta) if needs_x else None, grad_x, *grads


# Without what Function.apply does for torch.func's transforms, in which chains do not run.
_apply_coupling = super(torch.autograd.Function, _Coupling).apply


def _begin(this_pass: Pass, index: int, pair: Sequence[Tensor]) -> _Backward:
    """Takes up the streams behind coupling ``index``; those rebuilt so far must agree."""
    # Hooks on saved tensors (save_on_cpu) return them contiguous.
    x, y = (with_strides(stream, this_pass.strides) for stream in pair)
    task = torch._C._current_graph_task_id()
    backward = this_pass.backwards.get(task)
    if backward is not None and backward.position == index:
        before = fingerprint(Streams(this_pass.arithmetic, x, y))
        _compare(this_pass, backward, index + 1, before)
    if backward is None and task >= 0:
        Variable._execution_engine.queue_callback(partial(_end, this_pass, task))
    this_pass.backwards[task] = _Backward(Streams(this_pass.arithmetic, x, y), [], index)
    return this_pass.backwards[task]


def _finish(this_pass: Pass, first: int) -> None:
    """Compares the streams with those before coupling ``first`` in forward, and frees them."""
    backward = this_pass.backwards.pop(torch._C._current_graph_task_id())
    _compare(this_pass, backward, first, this_pass.fingerprints[first])


def _end(this_pass: Pass, task: int) -> None:  # of a backward, also of one that stops halfway
    this_pass.backwards.pop(task, None)
    this_pass.guard.look(wait=True)  # forward's numbers have long arrived


def _compare(this_pass: Pass, backward: _Backward, first: int, before: Tensor | None) -> None:
    peaks = backward.streams.output_peaks

    def describe() -> str:
        # A module that returned other bits than in forward is told by its output's peak.
        ran = this_pass.output_peaks[first + 1 : first + 1 + len(peaks)]
        place = first_difference(ran, peaks[::-1])
        return not_replayed(this_pass.place(first if place is None else first + place))

    this_pass.guard.compare(backward.streams, before, describe, this_pass.tolerance)


def unhooked() -> saved_tensors_hooks:  # a tensor that its own node keeps would never be freed
    return saved_tensors_hooks(Tensor.detach, lambda tensor: tensor)
