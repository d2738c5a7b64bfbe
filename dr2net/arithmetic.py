"""One coupling of a Dr²Net: its forward, its inverse and its gradient, in two arithmetics.

A coupling takes the streams (x, y) and the output g = G(x; α) of its module to

    x' = g + y          and back:    x = y' / β
    y' = β · x                       y = x' − g

(Zhao et al., "Dr²Net", CVPR 2024, arXiv 2401.04105, section 3). ``ExactArithmetic`` holds the
streams as fixed-point integers, where the way back is exact: integer addition is undone by
subtraction, and what the multiplication by β drops is kept in a few bits per element, as in
Maclaurin et al. (2015) and MacKay et al. (2018). ``FloatArithmetic`` holds them in floating
point, where every step back multiplies the rounding error by ``error_growth(α, β)``.

The chain knows only the methods that both share: ``encode``, ``decode``, ``scale``, ``unscale``,
``add``, ``subtract``, and the attributes ``beta``, ``dtype``, ``limit`` and ``invertible`` (whether
the way back returns the same bits).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "ARITHMETICS",
    "Arithmetic",
    "ExactArithmetic",
    "FloatArithmetic",
    "check_arithmetic",
    "check_coefficients",
    "combine_gradients",
    "error_growth",
    "laid_out_like",
    "make_arithmetic",
    "predicted_inverse_error",
    "round_beta",
    "stream_growth",
]

ARITHMETICS = ("exact", "exact64", "float")
"""What ``arithmetic=`` accepts; ``exact64`` is ``exact`` with 64-bit words whatever α and β are."""

BETA_BITS = 16
BETA_ONE = 1 << BETA_BITS
BETA_MIN = 2.0**-8

# Fraction bits of a stream by its word. Values may use all of the word but one bit, so that the
# sum of two of them never wraps: |x| ≤ 1024 in 32 bits (more with fewer for the fraction), ≤ 2^30
# in 64.
FRACTION_BITS = {torch.int32: 20, torch.int64: 32}

ELEMENTS_AT_ONCE = 1 << 17

# Up to this growth λ^N of the streams (here as its log2), 32-bit words have room above the usual
# activations (up to about 60) of a pretrained network. Where modules compute in low precision,
# words give up a fraction bit for each doubling beyond it: steps of 2^-17 are far below what
# bfloat16 sees, but not what float32 does.
LOG2_GROWTH_IN_32_BITS = 4.0
BITS_TO_GIVE_UP = 3


def check_arithmetic(name: str) -> None:
    """Raises ValueError if ``name`` is not one of ``ARITHMETICS``."""
    if name not in ARITHMETICS:
        raise ValueError(f"arithmetic={name!r} is unknown: use one of {ARITHMETICS}.")


def check_coefficients(alpha: float, beta: float) -> None:
    """Raises ValueError if α is not in [0, 1], or β neither 0 nor in [2^-8, 1]."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} is out of range: use a value from 0 to 1.")
    if not (beta == 0 or BETA_MIN <= beta <= 1):
        raise ValueError(
            f"beta={beta} is out of range: use 0 (not reversible; with alpha=1 the pretrained "
            f"network) or a value from 2^-8 = {BETA_MIN} to 1. A smaller β would need more than 8 "
            "bits kept per element and coupling."
        )


def round_beta(beta: float) -> float:
    """Returns the β that is used: the nearest fraction n / 2^16."""
    return round(beta * BETA_ONE) / BETA_ONE


def stream_growth(alpha: float, beta: float) -> float:
    """λ: the factor by which streams grow at each coupling before the modules add anything."""
    return (alpha + math.sqrt(alpha * alpha + 4 * beta)) / 2


def error_growth(alpha: float, beta: float) -> float:
    """g: the factor by which the inverse in floating point multiplies its error, each coupling."""
    return 2 / (math.sqrt(alpha * alpha + 4 * beta) - alpha) if beta else math.inf


def predicted_inverse_error(alpha: float, beta: float, couplings: int, dtype: torch.dtype) -> float:
    """Relative error of the first activation of a chain when it is inverted in floating point.

    The rounding error of the last coupling, in the ``dtype`` that the modules compute in, grown by
    ``error_growth`` at each coupling on the way back. Above about 0.01 gradients are unusable.
    """
    if not beta:
        return math.inf
    log2_error = couplings * math.log2(error_growth(alpha, beta))
    return 2.0 ** min(log2_error, 1000.0) * torch.finfo(dtype).eps


def combine_gradients(
    grad_branch: Tensor | None, grad_y: Tensor | None, beta: float
) -> Tensor | None:
    """Gradient of a coupling's input x, which feeds the module and, scaled by β, the stream y'.

    Reversible and stored mode both call this one, so that they round alike.
    """
    if grad_branch is None:
        return None if grad_y is None else grad_y * beta
    if grad_y is None:
        return grad_branch
    return torch.add(grad_branch, grad_y, alpha=beta)


