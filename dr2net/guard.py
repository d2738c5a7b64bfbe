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
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .block_hooks import several_processes
from .coefficients import RANGE_BITS, from_state
from .streams import Peak, Streams

__all__ = ["Guard", "Problem", "skipped_steps"]

# A stream's range is widened while a quarter of it is left.
SHARE_TO_USE = 0.75

skipped_steps = [0]
"""How many steps of optimizers were skipped in this process, for logs."""


class Report:
    """Numbers on their way from a device."""

    def __init__(self, numbers: Tensor):
        self._event = None
        if numbers.device.type == "cuda":
            self._numbers = torch.empty_like(numbers, device="cpu", pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(numbers.device))
        else:
            self._numbers = numbers.cpu()

    def has_arrived(self) -> bool:
        return self._event is None or self._event.query()

    def read(self) -> list[Any]:
        """The numbers; waits for them if they have not arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._numbers.tolist()


def is_immediate(device: torch.device) -> bool:
    """Whether what is computed on ``device`` is known at once."""
    return device.type == "cpu"


class Problem(Exception):  # noqa: N818  (never leaves the chain)
    """A value beyond the range at a coupling; number -1 is the chain's input."""

    def __init__(self, number: int, size: float):
        super().__init__(number, size)
        self.number, self.size = number, size


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

    def measure(self, streams: Streams) -> float:
        """Waits for the peaks of a pass and returns the largest.

        Raises:
            Problem: three quarters of the range are not enough, or a value is not finite.
        """
        outputs, values = _sizes(streams).tolist()
        limit = streams.arithmetic.limit
        for number, pair in enumerate(zip(outputs, values, strict=True)):
            for size in pair:
                if not size <= SHARE_TO_USE * limit or math.isinf(size):
                    raise Problem(number - 1, size)
        self.has_measured = True
        return max(*outputs, *values)

    def watch(self, streams: Streams, names: Callable[[int], str], with_gradients: bool) -> None:
        """Sends the peaks of a pass on their way, to be judged when they have arrived."""
        judge = partial(self._judge, streams.arithmetic.limit, names, with_gradients)
        self._forward.append((Report(_sizes(streams)), judge))

    def _judge(
        self,
        limit: float,
        names: Callable[[int], str],
        with_gradients: bool,
        peaks: tuple[list[float], list[float]],
    ) -> None:
        for number, pair in enumerate(zip(*peaks, strict=True)):
            for size in pair:
                if not math.isfinite(size):
                    message = not_finite(names(number - 1))
                    if not (with_gradients and several_processes()):
                        raise FloatingPointError(message)
                    self.say_once("not finite", f"{message} Its gradients are skipped.")
                    return
                if size > SHARE_TO_USE * limit:
                    self.widen(names(number - 1), size, limit)
                if size > limit:
                    skip_steps_that_are_not_finite()
                    return

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

    def expect(self, coefficients: Tensor, pair: tuple[float, float], name: str) -> None:
        """Sends a chain's buffer on its way, to see if it still holds ``pair``."""

        def judge(values: list[int]) -> None:
            if from_state(values)[:2] != pair:
                raise RuntimeError(
                    f"The coefficients of {name} were written by something else than dr2net, and a "
                    "step was trained with the former ones: call dr2net.get_coefficients(model) "
                    "after they are written."
                )

        self._forward.append((Report(coefficients), judge))

    def poisoned(self, x: Tensor, streams: Streams) -> Tensor:
        """``x``, or NaN if a value of the pass so far was beyond the range or not finite.

        By a product, so that its gradient is NaN, too.
        """
        top = _sizes(streams).amax()
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


def not_finite(place: str) -> str:
    """What is said of NaN and infinity."""
    return (
        f"NaN or infinity at {place}. Look for it in the input and the parameters, lower the "
        "learning rate, or autocast to bfloat16 instead of float16."
    )


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
        pairs = zip(_pair(first[place]), _pair(second[place]), strict=True)
        if not all(torch.equal(a, b) for a, b in pairs):
            return place
    return None


def _pair(peak: Peak) -> tuple[Tensor, Tensor]:
    return peak if isinstance(peak, tuple) else (peak, peak)


def _sizes(streams: Streams) -> Tensor:
    """The largest |value| of input and outputs, and of the stream x: (2, couplings + 1)."""
    peaks = [*streams.output_peaks, *streams.stream_peaks]
    ends = torch.stack([end for peak in peaks for end in _pair(peak)]).abs()
    return ends.view(2, -1, 2).amax(2)


# Optimizers

_is_armed = False


def skip_steps_that_are_not_finite() -> None:
    """From now on optimizers of this process pass over steps with NaN or infinity in a gradient.

    NaN in a chain's output is in every gradient behind it, on every process that shares them: all
    processes skip alike, as under a loss scaler, which does the same before it calls an optimizer.
    """
    global _is_armed
    if not _is_armed:
        register_optimizer_step_pre_hook(_skip_if_not_finite)
        _is_armed = True


def _skip_if_not_finite(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    found: list[Any] = [p.grad for p in parameters if p.grad is not None]
    # Of FSDP2 the part that this process holds, which may be none. NaN in a chain's output is in
    # all parts, so that processes agree without a word: a collective call here hung with gloo.
    parts = [grad.to_local() if hasattr(grad, "to_local") else grad for grad in found]
    values = [part.coalesce().values() if part.is_sparse else part for part in parts]
    if get_total_norm([value for value in values if value.numel()]).isfinite():
        return
    for parameter in parameters:
        parameter.grad = None  # what optimizers pass over, weight decay and moments included
    skipped_steps[0] += 1
    warn(f"A step was skipped: its gradients were not finite ({skipped_steps[0]} so far).")


def warn(message: str) -> None:
    """Warns of the line that called this package, through PyTorch or not."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_inside(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _is_inside(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").partition(".")[0] in ("dr2net", "torch")
