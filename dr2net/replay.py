"""Random and autocast state, taken when a module runs forward, replayed when it is recomputed.

A recomputed module returns its first bits only if it draws the same random numbers and computes in
the same precision as the first time. As in ``torch.utils.checkpoint``, but per module, and a
module that draws nothing keeps nothing. Buffers that a module changes in forward, such as running
statistics, do not change a second time.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

__all__ = [
    "AutocastState",
    "RandomState",
    "run_recorded",
    "run_replayed",
    "undisturbed",
    "without_benchmark",
]

RandomState = list[Tensor]
"""States of the generators that a module can draw from: the CPU's, then the device's."""


class AutocastState:
    """The autocast settings at the moment of construction, for ``device_type`` and the CPU."""

    def __init__(self, device_type: str):
        self.settings = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in dict.fromkeys(("cpu", device_type))
            if torch.amp.is_autocast_available(kind)
        ]

    def compute_dtype(self, device_type: str, dtype: torch.dtype) -> torch.dtype:
        """The precision of matrix products on inputs of ``dtype``."""
        return next((low for kind, on, low in self.settings if kind == device_type and on), dtype)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Restores the settings, with the cache of cast weights off.

        The cache would hand weights that were cast in one pass to another: those cast without
        gradients would lose their gradient, and gradients of several passes would be summed in
        low precision.
        """
        with ExitStack() as stack:
            for kind, enabled, dtype in self.settings:
                stack.enter_context(
                    torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
                )
            yield


@contextmanager
def without_benchmark(device: torch.device) -> Iterator[None]:
    """Has cuDNN choose algorithms by rule and not by trial.

    Every thread tries for itself, and a recomputation runs in autograd's: of two that are about as
    fast, forward could take one and backward the other, which rounds differently.
    """
    before = torch.backends.cudnn.benchmark
    if device.type == "cpu" or not before:
        yield
        return
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def random_state(device: torch.device) -> RandomState:
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def set_random_state(device: torch.device, states: RandomState) -> None:
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1], device)


def run_recorded(
    function: Callable[[], Tensor], device: torch.device
) -> tuple[Tensor, RandomState | None]:
    """Returns ``function()`` and the random state it started from, or None if it drew nothing."""
    before = random_state(device)
    output = function()
    drew = not all(map(torch.equal, before, random_state(device)))
    return output, before if drew else None


def run_replayed(
    function: Callable[[], Tensor],
    device: torch.device,
    state: RandomState | None,
    buffers: Iterable[Tensor],
) -> Tensor:
    """Returns ``function()`` run from ``state``; random streams and ``buffers`` stay as they were.

    Buffers are restored whether or not they seem to change: BatchNorm's kernels write its running
    statistics without telling autograd.
    """
    outside = None if state is None else random_state(device)
    # One whose elements share memory (an expanded one) cannot be written, by kernels neither.
    values = [
        (buffer, buffer.clone())
        for buffer in buffers
        if torch._debug_has_internal_overlap(buffer) != 1
    ]
    if state is not None:
        set_random_state(device, state)
    try:
        return function()
    finally:
        if outside is not None:
            set_random_state(device, outside)
        for buffer, value in values:
            # .data: the gradient that follows must not take this for a change of what it saved.
            buffer.data.copy_(value)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Leaves random streams and the buffers of ``model`` as they were: to try a step out.

    Those of Python and numpy as well, from which preprocessing draws.
    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    buffers = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with ExitStack() as stack:
        for kind in {device.type for device in devices if device.type != "cpu"}:
            of_kind = [device for device in devices if device.type == kind]
            stack.enter_context(torch.random.fork_rng(of_kind, device_type=kind))
        stack.enter_context(torch.random.fork_rng([]))
        stack.callback(random.setstate, random.getstate())
        if numpy := sys.modules.get("numpy"):
            stack.callback(numpy.random.set_state, numpy.random.get_state())
        try:
            yield
        finally:
            for held, name, buffer, value in buffers:
                held[name] = buffer  # forward may have put another in its place
                if not torch.equal(buffer, value):
                    buffer.data.copy_(value)
