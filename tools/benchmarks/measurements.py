"""What one training step of a network takes: bytes, seconds, and how far its gradients are off."""

import ctypes
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

# Where there is no GPU, the profiler would say so on every call.
os.environ.setdefault("KINETO_LOG_LEVEL", "5")

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

import dr2net
from dr2net.streams import Streams

Loss = Callable[[], Tensor]

PROC = Path("/proc/self")
BACKWARD = "backward of the step"


def in_precision(precision: str, device: str) -> torch.autocast:
    """Return what a network's modules are computed under: bfloat16 by autocast, or as they are."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, precision == "bfloat16")


def take_step(loss: Loss) -> None:
    """Run forward and backward."""
    loss().backward()


def seconds_of_step(loss: Loss, device: str) -> float:
    """Seconds of a forward and a backward, gradients being made anew."""
    return _seconds(partial(take_step, loss), device)


def _seconds(function: Callable[[], None], device: str) -> float:
    synchronise = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    synchronise()
    start = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - start


def seconds_of_streams(model: nn.Module, loss: Loss, dtype: torch.dtype, device: str) -> float:
    """Seconds that the chains' stream arithmetic takes of a step, forward and backward, alone.

    Args:
        model: A Dr²Net.
        loss: Runs it.
        dtype: Of what its modules return.
        device: Where it is.
    """
    inputs = {}

    def note(chain: nn.Module, args: tuple) -> None:
        inputs[chain] = args[0].detach()

    hooks = [chain.register_forward_pre_hook(note) for chain in dr2net.chains(model)]
    with torch.no_grad():
        loss()
    for hook in hooks:
        hook.remove()
    outputs = {chain: torch.full_like(x, 0.01, dtype=dtype) for chain, x in inputs.items()}

    def run() -> None:
        for chain, x in inputs.items():
            _, beta = chain.get_coefficients()
            streams = Streams(chain.make_arithmetic(beta, x))
            streams.start(x)
            couplings = chain.couplings()
            remainders = [streams.advance(outputs[chain], True)[1] for _ in couplings]
            for _ in couplings:
                before, _ = streams.rebuild(remainders.pop())
                streams.retreat(before, outputs[chain])

    with torch.no_grad():
        return statistics.median([_seconds(run, device) for _ in range(7)][2:])


def peak_bytes(loss: Loss, parameters: Sequence[Tensor], device: str) -> dict[str, int]:
    """Bytes that a step takes beyond weights and their gradients, exact, from the allocator.

    The gradients of the parameters are there before, as in gradient accumulation, so that what is
    counted are activations and all that backward needs for a while.

    Returns:
        ``kept``: when forward has returned; ``peak``: at most, at any moment of the step.
    """
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    if device.startswith("cuda"):
        return _peak_on_gpu(loss)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        value = loss()
        with record_function(BACKWARD):
            value.backward()
    taken = peak = kept = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == BACKWARD:
            kept = taken
        elif event.name() == "[memory]":
            taken += event.nbytes()
            peak = max(peak, taken)
    return {"kept": kept, "peak": peak}


def kept_bytes(loss: Loss) -> int:
    """``kept`` of ``peak_bytes`` on a CPU, without a backward."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        value = loss()  # noqa: F841 - holds what forward keeps until the end
    events = seen.profiler.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


def _peak_on_gpu(loss: Loss) -> dict[str, int]:
    take_step(loss)  # kernels are compiled, and libraries take the memory that they work in
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value = loss()
    kept = torch.cuda.memory_allocated() - before
    value.backward()
    return {"kept": kept, "peak": torch.cuda.max_memory_allocated() - before}


def process_peak(loss: Loss) -> int | None:
    """Bytes by which a step raises the memory of this process at most; None where Linux is not.

    What the process holds from earlier steps is given back to the system before.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        (PROC / "clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        take_step(loss)
        return _status("VmHWM") - before
    return None


def _status(key: str) -> int:
    lines = (PROC / "status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024


def gradients_of(loss: Loss, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of a step in float64."""
    return [gradient.double() for gradient in torch.autograd.grad(loss(), parameters)]


def relative_difference(found: Iterable[Tensor], reference: Iterable[Tensor]) -> float:
    """‖found − reference‖ / ‖reference‖ over all tensors together."""
    difference = size = 0.0
    for a, b in zip(found, reference, strict=True):
        difference += (a - b).square().sum().item()
        size += b.square().sum().item()
    return math.sqrt(difference / size) if size else math.sqrt(difference)


def largest_batch(budget: int, fixed: int, peaks: dict[int, int]) -> int:
    """Largest batch within ``budget`` bytes, by the line through the peaks of two batch sizes.

    Args:
        budget: Bytes of the device.
        fixed: Bytes of weights and their gradients.
        peaks: Bytes beyond these, by batch size.
    """
    (small, low), (large, high) = sorted(peaks.items())
    each = (high - low) / (large - small)
    return max(0, math.floor((budget - fixed - low) / each + small))


def quartiles(values: Iterable[float], digits: int = 2) -> str:
    """Median (lower to upper quartile) as text."""
    values = list(values)
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def growth_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of log(value) over log(size), by least squares: 0 is flat, 1 linear, 2 quadratic."""
    slope, _ = statistics.linear_regression(
        [math.log(size) for size in sizes], [math.log(value) for value in values]
    )
    return slope
