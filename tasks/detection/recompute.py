"""Gradients of what is computed anew, so that only its inputs are kept for backward."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["gradients"]


def gradients(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad_output: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of ``function``'s inputs, given that of its output."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        output = function(*leaves)
    return torch.autograd.grad(output, leaves, grad_output)
