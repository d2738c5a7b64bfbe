"""The hook that moves (α, β) during training."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..conversion import get_coefficients, set_coefficients
from ..schedule import CoefficientSchedule

__all__ = ["CoefficientScheduleHook"]


@HOOKS.register_module()
class CoefficientScheduleHook(Hook):
    """Drives ``CoefficientSchedule`` by epoch or iteration, and logs α and β beside the losses.

    The coefficients follow from the epoch or iteration alone, so a resumed run goes on as an
    unbroken one. With ``EMAHook``, the averaged model gets the coefficients of the trained one.

    Args:
        by_epoch: whether ``begin``, ``end`` and ``interval`` count epochs or iterations.
        schedule: the arguments of ``dr2net.CoefficientSchedule``.
    """

    def __init__(self, by_epoch: bool = True, **schedule: Any) -> None:
        for name in ("alpha", "beta"):  # lists in configs that come from JSON or the command line
            if name in schedule:
                schedule[name] = tuple(schedule[name])
        self.by_epoch = by_epoch
        self.schedule = CoefficientSchedule(**schedule)

    def before_train(self, runner: Runner) -> None:
        self._apply(runner, runner.epoch if self.by_epoch else runner.iter)

    def before_train_epoch(self, runner: Runner) -> None:
        if self.by_epoch:
            self._apply(runner, runner.epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if not self.by_epoch:
            self._apply(runner, runner.iter)
        alpha, beta = get_coefficients(runner.model)
        runner.message_hub.update_scalar("train/alpha", alpha)
        runner.message_hub.update_scalar("train/beta", beta)

    def _apply(self, runner: Runner, step: int) -> None:
        self.schedule.apply(runner.model, step)
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                set_coefficients(hook.ema_model, *self.schedule.at(step))
