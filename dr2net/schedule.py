"""Where (α, β) are during finetuning: held, moving along the line α = 1 − β, or the paper's way.

The paper moves both linearly from the pretrained network to (0, 1) during the first epochs, and
names the orders compared here (Zhao et al., arXiv 2401.04105, section 3.3 and its ablations); the
co-author's point cloud code alternates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from .coefficients import DEFAULT_BETA, alpha_on_the_line, check_coefficients
from .conversion import set_coefficients

__all__ = ["ORDERS", "SHAPES", "CoefficientSchedule"]

ORDERS = ("alternate", "together", "alpha_first", "beta_first")
SHAPES = ("linear", "cosine", "step")


@dataclass(frozen=True)
class CoefficientSchedule:
    """(α, β) as a function of the step, whatever a step is: an iteration or an epoch.

    ``CoefficientSchedule()`` holds the default point of the line, and
    ``CoefficientSchedule(beta=0.25)`` another; ``CoefficientSchedule(beta=(0.1, 0.5), end=1000)``
    moves along the line; the paper's way is
    ``CoefficientSchedule(alpha=(1.0, 0.0), beta=(0.1, 1.0), end=1000)``.

    Args:
        alpha, beta: a value that is held, or the values until ``begin`` and from ``end`` on. α is
            1 − β unless it is given.
        begin, end: steps between which the coefficients move.
        order: where α is given, ``"alternate"`` moves α for ``interval`` steps, then β for as many,
            and so on;
            ``"together"`` moves both all the time; ``"alpha_first"`` moves α in the first half and
            β in the second, ``"beta_first"`` the other way round.
        shape: ``"linear"``, ``"cosine"`` (slow at both ends) or ``"step"`` (``jumps`` equal jumps).
        interval: steps in a turn of ``"alternate"``.
        jumps: number of jumps of ``"step"``.

    Raises:
        ValueError: a value is out of range, or β would pass through (0, 2^-8).
    """

    alpha: float | tuple[float, float] | None = None
    beta: float | tuple[float, float] = DEFAULT_BETA
    begin: float = 0
    end: float = 1000
    order: str = "alternate"
    shape: str = "linear"
    interval: float = 1
    jumps: int = 10

    def __post_init__(self) -> None:
        first, last = self._betas
        for alpha, beta in zip(
            self._alphas or map(alpha_on_the_line, self._betas), self._betas, strict=False
        ):
            check_coefficients(alpha, beta)
        if 0 in self._betas and first != last:
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
        if self._alphas and self.order == "alternate" and not has_turns:
            raise ValueError(
                f"interval={self.interval} leaves β no turn within the {steps} steps from begin to "
                "end: use a smaller interval above 0, or another order."
            )

    @cached_property
    def _alphas(self) -> tuple[float, float] | None:
        return None if self.alpha is None else _ends("alpha", self.alpha)

    @cached_property
    def _betas(self) -> tuple[float, float]:
        return _ends("beta", self.beta)

    def at(self, step: float) -> tuple[float, float]:
        """Returns (α, β) at ``step``."""
        if self._alphas is None:
            steps = self.end - self.begin
            share = (step - self.begin) / steps if steps else float(step >= self.end)
            beta = self._between(self._betas, min(max(share, 0.0), 1.0))
            return alpha_on_the_line(beta), beta
        alpha, beta = self._progress(step)
        return self._between(self._alphas, alpha), self._between(self._betas, beta)

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


def _ends(name: str, value: float | Sequence[float]) -> tuple[float, float]:
    """A value's first and last one."""
    if isinstance(value, (int, float)):
        return value, value
    if len(value) != 2:
        raise ValueError(f"{name}={value}: give a value to hold, or a first and a last one.")
    return value[0], value[1]
