"""Names and counts the videos that training had to replace because they cannot be read."""

from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .dataset import VideoListDataset

SPELLED_OUT = 20


@HOOKS.register_module()
class UnreadableVideosHook(Hook):
    """Report what ``VideoListDataset`` replaced in training, and what is missing before it.

    Each unreadable file is named once in the log: at once where this process is the one that logs,
    at the end of the epoch where another rank met it. The count of the epoch stands in the
    training log lines as ``unreadable_videos`` from the first one on, and at the end of the epoch
    with the number of files.

    The dataset sends the names along with the batch, so that dataloader workers need nothing else
    to report through.
    """

    def __init__(self) -> None:
        self._named: set[str] = set()
        self._met: list[str] = []

    def before_train(self, runner: Runner) -> None:
        """Name the missing files of all lists at once.

        Raises:
            FileNotFoundError: Videos of validation are missing, which nothing can replace.
        """
        if not is_main_process():
            return
        loaders = (runner.train_dataloader, runner.val_loop and runner.val_dataloader)
        missing = [
            loader.dataset.missing_files()
            if loader and isinstance(loader.dataset, VideoListDataset)
            else []
            for loader in loaders
        ]
        if not any(missing):
            return
        named = [name for files in missing for name in files]
        text = "\n  ".join([f"{len(named)} videos do not exist:", *named[:SPELLED_OUT]])
        if len(named) > SPELLED_OUT:
            text += f"\n  ... and {len(named) - SPELLED_OUT} more"
        if missing[1]:
            raise FileNotFoundError(
                f"{text}\nThose of validation cannot be replaced: complete the videos, or take "
                "their lines out of the list. tools/check_videos.py finds damaged ones too."
            )
        runner.logger.warning(f"{text}\nTraining takes others in their place.")

    def before_train_epoch(self, runner: Runner) -> None:
        self._met = []

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        for sample in data_batch["data_samples"]:
            self._met.extend(sample.metainfo.get("unreadable_videos", ()))
        if self._met:
            self._name(runner, self._met)
            runner.message_hub.update_scalar("train/unreadable_videos", len(self._met))

    def after_train_epoch(self, runner: Runner) -> None:
        met = [message for of_rank in all_gather_object(self._met) for message in of_rank]
        if met:
            self._name(runner, met)
            runner.logger.warning(
                f"unreadable videos in this epoch: {len(set(met))}, in place of which "
                f"{len(met)} times another was taken"
            )

    def _name(self, runner: Runner, messages: list[str]) -> None:
        for message in messages:
            if message not in self._named:
                self._named.add(message)
                runner.logger.warning(f"replaced in training: {message}")
