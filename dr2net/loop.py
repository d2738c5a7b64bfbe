"""Chains whose blocks are called one by one, by the loop of the network that they stand in.

The parent's loop stays as it is. Each block has a ``forward`` of the chain's: given the x that
another block has returned, it is the next coupling of the same row; given anything else, it begins
a new one. So blocks have arguments of their own, return tuples whose first entry is the stream, and
their x may be collected on the way.
"""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from .arguments import Arguments
from .block_hooks import is_sharded
from .branches import ShapeError, of_whole_block, stream_of, whole
from .call import Call
from .chain import ReversibleChain
from .coefficients import RANGE_BITS
from .coupling import Pass, Row, unhooked
from .kernels.arithmetic import Arithmetic, ExactArithmetic
from .messages import refuse_modes
from .optimizers import skip_steps_that_are_not_finite
from .pytorch_versions import hooks_module, is_exporting, uncompiled
from .replay import RECOMPUTING, Settings, Snapshot, fix_settings, undo
from .reports import is_immediate
from .streams import Streams, peak

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
        # Blocks behind which a backward has begun although the row went on, and those behind which
        # a row went on although they are the list's last.
        self.ends: set[str] = set()
        self.passed: set[str] = set()
        # Of whom it is known that they keep the shape, and that streams hold their values.
        self._keep_the_shape: set[str] = set()
        self.measured: set[str] = set()
        # Those that change their input in place, and get a copy.
        self.inplace: set[str] = set()
        self.under_way = _Rows()
        self._finished: weakref.ref[_LoopRow] | None = None
        self._last = ("", 0)  # the block called last, and how many its row had by then
        for key, block in self.named(self.coupled_keys()):
            block.__dict__["forward"] = Step(self, key, block)

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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_finished": None}

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

    @uncompiled("reversible chains run uncompiled: compile their modules")
    def step(self, key: str, block: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Runs the block ``key`` where the parent calls it; returns what the block returns."""
        kind: Any = type(block)
        forward, name = kind.forward, "" if args else _name_of_the_stream(kind)
        x: Any = args[0] if args else kwargs.get(name)
        row = self.under_way.get(x) if isinstance(x, Tensor) else None
        keys = self.coupled_keys()
        if key in self.ordinary or (key == keys[0] and len(keys) > 1):
            row = None  # of the first block: a new forward, whatever made its input
        if row is None or not row.is_whole(x):
            alpha, beta = self.coefficients_in_use()
            if not isinstance(x, Tensor) or beta == 0 or key in self.ordinary:
                output = forward(block, *args, **kwargs)
                return self._of_no_coupling(key, x, alpha, beta, output)
            row = self._begin(key, x, alpha, beta)
        elif row.tip() is not x:
            raise RuntimeError(
                f"Block {key!r} of {self.name} was given the x that block {row.after(x)!r} had "
                "returned, like another block before: a row of couplings cannot part. Give it a "
                "copy (x.clone()), which begins a new row, or convert lists that do not part."
            )
        elif row.with_gradients != torch.is_grad_enabled():
            row = row.followed(x)
        rest = {k: value for k, value in kwargs.items() if k != name}
        if key in self._keep_the_shape:
            result = row.run(key, x, args[1:], rest)
        else:
            snapshot = Snapshot([self.inventories.of(key, block)], self.branches, x.device)
            try:
                result = row.run(key, x, args[1:], rest)
            except ShapeError as error:
                snapshot.restore()
                self.ordinary |= {key}
                if len(self.ordinary) == len(self):
                    raise ValueError(
                        f"No block of {self.name} keeps the shape of its stream: {error}"
                    ) from None
                return forward(block, *args, **kwargs)
            self._keep_the_shape.add(key)
        self._last = key, row.length
        return result

    def _of_no_coupling(self, key: str, x: Any, alpha: float, beta: float, output: Any) -> Any:
        """What a block returns that is no coupling in this call."""
        if not isinstance(x, Tensor):
            if beta > 0:
                self.guard.say_once(
                    f"no stream {key}",
                    f"Block {key!r} of {self.name} was called with a {type(x).__name__} where its "
                    "stream should be (the first argument, a tensor): it runs as it is, and its "
                    "activations are stored.",
                )
            return output
        if beta == 0:
            return output if alpha == 1 else _with_stream(output, of_whole_block(output, x, alpha))
        stream = stream_of(output)
        if isinstance(stream, Tensor) and stream.shape == x.shape:
            self.guard.say_once(
                f"shape of {key}",
                f"Block {key!r} of {self.name} changed the shape of the stream in an earlier call, "
                "and does not in this one: it runs as it is in both. Leave it out of the lists.",
            )
        return output

    def _begin(self, key: str, x: Tensor, alpha: float, beta: float) -> _LoopRow:
        """A new row from the block ``key`` on."""
        rebuilds = self.reversible and torch.is_grad_enabled()
        refuse_modes(self, self.name, x, rebuilds)
        self.guard.look()
        for other, block in self.named(self.coupled_keys()):
            if not isinstance(block.__dict__.get("forward"), Step) or has_backward_hooks(block):
                raise ValueError(
                    f"Block {other!r} of {self.name} was exchanged or wrapped after the "
                    "conversion, or has backward hooks, which would part it from the others: "
                    "convert the network as it is to run, and put hooks on the block's submodules."
                )
        finished = self._finished() if self._finished is not None else None
        if finished is not None:
            finished.pair = None  # of another forward
        self._tell_of_a_new_row(key)
        if rebuilds:
            if self.is_checkpointed(self.coupled_keys()):
                self.say_needless()
            if is_sharded(self.named(self.coupled_keys())):
                raise ValueError(
                    f"fully_shard was called on blocks of {self.name}, which are called one by "
                    "one: shard the network as a whole, or use a network with an adapter."
                )
        return _LoopRow(self, key, alpha, beta, x)

    def knows(self, key: str) -> bool:
        """Whether the block has run as a coupling."""
        return key in self._keep_the_shape

    def finish(self, row: _LoopRow) -> None:
        """Notes that ``row`` has come to the list's last block."""
        self._finished = weakref.ref(row)

    def is_in_checkpoint(self, key: str, rebuilt: bool) -> bool:
        """Whether the block is called inside torch.utils.checkpoint, which is then passed by.

        Raises:
            RuntimeError: it cannot be: the block's activations are stored, or other operations are
                in the same checkpoint, so that the block is called again in backward.
        """
        inside = hooks_module() == "torch.utils.checkpoint"
        in_backward = torch._C._current_graph_task_id() >= 0
        lock: Any = RECOMPUTING
        again = in_backward and not lock._is_owned()  # else it is inside of another chain's block
        if inside and (again or not rebuilt):
            raise RuntimeError(
                f"Block {key!r} of {self.name} was called inside torch.utils.checkpoint, which "
                "cannot be passed by here: switch it off, for example by "
                "model.set_grad_checkpointing(False) or model.gradient_checkpointing_disable()."
            )
        if rebuilt and (inside or again):
            self.say_needless()
        return inside

    def _tell_of_a_new_row(self, key: str) -> None:
        keys, (last, _) = list(self._modules), self._last
        place = keys.index(key)
        if place > 0 and last == keys[place - 1]:
            parent = type(self.owner[0]).__name__ if self.owner else "its parent"
            self.guard.say_once(
                "new row",
                f"{parent} called block {key!r} of {self.name} with another tensor than block "
                f"{last!r} had returned: something changes the stream between them (a sum, a norm, "
                "a permutation, a hook). A new row of couplings begins there, which keeps a pair "
                "of streams of its own: make sure that evaluation does the same.",
            )

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

    def look_at(self, row: _LoopRow, key: str, x: Tensor, is_last: bool) -> Tensor:
        """Returns ``x``, or NaN where a value was beyond the range of the streams."""
        guard, this_pass = self.guard, row.this_pass
        if is_exporting():
            return x
        if row.is_measured and not is_immediate(x.device):
            if not is_last:
                return x
            x = guard.poisoned(x, this_pass.streams)
            guard.watch(this_pass.streams, this_pass.place, row.with_gradients)
        elif row.broken is None:
            limit = this_pass.arithmetic.limit
            expected = limit if row.is_measured else min(limit, 2.0**guard.range_bits)
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
        else:
            self.measured.add(key)
        self.remember_range()
        return x


class Step:
    """What stands in a block for its forward."""

    is_of_a_chain = True

    def __init__(self, chain: LoopedChain, key: str, block: nn.Module):
        self.chain, self.key, self.block = chain, key, block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.chain.step(self.key, self.block, args, kwargs)


def has_backward_hooks(block: nn.Module) -> bool:
    """Whether hooks have the block's output replaced by one that autograd calls them for."""
    return bool(block._backward_hooks or block._backward_pre_hooks)


class _Rows(WeakTensorKeyDictionary):
    """The rows under way, by the x that their last block has returned; copies start anew."""

    def __reduce__(self) -> tuple:
        return _Rows, ()

    def __deepcopy__(self, memo: dict) -> _Rows:
        return _Rows()


class _LoopRow:
    """A row of couplings that a parent's loop runs.

    Args:
        key: of the block that it begins with.
        x: what that one is called with.
    """

    def __init__(self, chain: LoopedChain, key: str, alpha: float, beta: float, x: Tensor):
        self.chain, self.alpha, self.beta = chain, alpha, beta
        self.with_gradients = torch.is_grad_enabled()
        self.rebuilds = self.with_gradients and chain.reversible
        self.is_measured = self.with_gradients and key in chain.measured
        keys = chain.coupled_keys()
        self.this_pass = chain.make_pass(keys, alpha, beta, x, (), {}, kind=_LoopPass)
        self.this_pass.calls.clear()
        self.this_pass.ends = chain.ends
        if not self.is_measured:
            self.this_pass.take_wide_words()
        self.row = Row(self.this_pass)
        self.length, self.last, self.rebuilt_last = 0, "", False
        # The x that its blocks have returned, with their versions; the tip is the last one.
        self._returned: list[tuple[weakref.ref[Tensor], int, str]] = []
        # What was last behind the list's last block: it goes with x, should the row not go on.
        self.pair: tuple[Tensor, Tensor] | None = None
        # x itself where a value was beyond the range: what the block has returned is NaN.
        self.broken: Tensor | None = None

    def tip(self) -> Tensor | None:
        """What the last block has returned, if it is still there."""
        return self._returned[-1][0]()

    def after(self, x: Tensor) -> str:
        """The block that has returned ``x``."""
        return next((key for returned, _, key in self._returned if returned() is x), "")

    def is_whole(self, x: Tensor) -> bool:
        """Whether x, which one of its blocks has returned, is as it was, and the row not over."""
        if self.tip() is x and self.pair is None and self.this_pass.streams.x is None:
            return False
        version = next((v for returned, v, _ in self._returned if returned() is x), None)
        return version == _version(x)

    def followed(self, x: Tensor) -> _LoopRow:
        """The row that goes on from this one's tip where gradients were switched on or off."""
        row = _LoopRow(self.chain, self.last, self.alpha, self.beta, x)
        row.this_pass.take_up(self.pair or self.this_pass.streams.save(), x)
        if row.with_gradients:
            row.row.start_from(x)
        row.length, row.last = self.length, self.last
        return row

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
        call.copies = key in chain.inplace or not chain.knows(key)
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
            try:
                with unhooked() if passed_by else nullcontext():
                    x, *row.y = row.couple([call], [x, *row.y], rebuilt, ends, False)
            except BaseException:
                self.this_pass.calls.pop()
                raise
        finally:
            undo(changed)
        if call.changes_a_copy():
            chain.inplace.add(key)
        call.copies = key in chain.inplace
        self.rebuilt_last = rebuilt and not ends
        arguments.side = []
        self.length += 1
        self.last = key
        x = chain.look_at(self, key, x, is_last)
        if is_last:
            self.pair = self.this_pass.streams.save()
            self.this_pass.streams.drop()
            chain.finish(self)
        if rebuilt and call.has_gradients_beside():
            chain.guard.say_once(
                f"tensors beside the stream of {key}",
                f"Block {key!r} of {chain.name} returns more than the stream, with gradients: the "
                "activations behind that are stored, and where parameters have a part in both, "
                "their gradients are those of stored activations up to rounding.",
            )
        self._returned = [entry for entry in self._returned if entry[0]() is not None]
        self._returned.append((weakref.ref(x), _version(x), key))
        chain.under_way[x] = self
        return call.returned(x)


def _version(x: Tensor) -> int:
    """How often x was changed in place; that of inference mode cannot be, where it matters."""
    return 0 if x.is_inference() else x._version


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

    def take_up(self, pair: tuple[Tensor, Tensor], x: Tensor) -> None:
        """Goes on from the streams of another pass, behind which x was returned."""
        word = self.arithmetic.encode(x[:0]).dtype
        self.go_on_from((pair[0].to(word), pair[1].to(word)))
        self.streams.output_peaks.append(peak(x))
        self.streams.stream_peaks.append(peak(x))

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
        self.is_exposed = True
        self.copies = False
        self._outputs: list[Any] = []
        self._changed: list[bool] = []
        self._is_first = True

    def __call__(self, x: Tensor, side: Sequence[Tensor], **_: Any) -> Tensor:
        further: dict[str, Any] = {"_outputs": self._outputs} if self._is_first else {}
        if self.copies:
            further["_copies"] = self._changed
        return super().__call__(x, side, **further)

    def changes_a_copy(self) -> bool:
        """Whether the block changed the copy of its input in place."""
        return any(self._changed)

    def has_gradients_beside(self) -> bool:
        """Whether there is something beside the stream that was computed with gradients."""
        output = self._outputs[-1]
        rest = output[1:] if isinstance(output, (tuple, list)) else ()
        return any(isinstance(t, Tensor) and t.requires_grad for t in tree_leaves(rest))

    def returned(self, x: Tensor) -> Any:
        """What the block has returned, with ``x`` for the stream."""
        self._is_first = False
        return _with_stream(self._outputs.pop(), x)


def _with_stream(output: Any, x: Tensor) -> Any:
    """What a block has returned, with ``x`` for the stream."""
    if hasattr(output, "_fields"):
        return output._replace(**{output._fields[0]: x})
    return type(output)((x, *output[1:])) if isinstance(output, (tuple, list)) else x


@cache
def _name_of_the_stream(kind: type) -> str:
    """The first parameter of forward, if it has a name and a place."""
    _, *parameters = inspect.signature(kind.forward).parameters.values()  # type: ignore[attr-defined]
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return parameters[0].name if parameters and parameters[0].kind in named else ""
