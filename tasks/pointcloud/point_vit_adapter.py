"""``dr2net.convert`` on a ``PointViT``: its blocks become a reversible chain.

The position embedding is a side input that gets its gradients; sampling and search stay outside.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

import dr2net

from .point_vit import PointViT

__all__ = ["attention", "mlp", "split"]


@dr2net.residual
def _attend(block: Any, x: Tensor) -> Tensor:
    return block.drop_path1(block.ls1(block.attn(block.norm1(x))))


def attention(block: Any, x: Tensor, alpha: float, position: Tensor) -> Tensor:
    """G(x; α) of attention: the position belongs to what the shortcut carries on."""
    return _attend(block, x + position, alpha)


@partial(dr2net.residual, tokenwise=("norm2", "mlp", "ls2"), drop_path="drop_path2")
def mlp(block: Any, x: Tensor) -> Tensor:
    return block.ls2(block.mlp(block.norm2(x)))


@dr2net.register_adapter(PointViT)
def split(model: PointViT) -> None:
    model.blocks = dr2net.ReversibleChain(model.blocks, (attention, mlp))
