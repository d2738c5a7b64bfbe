"""One coupling's arithmetic in PyTorch's operations: there, back, and into what modules see.

A coupling takes the streams (x, y) and the output g = G(x; α) of its module to

    x' = g + y          and back:    x = y' / β
    y' = β · x                       y = x' − g

``ExactArithmetic`` holds streams as fixed-point integers, where the way back is exact: integer
addition is undone by subtraction, and what the multiplication by β drops is kept in a few bits per
element, as in Maclaurin et al. (2015) and MacKay et al. (2018). ``FloatArithmetic`` holds them in
floating point, where every step back multiplies the rounding error by ``error_growth(α, β)``.
``fused.py`` does the same as ``ExactArithmetic`` on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..coefficients import COEFFICIENT_BITS, COEFFICIENT_ONE, RANGE_BITS
from ..layout import as_laid_out, in_memory_order, laid_out_like
from ..pytorch_versions import is_exporting

__all__ = [
    "ARITHMETICS",
    "Arithmetic",
    "ExactArithmetic",
    "FloatArithmetic",
    "check_arithmetic",
    "make_arithmetic",
]

ARITHMETICS = ("exact", "exact64", "float")
"""What ``arithmetic=`` accepts; ``exact64`` is ``exact`` with 64-bit words whatever they hold."""

# Of 64-bit words, as long as the range allows.
FRACTION_BITS_OF_WIDE_WORDS = 32
# Where modules compute in low precision, 32-bit words give up so many fraction bits for range:
# steps of 2^-17 are far below what bfloat16 sees, but not what float32 does.
BITS_TO_GIVE_UP = 3

ELEMENTS_AT_ONCE = 1 << 17


def check_arithmetic(name: str) -> None:
    """Raises ValueError if ``name`` is not one of ``ARITHMETICS``."""
    if name not in ARITHMETICS:
        raise ValueError(f"arithmetic={name!r} is unknown: use one of {ARITHMETICS}.")


@dataclass(frozen=True)
class FloatArithmetic:
    """Streams in floating point, as in RevNet and the Dr²Net paper: the inverse is approximate.

    Attributes:
        beta: a multiple of 2^-16.
        dtype: of the tensors that modules see; streams are float32 at least.
    """

    beta: float
    dtype: torch.dtype

    limit = math.inf
    invertible = False

    def encode(self, x: Tensor) -> Tensor:
        # A copy: what the caller or a module does to its own tensor must not reach the stream.
        return x.detach().to(torch.promote_types(x.dtype, torch.float32), copy=True)

    def decode(self, stream: Tensor) -> Tensor:
        return stream.detach().to(self.dtype, copy=True)

    def scale(self, x: Tensor, keep_remainder: bool = True) -> tuple[Tensor, None]:
        return x * self.beta, None

    def unscale(self, y: Tensor, remainder: Tensor | None) -> Tensor:
        return y / self.beta

    def add(self, y: Tensor, g: Tensor, in_place: bool = False) -> Tensor:
        return torch.add(y, g.detach(), out=y if in_place else None)

    def subtract(self, x: Tensor, g: Tensor, in_place: bool = False) -> Tensor:
        return torch.sub(x, g.detach(), out=x if in_place else None)

    def kernels(self, stream: Tensor, value_dtype: torch.dtype) -> None:
        return None


@dataclass(frozen=True)
class ExactArithmetic:
    """Streams as integers X = round(x · 2^k), so that the inverse returns the same bits.

    Y = ⌊n·X / 2^16⌋ with β = n / 2^16; the remainder r = X − ⌈Y·2^16 / n⌉ is what the floor drops.

    Attributes:
        beta: a multiple of 2^-16, not 0.
        dtype: of the tensors that modules see.
        word: ``torch.int32`` or ``torch.int64``.
        fraction_bits: k, below 0 where values are huge.
    """

    beta: float
    dtype: torch.dtype
    word: torch.dtype = torch.int32
    fraction_bits: int = 30 - RANGE_BITS

    invertible = True

    @cached_property
    def numerator(self) -> int:
        return round(self.beta * COEFFICIENT_ONE)

    @cached_property
    def shift(self) -> int | None:
        """s where β = 2^-s; None elsewhere."""
        n = self.numerator
        return COEFFICIENT_BITS + 1 - n.bit_length() if n & (n - 1) == 0 else None

    @cached_property
    def remainder_bits(self) -> int:
        """Bits kept per element and coupling: ⌈log2⌈1/β⌉⌉, none at β = 1."""
        return (-(-COEFFICIENT_ONE // self.numerator) - 1).bit_length()

    @cached_property
    def one(self) -> float:
        """What 1.0 is as an integer of a stream: 2^k."""
        return 2.0**self.fraction_bits

    @cached_property
    def limit(self) -> float:
        """Largest |x| of a stream and of a module's output.

        All of the word but one bit, so that the sum of two of them never wraps.
        """
        return 2.0 ** (torch.iinfo(self.word).bits - 2 - self.fraction_bits)

    @cached_property
    def wide(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def encode(self, x: Tensor) -> Tensor:
        # Multiplying by a power of two is exact, so the only rounding is round()'s.
        if x.dtype.itemsize < 4:
            x = x.to(torch.float32)
        return torch.mul(x.detach() if x.requires_grad else x, self.one).round_().to(self.word)

    def decode(self, stream: Tensor) -> Tensor:
        if self.wide == torch.get_default_dtype():
            value = as_laid_out(torch.mul(stream, 1 / self.one), stream)  # as below, in one call
        else:
            value = stream.to(self.wide).mul_(1 / self.one)
        return value if self.dtype == self.wide else value.to(self.dtype)

    def scale(self, x: Tensor, keep_remainder: bool = True) -> tuple[Tensor, Tensor | None]:
        if not self.remainder_bits:
            return x, None
        if is_exporting():
            return self._scale_in_plain_operations(x), None
        flat = in_memory_order(x)
        y = torch.empty_like(flat)
        if not keep_remainder:
            _in_parts(self._scale, flat, y)
            return y.as_strided(x.shape, x.stride()), None
        remainder = torch.empty_like(flat, dtype=torch.uint8)
        _in_parts(self._scale, flat, y, remainder)
        return y.as_strided(x.shape, x.stride()), pack(remainder, self.remainder_bits)

    def _scale(self, x: Tensor, y: Tensor, remainder: Tensor | None = None) -> None:
        n = self.numerator
        if self.shift is not None:
            torch.bitwise_right_shift(x, self.shift, out=y)
            if remainder is not None:
                remainder.copy_(x & ((1 << self.shift) - 1))
            return
        # X = high·2^16 + low. In 32 bits low·n may wrap to negative, but its 32 bits are right, and
        # they are all that is used: the upper half goes to Y, the lower half t = n·X mod 2^16 to
        # the remainder, for r = X − ⌈(n·X − t) / n⌉ = ⌊t / n⌋.
        product = (x & (COEFFICIENT_ONE - 1)).mul_(n)
        torch.bitwise_right_shift(product, COEFFICIENT_BITS, out=y)
        y.bitwise_and_(COEFFICIENT_ONE - 1).add_(x >> COEFFICIENT_BITS, alpha=n)
        if remainder is not None:
            # The half keeps t/n away from integers, by 2^-17 of its size at least, so that the
            # floor is right although float32 rounds, and although CUDA multiplies by 1/n where it
            # should divide.
            low = product.bitwise_and_(COEFFICIENT_ONE - 1).to(torch.float32)
            remainder.copy_(low.add_(0.5).div_(n))

    def _scale_in_plain_operations(self, x: Tensor) -> Tensor:
        """``scale`` in operations that ONNX and others know, on integers that do not wrap."""
        wide = x.to(torch.int64)
        low = wide % COEFFICIENT_ONE
        high = (wide - low) // COEFFICIENT_ONE
        return (high * self.numerator + low * self.numerator // COEFFICIENT_ONE).to(self.word)

    def unscale(self, y: Tensor, remainder: Tensor | None) -> Tensor:
        if not self.remainder_bits:
            return y
        assert remainder is not None  # scale() returned it
        flat = in_memory_order(y)
        x = torch.empty_like(flat)
        _in_parts(self._unscale, flat, unpack(remainder, self.remainder_bits, flat.numel()), x)
        return x.as_strided(y.shape, y.stride())

    def _unscale(self, y: Tensor, remainder: Tensor, x: Tensor) -> None:
        n = self.numerator
        if self.shift is not None:
            torch.add(remainder, y << self.shift, out=x)
            return
        if self.word == torch.int32 and _has_float64(y.device.type):
            # ⌈a / n⌉ = ⌊a / n + 1 − 1 / (2n)⌋ of a = Y·2^16: what is floored is 2^-17 away from
            # integers at least, and float64 is off by less than 2^-20, as |a / n| is below 2^31.
            ceiling = y.to(torch.float64).mul_(COEFFICIENT_ONE / n).add_(1 - 0.5 / n).floor_()
            x.copy_(ceiling.add_(remainder))
            return
        # By long division, a byte at a time, so that nothing wraps.
        q = torch.div(y, n, rounding_mode="floor")
        small = y.sub(q, alpha=n) << 8
        digit = torch.div(small, n, rounding_mode="floor")
        small = small.sub_(digit, alpha=n) << 8
        ceiling = torch.div(small.add_(n - 1), n, rounding_mode="floor").add_(digit << 8)
        torch.add(ceiling.add_(remainder), q, alpha=COEFFICIENT_ONE, out=x)

    def add(self, y: Tensor, g: Tensor, in_place: bool = False) -> Tensor:
        return self._combine(torch.add, y, g, in_place)

    def subtract(self, x: Tensor, g: Tensor, in_place: bool = False) -> Tensor:
        return self._combine(torch.sub, x, g, in_place)

    def _combine(
        self, operation: Callable[..., Tensor], stream: Tensor, g: Tensor, in_place: bool
    ) -> Tensor:
        if not _is_large(stream):
            return as_laid_out(operation(stream, self.encode(laid_out_like(stream, g))), stream)
        g = laid_out_like(stream, g)
        flat = in_memory_order(stream)
        result = flat if in_place else torch.empty_like(flat)

        def combine(stream: Tensor, g: Tensor, result: Tensor) -> None:
            operation(stream, self.encode(g), out=result)

        _in_parts(combine, flat, in_memory_order(g), result)
        return result.as_strided(stream.shape, stream.stride())

    def kernels(self, stream: Tensor, value_dtype: torch.dtype) -> ModuleType | None:
        """What does the moves on a GPU in one pass over memory each; None where it cannot."""
        from . import kernels_for

        return kernels_for(self, stream, value_dtype)


Arithmetic = ExactArithmetic | FloatArithmetic


@lru_cache
def make_arithmetic(
    name: str,
    beta: float,
    dtype: torch.dtype,
    precision: torch.dtype | None = None,
    range_bits: int = RANGE_BITS,
) -> Arithmetic:
    """Returns the arithmetic ``name`` of ``ARITHMETICS`` for a chain's inputs of ``dtype``.

    ``exact`` takes 32-bit words unless the range or float64 inputs ask for 64.

    Args:
        precision: of what the modules compute; that of ``dtype`` if not given.
        range_bits: r, where values up to 2^r are to be held.
    """
    if name == "float":
        return FloatArithmetic(beta, dtype)
    is_low = (precision or dtype) in (torch.bfloat16, torch.float16)
    narrow = RANGE_BITS + (BITS_TO_GIVE_UP if is_low else 0)
    if name == "exact64" or dtype == torch.float64 or range_bits > narrow:
        fraction_bits = min(FRACTION_BITS_OF_WIDE_WORDS, 62 - range_bits)
        return ExactArithmetic(beta, dtype, torch.int64, fraction_bits)
    return ExactArithmetic(beta, dtype, torch.int32, 30 - range_bits)


def _in_parts(function: Callable[..., None], *flat: Tensor) -> None:
    """Calls ``function`` on flat tensors, on a CPU on slices of them one after the other.

    There temporaries of that size stay in the cache; whole ones are fresh pages of memory each
    time, which cost many times the arithmetic.
    """
    if not _is_large(flat[0]):
        function(*flat)
        return
    for parts in zip(*(tensor.split(ELEMENTS_AT_ONCE) for tensor in flat), strict=True):
        function(*parts)


def _is_large(tensor: Tensor) -> bool:
    if is_exporting():  # a size that stands for any would be asked for its value
        return False
    return tensor.numel() > ELEMENTS_AT_ONCE and tensor.device.type == "cpu"


def _has_float64(device_type: str) -> bool:
    return device_type != "mps"


def _fields(bits: int) -> list[tuple[int, int]]:
    """Splits ``bits`` into (shift, width) fields whose widths divide a byte: 7 = 4 + 2 + 1."""
    fields, shift = [], 0
    for width in (8, 4, 2, 1):
        if bits & width:
            fields.append((shift, width))
            shift += width
    return fields


def pack(values: Tensor, bits: int) -> Tensor:
    """Packs uint8 ``values`` (1-d, each below 2^bits) to ``bits`` bits each.

    A byte takes its fields from places that lie a stride apart: values are the rows of a matrix, a
    row for each place in a byte.
    """
    columns = []
    for shift, width in _fields(bits):
        places = _places(width, values)
        stride = -(-values.numel() // len(places))
        field = values >> shift if shift else values
        if shift + width < bits:
            field = field & ((1 << width) - 1)
        if missing := stride * len(places) - values.numel():
            field = pad(field, (0, missing))
        rows = field.view(len(places), stride)
        # Of disjoint bits, so that the sum is their union.
        columns.append((rows << places).sum(0, dtype=torch.uint8) if width < 8 else field)
    return columns[0] if len(columns) == 1 else torch.cat(columns)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undoes ``pack``: returns ``count`` uint8 values."""
    values: Tensor | None = None
    start = 0
    for shift, width in _fields(bits):
        places = _places(width, packed)
        stride = -(-count // len(places))
        column = packed[start : start + stride]
        start += stride
        if width < 8:
            column = (column >> places).bitwise_and_((1 << width) - 1).view(-1)[:count]
        values = column if values is None else values | (column << shift)
    assert values is not None
    return values


def _places(width: int, like: Tensor) -> Tensor:
    """Where in a byte fields of ``width`` bits begin, as a column."""
    return torch.arange(0, 8, width, dtype=torch.uint8, device=like.device)[:, None]
