"""Triton kernels of ``neighbours``: sampling and search in one launch each, with the same bits.

They are launched without fusing multiplications with additions, which would round a distance once
instead of twice. Keys are those of ``neighbours``: the bits of a distance above those of an index.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["farthest_points", "nearest_points"]

CHUNK = 1024  # points that sampling goes through, or passes over, together
BLOCK = 256  # points that a search goes through together
SAMPLING_WARPS = 8  # that wait for one another several times a sample
SEARCH_WARPS = 1  # that never wait for another

_INDEX: tl.constexpr = tl.constexpr(0xFFFFFFFF)  # the bits of a key that are an index
_LARGEST: tl.constexpr = tl.constexpr(0x7FFFFFFFFFFFFFFF)
_INFINITY: tl.constexpr = tl.constexpr(0x7F80000000000000)  # the key of an infinite distance


def farthest_points(coord: Tensor, count: int) -> Tensor:
    """As ``neighbours.farthest_points``, of valid arguments on a GPU in float32.

    One program a cloud takes one sample after the other. Points that are near each other stand
    together in chunks, whose bounding boxes tell that no distance in most of them changes.
    """
    clouds, points, _ = coord.shape
    coord = coord.contiguous()
    chunks = triton.cdiv(points, CHUNK)
    places = torch.empty(clouds, points, dtype=torch.int32, device=coord.device)
    planes = torch.empty(4, clouds, chunks * CHUNK, dtype=torch.float32, device=coord.device)
    found = torch.empty(clouds, count, dtype=torch.int64, device=coord.device)
    with torch.cuda.device_of(coord):
        _place[(triton.cdiv(points, CHUNK), clouds)](
            coord, coord.amin(1), coord.amax(1), places, points, CHUNK
        )
        _sample[(clouds,)](
            coord, places.argsort(1), *planes, found, points, chunks, count,
            CHUNK, triton.next_power_of_2(chunks),
            num_warps=SAMPLING_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return found


def nearest_points(query: Tensor, coord: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As ``neighbours.nearest_points``, of valid arguments on a GPU in float32; a program a query.

    Each keeps the ``count`` lowest keys. Few points are below the highest of those: they take its
    place one after the other.
    """
    clouds, queries, _ = query.shape
    points = coord.shape[1]
    planes = coord.permute(2, 0, 1).contiguous()
    index = torch.empty(clouds, queries, count, dtype=torch.int64, device=coord.device)
    squared = torch.empty(clouds, queries, count, dtype=torch.float32, device=coord.device)
    with torch.cuda.device_of(coord):
        _search[(queries, clouds)](
            query.contiguous(), *planes, index, squared, queries, points, count,
            BLOCK, max(2, triton.next_power_of_2(count)),
            num_warps=SEARCH_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return index, squared


@triton.jit
def _place(coord_at, low_at, high_at, places_at, points, block: tl.constexpr):
    """Places of points along a Z-order curve through a grid of 1024 cells along each axis.

    They decide what stands together and nothing of the result.
    """
    cloud = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * block + tl.arange(0, block)
    inside = index < points
    place = tl.zeros([block], tl.int32)
    for axis in tl.static_range(3):
        low = tl.load(low_at + cloud * 3 + axis)
        extent = tl.load(high_at + cloud * 3 + axis) - low
        value = tl.load(coord_at + (cloud * points + index) * 3 + axis, mask=inside, other=0.0)
        share = (value - low) / tl.where(extent > 0, extent, 1.0)
        # Within the grid also where an extent is beyond float32.
        cell = tl.where((share >= 0) & (share <= 1), share * 1023.0, 0.0).to(tl.int32)
        # Two free bits between each two bits.
        cell = (cell | (cell << 16)) & 0x030000FF
        cell = (cell | (cell << 8)) & 0x0300F00F
        cell = (cell | (cell << 4)) & 0x030C30C3
        cell = (cell | (cell << 2)) & 0x09249249
        place |= cell << axis
    tl.store(places_at + cloud * points + index, place, mask=inside)


@triton.jit
def _sample(
    coord_at, order_at, x_at, y_at, z_at, distance_at, found_at, points, chunks, count,
    block: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    cloud = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, block)
    number = tl.arange(0, width)  # of a chunk
    coord_at += cloud * points * 3
    order_at += cloud * points
    row = cloud * chunks * block
    low_x = tl.full([width], float("inf"), tl.float32)
    low_y, low_z, high_x, high_y, high_z = low_x, low_x, -low_x, -low_x, -low_x
    for chunk in range(chunks):
        at = chunk * block + lane
        inside = at < points
        index = tl.load(order_at + at, mask=inside, other=0)
        x = tl.load(coord_at + index * 3, mask=inside, other=0.0)
        y = tl.load(coord_at + index * 3 + 1, mask=inside, other=0.0)
        z = tl.load(coord_at + index * 3 + 2, mask=inside, other=0.0)
        tl.store(x_at + row + at, x)
        tl.store(y_at + row + at, y)
        tl.store(z_at + row + at, z)
        # A selected point, and what pads the last chunk, has a distance below all others.
        tl.store(distance_at + row + at, tl.where(inside, float("inf"), -1.0))
        here = number == chunk
        low_x = tl.where(here, tl.min(tl.where(inside, x, float("inf"))), low_x)
        low_y = tl.where(here, tl.min(tl.where(inside, y, float("inf"))), low_y)
        low_z = tl.where(here, tl.min(tl.where(inside, z, float("inf"))), low_z)
        high_x = tl.where(here, tl.max(tl.where(inside, x, float("-inf"))), high_x)
        high_y = tl.where(here, tl.max(tl.where(inside, y, float("-inf"))), high_y)
        high_z = tl.where(here, tl.max(tl.where(inside, z, float("-inf"))), high_z)
    tl.debug_barrier()  # other threads read what these have stored
    # Of each chunk the largest distance, and among equal ones the lowest index.
    keys = tl.where(number < chunks, _INFINITY, -1)
    newest = tl.program_id(0).to(tl.int64) * 0
    for i in range(count):
        tl.store(found_at + cloud * count + i, newest)
        a = tl.load(coord_at + newest * 3)
        b = tl.load(coord_at + newest * 3 + 1)
        c = tl.load(coord_at + newest * 3 + 2)
        # Rounding keeps order: no distance that is computed in a chunk is below that of its box.
        to_x = tl.maximum(tl.maximum(low_x - a, a - high_x), 0.0)
        to_y = tl.maximum(tl.maximum(low_y - b, b - high_y), 0.0)
        to_z = tl.maximum(tl.maximum(low_z - c, c - high_z), 0.0)
        box = ((to_x * to_x + to_y * to_y) + to_z * to_z).to(tl.int32, bitcast=True).to(tl.int64)
        reached = tl.where(box <= (keys >> 32), number, width)
        chunk = tl.min(reached)
        while chunk < width:
            at = chunk * block + lane
            x = tl.load(x_at + row + at) - a
            y = tl.load(y_at + row + at) - b
            z = tl.load(z_at + row + at) - c
            index = tl.load(order_at + at, mask=at < points, other=0)
            distance = tl.minimum(tl.load(distance_at + row + at), (x * x + y * y) + z * z)
            distance = tl.where(index == newest, -1.0, distance)
            tl.store(distance_at + row + at, distance)
            tl.debug_barrier()
            bits = distance.to(tl.int32, bitcast=True).to(tl.int64)
            keys = tl.where(number == chunk, tl.max((bits << 32) | (_INDEX - index)), keys)
            chunk = tl.min(tl.where(reached > chunk, reached, width))
        newest = _INDEX - (tl.max(keys) & _INDEX)


@triton.jit
def _search(
    query_at, x_at, y_at, z_at, index_at, squared_at, queries, points, count,
    block: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    cloud = tl.program_id(1).to(tl.int64)
    query = cloud * queries + tl.program_id(0)
    a = tl.load(query_at + query * 3)
    b = tl.load(query_at + query * 3 + 1)
    c = tl.load(query_at + query * 3 + 2)
    row = cloud * points
    lane = tl.arange(0, block)
    number = tl.arange(0, width)
    # No two are equal, so that one of them alone gives way; the last are none that count.
    best = tl.where(number < count, _LARGEST - number.to(tl.int64), -1)
    worst = tl.max(best)
    for start in range(0, points, block):
        index = start + lane
        inside = index < points
        x = tl.load(x_at + row + index, mask=inside, other=0.0) - a
        y = tl.load(y_at + row + index, mask=inside, other=0.0) - b
        z = tl.load(z_at + row + index, mask=inside, other=0.0) - c
        bits = ((x * x + y * y) + z * z).to(tl.int32, bitcast=True).to(tl.int64)
        keys = tl.where(inside, (bits << 32) | index, _LARGEST)
        nearest = tl.min(keys)
        while nearest < worst:
            best = tl.where(best == worst, nearest, best)
            worst = tl.max(best)
            keys = tl.where(keys == nearest, _LARGEST, keys)
            nearest = tl.min(keys)
    best = tl.sort(tl.where(number < count, best, _LARGEST))
    at = query * count + number
    distance = (best >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    tl.store(index_at + at, best & _INDEX, mask=number < count)
    tl.store(squared_at + at, distance, mask=number < count)
