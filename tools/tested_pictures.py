"""What ``tools/test.py --show-dir`` draws."""

from collections import Counter
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from tools.classes import class_names
from tools.predict import task_of


class DrawTestedHook(Hook):
    """Draws what is predicted in a test, a picture each.

    Args:
        folder: Takes the pictures.
        config: That of the test; its ``default_scope`` says what is drawn.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        self.task = task_of(config)
        self.classes = class_names(config, {})
        self._drawn: Counter[str] = Counter()

    def before_test(self, runner: Runner) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: list
    ) -> None:
        for number, sample in enumerate(outputs):
            name = self.task.name_of(sample)
            self._drawn[name] += 1
            if self._drawn[name] > 1:  # of another folder
                name = f"{name}_{self._drawn[name]}"
            self.task.draw_tested(sample, data_batch, number, self.classes, self.folder / name)
