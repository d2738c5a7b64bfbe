"""What a chain's modules are called with beside x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

__all__ = ["Arguments"]

_PLAIN = {Tensor, nn.Parameter, type(None), bool, int, float, str, torch.dtype, torch.device}


class Arguments:
    """What the modules of a pass are called with beside x: α and the chain's further arguments.

    Attributes:
        side: the tensors among these, which go to autograd to be saved.
        strides: theirs, by which kernels are chosen; None of sparse ones.
        are_own: of one module alone, or all modules' of a pass.
        objects: classes of those that may hold anything, tensors too.
    """

    def __init__(self, alpha: float, args: tuple, kwargs: dict[str, Any], are_own: bool = False):
        self.alpha, self.are_own = alpha, are_own
        leaves, spec = tree_flatten((args, kwargs))
        self.side = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.strides = [t.stride() if t.layout == torch.strided else None for t in self.side]
        self.objects = set(map(type, leaves)) - _PLAIN
        # Containers among them, and what holds tensors, are made anew for each module.
        given = map(id, (*args, *kwargs.values()))
        is_plain = not self.side and list(map(id, leaves)) == list(given)
        self._plain = (args, kwargs) if is_plain else None
        self._leaves = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
        self._spec = spec

    def with_side(self, side: Sequence[Tensor]) -> tuple[tuple, dict[str, Any]]:
        """(args, kwargs) with ``side`` in the places of its tensors."""
        if self._plain is not None:
            return self._plain
        tensors = iter(side)
        leaves = [next(tensors) if leaf is None else leaf[0] for leaf in self._leaves]
        return tree_unflatten(leaves, self._spec)
