"""What PyTorch 2.6 has under another name, or not at all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["hooks_module", "is_exporting", "uncompiled"]

# Of PyTorch 2.6, where the code that runs uncompiled sees is_compiling() in an export alone.
is_exporting: Callable[[], bool] = getattr(
    torch.compiler, "is_exporting", torch.compiler.is_compiling
)
_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def uncompiled(reason: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a function that ``torch.compile`` leaves as it is, for a ``reason``."""
    try:
        return torch.compiler.disable(reason=reason)
    except TypeError:  # before PyTorch 2.8 there was no place for a reason
        return torch.compiler.disable()


def hooks_module() -> str | None:
    """The module of the innermost hooks on saved tensors; None where there are none.

    PyTorch 2.6 does not say: there it is that of checkpointing, where that is under way, or "".
    """
    if _top_hooks is not None:
        hooks = _top_hooks(True)
        return None if hooks is None else getattr(hooks[0], "__module__", "")
    name, frame = "torch.utils.checkpoint", sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__") != name:
        frame = frame.f_back
    # The reentrant kind, a torch.autograd.Function, has no hooks.
    is_there = frame.f_globals.get("__name__") == name
    return name if is_there and frame.f_code.co_name not in ("forward", "backward") else ""
