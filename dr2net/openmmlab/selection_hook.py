"""A hook that trains some input channels of a model alone, drawn anew each epoch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat
from typing import Any

from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn

from ..selection import Selection, select_channels

__all__ = ["ChannelSelectionHook"]

KEY = "channel_selection"  # of checkpoints


@HOOKS.register_module()
class ChannelSelectionHook(Hook):
    """Trains input channels of one part of any model under a budget (``dr2net.select_channels``).

        custom_hooks = [dict(type="ChannelSelectionHook", budget="64MB")]

    What is outside of that part (necks, heads) trains whole. Layers are chosen before the first
    iteration, by the first batches of the training set; checkpoints hold what was measured, and a
    resumed run goes on as an unbroken one. ``EMAHook`` averages whole weights.

    Args:
        budget, selector, batches, share, moments, seed: as in ``dr2net.select_channels``.
        modules: name of the part whose channels are chosen; ``""`` is the whole model.
        always: names of what trains whole, beside all that is outside of the part; of the whole
            model, the classifier if nothing is named.
        by_epoch: whether ``interval`` counts epochs or iterations.
        interval: of the draws.
    """

    # After hooks that convert, freeze or switch something, and before CheckpointHook saves.
    priority = "LOW"

    def __init__(
        self,
        budget: int | str | None = None,
        modules: str = "backbone",
        always: list[str] | tuple[str, ...] = (),
        by_epoch: bool = True,
        interval: int = 1,
        **options: Any,
    ) -> None:
        if interval < 1:
            raise ValueError(f"interval={interval}: give a positive number.")
        self.modules, self.always = modules, list(always)
        self.by_epoch, self.interval = by_epoch, interval
        self.options = {"budget": budget, **options}
        self.selection: Selection | None = None
        self._loaded: dict[str, Any] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._loaded = checkpoint.get(KEY)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self.selection is not None:
            checkpoint[KEY] = self.selection.state_dict()

    def before_train(self, runner: Runner) -> None:
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                "ChannelSelectionHook counts epochs, and an IterBasedTrainLoop has none, so that "
                "channels would never be drawn anew: give it by_epoch=False, and an interval in "
                "iterations."
            )
        network, optimizer = self._network(runner), self._optimizer(runner)
        if runner._resume and self._loaded is not None:
            self.selection = Selection(network, self._loaded, optimizer)
        else:
            self.selection = select_channels(
                network,
                self._losses(runner, network),
                always=[*self._outside(network), *self.always] or None,
                optimizer=optimizer,
                **self.options,
            )
        self._follow(runner)
        runner.logger.info(f"ChannelSelectionHook: {self.selection}")

    def before_train_epoch(self, runner: Runner) -> None:
        if self.by_epoch:
            self._draw(runner, runner.epoch // self.interval)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if not self.by_epoch and runner.iter % self.interval == 0:
            self._draw(runner, runner.iter // self.interval)

    def _draw(self, runner: Runner, number: int) -> None:
        assert self.selection is not None
        if number != self.selection.epoch:
            self.selection.draw(number, self._optimizer(runner))
            self._follow(runner)

    def _network(self, runner: Runner) -> nn.Module:
        return runner.model.module if is_model_wrapper(runner.model) else runner.model

    def _optimizer(self, runner: Runner) -> Any:
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise ValueError("ChannelSelectionHook trains by one optimizer, not by several.")
        return runner.optim_wrapper.optimizer

    def _follow(self, runner: Runner) -> None:
        """Averages get the same channels, and processes share the gradients of these."""
        assert self.selection is not None
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):  # which exchanges parameters one by one to validate
                self.selection.apply_to(hook.ema_model.module)
        if is_model_wrapper(runner.model):
            cfg = runner.cfg.get("model_wrapper_cfg")
            runner.model = runner.wrap_model(cfg, self._network(runner))

    def _outside(self, network: nn.Module) -> list[str]:
        """Names of the parameters outside of the part whose channels are chosen."""
        known = [name for name, _ in network.named_modules()]
        if self.modules not in known:
            raise ValueError(
                f"ChannelSelectionHook(modules={self.modules!r}): the {type(network).__name__} has "
                f"no such part. Its parts are {', '.join(n for n, _ in network.named_children())}."
            )
        inside = f"{self.modules}." if self.modules else ""
        return [name for name, _ in network.named_parameters() if not name.startswith(inside)]

    def _losses(self, runner: Runner, network: Any) -> Callable[[], Tensor]:
        """What returns the loss of the next of the first training batches, as the run computes it.

        From a dataloader of its own: that of the run starts where it would have without.
        """
        network.train()
        loader: Any = runner._train_dataloader
        if isinstance(loader, dict):
            settings = {**loader, "persistent_workers": False}
            loader = runner.build_dataloader(settings, seed=runner.seed)
        batches = chain.from_iterable(repeat(loader))

        def loss() -> Tensor:
            data = network.data_preprocessor(next(batches), training=True)
            with runner.optim_wrapper.optim_context(network):
                losses = network._run_forward(data, mode="loss")
            return network.parse_losses(losses)[0]

        return loss
