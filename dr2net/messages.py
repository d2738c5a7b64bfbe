"""What the core says, and in which modes of PyTorch it refuses to run."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

import torch
from torch import Tensor, nn

__all__ = ["not_finite", "not_replayed", "refuse_gradient_mode", "refuse_modes", "warn"]


def warn(message: str) -> None:
    """Warns of the line that called this package, through PyTorch or not."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_inside(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _is_inside(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").partition(".")[0] in ("dr2net", "torch")


def not_finite(place: str) -> str:
    """What is said of NaN and infinity."""
    return (
        f"NaN or infinity at {place}. Look for it in the input and the parameters, lower the "
        "learning rate, or autocast to bfloat16 instead of float16."
    )


def not_replayed(place: str) -> str:
    """What is said where backward did not find forward's streams."""
    return (
        f"{place}, or one near it, returned other values when it was recomputed in backward: "
        "discard this backward's gradients. A module of a chain must be deterministic given its "
        "input, PyTorch's random state, autocast and other global settings: no own random "
        "generator, no counters, no state that forward changes. "
        "dr2net.verify(model, *inputs) finds the module; dr2net.set_reversible(model, False) "
        "trains with activations stored."
    )


def refuse_modes(chain: nn.Module, name: str, x: Tensor, rebuilds: bool) -> None:
    """Raises ValueError or RuntimeError where a chain cannot run at β > 0.

    Args:
        name: the chain's.
        x: its input.
        rebuilds: whether activations would be rebuilt.
    """
    if not x.is_floating_point():
        raise ValueError(f"{name} got an input of {x.dtype}: it takes floating point.")
    if torch.jit.is_tracing():
        raise RuntimeError(
            f"{name} cannot be traced at beta > 0: export with torch.export, or "
            "torch.onnx.export(..., dynamo=True)."
        )
    if rebuilds and getattr(chain, "_is_replica", False):
        raise RuntimeError(
            f"{name} cannot rebuild activations in a replica of nn.DataParallel, whose weights are "
            "no parameters: use DistributedDataParallel, one process for each GPU."
        )
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"{name} does not run inside torch.func's grad, vmap, jvp or their like (at beta=0 it "
            "does): use torch.autograd.grad, with is_grads_batched=True for several gradients at "
            "once."
        )
    if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{name} cannot be captured by torch.cuda.graph at beta > 0: it looks at random states "
            "and at numbers that arrive from the device. Run it eagerly, or capture at beta=0."
        )


def refuse_gradient_mode(name: str) -> None:
    """Raises RuntimeError if backward runs in a mode in which a module's would not."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{name} is reversible and cannot run backward under torch.inference_mode, where "
            "nothing recomputed gets a gradient: leave it first."
        )
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} is reversible and has no second derivative (create_graph=True): call "
            "dr2net.set_reversible(model, False) for it."
        )
