"""Multi-scale deformable attention (Zhu et al., https://arxiv.org/abs/2010.04159, equation 3).

On a GPU by ``kernels.deformable_attention``, elsewhere by ``grid_sample``, one level and a bounded
number of queries at a time. Either way only the inputs are kept for backward.

Tensors everywhere, as in mmcv:
    value: (batch, keys, heads, channels), the levels one after another.
    spatial_shapes: (levels, 2), height and width.
    sampling_locations: (batch, queries, heads, levels, points, 2), x and y from 0 to 1.
    attention_weights: (batch, queries, heads, levels, points).
    output: (batch, queries, heads * channels), of the dtype of ``value``.
"""

import functools
import logging
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.nn.functional import grid_sample

from dr2net.kernels.trial import kernels_that_serve

from .recompute import gradients

__all__ = [
    "attend",
    "attend_by_grid_sample",
    "ms_deform_attn_backward",
    "ms_deform_attn_forward",
]

# Samples at once: of this many queries, or as many samples as there are keys if that is more.
QUERIES = 1024


def attend(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """In the place of mmcv's ``multi_scale_deformable_attn_pytorch``; differentiable once.

    mmcv calls that on a CPU, and on a GPU for bfloat16. Unlike mmcv's operator, locations and
    weights stay in their own dtype: bfloat16 tells only 256 places along a side.
    """
    return _Attention.apply(value, spatial_shapes, sampling_locations, attention_weights)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return _forward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        value, spatial_shapes, *others = ctx.saved_tensors
        targets = [torch.empty_like(tensor) for tensor in (value, *others)]
        _backward(value, spatial_shapes, *others, grad_output, *targets)
        return targets[0], None, *targets[1:]


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """mmcv's operator; ``spatial_shapes`` says the starts too, the batch is computed at once."""
    return _forward(value, spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_locations: Tensor,
    grad_attention_weights: Tensor,
    im2col_step: int,
) -> None:
    """mmcv's operator: writes the gradients of its tensors into the ``grad_`` tensors."""
    _backward(
        value, spatial_shapes, sampling_locations, attention_weights, grad_output,
        grad_value, grad_sampling_locations, grad_attention_weights,
    )  # fmt: skip


def _forward(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    _check_levels(spatial_shapes, locations, weights)
    kernels = _kernels_for(value, locations, weights)
    by = kernels.forward if kernels else attend_by_grid_sample
    return by(value, spatial_shapes, locations, weights)


def _backward(value: Tensor, spatial_shapes: Tensor, *others: Tensor) -> None:
    kernels = _kernels_for(value, *others[:2])
    by = kernels.backward if kernels else _backward_by_grid_sample
    by(value, spatial_shapes, *others)


def _check_levels(spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> None:
    """Raises ValueError unless all are of the same levels and points."""
    levels, samples = len(spatial_shapes), locations.shape[:5]
    if samples != weights.shape or samples[3] != levels:
        raise ValueError(
            f"Deformable attention over {levels} levels (spatial_shapes) was given "
            f"sampling_locations of {tuple(locations.shape)} and attention_weights of "
            f"{tuple(weights.shape)}, (batch, queries, heads, levels, points) both: num_levels of "
            "the attention has to be the number of feature levels."
        )


# In PyTorch's operations


def attend_by_grid_sample(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The reference, in float32 at least; differentiable, keeping all samples for it.

    Raises:
        ValueError: the levels have not as many pixels as ``value`` has keys.
    """
    heads, channels = value.shape[2:]
    output = value.new_zeros(
        *sampling_locations.shape[:2], heads, channels, dtype=_wide(value.dtype)
    )
    for level, keys, shape in _levels(value, spatial_shapes):
        pictures = _as_pictures(value[:, keys], shape)
        for part in _parts(value, attention_weights):
            here = (slice(None), part, slice(None), level)
            output[:, part] += _sample(pictures, sampling_locations[here], attention_weights[here])
    return output.flatten(2).to(value.dtype)


def _backward_by_grid_sample(
    value: Tensor,
    spatial_shapes: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_locations: Tensor,
    grad_weights: Tensor,
) -> None:
    grad_output = grad_output.unflatten(2, value.shape[2:])
    for level, keys, shape in _levels(value, spatial_shapes):
        pictures = _as_pictures(value[:, keys], shape)
        grad_pictures = torch.zeros_like(pictures)
        for part in _parts(value, weights):
            here = (slice(None), part, slice(None), level)
            inputs = (pictures, locations[here], weights[here])
            found = gradients(_sample, inputs, grad_output[:, part].to(pictures.dtype))
            grad_pictures += found[0]
            grad_locations[here] = found[1]
            grad_weights[here] = found[2]
        # From (batch * heads, channels, height, width), as _as_pictures gives.
        by_head = grad_pictures.flatten(2).unflatten(0, (-1, value.shape[2]))
        grad_value[:, keys] = by_head.permute(0, 3, 1, 2)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _levels(value: Tensor, spatial_shapes: Tensor) -> Iterator[tuple[int, slice, tuple[int, int]]]:
    """Each level's number, keys, height and width."""
    shapes = spatial_shapes.tolist()  # one transfer for all
    pixels = sum(height * width for height, width in shapes)
    if pixels != value.shape[1]:
        raise ValueError(
            f"spatial_shapes is {shapes}, {pixels} pixels, but value has {value.shape[1]} keys: "
            "give the height and width of every level whose pixels are in value."
        )
    start = 0
    for level, (height, width) in enumerate(shapes):
        yield level, slice(start, start + height * width), (height, width)
        start += height * width


def _parts(value: Tensor, weights: Tensor) -> Iterator[slice]:
    queries, points = weights.shape[1], weights.shape[-1]
    step = max(QUERIES, value.shape[1] // max(points, 1))
    for start in range(0, queries, step):
        yield slice(start, start + step)


def _as_pictures(level: Tensor, shape: tuple[int, int]) -> Tensor:
    """(batch, pixels, heads, channels) to (batch * heads, channels, height, width)."""
    pictures = level.permute(0, 2, 3, 1).to(_wide(level.dtype))
    return pictures.flatten(0, 1).unflatten(2, shape).contiguous()


def _sample(pictures: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The weighted samples of one level.

    Args:
        pictures: (batch * heads, channels, height, width).
        locations: (batch, queries, heads, points, 2).
        weights: (batch, queries, heads, points).

    Returns:
        (batch, queries, heads, channels), of the dtype of ``pictures``.
    """
    batch, _, heads, _ = weights.shape
    locations, weights = (
        tensor.to(pictures.dtype).transpose(1, 2).flatten(0, 1) for tensor in (locations, weights)
    )
    samples = grid_sample(pictures, 2 * locations - 1, align_corners=False)
    weighted = (samples * weights[:, None]).sum(-1)
    return weighted.unflatten(0, (batch, heads)).permute(0, 3, 1, 2)


# In Triton's


def _kernels_for(value: Tensor, locations: Tensor, weights: Tensor) -> ModuleType | None:
    """The kernels where they can take such tensors, of a GPU and of at most 32 bits, else None."""
    dtypes = (value.dtype, locations.dtype, weights.dtype)
    if value.device.type != "cuda" or torch.float64 in dtypes:
        return None
    return _kernels_of(
        value.device,
        dtypes,
        value.shape[3],
        weights.shape[4],
        torch.are_deterministic_algorithms_enabled(),
    )


@functools.cache
def _kernels_of(
    device: torch.device,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    channels: int,
    points: int,
    deterministic: bool,
) -> ModuleType | None:
    """The kernels, once they have given the reference's results for what they are compiled for."""
    return kernels_that_serve(
        device,
        lambda: import_module(".kernels.deformable_attention", __package__),
        lambda kernels: _gives_reference_results(kernels, device, dtypes, channels, points),
        _say,
    )


@functools.cache
def _say(reason: str) -> None:
    print_log(
        f"the Triton kernels of deformable attention do not serve ({reason}): PyTorch's operations "
        "take their place, in more time and memory",
        logger="current",
        level=logging.WARNING,
    )


@torch.inference_mode(False)
def _gives_reference_results(
    kernels: ModuleType,
    device: torch.device,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    channels: int,
    points: int,
) -> bool:
    """Whether the kernels agree on ``device`` with the reference in float64 on a CPU."""
    generator = torch.Generator().manual_seed(0)  # the training's numbers stay its own
    shapes = torch.tensor([[5, 7], [3, 4]], device="cpu")
    sizes = ((2, 5 * 7 + 3 * 4, 2, channels), (2, 9, 2, 2, points, 2), (2, 9, 2, 2, points))
    inputs = [
        torch.rand(size, generator=generator, dtype=torch.float64, device="cpu").to(dtype)
        for size, dtype in zip((*sizes, (2, 9, 2 * channels)), (*dtypes, dtypes[0]), strict=True)
    ]
    *exact, exact_grad = (tensor.double() for tensor in inputs)
    expected = [torch.empty_like(tensor) for tensor in exact]
    _backward_by_grid_sample(exact[0], shapes, *exact[1:], exact_grad, *expected)
    expected.append(attend_by_grid_sample(exact[0], shapes, *exact[1:]))

    shapes, *inputs, grad_output = (tensor.to(device) for tensor in (shapes, *inputs))
    found = [torch.empty_like(tensor) for tensor in inputs]
    kernels.backward(inputs[0], shapes, *inputs[1:], grad_output, *found)
    found.append(kernels.forward(inputs[0], shapes, *inputs[1:]))
    return all(
        # One rounding to the dtype, and those of float32 before.
        (one.cpu() - other).abs().max() <= (torch.finfo(one.dtype).eps + 1e-5) * other.abs().max()
        for one, other in zip(found, expected, strict=True)
    )
