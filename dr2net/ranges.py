"""Passes through a chain where values are known at once: again with more range, if one asks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .coupling import Pass
from .guard import Guard
from .replay import Snapshot

__all__ = ["run_in_range"]


def run_in_range(
    guard: Guard,
    snapshot: Snapshot,
    repeats: bool,
    make: Callable[[int], Pass],
    run: Callable[[Pass, bool], Tensor],
) -> Tensor:
    """Runs passes until one holds all values, with a quarter of the range to spare.

    Args:
        snapshot: of what the first one finds.
        repeats: whether to run again; else the range is widened for the next step, and the output
            of this one is NaN where a value went beyond.
        make: a pass whose streams hold values up to 2^n.
        run: runs it, and may make its output NaN where a value went beyond.

    Raises:
        FloatingPointError: a value is NaN or infinity, and this process trains alone.
    """
    this_pass = make(guard.range_bits)
    met: tuple[str, float, float] | None = None
    while True:
        result = run(this_pass, not repeats)
        limit = this_pass.arithmetic.limit
        top, beyond = guard.measure(this_pass.streams, limit)
        if beyond is None:
            snapshot.learn()
            if met is None:
                return result
            place, size, limit = met
            guard.widen(place, max(size, top), limit)
            bits, met = guard.range_bits, None
        else:
            place, size = this_pass.place(beyond[0]), beyond[1]
            if not math.isfinite(size):
                guard.meet_not_finite(place, torch.is_grad_enabled())
                return result
            if not repeats:
                guard.widen(place, size, limit)
                return result
            # What came after the first value beyond the range is not known: a wide guess.
            needed = math.ceil(math.log2(size))
            bits = needed + 32 if met else max(30, needed + 1)
            met = met or (place, size, limit)
        again = make(bits)
        if again.arithmetic == this_pass.arithmetic:
            return result
        this_pass = again
        snapshot.restore()
