"""What optimizers hold of a layer's trained channels, when others are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["MOMENTS", "Exchange", "exchange", "require_members"]

MOMENTS = ("restart", "carry")


@dataclass(frozen=True)
class Exchange:
    """A parameter takes the place of another.

    Attributes:
        before, after: (out, channels, *kernel).
        channels_before, channels_after: their input channels, ascending; None of a whole weight.
    """

    before: Tensor
    after: Tensor
    channels_before: Tensor | None
    channels_after: Tensor


def require_members(optimizers: Sequence[Any], parameters: dict[str, Tensor]) -> None:
    """Raises ValueError if one of the parameters, by their layers' names, is in no optimizer."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    known = {id(parameter) for group in groups for parameter in group["params"]}
    for name, parameter in parameters.items():
        if id(parameter) not in known:
            raise ValueError(
                f"No optimizer given trains the channels of {name}: give the one, or all of those, "
                "that were made of model.parameters() after select_channels."
            )


def exchange(optimizer: Any, exchanges: list[Exchange], moments: str) -> None:
    """Has an optimizer train the parameters ``after``, each in the group and place of ``before``.

    Args:
        moments: ``"restart"`` drops what the optimizer holds of a slice; ``"carry"`` keeps it of
            channels that are trained before and after, and has the others start from zero. What is
            held of a whole weight is taken over either way.
    """
    by_id = {id(one.before): one for one in exchanges}
    for group in optimizer.param_groups:
        for place, parameter in enumerate(group["params"]):
            one = by_id.get(id(parameter))
            if one is None:
                continue
            group["params"][place] = one.after
            state = optimizer.state.pop(parameter, {})
            if one.channels_before is None or moments == "carry":
                state = _carried(one, state)
                if state:
                    optimizer.state[one.after] = state


def _carried(one: Exchange, state: dict[str, Any]) -> dict[str, Any]:
    """The state of ``one.before`` as that of ``one.after``.

    Empty where it has tensors of other shapes, such as the rows and columns of Adafactor.
    """
    found: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.ndim and value.shape == one.before.shape:
            value = _of_channels(one, value)
        elif isinstance(value, Tensor) and value.ndim and value.shape != one.after.shape:
            return {}
        found[key] = value  # what has the shape already is of a checkpoint's trained channels
    return found


def _of_channels(one: Exchange, value: Tensor) -> Tensor:
    after = one.channels_after.to(value.device)
    if one.channels_before is None:
        return value.index_select(1, after)
    before = one.channels_before.to(value.device)
    places = torch.isin(after, before).nonzero().flatten()
    result = torch.zeros_like(one.after, dtype=value.dtype, device=value.device)
    sources = torch.searchsorted(before, after[places])
    return result.index_copy_(1, places, value.index_select(1, sources))
