"""Triton kernels of the moves on streams: see ``arithmetic.ExactArithmetic``.

A stream is taken as 8 rows of a matrix, element p · columns + j at (p, j). A program works on some
columns: in all of ``pack``'s fields of 1, 2, 4 or 8 bits, the bytes that these columns' remainders
go to are this program's alone. It reads each element before it writes it, so that results may be
written over streams.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..coefficients import COEFFICIENT_BITS, COEFFICIENT_ONE
from ..layout import laid_out_like
from .arithmetic import ExactArithmetic

__all__ = ["advance", "new_peaks", "rebuild", "subtract"]

COLUMNS = 256  # that a program takes: 2,048 elements

_BETA_BITS: tl.constexpr = tl.constexpr(COEFFICIENT_BITS)
_LOW: tl.constexpr = tl.constexpr(COEFFICIENT_ONE - 1)


def new_peaks(count: int, device: torch.device) -> Tensor:
    """Room for the peaks of ``count`` moves: bits of floats, ordered like them, NaN above all."""
    return torch.zeros(count, 2, dtype=torch.int32, device=device)


def advance(
    arithmetic: ExactArithmetic,
    x: Tensor,
    y: Tensor,
    g: Tensor,
    keep_remainder: bool,
    peaks: Tensor | None = None,
    into: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """A coupling's way forward: ``scale``, ``add`` and ``decode``.

    Args:
        x, y: streams, of the arithmetic's word.
        g: the module's output, of their shape, in float16, bfloat16 or float32.
        keep_remainder: whether the way back is to be possible.
        peaks: a row of ``new_peaks``, for the largest |g| and |x'|.
        into: what x' and y' may be written over.

    Returns:
        The streams x' and y', the packed remainder (or None), and x' as modules see it.
    """
    bits = arithmetic.remainder_bits
    new_x = torch.empty_like(x) if into[0] is None else into[0]
    new_y = x if not bits else torch.empty_like(x) if into[1] is None else into[1]
    decoded = torch.empty_like(x, dtype=arithmetic.dtype)
    columns = x.numel() // 8
    keeps = bool(bits and keep_remainder)
    packed = torch.empty(bits * columns if keeps else 0, dtype=torch.uint8, device=x.device)
    with torch.cuda.device_of(x):
        _advance[_grid(columns)](
            x, y, laid_out_like(x, g), new_x, new_y, packed, decoded,
            new_peaks(1, x.device) if peaks is None else peaks,
            columns, arithmetic.numerator,
            arithmetic.one, bits, keeps, COLUMNS,
        )  # fmt: skip
    return new_x, new_y, packed if keeps else None, decoded


def rebuild(
    arithmetic: ExactArithmetic, y: Tensor, remainder: Tensor | None, into: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``unscale`` and ``decode``: returns the stream x, and x as modules see it."""
    bits = arithmetic.remainder_bits
    x = y if not bits else torch.empty_like(y) if into is None else into
    decoded = torch.empty_like(y, dtype=arithmetic.dtype)
    columns = y.numel() // 8
    with torch.cuda.device_of(y):
        _rebuild[_grid(columns)](
            y, y if remainder is None else remainder, x, decoded,
            columns, arithmetic.numerator,
            arithmetic.one, bits, COLUMNS,
        )  # fmt: skip
    return x, decoded


