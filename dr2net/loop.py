"""Chains whose blocks are called one by one, by the loop of the network that they stand in.

The parent's loop stays as it is. Each block has a ``forward`` of the chain's: given the x that
another block has returned, it is the next coupling of the same row; given anything else, it begins
a new one. So blocks have arguments of their own, return tuples whose first entry is the stream, and
their x may be collected on the way.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.weak import WeakTensorKeyDictionary

from .arguments import Arguments
from .block_hooks import is_sharded
from .branches import ShapeError, whole
from .call import Call
from .chain import ReversibleChain
from .coefficients import RANGE_BITS
from .coupling import Pass, Row, itself
from .kernels.arithmetic import Arithmetic, ExactArithmetic
from .messages import refuse_modes
from .optimizers import skip_steps_that_are_not_finite
from .replay import Settings, Snapshot, fix_settings, undo
from .reports import is_immediate
from .streams import Streams

__all__ = ["LoopedChain"]


class LoopedChain(ReversibleChain):
    """A ``ReversibleChain`` whose blocks can also be called one by one.

    Each block is one coupling, of the module G(x; α) = B(x) − (1 − α) · x.

    Blocks that change the shape of the stream run as they are: which, is found when they do it for
    the first time.

    Args:
        blocks: the container that the chain replaces.
    """

    def __init__(self, blocks: nn.Module):
        super().__init__(blocks, (whole,))
        self._keep_the_shape: set[str] = set()  # of whom that is known
        # Blocks behind which a backward has begun although the row went on, and those behind which
        # a row went on although they are the list's last.
        self.ends: set[str] = set()
        self.passed: set[str] = set()
        self.under_way = _Rows()
        self.is_measured = False
        self._write(1.0, 0.0)
        self._last = ("", 0)  # the block called last, and how many its row had by then
        for key, block in self.named(self.coupled_keys()):
            block.__dict__["forward"] = Step(self, key)

    def forward(self, x: Any) -> Any:
        """Calls the blocks one after the other, as ``nn.Sequential`` does."""
        for block in self:
            x = block(x)
        return x

    @property
    def was_called(self) -> bool:
        """Whether one of its blocks has run as a coupling."""
        return self._last[1] > 0

    def guard_blocks(self) -> None:
        """Blocks can be called."""

    def init_weights(self) -> None:
        """Initialises the blocks: mmengine goes no further than modules that have this method."""
        for block in self:
            if hasattr(block, "init_weights"):
                block.init_weights()  # type: ignore[operator]

    def restore_container(self) -> nn.Module:
        """As ``ReversibleChain``'s; the blocks have their own forward again."""
        for block in self:
            block.__dict__.pop("forward", None)
        return super().restore_container()

    @torch.compiler.disable(reason="reversible chains run uncompiled: compile their modules")
    def step(self, key: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Runs the block ``key`` where the parent calls it; returns what the block returns."""
        block = self.get_submodule(key)
        x, args, kwargs = _take_stream(type(block), args, kwargs)
        row = None
        if isinstance(x, Tensor) and key not in self.ordinary:
            row = self.under_way.get(x)
            if row is None or not row.goes_on(x):
                row = self._begin(key, x)
        if row is None:
            return type(block).forward(block, x, *args, **kwargs)
        if key in self._keep_the_shape:
            result = row.run(key, x, args, kwargs)
        else:
            snapshot = Snapshot([self.inventories.of(key, block)], self.branches, x.device)
            try:
                result = row.run(key, x, args, kwargs)
            except ShapeError as error:
                snapshot.restore()
                self._make_ordinary(key, error)
                return type(block).forward(block, x, *args, **kwargs)
            self._keep_the_shape.add(key)
        self._last = key, row.length
        return result

    def _make_ordinary(self, key: str, error: ShapeError) -> None:
        self.ordinary |= {key}
        if len(self.ordinary) == len(self):
            raise ValueError(
                f"No block of {self.name} keeps the shape of its stream: {error}"
            ) from None

    def make_arithmetic(self, beta: float, x: Tensor, range_bits: int | None = None) -> Arithmetic:
        """As ``ReversibleChain``'s, but with the same fraction bits in a larger range.

        So that the first forward, which has told the range and cannot be run again, computed the
        same as those after it.
        """
        arithmetic = super().make_arithmetic(beta, x, RANGE_BITS)
        bits = range_bits or self.guard.range_bits
        if not isinstance(arithmetic, ExactArithmetic) or 2.0**bits <= arithmetic.limit:
            return arithmetic
        fraction_bits = min(arithmetic.fraction_bits, 62 - bits)
        return replace(arithmetic, word=torch.int64, fraction_bits=fraction_bits)

    def _begin(self, key: str, x: Tensor) -> _LoopRow | None:
        """A new row from the block ``key`` on; None at β = 0, where blocks run as they are."""
        alpha, beta = self.coefficients_in_use()
        if beta == 0:
            return None
        rebuilds = self.reversible and torch.is_grad_enabled()
        refuse_modes(self, self.name, x, rebuilds)
        self.guard.look()
        if rebuilds:
            self._tell_of_single_blocks(key)
            if self.is_checkpointed(self.coupled_keys()):
                self.say_needless()
            if is_sharded(self.named(self.coupled_keys())):
                raise ValueError(
                    f"fully_shard was called on blocks of {self.name}, which are called one by "
                    "one: shard the network as a whole, or use a network with an adapter."
                )
        return _LoopRow(self, alpha, beta, x)

    def is_in_checkpoint(self, key: str, rebuilt: bool) -> bool:
        """Whether the block is called inside torch.utils.checkpoint, which is then passed by.

        Raises:
            RuntimeError: it cannot be: the block's activations are stored, or other operations are
                in the same checkpoint, so that the block is called again in backward.
        """
        hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(True)
        inside = hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"
        again = torch._C._current_graph_task_id() >= 0
        if inside and (again or not rebuilt):
            raise RuntimeError(
                f"Block {key!r} of {self.name} was called inside torch.utils.checkpoint, which "
                "cannot be passed by here: switch it off, for example by "
                "model.set_grad_checkpointing(False) or model.gradient_checkpointing_disable()."
            )
        if rebuilt and (inside or again):
            self.say_needless()
        return inside

    def _tell_of_single_blocks(self, key: str) -> None:
        keys, (last, length) = list(self._modules), self._last
        place = keys.index(key)
        if place > 0 and length == 1 and last == keys[place - 1]:
            parent = type(self.owner[0]).__name__ if self.owner else "its parent"
            self.guard.say_once(
                "single blocks",
                f"{parent} called block {key!r} of {self.name} with another tensor than block "
                f"{last!r} had returned: something changes the stream between them (a sum, a norm, "
                "a permutation, a hook). Each such block keeps a pair of streams: checkpointing "
                "would keep half of it.",
            )

    def look_at(self, row: _LoopRow, x: Tensor, is_last: bool) -> Tensor:
        """Returns ``x``, or NaN where a value was beyond the range of the streams."""
        guard, this_pass = self.guard, row.this_pass
        if torch.compiler.is_exporting():
            return x
        if not is_immediate(x.device) and self.is_measured:
            if not is_last:
                return x
            x = guard.poisoned(x, this_pass.streams)
            guard.watch(this_pass.streams, this_pass.place, row.with_gradients)
        elif row.broken is None:
            limit = this_pass.arithmetic.limit
            expected = limit if self.is_measured else min(limit, 2.0**guard.range_bits)
            _, beyond = guard.measure(this_pass.streams, expected)
            if beyond is not None:
                place, size = this_pass.place(beyond[0]), beyond[1]
                if not math.isfinite(size):
                    guard.meet_not_finite(place, row.with_gradients)
                else:
                    guard.widen(place, size, expected)
                if not size <= limit:
                    skip_steps_that_are_not_finite()
                    row.broken = x
        if row.broken is not None:
            row.broken, x = x, x * math.nan
        elif row.last == self.coupled_keys()[-1]:
            self.is_measured = True
        if self.is_measured:
            self.remember_range()
        return x


class Step:
    """What stands in a block for its forward."""

    is_of_a_chain = True

    def __init__(self, chain: LoopedChain, key: str):
        self.chain, self.key = chain, key

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.chain.step(self.key, args, kwargs)


class _Rows(WeakTensorKeyDictionary):
    """The rows under way, by the x that their last block has returned; copies start anew."""

    def __reduce__(self) -> tuple:
        return _Rows, ()

    def __deepcopy__(self, memo: dict) -> _Rows:
        return _Rows()


class _LoopRow:
    """A row of couplings that a parent's loop runs."""

    def __init__(self, chain: LoopedChain, alpha: float, beta: float, x: Tensor):
        self.chain, self.alpha = chain, alpha
        self.with_gradients = torch.is_grad_enabled()
        self.rebuilds = self.with_gradients and chain.reversible
        keys = chain.coupled_keys()
        self.this_pass = chain.make_pass(keys, alpha, beta, x, (), {}, kind=_LoopPass)
        self.this_pass.calls.clear()
        self.this_pass.ends = chain.ends
        if not (self.with_gradients and chain.is_measured):
            self.this_pass.take_wide_words()
        self.row = Row(self.this_pass)
        self.length, self.version, self.last, self.rebuilt_last = 0, 0, "", False
        # What was last behind the list's last block: it goes with x, should the row not go on.
        self.pair: tuple[Tensor, Tensor] | None = None
        # x itself where a value was beyond the range: what the block has returned is NaN.
        self.broken: Tensor | None = None

    def goes_on(self, x: Tensor) -> bool:
        """Whether x is still what the last block has returned."""
        return x._version == self.version and torch.is_grad_enabled() == self.with_gradients

    def run(self, key: str, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Runs one more block."""
        chain, keys, row = self.chain, self.chain.coupled_keys(), self.row
        x = x if self.broken is None else self.broken
        if self.pair is not None:
            chain.passed.add(self.last)
            self.this_pass.go_on_from(self.pair)
            self.pair = None
        place, is_last = keys.index(key), key == keys[-1] and key not in chain.passed
        rebuilt = self.rebuilds and key not in chain.keep
        stored_next = rebuilt and not chain.keep.isdisjoint(keys[place + 1 : place + 2])
        ends = is_last or key in chain.ends or stored_next
        arguments = Arguments(self.alpha, args, kwargs, are_own=True)
        (branch,), block = chain.branches, chain.get_submodule(key)
        call = _BlockCall((place, chain.name, key), block, branch, arguments)
        passed_by = self.with_gradients and chain.is_in_checkpoint(key, rebuilt)
        changed = fix_settings()
        try:
            if self.length == 0:
                x = row.start(x)
            if row.y:
                row.settings = Settings(x.device)  # the parent may have set others
            if self.rebuilt_last and not rebuilt:
                self.this_pass.keep_pair()  # here backward will take it up
            self.this_pass.calls.append(call)
            with saved_tensors_hooks(itself, itself) if passed_by else nullcontext():
                x, *row.y = row.couple([call], [x, *row.y], rebuilt, ends, False)
        except ShapeError:
            self.this_pass.calls.pop()
            raise
        finally:
            undo(changed)
        self.rebuilt_last = rebuilt and not ends
        arguments.side = []
        self.length += 1
        self.last = key
        x = chain.look_at(self, x, is_last)
        if is_last:
            self.pair = self.this_pass.streams.save()
            self.this_pass.streams.drop()
        if rebuilt and call.has_gradients_beside():
            chain.guard.say_once(
                f"tensors beside the stream of {key}",
                f"Block {key!r} of {chain.name} returns more than the stream, with gradients: the "
                "activations behind that are stored, and where parameters have a part in both, "
                "their gradients are those of stored activations up to rounding.",
            )
        self.version = x._version
        chain.under_way[x] = self
        return call.returned(x)


@dataclass
class _LoopPass(Pass):
    """A ``Pass`` that ends wherever the parent's loop does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ends: set[str] = set()
        # By the coupling, those that autograd has not saved.
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def take_wide_words(self) -> None:
        """Has streams hold much larger values, with the same bits for those that fit anyway.

        Until a forward has told the range, since what has gone through a loop cannot be run again;
        and without gradients, where a pair of streams is all that there is.
        """
        if isinstance(self.arithmetic, ExactArithmetic):
            self.arithmetic = replace(self.arithmetic, word=torch.int64)
            super().__post_init__()

    def keep_pair(self) -> None:
        """Keeps the streams behind the last coupling."""
        self.pairs[len(self.calls) - 1] = self.streams.save()

    def go_on_from(self, pair: tuple[Tensor, Tensor]) -> None:
        """Takes up a pair of streams that is also kept for backward."""
        before, self.streams = self.streams, Streams(self.arithmetic, *pair)
        self.streams.output_peaks, self.streams.stream_peaks = (
            before.output_peaks,
            before.stream_peaks,
        )

    def pair_at_end(self, index: int, ctx: Any) -> Sequence[Tensor]:
        """The streams behind coupling ``index``, if it is the last that has run, or they were kept.

        Raises:
            RuntimeError: neither, so that the streams there are gone.
            FloatingPointError: a value was beyond the range, where nobody has looked yet.
        """
        call = self.calls[index]
        if index == len(self.calls) - 1 and self.streams.x is not None:
            self.keep_pair()
        if index not in self.pairs:
            self.ends.add(call.where[2])
            raise RuntimeError(
                f"Backward begins behind {call.name}, whose x was taken out of the loop while its "
                "last one has no part in the loss: its streams were not kept. They are from now "
                "on: run this step again."
            )
        sizes = self.streams.sizes().amax().item()
        if not sizes <= self.arithmetic.limit:
            raise FloatingPointError(
                f"A value of {sizes:.4g} was beyond the range of {self.name}: discard this step."
            )
        Variable._execution_engine.queue_callback(partial(self._free, ctx))
        return self.pairs[index]

    def _free(self, ctx: Any) -> None:
        """Frees the streams, unless the graph is retained for another backward."""
        try:
            _ = ctx.saved_tensors
        except RuntimeError:
            self.streams.drop()
            self.pairs.clear()


class _BlockCall(Call):
    """A whole block, which may return more than the stream."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._outputs: list[Any] = []
        self._is_first = True

    def __call__(self, x: Tensor, side: Sequence[Tensor], **_: Any) -> Tensor:
        return super().__call__(x, side, **{"_outputs": self._outputs} if self._is_first else {})

    def has_gradients_beside(self) -> bool:
        """Whether there is something beside the stream that was computed with gradients."""
        output = self._outputs[-1]
        rest = output[1:] if isinstance(output, (tuple, list)) else ()
        return any(isinstance(t, Tensor) and t.requires_grad for t in rest)

    def returned(self, x: Tensor) -> Any:
        """What the block has returned, with ``x`` for the stream."""
        output: Any = self._outputs.pop()
        self._is_first = False
        if hasattr(output, "_fields"):
            return output._replace(**{output._fields[0]: x})
        return type(output)((x, *output[1:])) if isinstance(output, (tuple, list)) else x


@cache
def _name_of_the_stream(kind: type) -> str:
    return list(inspect.signature(kind.forward).parameters)[1]  # type: ignore[attr-defined]


def _take_stream(kind: type, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, tuple, dict]:
    """The stream, and the other arguments of a block of the class ``kind``."""
    if args:
        return args[0], args[1:], kwargs
    name = _name_of_the_stream(kind)
    return kwargs.get(name), (), {key: value for key, value in kwargs.items() if key != name}
