"""Stream arithmetic in single passes over GPU memory, the same bits as ``arithmetic.py`` gives.

PyTorch's own operations, which serve everywhere else and are the reference, go over the streams
some twenty times per coupling.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from ..arithmetic import Arithmetic, ExactArithmetic, round_beta

__all__ = ["gives_reference_bits", "kernels_for"]


def kernels_for(arithmetic: Arithmetic, stream: Tensor, *values: Tensor) -> ModuleType | None:
    """Returns ``kernels.coupling`` where it can take these tensors, else None.

    It takes exact arithmetic on a GPU for which Triton is installed, as it is with PyTorch's own
    builds; streams whose number of elements is a multiple of 8, so that bytes of remainders fall
    together; and values of at most 32 bits.
    """
    fits = (
        isinstance(arithmetic, ExactArithmetic)
        and stream.device.type == "cuda"
        and stream.numel() > 0
        and stream.numel() % 8 == 0
        and torch.float64 not in (arithmetic.dtype, *(value.dtype for value in values))
    )
    if not fits:
        return None
    dtypes = [value.dtype for value in values]
    return _kernels_of(stream.device, arithmetic.dtype, *dtypes or [arithmetic.dtype])


@cache
def _kernels_of(
    device: torch.device, dtype: torch.dtype, output_dtype: torch.dtype
) -> ModuleType | None:
    """The kernels, once they have given the reference's bits on ``device`` with such tensors."""
    if find_spec("triton") is None:
        return None
    try:
        kernels = import_module(".coupling", __name__)
        good = gives_reference_bits(kernels, device, dtype, output_dtype)
        reason = "they give other bits"
    except Exception as error:  # Triton's compilers raise whatever they please
        good = False
        reason = f"{type(error).__name__}: {error}"
    if good:
        return kernels
    warnings.warn(
        f"dr2net's Triton kernels do not serve on {device} ({reason}): PyTorch's operations take "
        "their place, with the same results in more time.",
        stacklevel=2,
    )
    return None


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
        for beta in (0.01, 0.1, 1.0):
            arithmetic = ExactArithmetic(round_beta(beta), dtype, word)
            x, y = arithmetic.encode(values), arithmetic.encode(values.flip(0))
            g = values.sin().to(output_dtype)
            scaled, remainder = arithmetic.scale(x)
            expected = [arithmetic.add(y, g), scaled, remainder]
            found = kernels.advance(arithmetic, x, y, g, True)[:3]
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
