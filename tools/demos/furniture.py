"""Pieces of furniture as coloured parallelograms, for tools/demos/furnished_rooms.py.

Every piece stands on the floor, z = 0, with its left back corner at the origin: x goes along the
wall behind it, y away from that wall. Lengths are in metres.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Face(NamedTuple):
    """A parallelogram: a corner and two sides, (3,) each, and its colour (RGB, 0 to 255)."""

    corner: np.ndarray
    first: np.ndarray
    second: np.ndarray
    color: np.ndarray

    @property
    def area(self) -> float:
        return float(np.linalg.norm(np.cross(self.first, self.second)))

    @property
    def corners(self) -> np.ndarray:
        """Its four corners, (4, 3)."""
        sides = np.stack([0 * self.first, self.first, self.second, self.first + self.second])
        return self.corner + sides


def box(size: Sequence[float], at: Sequence[float], color: np.ndarray) -> list[Face]:
    """The six faces of a box, its top first; ``at`` is its lowest corner."""
    x, y, z = np.diag(size).astype(float)
    low = np.asarray(at, float)
    sides = [
        (low + z, x, y),
        (low, x, y),
        (low, x, z),
        (low + y, x, z),
        (low, y, z),
        (low + x, y, z),
    ]
    return [Face(*side, color) for side in sides]


def table(wide: float, deep: float, high: float, color: np.ndarray) -> list[Face]:
    legs = [(x, y, 0) for x in (0.03, wide - 0.09) for y in (0.03, deep - 0.09)]
    top = box((wide, deep, 0.04), (0, 0, high - 0.04), color)
    return top + [face for leg in legs for face in box((0.06, 0.06, high - 0.04), leg, color)]


def chair(seat: float, color: np.ndarray) -> list[Face]:
    """A seat of 0.45 by 0.45 m at the height ``seat``, with a back at y = 0."""
    legs = [(x, y, 0) for x in (0.02, 0.39) for y in (0.02, 0.39)]
    faces = box((0.45, 0.45, 0.05), (0, 0, seat - 0.05), color)
    faces += box((0.45, 0.05, 0.42), (0, 0, seat), color)
    return faces + [face for leg in legs for face in box((0.04, 0.04, seat - 0.05), leg, color)]


def sofa(wide: float, seat: float, color: np.ndarray) -> list[Face]:
    faces = box((wide, 0.8, seat), (0, 0, 0), color)
    faces += box((wide, 0.2, 0.4), (0, 0, seat), color)
    for x in (0, wide - 0.15):
        faces += box((0.15, 0.8, 0.2), (x, 0, seat), color)
    return faces


def bookcase(
    wide: float, high: float, color: np.ndarray, random: np.random.Generator
) -> list[Face]:
    """A case of four shelves, 0.35 m deep, with books of random colours."""
    faces = box((wide, 0.02, high), (0, 0, 0), color)
    for x in (0, wide - 0.03):
        faces += box((0.03, 0.35, high), (x, 0, 0), color)
    for bottom in np.linspace(0, high - 0.03, 5):
        faces += box((wide, 0.35, 0.03), (0, 0, bottom), color)
    shelf = (high - 0.03) / 4
    for bottom in np.arange(4) * shelf + 0.03:
        x = 0.05
        while x < wide - 0.25:
            books = random.uniform(0.08, 0.2)
            size = (books, random.uniform(0.15, 0.25), shelf * random.uniform(0.5, 0.85))
            faces += box(size, (x, 0.02, bottom), random.uniform(30, 210, 3))
            x += books + random.choice([0.0, 0.15])
    return faces
