"""Whether Triton's kernels serve on a device: they are tried once, before anything trusts them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

import torch

__all__ = ["kernels_that_serve"]


def kernels_that_serve(
    device: torch.device,
    load: Callable[[], ModuleType],
    give_the_reference: Callable[[ModuleType], bool],
    say: Callable[[str], None],
) -> ModuleType | None:
    """Returns the module that ``load`` imports, or None after ``say`` was told why not.

    Args:
        give_the_reference: whether kernels compute on ``device`` what the reference does.

    Raises:
        RuntimeError: the device has no memory left to try them; nothing is concluded.
    """
    if find_spec("triton") is None:
        say("Triton is not installed")
        return None
    try:
        kernels = load()
        if give_the_reference(kernels):
            return kernels
        reason = "they give other results"
    except Exception as error:  # Triton's compilers raise whatever they please
        # CUDA's error where Triton loads a program is no torch.OutOfMemoryError.
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
            raise
        reason = f"{type(error).__name__}: {error}"
    say(f"on {device}: {reason}")
    return None
