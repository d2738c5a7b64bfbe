"""Hooks of a resumed run: as many processes as before or not, and a validation that is due."""

from __future__ import annotations

import warnings
from typing import Any

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

__all__ = ["OtherBatchSizeHook", "ValidateResumedHook"]

SAMPLES = "samples_per_iteration"


@HOOKS.register_module()
class OtherBatchSizeHook(Hook):
    """Continues a run on another number of processes, or with other batches, as that number would.

    mmengine goes on with the learning rates and schedules of the former iterations: rates that
    ``auto_scale_lr`` made for another number of samples, warm-ups and decays at other epochs, and a
    count of iterations that no longer ends where epochs do, so that validations are left out.

    Checkpoints say how many samples an iteration had. Where a resumed run has another number, rates
    and schedules are those that it would have come to from the start, and its iterations are
    counted as if all had been so large. Momentum and the other states of the optimizer stay.

    Raises:
        ValueError: a schedule follows the figures of validations, as ReduceOnPlateauLR does.
    """

    # Before all that asks for the iteration. Schedules are built by then and not yet resumed.
    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._former: int | None = None
        self._fresh: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = []

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint["meta"][SAMPLES] = _samples(runner)

    def before_run(self, runner: Runner) -> None:
        if runner._resume:
            self._fresh = [
                ([dict(group) for group in wrapper.param_groups], [s.state_dict() for s in found])
                for wrapper, found in _schedulers(runner)
            ]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        meta, loop = checkpoint.get("meta", {}), runner.train_loop
        self._former = meta.get(SAMPLES)
        if self._former is None and meta.get("epoch") and isinstance(loop, EpochBasedTrainLoop):
            # Written without this hook: told by the iterations of its epochs, if they are whole.
            iterations, rest = divmod(meta["iter"], meta["epoch"])
            if not rest and iterations != len(loop.dataloader):
                self._former = round(_samples(runner) * len(loop.dataloader) / iterations)

    def before_train(self, runner: Runner) -> None:
        now = _samples(runner)
        if not runner._resume or self._former in (None, now):
            return
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop):
            loop._iter = loop.epoch * len(loop.dataloader)
        runner.logger.warning(
            f"This run has {now} samples an iteration, the checkpoint about {self._former}: it "
            f"goes on at iteration {loop.iter} of {loop.max_iters}, with the learning rates that "
            f"{now} samples would have had there."
        )
        for (wrapper, schedulers), (groups, states) in zip(
            _schedulers(runner), self._fresh, strict=True
        ):
            moved = {"lr", *(scheduler.param_name for scheduler in schedulers)}
            moved |= {f"initial_{name}" for name in moved}
            for group, fresh in zip(wrapper.param_groups, groups, strict=True):
                group.update({name: fresh[name] for name in moved & fresh.keys()})
            for scheduler, state in zip(schedulers, states, strict=True):
                scheduler.load_state_dict(state)
            _advance(schedulers, loop)
        runner.optim_wrapper.initialize_count_status(runner.model, loop.iter, loop.max_iters)


def _samples(runner: Runner) -> int:
    """Samples an iteration, in all processes together."""
    loader = runner.train_dataloader
    return runner.world_size * (loader.batch_size or loader.batch_sampler.batch_size)


def _schedulers(runner: Runner) -> list[tuple[OptimWrapper, list[Any]]]:
    """Each optimizer's wrapper with the schedulers of its parameters."""
    wrapper, schedulers = runner.optim_wrapper, runner.param_schedulers
    if isinstance(wrapper, OptimWrapperDict):
        return [(each, (schedulers or {}).get(name, [])) for name, each in wrapper.items()]
    return [(wrapper, schedulers or [])]


def _advance(schedulers: list[Any], loop: Any) -> None:
    """Steps schedulers as mmengine's ``ParamSchedulerHook`` has, up to where the loop is."""
    following = [type(s).__name__ for s in schedulers if getattr(s, "need_val_args", False)]
    if following:
        raise ValueError(
            f"{following[0]} follows validations, so that where it would be with another number of "
            "samples an iteration is not known: resume with as many processes and as large batches "
            "as before."
        )
    by_epoch = [scheduler for scheduler in schedulers if scheduler.by_epoch]
    by_iteration = [scheduler for scheduler in schedulers if not scheduler.by_epoch]
    epochs = isinstance(loop, EpochBasedTrainLoop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no optimizer has stepped in between
        for iteration in range(1, loop.iter + 1):
            for scheduler in by_iteration:
                scheduler.step()
            if epochs and iteration % len(loop.dataloader) == 0:
                for scheduler in by_epoch:
                    scheduler.step()


@HOOKS.register_module()
class ValidateResumedHook(Hook):
    """Validates a checkpoint that is resumed from, where its validation came after it.

    A run that is killed in a validation has written its checkpoint already, and mmengine's loops go
    on with the epoch after it: the figures would be missing, and ``save_best`` not know of them.
    """

    # After CheckpointHook, whose priority is VERY_LOW and which then knows where to save the best.
    priority = "LOWEST"

    def before_train(self, runner: Runner) -> None:
        loop, validation = runner.train_loop, runner.val_loop
        if validation is None:
            return
        if isinstance(loop, EpochBasedTrainLoop):
            within_an_epoch = loop.iter != loop.epoch * len(loop.dataloader)
            step, last = 0 if within_an_epoch else loop.epoch, loop.max_epochs
        else:
            step, last = loop.iter, loop.max_iters
        loop._decide_current_val_interval()
        if 0 < step >= loop.val_begin and (step % loop.val_interval == 0 or step == last):
            runner.logger.info(f"validating what was resumed, of {step} of {last}")
            validation.run()
