"""Stream arithmetic: in PyTorch's operations, and in single passes over GPU memory.

``arithmetic.py`` serves everywhere and is the reference; it goes over the streams some twenty times
per coupling. ``fused.py`` gives the same bits by Triton.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from .arithmetic import ExactArithmetic
from .trial import kernels_that_serve

__all__ = ["gives_reference_bits", "kernels_for"]


def kernels_for(
    arithmetic: ExactArithmetic, stream: Tensor, value_dtype: torch.dtype
) -> ModuleType | None:
    """Returns ``kernels.fused`` where it can take a stream on a GPU, else None, which is said once.

    It needs Triton, which comes with PyTorch's own builds; streams whose number of elements is a
    multiple of 8, so that bytes of remainders fall together; and values of at most 32 bits.
    """
    if stream.numel() == 0 or torch.float64 in (arithmetic.dtype, value_dtype):
        return None
    if stream.numel() % 8:
        _say("a stream's number of elements is no multiple of 8")
        return None
    return _kernels_of(stream.device, arithmetic.dtype, value_dtype)


@cache
def _kernels_of(
    device: torch.device, dtype: torch.dtype, output_dtype: torch.dtype
) -> ModuleType | None:
    """The kernels, once they have given the reference's bits on ``device`` with such tensors."""
    return kernels_that_serve(
        device,
        lambda: import_module(".fused", __name__),
        lambda kernels: gives_reference_bits(kernels, device, dtype, output_dtype),
        _say,
    )


@cache
def _say(reason: str) -> None:
    warnings.warn(
        f"dr2net's Triton kernels do not serve ({reason}): PyTorch's operations take their place, "
        "with the same results in more time.",
        stacklevel=2,
    )


def gives_reference_bits(
    kernels: ModuleType, device: torch.device, dtype: torch.dtype, output_dtype: torch.dtype
) -> bool:
    """Whether a coupling there and back gives on ``device`` what ``ExactArithmetic`` gives.

    Args:
        dtype: of the chain's input.
        output_dtype: of what its modules return.
    """
    values = torch.linspace(-30, 30, 8 * 1001, device=device, dtype=torch.float32)
    for word in (torch.int32, torch.int64):
        for beta in (655 / 65536, 0.125, 1.0):
            arithmetic = ExactArithmetic(beta, dtype, word)
            x, y = arithmetic.encode(values), arithmetic.encode(values.flip(0))
            g = values.sin().to(output_dtype)
            scaled, remainder = arithmetic.scale(x)
            expected = [arithmetic.add(y, g), scaled, remainder]
            found: tuple = kernels.advance(arithmetic, x, y, g, True)[:3]
            expected += [x, arithmetic.decode(x), y]
            found += (
                *kernels.rebuild(arithmetic, *found[1:]),
                kernels.subtract(arithmetic, found[0], g),
            )
            if not all(
                a is b or (a is not None and b is not None and torch.equal(a, b))
                for a, b in zip(expected, found, strict=True)
            ):
                return False
    return True