@dataclass(frozen=True)
class FloatArithmetic:
    """Streams in floating point, as in RevNet and the Dr²Net paper: the inverse is approximate.

    Attributes:
        beta: as ``round_beta`` gives it.
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


@dataclass(frozen=True)
class ExactArithmetic:
    """Streams as integers X = round(x · 2^k), so that the inverse returns the same bits.

    Y = ⌊n·X / 2^16⌋ with β = n / 2^16; the remainder r = X − ⌈Y·2^16 / n⌉ is what the floor drops.

    Attributes:
        beta: as ``round_beta`` gives it, not 0.
        dtype: of the tensors that modules see.
        word: ``torch.int32`` or ``torch.int64``.
        given_up: fraction bits that make room for larger values.
    """

    beta: float
    dtype: torch.dtype
    word: torch.dtype = torch.int32
    given_up: int = 0

    invertible = True

    @property
    def numerator(self) -> int:
        return round(self.beta * BETA_ONE)

    @property
    def remainder_bits(self) -> int:
        """Bits kept per element and coupling: ⌈log2⌈1/β⌉⌉, none at β = 1."""
        return (-(-BETA_ONE // self.numerator) - 1).bit_length()

    @property
    def one(self) -> float:
        """What 1.0 is as an integer of a stream: 2^k."""
        return 2.0 ** (FRACTION_BITS[self.word] - self.given_up)

    @property
    def limit(self) -> float:
        """Largest |x| of a stream and of a module's output: half of the word's range."""
        return 2.0 ** (torch.iinfo(self.word).bits - 2) / self.one

    def encode(self, x: Tensor) -> Tensor:
        # Multiplying by a power of two is exact, so the only rounding is round()'s.
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        return (wide * self.one).round_().to(self.word)

    def decode(self, stream: Tensor) -> Tensor:
        wide = torch.promote_types(self.dtype, torch.float32)
        return stream.to(wide).mul_(1 / self.one).to(self.dtype)

    def scale(self, x: Tensor, keep_remainder: bool = True) -> tuple[Tensor, Tensor | None]:
        n = self.numerator
        if n == BETA_ONE:
            return x, None
        if torch.compiler.is_exporting():
            return self._scale_in_plain_operations(x), None
        flat = _in_memory_order(x)
        y = torch.empty_like(flat)
        remainder = torch.empty_like(flat, dtype=torch.uint8) if keep_remainder else None
        for part in _parts(flat):
            # X = high·2^16 + low. In 32 bits low·n may wrap to negative, but its 32 bits are right,
            # and they are all that is used: the upper half goes to Y, the lower half
            # t = n·X mod 2^16 to the remainder, for r = X − ⌈(n·X − t) / n⌉ = ⌊t / n⌋.
            product = (flat[part] & (BETA_ONE - 1)).mul_(n)
            torch.bitwise_right_shift(product, BETA_BITS, out=y[part])
            y[part].bitwise_and_(BETA_ONE - 1).add_(flat[part] >> BETA_BITS, alpha=n)
            if remainder is not None:
                # The half keeps t/n away from integers, by 2^-17 of its size at least, so that the
                # floor is right although float32 rounds, and although CUDA multiplies by 1/n where
                # it should divide.
                low = product.bitwise_and_(BETA_ONE - 1).to(torch.float32)
                remainder[part] = low.add_(0.5).div_(n).to(torch.uint8)
        packed = None if remainder is None else _pack(remainder, self.remainder_bits)
        return y.as_strided(x.shape, x.stride()), packed

    def _scale_in_plain_operations(self, x: Tensor) -> Tensor:
        """``scale`` in operations that ONNX and others know, on integers that do not wrap."""
        wide = x.to(torch.int64)
        low = wide % BETA_ONE
        high = (wide - low) // BETA_ONE
        return (high * self.numerator + low * self.numerator // BETA_ONE).to(self.word)

    def unscale(self, y: Tensor, remainder: Tensor | None) -> Tensor:
        n = self.numerator
        if n == BETA_ONE:
            return y
        assert remainder is not None  # scale() returned it
        flat = _in_memory_order(y)
        x = torch.empty_like(flat)
        rest = _unpack(remainder, self.remainder_bits, flat.numel())
        for part in _parts(flat):
            # ⌈Y·2^16 / n⌉ = q·2^16 + ⌈(Y − q·n)·2^16 / n⌉ for any integer q: with q near Y / n the
            # last term is small, and float64 gives its ceiling, ⌊(a + n − ½) / n⌋, without error.
            q = flat[part].to(torch.float64).div_(n).to(self.word)
            small = flat[part].sub(q, alpha=n).to(torch.float64).mul_(BETA_ONE)
            ceiling = small.add_(n - 0.5).div_(n).floor_().to(self.word)
            torch.add(ceiling.add_(rest[part]), q, alpha=BETA_ONE, out=x[part])
        return x.as_strided(y.shape, y.stride())

    def add(self, y: Tensor, g: Tensor, in_place: bool = False) -> Tensor:
        return self._combine(torch.add, y, g, in_place)

    def subtract(self, x: Tensor, g: Tensor, in_place: bool = False) -> Tensor:
        return self._combine(torch.sub, x, g, in_place)

    def _combine(
        self, operation: Callable[..., Tensor], stream: Tensor, g: Tensor, in_place: bool
    ) -> Tensor:
        if torch.compiler.is_exporting():
            return operation(stream, self.encode(g))
        flat, output = _in_memory_order(stream), _in_memory_order(laid_out_like(stream, g))
        result = flat if in_place else torch.empty_like(flat)
        for part in _parts(flat):
            operation(flat[part], self.encode(output[part]), out=result[part])
        return result.as_strided(stream.shape, stream.stride())


Arithmetic = ExactArithmetic | FloatArithmetic


def make_arithmetic(
    name: str,
    alpha: float,
    beta: float,
    couplings: int,
    dtype: torch.dtype,
    precision: torch.dtype | None = None,
) -> Arithmetic:
    """Returns the arithmetic of a chain of ``couplings`` couplings on inputs of ``dtype``.

    ``exact`` takes 32-bit words unless the streams' predicted growth λ^N, or float64 inputs, ask
    for 64.

    Args:
        precision: of what the modules compute; that of ``dtype`` if not given.
    """
    if name == "float":
        return FloatArithmetic(beta, dtype)
    log2_growth = couplings * math.log2(stream_growth(alpha, beta))
    missing = max(0, math.ceil(log2_growth - LOG2_GROWTH_IN_32_BITS))
    is_low = (precision or dtype) in (torch.bfloat16, torch.float16)
    spare = BITS_TO_GIVE_UP if is_low else 0
    if name == "exact64" or dtype == torch.float64 or missing > spare:
        return ExactArithmetic(beta, dtype, torch.int64)
    return ExactArithmetic(beta, dtype, torch.int32, missing)


def _parts(flat: Tensor) -> list[slice]:
    """Slices of a flat tensor to compute with one after the other.

    On a CPU temporaries of this size stay in the cache; whole ones are fresh pages of memory each
    time, which cost many times the arithmetic.
    """
    size = ELEMENTS_AT_ONCE if flat.device.type == "cpu" else max(flat.numel(), 1)
    return [slice(start, start + size) for start in range(0, flat.numel(), size)]


def laid_out_like(stream: Tensor, g: Tensor) -> Tensor:
    """The values of ``g``, of the shape of ``stream``, in its memory layout."""
    if g.stride() == stream.stride():
        return g.detach()
    return torch.empty_like(stream, dtype=g.dtype).copy_(g.detach())


def _in_memory_order(stream: Tensor) -> Tensor:
    """The elements of a stream, which lies in memory without gaps, as a flat view.

    ``as_strided`` with the stream's strides leads back from a flat tensor: not view(), which gives
    dimensions of size 1 strides of its own, by which kernels are chosen.
    """
    return stream.as_strided((stream.numel(),), (1,))


def _fields(bits: int) -> list[tuple[int, int]]:
    """Splits ``bits`` into (shift, width) fields whose widths divide a byte: 7 = 4 + 2 + 1."""
    fields, shift = [], 0
    for width in (8, 4, 2, 1):
        if bits & width:
            fields.append((shift, width))
            shift += width
    return fields


def _pack(values: Tensor, bits: int) -> Tensor:
    """Packs uint8 ``values`` (1-d, each below 2^bits) to ``bits`` bits each.

    A byte takes its fields from places that lie a stride apart, so that packing is a few
    operations on contiguous slices.
    """
    columns = []
    for shift, width in _fields(bits):
        per_byte = 8 // width
        stride = -(-values.numel() // per_byte)
        field = (values >> shift) & ((1 << width) - 1)
        column = field[:stride].clone()
        for place in range(1, per_byte):
            part = field[place * stride : (place + 1) * stride]
            column[: part.numel()] |= part << (place * width)
        columns.append(column)
    return columns[0] if len(columns) == 1 else torch.cat(columns)


def _unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undoes ``_pack``: returns ``count`` uint8 values."""
    values: Tensor | None = None
    start = 0
    for shift, width in _fields(bits):
        per_byte = 8 // width
        stride = -(-count // per_byte)
        column = packed[start : start + stride]
        start += stride
        mask = (1 << width) - 1
        field = torch.cat([(column >> (place * width)) & mask for place in range(per_byte)])[:count]
        values = field if values is None else values | (field << shift)
    assert values is not None
    return values
