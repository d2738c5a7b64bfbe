"""Optimizers that pass over steps whose gradients are not finite, as under a loss scaler."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils import get_total_norm
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .messages import warn

__all__ = ["skip_steps_that_are_not_finite", "skipped_steps"]

skipped_steps = [0]
"""How many steps of optimizers were skipped in this process, for logs."""

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
