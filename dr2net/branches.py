"""The modules of blocks as functions of α, and slices of tokens that some of them run over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from .layout import view_of

__all__ = [
    "Branch",
    "ShapeError",
    "Slices",
    "Tokenwise",
    "check_shape",
    "of_whole_block",
    "post_norm",
    "residual",
    "stream_of",
    "whole",
]

Branch = Callable[..., Tensor]
"""``branch(block, x, alpha, *args, **kwargs) -> Tensor``: one module G(x; α) of a block."""


class ShapeError(ValueError):
    """A module of a chain returned something else than a tensor of its input's shape."""


def check_shape(output: Any, x: Tensor) -> None:
    """Raises ShapeError unless ``output`` is a tensor of the shape of ``x``."""
    if isinstance(output, Tensor) and output.shape == x.shape:
        return
    given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise ShapeError(
        f"from a stream of shape {tuple(x.shape)} the module made {given}, but modules of a chain "
        "must keep the shape. End the chain before this one."
    )


@dataclass(frozen=True)
class Tokenwise:
    """What ``residual`` was told of a branch: the modules it calls, and what drops samples."""

    parts: tuple[str, ...]
    drop_path: str | None


def residual(
    branch: Callable[..., Tensor],
    shortcut_first: bool = True,
    tokenwise: Sequence[str] = (),
    drop_path: str | None = None,
) -> Branch:
    """Makes G(x; α) = F(x) + α·x of a function ``branch(block, x, *args, **kwargs)`` for F.

    Args:
        shortcut_first: whether the original network computes x + F(x) or F(x) + x. The sum is laid
            out in memory like its first term, and kernels further on choose by that how to sum.
        tokenwise: of a ``branch(block, x)`` that computes each token of x (…, channels) by itself:
            names, within the block, of all modules that it calls. ``slice_mlps`` can run it over
            slices of the tokens.
        drop_path: name of the module that drops whole samples (stochastic depth), if F is what it
            makes of the output of ``branch``. It draws once for all slices.
    """

    @wraps(branch)
    def with_shortcut(
        block: nn.Module,
        x: Tensor,
        alpha: float,
        *args: Any,
        _drop_mask: Tensor | None = None,  # of a slice
        **kwargs: Any,
    ) -> Tensor:
        output = branch(block, x) if tokenwise else branch(block, x, *args, **kwargs)
        if _drop_mask is not None:
            output = output * _drop_mask.to(output.dtype)
        elif drop_path is not None:
            output = block.get_submodule(drop_path)(output)
        check_shape(output, x)  # before broadcasting could hide a wrong one
        if alpha == 0:
            return output
        if alpha != 1:
            return torch.add(output, x, alpha=alpha)
        return x + output if shortcut_first else output + x

    if tokenwise:
        declared = Tokenwise(tuple(tokenwise), drop_path)
        with_shortcut.tokenwise = declared  # type: ignore[attr-defined]
    return with_shortcut


def post_norm(branch: Callable[..., Tensor] | None = None, tokenwise: Sequence[str] = ()) -> Any:
    """Makes G(x; α) = B(x) − (1 − α)·x of ``branch(block, x, *args, **kwargs)`` for B.

    B is a part of a block together with its shortcut and the norm behind it: norm(x + F(x)).

    Args:
        tokenwise: as in ``residual``.
    """
    if branch is None:
        return partial(post_norm, tokenwise=tokenwise)

    @wraps(branch)
    def of_block(block: nn.Module, x: Tensor, alpha: float, *args: Any, **kwargs: Any) -> Tensor:
        output = branch(block, x) if tokenwise else branch(block, x, *args, **kwargs)
        return of_whole_block(output, x, alpha)

    if tokenwise:
        of_block.tokenwise = Tokenwise(tuple(tokenwise), None)  # type: ignore[attr-defined]
    return of_block


def whole(
    block: nn.Module,
    x: Tensor,
    alpha: float,
    *args: Any,
    _outputs: list[Any] | None = None,  # for all that the block returns
    _copies: list[bool] | None = None,  # x is handed on as a copy, and whether that was changed
    **kwargs: Any,
) -> Tensor:
    """Any block B that keeps the shape, as one module: G(x; α) = B(x) − (1 − α) · x.

    At α = 1 that is B(x) itself. Of a tuple or list the first entry is the stream.
    """
    # A view or a copy alike, so that gradients are summed in one order. In inference mode nothing
    # tells whether x was changed in place.
    given = view_of(x) if _copies is None and not x.is_inference() else x.clone()
    version = 0 if given.is_inference() else given._version
    output = type(block).forward(block, given, *args, **kwargs)
    is_changed = not given.is_inference() and given._version != version
    if _copies is not None:
        _copies.append(is_changed)
    elif is_changed:
        raise RuntimeError(
            f"A {type(block).__name__} changed its input, the stream, by an inplace operation: it "
            "must leave it as it is and return a new tensor."
        )
    if _outputs is not None:
        _outputs.append(output)
    return of_whole_block(output, x, alpha)


def stream_of(output: Any) -> Any:
    """The stream in what a block has returned: the first entry of a tuple or list."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def of_whole_block(output: Any, x: Tensor, alpha: float) -> Tensor:
    """``whole``, of what the block has returned."""
    stream = stream_of(output)
    check_shape(stream, x)
    return stream if alpha == 1 else torch.sub(stream, x, alpha=1 - alpha)


class Slices:
    """One call over slices of at most ``tokens`` tokens of x, of all samples together.

    The fewest slices, as even as can be; each is of shape (1, tokens, channels) and lies in one
    piece of memory.

    Args:
        mask: what samples' outputs are multiplied by, of shape (batch, 1, 1), if some are dropped.
    """

    def __init__(self, x: Tensor, tokens: int, mask: Tensor | None = None):
        self.shape, self.mask = x.shape, mask
        count = x.shape[:-1].numel()
        slices = -(-count // tokens)
        self.lengths = [(count + place) // slices for place in range(slices)][::-1]

    def cut(self, tensor: Tensor) -> Sequence[Tensor]:
        """Slices of a tensor of x's shape."""
        return tensor.reshape(1, -1, self.shape[-1]).split(self.lengths, dim=1)

    def pairs(self, x: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Slices of x, each with what its output is multiplied by, of shape (1, tokens, 1)."""
        if self.mask is None:
            return [(part, None) for part in self.cut(x)]
        of_tokens = self.mask.expand(-1, sum(self.lengths) // len(self.mask), -1)
        masks = of_tokens.reshape(1, -1, 1).split(self.lengths, dim=1)
        return list(zip(self.cut(x), masks, strict=True))

    def join(self, slices: Sequence[Tensor]) -> Tensor:
        """The tensor of x's shape, but for the channels, that the slices make."""
        joined = torch.cat(list(slices), dim=1)
        return joined.reshape(*self.shape[:-1], joined.shape[-1])
