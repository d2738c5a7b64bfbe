"""A chain that mmengine's initialisation of weights passes through."""

from __future__ import annotations

from ..chain import ReversibleChain

__all__ = ["OpenMMLabChain"]


class OpenMMLabChain(ReversibleChain):
    """Stands where a ``mmengine.model.ModuleList`` stood."""

    def init_weights(self) -> None:
        """Initialises the blocks: mmengine goes no further than modules that have this method."""
        for block in self:
            block.init_weights()  # type: ignore[operator]
