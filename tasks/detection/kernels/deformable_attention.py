"""Triton kernels of multi-scale deformable attention (https://arxiv.org/abs/2010.04159, eq. 3).

One launch each way, which keeps nothing: a program takes some queries of one head and goes over
their samples, each the four pixels around a location. In memory a pixel's channels of one head lie
side by side. All is computed in float32 whatever the dtypes. Shapes of levels are read on the
device, and nothing outside of ``value`` is read whatever they and the locations say.

A location that is NaN or infinite, also once it is counted in pixels, lies in no pixel but between
them by NaN: the query's output is NaN, and so are the gradients of that location and its weight, as
by ``grid_sample``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["backward", "forward"]

# Of a program's output, where a head has fewer channels: a load of 16 bytes for each thread of a
# warp. With one warp, no sum over channels waits for another.
ELEMENTS = 128
MOST_WARPS = 8
SIZES = ("keys", "heads", "queries", "levels")  # of which any are computed by the same program


def forward(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The weighted sum of every query's samples.

    Args:
        value: (batch, keys, heads, channels), the levels one after another.
        spatial_shapes: (levels, 2), height and width, of integers on the device.
        sampling_locations: (batch, queries, heads, levels, points, 2), x and y from 0 to 1.
        attention_weights: (batch, queries, heads, levels, points).

    The floating-point tensors are of float32, bfloat16 or float16, not necessarily the same.

    Returns:
        (batch, queries, heads * channels), of the dtype of ``value``.
    """
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    output = value.new_empty(batch, queries, heads * channels)
    if output.numel():
        grid, options = _launch(value, sampling_locations)
        with torch.cuda.device_of(value):
            _forward[grid](
                value.contiguous(), spatial_shapes.contiguous(), sampling_locations.contiguous(),
                attention_weights.contiguous(), output, **options,
            )  # fmt: skip
    return output


@torch.no_grad()
def backward(
    value: Tensor,
    spatial_shapes: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_locations: Tensor,
    grad_attention_weights: Tensor,
) -> None:
    """Writes the gradients of ``forward``'s tensors into the ``grad_`` tensors.

    Samples add to the gradients of the pixels that they share, in an order that differs by run.
    Where PyTorch is to be deterministic (``torch.use_deterministic_algorithms``) they are summed as
    integers, so that the order makes no difference; ``grad_value`` is then NaN everywhere if the
    largest product of a ``grad_output`` and an attention weight is not finite in float32.
    """
    if not (value.numel() and attention_weights.numel()):
        for target in (grad_value, grad_sampling_locations, grad_attention_weights):
            target.zero_()
        return
    fixed = torch.are_deterministic_algorithms_enabled()
    scale = _fixed_point_scale(grad_output, attention_weights) if fixed else None
    sums = _room(grad_value, torch.int64 if fixed else torch.float32).zero_()
    grad_locations = _room(grad_sampling_locations, grad_sampling_locations.dtype)
    grad_weights = _room(grad_attention_weights, grad_attention_weights.dtype)
    grid, options = _launch(value, sampling_locations)
    with torch.cuda.device_of(value):
        _backward[grid](
            value.contiguous(), spatial_shapes.contiguous(), sampling_locations.contiguous(),
            attention_weights.contiguous(), grad_output.contiguous(),
            sums, grad_locations, grad_weights, scale, **options,
        )  # fmt: skip
    if fixed:
        torch.div(sums, scale, out=grad_value)
    elif sums is not grad_value:
        grad_value.copy_(sums)
    if grad_locations is not grad_sampling_locations:
        grad_sampling_locations.copy_(grad_locations)
    if grad_weights is not grad_attention_weights:
        grad_attention_weights.copy_(grad_weights)


def _room(target: Tensor, dtype: torch.dtype) -> Tensor:
    """``target``, or where a kernel cannot write into it, a tensor like it."""
    if target.dtype == dtype and target.is_contiguous():
        return target
    return torch.empty(target.shape, dtype=dtype, device=target.device)


