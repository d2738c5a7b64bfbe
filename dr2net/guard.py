"""What can go wrong in a chain's numbers, looked at without waiting for the device.

Values beyond the range of the streams' words, NaN and infinity in forward; in backward, streams
that are not those of forward. On a CPU all of it is known at once. Elsewhere numbers are sent on
their way and looked at when they have arrived: in the next forward, in the first node of backward,
when a state_dict is made, and, of forward's, at backward's end, before an optimizer can have the
gradients. Until then a forward that went wrong is harmless: its output is NaN, and so are its
gradients, which loss scalers skip and ``skip_steps_that_are_not_finite`` keeps from every other
optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .block_hooks import several_processes
from .coefficients import RANGE_BITS
from .messages import not_finite, warn
from .optimizers import skip_steps_that_are_not_finite
from .reports import Report, is_immediate
from .streams import Peak, Streams, lowest_and_highest

__all__ = ["Guard", "fingerprint", "first_difference"]

# A stream's range is widened while a quarter of it is left.
SHARE_TO_USE = 0.75


class Guard:
    """What a chain remembers of its numbers; a copy or pickle of it starts anew.

    Attributes:
        on_mismatch: ``"raise"`` or ``"warn"`` where backward did not find forward's streams.
        range_bits: streams are to hold values up to 2^range_bits.
        has_measured: whether a forward has told the range.
    """

    def __init__(self, on_mismatch: str = "raise"):
        self.on_mismatch = on_mismatch
        self.range_bits = RANGE_BITS
        self.has_measured = False
        self._forward: list[tuple[Report, Callable[[Any], None]]] = []
        self._backward: list[tuple[Report, Callable[[Any], None]]] = []
        self._said: set[str] = set()

    def __reduce__(self) -> tuple:
        return Guard, (self.on_mismatch,)

    def look(self, wait: bool = False, wait_for_all: bool = False) -> None:
        """Looks at the numbers that have arrived, or waits for those of forward, or for all."""
        for pending, waits in ((self._forward, wait), (self._backward, wait_for_all)):
            while pending and (waits or pending[0][0].has_arrived()):
                report, judge = pending.pop(0)
                judge(report.read())

    def say_once(self, key: str, message: str) -> None:
        """Warns of something, the first time."""
        if key not in self._said:
            self._said.add(key)
            warn(message)

    # Forward

    def measure(
        self, streams: Streams, limit: float
    ) -> tuple[float, tuple[int, float] | None]:
        """Waits for the peaks of a pass in a range of ±``limit``.

        Returns:
            The largest, and of the first value that is not finite, or for which three quarters of
            the range are not enough, the coupling's number and the size. -1 is the chain's input.
        """
        top = 0.0
        for number, size in _in_order(streams.sizes().tolist()):
            if not size <= SHARE_TO_USE * limit or math.isinf(size):
                return top, (number, size)
            top = max(top, size)
        self.has_measured = True
        return top, None

    def watch(self, streams: Streams, names: Callable[[int], str], with_gradients: bool) -> None:
        """Sends the peaks of a pass on their way, to be judged when they have arrived."""
        judge = partial(self._judge, streams.arithmetic.limit, names, with_gradients)
        self.send(streams.sizes(), judge)

    def _judge(
        self,
        limit: float,
        names: Callable[[int], str],
        with_gradients: bool,
        sizes: list[list[float]],
    ) -> None:
        for number, size in _in_order(sizes):
            if not math.isfinite(size):
                self.meet_not_finite(names(number), with_gradients)
                break
            if size > SHARE_TO_USE * limit:
                self.widen(names(number), size, limit)
            if size > limit:
                skip_steps_that_are_not_finite()
                break

    def meet_not_finite(self, place: str, with_gradients: bool) -> None:
        """Raises FloatingPointError, or says it once where other processes have to skip alike."""
        message = not_finite(place)
        if not (with_gradients and several_processes()):
            raise FloatingPointError(message)
        self.say_once("not finite", f"{message} Its gradients are skipped.")

    def widen(self, place: str, size: float, limit: float) -> None:
        """Has streams hold ``size`` from now on, with a quarter of the range to spare."""
        before = self.range_bits
        self.range_bits = max(before, math.ceil(math.log2(size / SHARE_TO_USE)))
        if self.range_bits > before:
            self.say_once(
                "range",
                f"A stream reached {size:.4g} at {place}, of a range of ±{limit:.4g}: from now on "
                f"the chain's streams hold values up to 2^{self.range_bits}, where 32-bit words "
                "with fewer fraction bits do not suffice in 64-bit words. This is remembered in "
                "its state_dict.",
            )

    def send(self, numbers: Tensor, judge: Callable[[Any], None]) -> None:
        """Sends numbers on their way, to be judged when they have arrived."""
        self._forward.append((Report(numbers), judge))

    def poisoned(self, x: Tensor, streams: Streams) -> Tensor:
        """``x``, or NaN if a value of the pass so far was beyond the range or not finite.

        By a product, so that its gradient is NaN, too.
        """
        top = streams.sizes().amax()
        ok = (top <= streams.arithmetic.limit) & top.isfinite()
        return x * torch.where(ok, 1.0, math.nan).to(x.dtype)

    # Backward

    def compare(
        self, streams: Streams, before: Tensor | None, describe: Callable[[], str], tolerance: float
    ) -> None:
        """Has backward come to the streams of ``fingerprint``?

        Args:
            describe: the error's message.
            tolerance: relative, for streams in floating point.
        """
        if before is None:
            return
        now: Any = fingerprint(streams)
        if streams.arithmetic.invertible:
            differs = (before != now).any()
        else:
            differs = (before - now).norm() > tolerance * before.norm()
        if is_immediate(before.device):
            self._mismatch(describe, differs)
        else:
            self._backward.append((Report(differs), partial(self._mismatch, describe)))

    def _mismatch(self, describe: Callable[[], str], differs: Any) -> None:
        if not differs:
            return
        if self.on_mismatch == "raise":
            raise RuntimeError(describe())
        warn(describe())


def fingerprint(streams: Streams) -> Tensor | None:
    """Sums over the rows and over the columns of both streams; None of nothing."""
    x, y = streams.x, streams.y
    assert x is not None
    assert y is not None
    if x.numel() == 0:
        return None
    both = torch.add(x, y, alpha=40503 if streams.arithmetic.invertible else 0.5)
    width = x.shape[-1] if x.ndim else 1
    rows = both.as_strided((x.numel() // width, width), (width, 1))  # as they lie in memory
    return torch.cat([rows.sum(0), rows.sum(1)])


def first_difference(first: Sequence[Peak], second: Sequence[Peak]) -> int | None:
    """The last place, which backward reaches first, where the peaks are not the same."""
    for place in reversed(range(min(len(first), len(second)))):
        pair = map(lowest_and_highest, (first[place], second[place]))
        if not all(map(torch.equal, *pair)):
            return place
    return None


def _in_order(sizes: list[list[float]]) -> Iterator[tuple[int, float]]:
    """(number of the coupling, size) of its output and of the stream behind it, for each."""
    for number, pair in enumerate(zip(*sizes, strict=True), -1):
        for size in pair:
            yield number, size
