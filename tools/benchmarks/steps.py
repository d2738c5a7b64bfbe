"""Whole training steps of several networks, which take turns: bytes at the peak, and seconds."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from tools.benchmarks.measurements import peak_bytes, quartiles, seconds_of_step

Loss = Callable[[], Tensor]


@dataclass
class Step:
    """What a network's step takes, beyond weights and their gradients."""

    network: nn.Module
    loss: Loss
    value: float = 0.0
    kept: int = 0
    peak: int = 0
    seconds: list[float] = field(default_factory=list)

    def numbers(self) -> dict[str, object]:
        """Return what a result file holds of it."""
        names = ("value", "kept", "peak", "seconds")
        return {name: getattr(self, name) for name in names}


def measure_steps(steps: dict[str, Step], rounds: int, device: str) -> None:
    """Fill in the steps: bytes, one after the other, then seconds of ``rounds`` turns.

    Args:
        steps: by the way of training.
        rounds: timed ones; none are timed where this is 0.
        device: where the networks are.
    """
    for step in steps.values():
        step.value = step.loss().item()  # the first forward of a chain tells its range
        found = peak_bytes(step.loss, list(step.network.parameters()), device)
        step.kept, step.peak = found["kept"], found["peak"]
    for turn in range(rounds + 1 if rounds else 0):
        for step in steps.values():
            taken = seconds_of_step(step.loss, device)
            if turn:  # the first warms up
                step.seconds.append(taken)


def notes(rounds: int, further: str = "") -> str:
    """Return what stands below the table: what was measured, ``further`` in its middle."""
    memory = (
        "What a step takes beyond weights and their gradients, by PyTorch's allocator, 1 MB = 10^6 "
        "bytes: kept when forward has returned, and at the peak."
    )
    times = f"Times are medians (quartiles) of {rounds} steps, the ways taking turns."
    return " ".join(filter(None, [memory, further, times if rounds else ""]))


def cells(steps: dict[str, Step], reference: str, checkpointed: str) -> dict[str, dict[str, str]]:
    """Return, by the way of training, the columns of a table.

    Args:
        reference: way whose peak the shares are of.
        checkpointed: way whose times the ratios are of.
    """
    of_reference, of_checkpointed = steps[reference], steps[checkpointed]
    found = {}
    for way, step in steps.items():
        ratios = [a / b for a, b in zip(step.seconds, of_checkpointed.seconds, strict=True)]
        found[way] = {
            "way": way,
            "kept MB": f"{step.kept / 1e6:,.0f}",
            "peak MB": f"{step.peak / 1e6:,.0f}",
            f"peak / {reference}": f"{step.peak / of_reference.peak:.2f}",
            f"peak / {checkpointed}": f"{step.peak / of_checkpointed.peak:.2f}",
            "s/step": f"{statistics.median(step.seconds):.2f}" if step.seconds else "",
            f"time / {checkpointed}": quartiles(ratios) if ratios else "",
        }
    return found
