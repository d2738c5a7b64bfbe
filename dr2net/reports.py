"""Numbers on their way from a device, so that nobody waits for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Report", "is_immediate"]


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