def _launch(value: Tensor, sampling_locations: Tensor) -> tuple[tuple[int], dict[str, int]]:
    batch, keys, heads, channels = value.shape
    _, queries, _, levels, points, _ = sampling_locations.shape
    lanes = triton.next_power_of_2(channels)
    block = max(1, ELEMENTS // lanes)
    options = dict(zip(SIZES, (keys, heads, queries, levels), strict=True))
    options |= {"points": points, "channels": channels, "lanes": lanes, "block": block}
    options["num_warps"] = min(max(1, lanes // ELEMENTS), MOST_WARPS)
    return (batch * triton.cdiv(queries, block) * heads,), options


def _fixed_point_scale(grad_output: Tensor, attention_weights: Tensor) -> Tensor:
    """What gradients of ``value`` are multiplied by to be summed as integers.

    A power of two by which no sum of int64 overflows: a pixel gets at most one term of each point
    of each query, none larger than ``peak``. Terms are rounded to 2^-62 of that bound. NaN where a
    term may not be finite in float32, so that every gradient becomes NaN.

    Returns:
        () float64, on the device.
    """
    _, queries, _, _, points = attention_weights.shape
    peak, weight = (
        torch.linalg.vector_norm(tensor, torch.inf).double()
        for tensor in (grad_output, attention_weights)
    )
    peak *= weight
    _, exponent = torch.frexp(peak * (queries * points))  # the bound is below 2^exponent
    # 2^(62 − exponent) by its bits: exp2 may be off by one in the last of them.
    scale = ((62 + 1023 - exponent.long()) << 52).view(torch.float64)
    return torch.where(peak <= torch.finfo(torch.float32).max, scale, torch.nan)


@triton.jit(do_not_specialize=SIZES)
def _forward(
    value_at, shapes_at, locations_at, weights_at, output_at,
    keys, heads, queries, levels,
    points: tl.constexpr, channels: tl.constexpr, lanes: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    batch, head, row, asked = _own_rows(heads, queries, block)
    channel = tl.arange(0, lanes)
    there = (channel < channels)[None, :]
    pixel = heads * channels  # from one to the next
    output = tl.zeros([block, lanes], tl.float32)
    start = batch * keys
    for level in range(levels):
        height, width, rows = _level_shape(shapes_at, level, (batch + 1) * keys - start)
        line = width * pixel
        for point in tl.static_range(points):
            sample = (row * levels + level) * points + point
            y, x, south, east, nw, ne, sw, se = _place(
                locations_at, sample, asked, height, width, rows
            )
            weight = tl.load(weights_at + sample, mask=asked, other=0.0).to(tl.float32)
            at = (start + y * width + x) * pixel + head * channels
            at = value_at + at[:, None] + channel[None, :]
            sampled = _pixel(at, nw, there) * ((1 - south) * (1 - east))[:, None]
            sampled += _pixel(at + pixel, ne, there) * ((1 - south) * east)[:, None]
            sampled += _pixel(at + line, sw, there) * (south * (1 - east))[:, None]
            sampled += _pixel(at + line + pixel, se, there) * (south * east)[:, None]
            output += sampled * weight[:, None]
        start += height * width
    at = output_at + (row * channels)[:, None] + channel[None, :]
    tl.store(at, output.to(output_at.dtype.element_ty), mask=asked[:, None] & there)


@triton.jit(do_not_specialize=SIZES)
def _backward(
    value_at, shapes_at, locations_at, weights_at, grad_output_at,
    grad_value_at, grad_locations_at, grad_weights_at, scale_at,
    keys, heads, queries, levels,
    points: tl.constexpr, channels: tl.constexpr, lanes: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    batch, head, row, asked = _own_rows(heads, queries, block)
    channel = tl.arange(0, lanes)
    there = (channel < channels)[None, :]
    pixel = heads * channels
    grad = grad_output_at + (row * channels)[:, None] + channel[None, :]
    grad = tl.load(grad, mask=asked[:, None] & there, other=0.0).to(tl.float32)
    start = batch * keys
    for level in range(levels):
        height, width, rows = _level_shape(shapes_at, level, (batch + 1) * keys - start)
        line = width * pixel
        for point in tl.static_range(points):
            sample = (row * levels + level) * points + point
            y, x, south, east, nw, ne, sw, se = _place(
                locations_at, sample, asked, height, width, rows
            )
            weight = tl.load(weights_at + sample, mask=asked, other=0.0).to(tl.float32)
            at = (start + y * width + x) * pixel + head * channels
            at = at[:, None] + channel[None, :]
            # Of the sample's four pixels, each in its product with the output's gradient.
            dot_nw = tl.sum(grad * _pixel(value_at + at, nw, there), 1)
            dot_ne = tl.sum(grad * _pixel(value_at + at + pixel, ne, there), 1)
            dot_sw = tl.sum(grad * _pixel(value_at + at + line, sw, there), 1)
            dot_se = tl.sum(grad * _pixel(value_at + at + line + pixel, se, there), 1)
            north, west = 1 - south, 1 - east
            grad_weight = north * (west * dot_nw + east * dot_ne)
            grad_weight += south * (west * dot_sw + east * dot_se)
            grad_x = north * (dot_ne - dot_nw) + south * (dot_se - dot_sw)
            grad_y = west * (dot_sw - dot_nw) + east * (dot_se - dot_ne)
            _write(grad_weights_at + sample, grad_weight, asked)
            _write(grad_locations_at + 2 * sample, grad_x * weight * width, asked)
            _write(grad_locations_at + 2 * sample + 1, grad_y * weight * height, asked)
            term = grad * weight[:, None]
            to = grad_value_at + at
            _add(to, term * (north * west)[:, None], nw, there, scale_at)
            _add(to + pixel, term * (north * east)[:, None], ne, there, scale_at)
            _add(to + line, term * (south * west)[:, None], sw, there, scale_at)
            _add(to + line + pixel, term * (south * east)[:, None], se, there, scale_at)
        start += height * width


@triton.jit
def _own_rows(heads, queries, block: tl.constexpr):
    """A program's image, head, rows (of outputs: by image, query, head) and which there are."""
    program = tl.program_id(0)
    blocks = tl.cdiv(queries, block)
    head, program = program % heads, program // heads
    batch = (program // blocks).to(tl.int64)
    query = (program % blocks) * block + tl.arange(0, block)
    return batch, head, (batch * queries + query) * heads + head, query < queries


@triton.jit
def _level_shape(shapes_at, level, left):
    """A level's height and width, and how many rows of it are among the ``left`` keys."""
    height = tl.load(shapes_at + 2 * level).to(tl.int64)
    width = tl.load(shapes_at + 2 * level + 1).to(tl.int64)
    return height, width, tl.minimum(height, left // tl.maximum(width, 1))


@triton.jit
def _place(locations_at, sample, asked, height, width, rows):
    """The samples' north-western pixels, how far they are beyond these, which pixels there are."""
    x, east = _coordinate(locations_at + 2 * sample, asked, width)
    y, south = _coordinate(locations_at + 2 * sample + 1, asked, height)
    in_north, in_south = (y >= 0) & (y < rows), (y + 1 >= 0) & (y + 1 < rows)
    in_west, in_east = (x >= 0) & (x < width), (x + 1 >= 0) & (x + 1 < width)
    nw, ne, sw, se = in_north & in_west, in_north & in_east, in_south & in_west, in_south & in_east
    return y, x, south, east, nw, ne, sw, se


@triton.jit
def _coordinate(at, asked, size):
    size = size.to(tl.float32)
    # Where nothing is asked for, outside.
    coordinate = tl.load(at, mask=asked, other=-1.0).to(tl.float32) * size - 0.5
    before = tl.floor(coordinate)
    # Only what is near becomes an integer: NaN, infinities and large numbers have none.
    near = (before >= -1) & (before < size)
    return tl.where(near, before, -2).to(tl.int64), coordinate - before


@triton.jit
def _pixel(at, where, there):
    return tl.load(at, mask=where[:, None] & there, other=0.0).to(tl.float32)


@triton.jit
def _write(at, values, asked):
    tl.store(at, values.to(at.dtype.element_ty), mask=asked)


@triton.jit
def _add(at, terms, where, there, scale_at):
    if scale_at is not None:
        terms = tl.floor(terms.to(tl.float64) * tl.load(scale_at) + 0.5).to(tl.int64)
    tl.atomic_add(at, terms, mask=where[:, None] & there, sem="relaxed")
