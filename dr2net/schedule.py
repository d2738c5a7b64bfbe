"""How (α, β) move during finetuning, from the pretrained network to a reversible one.

The paper moves both linearly during the first epochs and names the orders compared here (Zhao et
al., arXiv 2401.04105, section 3.3 and its ablations); the co-author's point cloud code alternates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from .arithmetic import check_coefficients
from .conversion import set_coefficients

__all__ = ["ORDERS", "SHAPES", "CoefficientSchedule"]

ORDERS = ("alternate", "together", "alpha_first", "beta_first")
SHAPES = ("linear", "cosine", "step")


@dataclass(frozen=True)
class CoefficientSchedule:
    """(α, β) as a function of the step, whatever a step is: an iteration or an epoch.

    Args:
        alpha, beta: each coefficient's value until ``begin`` and from ``end`` on.
        begin, end: steps between which the coefficients move.
        order: ``"alternate"`` moves α for ``interval`` steps, then β for as many, and so on;
            ``"together"`` moves both all the time; ``"alpha_first"`` moves α in the first half and
            β in the second, ``"beta_first"`` the other way round.
        shape: ``"linear"``, ``"cosine"`` (slow at both ends) or ``"step"`` (``jumps`` equal jumps).
        interval: steps in a turn of ``"alternate"``.
        jumps: number of jumps of ``"step"``.

    Raises:
        ValueError: a value is out of range, or β would pass through (0, 2^-8).
    """

    alpha: tuple[float, float] = (1.0, 0.0)
    beta: tuple[float, float] = (0.1, 1.0)
    begin: float = 0
    end: float = 1000
    order: str = "alternate"
    shape: str = "linear"
    interval: float = 1
    jumps: int = 10

    def __post_init__(self) -> None:
        for alpha, beta in zip(self.alpha, self.beta, strict=True):
            check_coefficients(alpha, beta)
        if 0 in self.beta and self.beta[0] != self.beta[1]:
            raise ValueError(
                f"beta={self.beta} would move through values below 2^-8, which cannot be inverted: "
                "begin and end at 2^-8 or more, such as (0.1, 1.0)."
            )
        if not 0 <= self.begin <= self.end < math.inf:
            raise ValueError(f"begin={self.begin}, end={self.end}: use 0 ≤ begin ≤ end < ∞.")
        if self.order not in ORDERS:
            raise ValueError(f"order={self.order!r} is unknown: use one of {ORDERS}.")
        if self.shape not in SHAPES:
            raise ValueError(f"shape={self.shape!r} is unknown: use one of {SHAPES}.")
        if self.jumps < 1:
            raise ValueError(f"jumps={self.jumps}: use 1 or more.")
        steps = self.end - self.begin
        has_turns = self.interval > 0 and (self.interval < steps or not steps)
        if self.order == "alternate" and not has_turns:
            raise ValueError(
                f"interval={self.interval} leaves β no turn within the {steps} steps from begin to "
                "end: use a smaller interval above 0, or another order."
            )

    def at(self, step: float) -> tuple[float, float]:
        """Returns (α, β) at ``step``."""
        alpha, beta = self._progress(step)
        return self._between(self.alpha, alpha), self._between(self.beta, beta)

    def apply(self, model: nn.Module, step: float) -> None:
        """Sets the coefficients of ``model`` to those at ``step``."""
        set_coefficients(model, *self.at(step))

    def _progress(self, step: float) -> tuple[float, float]:
        """How far α and β have come, each from 0 to 1."""
        if step >= self.end:
            return 1.0, 1.0
        if step <= self.begin:
            return 0.0, 0.0
        steps, done = self.end - self.begin, step - self.begin
        if self.order == "alternate":
            (alpha, beta), (all_alpha, all_beta) = self._turns(done), self._turns(steps)
            return alpha / all_alpha, beta / all_beta
        share = done / steps
        first, second = min(2 * share, 1.0), max(2 * share - 1, 0.0)
        by_order = {
            "together": (share, share),
            "alpha_first": (first, second),
            "beta_first": (second, first),
        }
        return by_order[self.order]

    def _turns(self, steps: float) -> tuple[float, float]:
        """How many of ``steps`` steps move α and how many β, in turns of ``interval``."""
        rounds, rest = divmod(steps, 2 * self.interval)
        whole = rounds * self.interval
        return whole + min(rest, self.interval), whole + max(rest - self.interval, 0)

    def _between(self, ends: tuple[float, float], progress: float) -> float:
        if self.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        elif self.shape == "step":
            # 0.29 · 100 is a little less than 29 in floating point, and is the 29th jump.
            progress = math.floor(progress * self.jumps + 1e-9) / self.jumps
        return ends[0] + (ends[1] - ends[0]) * progress
