"""Activation checkpointing that takes one cloud at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["run_cloud_by_cloud"]


def run_cloud_by_cloud(module: nn.Module, *inputs: Tensor) -> Tensor:
    """Returns ``module(*inputs)`` without keeping its activations: backward computes them again.

    Forward and backward take the memory of one cloud at once instead of that of the batch.

    Args:
        module: treats clouds independently of one another, without random numbers.
        inputs: (clouds, ...) each.
    """
    clouds = zip(*(values.split(1) for values in inputs), strict=True)
    return torch.cat([checkpoint(module, *cloud, use_reentrant=False) for cloud in clouds])
