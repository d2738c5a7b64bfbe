"""What is known of a family's small network."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Example:
    """A small network of a family.

    Attributes:
        library: the package that it comes from.
        build: ``build(depth, chance)`` makes it with its library's own code and random weights.
            ``depth`` is the number of blocks of its last chain, ``chance`` the probability of every
            kind of dropout that the family has (0: nothing random).
        shape: of a batch that it takes.
        chains: how many chains it becomes.
    """

    library: str
    build: Callable[[int, float], nn.Module]
    shape: tuple[int, ...]
    chains: int = 1