def subtract(
    arithmetic: ExactArithmetic,
    x: Tensor,
    g: Tensor,
    peaks: Tensor | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """The stream y = x' − g; ``peaks`` gets the largest |g|."""
    y = torch.empty_like(x) if into is None else into
    columns = x.numel() // 8
    with torch.cuda.device_of(x):
        _subtract[_grid(columns)](
            x, laid_out_like(x, g), y, new_peaks(1, x.device) if peaks is None else peaks,
            columns, arithmetic.one, COLUMNS,
        )  # fmt: skip
    return y


def _grid(columns: int) -> tuple[int]:
    return (triton.cdiv(columns, COLUMNS),)


@triton.jit
def _advance(
    x_at, y_at, g_at, new_x_at, new_y_at, packed_at, decoded_at, peaks_at,
    columns, numerator,
    one: tl.constexpr, bits: tl.constexpr, keeps: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    column, inside = _own_columns(columns, block)
    at = tl.arange(0, 8).to(tl.int64)[:, None] * columns + column[None, :]
    here = inside[None, :]
    y = tl.load(y_at + at, mask=here, other=0)
    g = tl.load(g_at + at, mask=here, other=0.0).to(tl.float32)
    if bits > 0:
        x = tl.load(x_at + at, mask=here, other=0)
    new_x = y + _encoded(g, one, y.dtype)
    tl.store(new_x_at + at, new_x, mask=here)
    decoded = _decoded(new_x, one, decoded_at.dtype.element_ty)
    tl.store(decoded_at + at, decoded, mask=here)
    _take_peak(peaks_at, g)
    _take_peak(peaks_at + 1, tl.where(here, decoded.to(tl.float32), 0.0))
    if bits > 0:
        # x = high · 2^16 + low, and low · n < 2^32.
        low = (x & _LOW).to(tl.uint32) * numerator.to(tl.uint32)
        new_y = (x >> _BETA_BITS) * numerator + (low >> _BETA_BITS).to(x.dtype)
        tl.store(new_y_at + at, new_y, mask=here)
        if keeps:
            rest = ((low & _LOW) // numerator.to(tl.uint32)).to(tl.int32)
            if bits == 8:
                _store_field(rest, packed_at, columns, column, inside, 0, 8)
            else:
                if bits & 4:
                    _store_field(rest, packed_at, columns, column, inside, 0, 4)
                if bits & 2:
                    _store_field(rest, packed_at, columns, column, inside, bits & 4, 2)
                if bits & 1:
                    _store_field(rest, packed_at, columns, column, inside, bits & 6, 1)


@triton.jit
def _rebuild(
    y_at, packed_at, x_at, decoded_at,
    columns, numerator,
    one: tl.constexpr, bits: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    column, inside = _own_columns(columns, block)
    at = tl.arange(0, 8).to(tl.int64)[:, None] * columns + column[None, :]
    here = inside[None, :]
    x = tl.load(y_at + at, mask=here, other=0)
    if bits > 0:
        # ⌈y · 2^16 / n⌉ = q · 2^16 + ⌈(y − q·n) · 2^16 / n⌉ with q = ⌊y / n⌋.
        quotient = x // numerator
        quotient -= (x - quotient * numerator < 0).to(x.dtype)  # // rounds towards 0
        small = (x - quotient * numerator).to(tl.uint32) << _BETA_BITS
        n = numerator.to(tl.uint32)
        ceiling = ((small + (n - 1)) // n).to(x.dtype)
        rest = tl.zeros([8, block], tl.int32)
        if bits == 8:
            rest += _load_field(packed_at, columns, column, inside, 0, 8, block)
        else:
            if bits & 4:
                rest += _load_field(packed_at, columns, column, inside, 0, 4, block)
            if bits & 2:
                rest += _load_field(packed_at, columns, column, inside, bits & 4, 2, block)
            if bits & 1:
                rest += _load_field(packed_at, columns, column, inside, bits & 6, 1, block)
        x = (quotient << _BETA_BITS) + ceiling + rest.to(x.dtype)
        tl.store(x_at + at, x, mask=here)
    tl.store(decoded_at + at, _decoded(x, one, decoded_at.dtype.element_ty), mask=here)


@triton.jit
def _subtract(x_at, g_at, y_at, peaks_at, columns, one: tl.constexpr, block: tl.constexpr):
    column, inside = _own_columns(columns, block)
    at = tl.arange(0, 8).to(tl.int64)[:, None] * columns + column[None, :]
    here = inside[None, :]
    x = tl.load(x_at + at, mask=here, other=0)
    g = tl.load(g_at + at, mask=here, other=0.0).to(tl.float32)
    tl.store(y_at + at, x - _encoded(g, one, x.dtype), mask=here)
    _take_peak(peaks_at, g)


@triton.jit
def _own_columns(columns, block: tl.constexpr):
    column = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    return column, column < columns


@triton.jit
def _encoded(g, one: tl.constexpr, word: tl.constexpr):
    """round(g · one), halves to the even neighbour, as ``torch.round`` does."""
    scaled = g * one
    below = tl.floor(scaled)
    part = scaled - below  # without error
    whole = below.to(word)
    up = (part > 0.5) | ((part == 0.5) & ((whole & 1) == 1))
    return whole + up.to(word)


@triton.jit
def _decoded(x, one: tl.constexpr, dtype: tl.constexpr):
    value = x.to(tl.float32) * (1.0 / one)
    if dtype == tl.bfloat16:
        # To nearest, halves to even, by hand: Triton's interpreter rounds halves up.
        word = value.to(tl.int32, bitcast=True)
        word = (word + 0x7FFF + ((word >> 16) & 1)) >> 16
        return word.to(tl.int16).to(tl.bfloat16, bitcast=True)
    return value.to(dtype)


@triton.jit
def _take_peak(peak_at, values):
    sizes = values.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    tl.atomic_max(peak_at, tl.max(tl.max(sizes, axis=1), axis=0))


@triton.jit
def _store_field(
    rest, packed_at, columns, column, inside, shift: tl.constexpr, width: tl.constexpr
):
    field = (rest >> shift) & ((1 << width) - 1)
    placed = tl.reshape(field, [8 // width, width, field.shape[1]])
    places = tl.arange(0, 8 // width) * width
    packed = tl.sum(placed << places[:, None, None], axis=0)  # of disjoint bits
    at = (shift + tl.arange(0, width)).to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(packed_at + at, packed.to(tl.uint8), mask=inside[None, :])


@triton.jit
def _load_field(
    packed_at, columns, column, inside,
    shift: tl.constexpr, width: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    at = (shift + tl.arange(0, width)).to(tl.int64)[:, None] * columns + column[None, :]
    packed = tl.load(packed_at + at, mask=inside[None, :], other=0).to(tl.int32)
    places = tl.arange(0, 8 // width) * width
    field = (packed[None, :, :] >> places[:, None, None]) & ((1 << width) - 1)
    return tl.reshape(field, [8, block]) << shift
