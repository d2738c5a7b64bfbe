"""Hooks of a run: they convert, move (α, β), and verify gradients."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn

from ..conversion import chains, convert, require_chains
from ..conversion.mlps import slice_mlps
from ..optimizers import skipped_steps
from ..schedule import CoefficientSchedule
from ..verification import undisturbed, verify_step
from .checkpoint import within_wrappers

__all__ = ["CoefficientScheduleHook", "Dr2NetHook", "VerificationHook", "convert_by_config"]


@HOOKS.register_module()
class CoefficientScheduleHook(Hook):
    """Drives ``CoefficientSchedule`` by epoch or iteration, and logs α and β beside the losses.

    Without arguments it holds the default point of the line α = 1 − β. Steps that were skipped, as
    a gradient was not finite, are counted in the log as ``skipped_steps``. It waits for no device.

    The coefficients follow from the epoch or iteration alone, so a resumed run goes on as an
    unbroken one. With ``EMAHook``, the averaged model gets the coefficients of the trained one.

    A run that ends before the coefficients do is warned about.

    Args:
        by_epoch: whether ``begin``, ``end`` and ``interval`` count epochs or iterations.
        share: instead of ``begin`` and ``end``, the part of the run in which the coefficients move:
            ``0.5`` is its first half, ``(0.1, 0.5)`` begins after a tenth. In a run too short for
            a turn of α and one of β they move for as long.
        schedule: the other arguments of ``dr2net.CoefficientSchedule``.
    """

    def __init__(
        self,
        by_epoch: bool = True,
        share: float | Sequence[float] | None = None,
        **schedule: Any,
    ) -> None:
        for name in ("alpha", "beta"):  # lists in configs that come from JSON or the command line
            if isinstance(schedule.get(name), list):
                schedule[name] = tuple(schedule[name])
        self.by_epoch = by_epoch
        self.share = None if share is None else _checked_share(share, schedule)
        self.schedule = CoefficientSchedule(**schedule)

    def before_train(self, runner: Runner) -> None:
        schedule = self.schedule
        if schedule.at(schedule.begin) != schedule.at(schedule.end):
            if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
                raise ValueError(
                    "CoefficientScheduleHook counts epochs, and an IterBasedTrainLoop has none, so "
                    "that α and β would never move: give it by_epoch=False, and end in iterations."
                )
            self._fit_to(runner, runner.max_epochs if self.by_epoch else runner.max_iters)
        self._chains = require_chains(runner.model)
        averaged = (hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook))
        self._all = [*self._chains, *(chain for model in averaged for chain in chains(model))]
        self._scale: float | None = None
        self._by_scaler, self._before = 0, skipped_steps[0]

    def _fit_to(self, runner: Runner, steps: int) -> None:
        """Takes the run's share, and warns if the run, of so many steps, ends before."""
        if self.share is not None:
            begin, end = (share * steps for share in self.share)
            if self.schedule.alpha is not None and self.schedule.order == "alternate":
                end = max(end, begin + 2 * self.schedule.interval)  # a turn of each
            self.schedule = replace(self.schedule, begin=begin, end=end)
        unit, end = "epochs" if self.by_epoch else "iterations", self.schedule.end
        if end > steps:
            last = "(α, β) = ({:.3g}, {:.3g})".format(*self.schedule.at(steps - 1))
            runner.logger.warning(
                f"The run ends after {steps} {unit}, and (α, β) move until {end:g}: it ends at "
                f"{last}. Give the hook a smaller end, or share=0.5 for half of any run."
            )

    def before_train_epoch(self, runner: Runner) -> None:
        if self.by_epoch:
            self._apply(runner.epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if not self.by_epoch:
            self._apply(runner.iter)
        alpha, beta = self._chains[0].coefficients_in_use()
        runner.message_hub.update_scalar("train/alpha", alpha)
        runner.message_hub.update_scalar("train/beta", beta)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
        if scaler is not None:
            scale = scaler.get_scale()
            self._by_scaler += self._scale is not None and scale < self._scale
            self._scale = scale
        skipped = skipped_steps[0] - self._before + self._by_scaler
        if skipped:
            runner.message_hub.update_scalar("train/skipped_steps", skipped)

    def _apply(self, step: int) -> None:
        for chain in self._all:
            chain.set_coefficients(*self.schedule.at(step))


def _checked_share(share: float | Sequence[float], schedule: dict[str, Any]) -> tuple[float, float]:
    """The begin and end of a schedule as parts of the run."""
    both = sorted(schedule.keys() & {"begin", "end"})
    if both:
        raise ValueError(f"share={share} and {both[0]}={schedule[both[0]]}: give one of the two.")
    begin, end = (0, share) if isinstance(share, (int, float)) else share
    if not 0 <= begin < end <= 1:
        raise ValueError(
            f"share={share}: give the part of the run until which α and β move, such as 0.5, or "
            "where they begin and end, such as (0.1, 0.5), from 0 to 1."
        )
    return begin, end


@HOOKS.register_module()
class Dr2NetHook(CoefficientScheduleHook):
    """Makes the backbone of any model a Dr²Net, by one line of a config.

        custom_hooks = [dict(type="Dr2NetHook")]

    It converts before weights are initialised, loaded or resumed, and drives the coefficients as
    ``CoefficientScheduleHook``, held at the default point of the line if nothing is given. Names of
    parameters stay, so that optimizer settings and checkpoints need no change.

    Args:
        modules: name of the part of the model to convert, or names; ``""`` is the whole model.
        blocks: names of lists of blocks in that part, for one without an adapter.
        mlp_tokens: MLPs train over slices of so many tokens: ``dr2net.slice_mlps``.
        arithmetic, keep, couplings, on_mismatch: as in ``dr2net.convert``.
        options: of the family's adapter, such as ``dict(fused_attention=True)``.
        by_epoch, share, schedule: as in ``CoefficientScheduleHook``.
    """

    priority = "VERY_HIGH"  # before EMAHook copies the model

    def __init__(
        self,
        modules: str | Sequence[str] = "backbone",
        blocks: str | Sequence[str] | None = None,
        mlp_tokens: int | None = None,
        arithmetic: str = "exact",
        keep: Sequence[str] = (),
        couplings: str = "branch",
        on_mismatch: str = "raise",
        options: dict[str, Any] | None = None,
        by_epoch: bool = True,
        share: float | Sequence[float] | None = None,
        **schedule: Any,
    ) -> None:
        super().__init__(by_epoch, share, **schedule)
        self.modules = [modules] if isinstance(modules, str) else list(modules)
        self.mlp_tokens = mlp_tokens
        self.settings = {
            "arithmetic": arithmetic,
            "keep": keep,
            "on_mismatch": on_mismatch,
            "blocks": blocks,
            "couplings": couplings,
            **(options or {}),
        }
        self._has_converted = False

    def before_run(self, runner: Runner) -> None:
        if self._has_converted:  # of a training, whose model is tested now
            return
        model = within_wrappers(runner.model)
        self.convert(model)
        self._has_converted = True
        found = chains(model)
        runner.logger.info(
            f"Dr2NetHook converted {', '.join(n or 'the model' for n in self.modules)}: "
            f"{len(found)} chains of "
            f"{', '.join(str(len(chain.couplings())) for chain in found)} couplings."
        )

    def convert(self, model: nn.Module) -> None:
        """Makes the parts of a model Dr²Nets, at the coefficients that a training begins with."""
        for name in self.modules:
            try:
                part = model.get_submodule(name)
            except AttributeError:
                known = ", ".join(key for key, _ in model.named_children())
                raise ValueError(
                    f"Dr2NetHook(modules={name!r}): the {type(model).__name__} has no such part. "
                    f"Its parts are {known}."
                ) from None
            convert(part, *self.schedule.at(self.schedule.begin), **self.settings)
        slice_mlps(model, self.mlp_tokens)  # of whichever parts have some


def convert_by_config(model: nn.Module, config: Config) -> None:
    """Does to a model that is built without a runner what a ``Dr2NetHook`` of its config would.

    Before its checkpoint is loaded. No-op where the config has no such hook.
    """
    hooks = [*(config.get("custom_hooks") or []), *(config.get("default_hooks") or {}).values()]
    for settings in hooks:
        kind = settings.get("type") if isinstance(settings, dict) else None
        if kind is Dr2NetHook or str(kind).rpartition(".")[2] == Dr2NetHook.__name__:
            HOOKS.build(settings).convert(model)


@HOOKS.register_module()
class VerificationHook(Hook):
    """Stops the run if a step with activations rebuilt is not bit for bit one with them stored.

    Verifies the batch of the first iteration of a run and of every ``interval``-th by
    ``dr2net.verify_step``, which takes two more forwards and backwards and the memory of stored
    activations. The training goes on as it would have without.

    Args:
        interval: in iterations.
    """

    # After CoefficientScheduleHook, whose priority is NORMAL: at the coefficients of this step.
    priority = "LOW"

    def __init__(self, interval: int = 1000) -> None:
        if interval < 1:
            raise ValueError(f"interval={interval}: give a positive number of iterations.")
        self.interval = interval
        self._verified = False

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self._verified and runner.iter % self.interval:
            return
        network = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not any(chain.rebuilds() for chain in chains(network)):
            return  # at β = 0
        with undisturbed(network):  # blending and augmentation draw random numbers
            data = network.data_preprocessor(deepcopy(data_batch), training=True)

        def loss() -> Tensor:
            with runner.optim_wrapper.optim_context(network):
                losses = network._run_forward(deepcopy(data), mode="loss")
            return network.parse_losses(losses)[0]

        try:
            verify_step(network, loss)
        except RuntimeError as error:
            raise RuntimeError(f"Verification at iteration {runner.iter}: {error}") from error
        self._verified = True
