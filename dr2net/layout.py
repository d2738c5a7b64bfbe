"""How tensors lie in memory, by which PyTorch chooses kernels, and so bits."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "as_laid_out",
    "in_a_memory_format",
    "in_memory_order",
    "laid_out_like",
    "view_of",
    "with_strides",
]


def view_of(tensor: Tensor) -> Tensor:
    """The same tensor as a node of its own in autograd's graph, if it needs a gradient.

    By [...] and not view_as, which may give other strides.
    """
    if not tensor.requires_grad:
        return tensor
    return tensor[...] if tensor.layout == torch.strided else tensor.clone()  # sparse: has no views


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def in_a_memory_format(x: Tensor) -> Tensor:
    """``x`` contiguous, unless it is channels last: streams keep their first one's layout.

    A permuted one, such as a patch embedding's, would have every operation of the chain run across
    the lines of memory.
    """
    last = _CHANNELS_LAST.get(x.ndim)
    return x if last and x.is_contiguous(memory_format=last) else x.contiguous()


def with_strides(tensor: Tensor, strides: tuple[int, ...] | None) -> Tensor:
    """``tensor`` with the strides it had, by which kernels are chosen, if they leave no gaps."""
    if strides is None or tensor.stride() == strides:
        return tensor
    wanted = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
    # 0: all elements lie apart, without gaps.
    dense = torch._debug_has_internal_overlap(wanted) == 0
    return wanted.copy_(tensor) if dense else tensor


def laid_out_like(stream: Tensor, g: Tensor) -> Tensor:
    """The values of ``g``, of the shape of ``stream``, in its memory layout."""
    if g.stride() == stream.stride():
        return g.detach() if g.requires_grad else g
    return torch.empty_like(stream, dtype=g.dtype).copy_(g.detach())


def as_laid_out(result: Tensor, stream: Tensor) -> Tensor:
    """What an operation made of ``stream``, with its strides.

    PyTorch gives dimensions of size 1 strides of its own, by which kernels are chosen.
    """
    if result.stride() == stream.stride():
        return result
    return result.as_strided(stream.shape, stream.stride())


def in_memory_order(stream: Tensor) -> Tensor:
    """The elements of a stream, which lies in memory without gaps, as a flat view.

    ``as_strided`` with the stream's strides leads back from a flat tensor: not view(), which gives
    dimensions of size 1 strides of its own, by which kernels are chosen.
    """
    return stream.as_strided((stream.numel(),), (1,))
