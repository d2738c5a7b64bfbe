"""(α, β): where they may lie, and how they travel with the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = [
    "BETA_MIN",
    "COEFFICIENT_BITS",
    "COEFFICIENT_ONE",
    "DEFAULT_BETA",
    "RANGE_BITS",
    "alpha_on_the_line",
    "check_coefficients",
    "from_state",
    "is_on_the_line",
    "round_coefficient",
    "to_state",
]

# α and β are multiples of 2^-16: β enters integer arithmetic, and 1 − β then has no rounding.
COEFFICIENT_BITS = 16
COEFFICIENT_ONE = 1 << COEFFICIENT_BITS
BETA_MIN = 2.0**-8
DEFAULT_BETA = 0.125

RANGE_BITS = 10
"""Streams hold values up to 2^10 in 32-bit words, unless a chain has met larger ones."""


def check_coefficients(alpha: float, beta: float) -> None:
    """Raises ValueError if α is not in [0, 1], or β neither 0 nor in [2^-8, 1]."""
    if not (beta == 0 or BETA_MIN <= beta <= 1):
        raise ValueError(
            f"beta={beta} is out of range: use 0 (not reversible; with alpha=1 the pretrained "
            f"network) or a value from 2^-8 = {BETA_MIN} to 1. A smaller β would need more than 8 "
            "bits kept per element and coupling."
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} is out of range: use a value from 0 to 1.")


def round_coefficient(value: float) -> float:
    """Returns the coefficient that is used: the nearest fraction n / 2^16."""
    return round(value * COEFFICIENT_ONE) / COEFFICIENT_ONE


def alpha_on_the_line(beta: float) -> float:
    """α = 1 − β, where streams do not grow and the pretrained network is near at small β."""
    return 1.0 - round_coefficient(beta)


def is_on_the_line(alpha: float, beta: float) -> bool:
    """Whether α + β = 1, both as they are used."""
    return round_coefficient(alpha) == alpha_on_the_line(beta)


def to_state(alpha: float, beta: float, range_bits: int) -> torch.Tensor:
    """What a state_dict holds of a chain: α and β in units of 2^-16, and ``range_bits``."""
    values = [round(alpha * COEFFICIENT_ONE), round(beta * COEFFICIENT_ONE), range_bits]
    return torch.tensor(values, dtype=torch.int64, device="cpu")  # also under torch.device("meta")


def from_state(values: Sequence[int]) -> tuple[float, float, int]:
    """Undoes ``to_state``.

    Raises:
        ValueError: α or β is out of range.
    """
    alpha, beta, range_bits = values
    pair = alpha / COEFFICIENT_ONE, beta / COEFFICIENT_ONE
    check_coefficients(*pair)
    return *pair, range_bits
