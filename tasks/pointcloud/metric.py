"""mIoU, mAcc, OA and IoU by class, all from one confusion matrix."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS

from tasks.files import write_text

from .confusion import class_table, figures, write_confusion
from .structures import IGNORE


@METRICS.register_module()
class PointSegmentationMetric(BaseMetric):
    """Compare ``pred_segment`` with ``gt_segment`` over all points of all rooms.

    The names of the figures say what was compared. After ``FullResolutionSegmentor``, which
    predicts every original point, they are ``full_resolution/mIoU`` and so on; predictions of
    subsampled clouds are ``val_subsampled/mIoU``, by whatever command they are computed. The two
    are not comparable, and the figures of papers are the former. Rooms without labels are left
    out, with a warning.

    Args:
        confusion_file: Write the confusion matrix there (JSON), for six-fold results
            (``tools/sum_folds.py``).
        label_folder: Write the predicted label of every original point there, a line each, in
            ``Area_5_office_1.txt`` and so on.
        collect_device: As in ``BaseMetric``.

    Raises:
        ValueError: Some rooms were predicted at full resolution and others were not; predictions
            are not as many as labels, or of other classes.
    """

    def __init__(
        self,
        confusion_file: str | None = None,
        label_folder: str | None = None,
        collect_device: str = "cpu",
    ) -> None:
        super().__init__(collect_device=collect_device)
        self.label_folder = label_folder
        self.confusion_file = confusion_file

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count the points of each room by true and predicted class."""
        count = len(self.dataset_meta["classes"])
        for sample in data_samples:
            truth, found = sample.get("gt_segment"), sample["pred_segment"]
            if self.label_folder is not None:
                self._write_labels(sample)
            if truth is None:
                self.results.append((sample.get("name"), None, None))
                continue
            if truth.shape != found.shape:
                raise ValueError(
                    f"{sample.get('name')}: {len(truth)} labels, {len(found)} predictions"
                )
            if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < count:
                raise ValueError(
                    f"{sample.get('name')}: predictions from {int(found.min())} to "
                    f"{int(found.max())} for {count} classes: num_classes of the model is another"
                )
            counted = truth != IGNORE
            pairs = truth[counted].long() * count + found[counted].long()
            confusion = torch.bincount(pairs.cpu(), minlength=count**2).reshape(count, count)
            self.results.append(
                (sample.get("name"), bool(sample.get("full_resolution")), confusion.numpy())
            )

    def _write_labels(self, sample: dict) -> None:
        name = str(sample.get("name"))
        if not sample.get("full_resolution"):
            raise ValueError(
                f"{name}: label_folder is for labels of every point, which a "
                "FullResolutionSegmentor predicts; these are of a subsampled cloud"
            )
        labels = sample["pred_segment"].tolist()
        file = Path(self.label_folder) / f"{name.replace('/', '_')}.txt"
        write_text(file, "".join(f"{label}\n" for label in labels))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the figures over all rooms, and log a table of the classes."""
        unknown = [name for name, full, _ in results if full is None]
        if unknown:
            print_log(
                f"{len(unknown)} of {len(results)} rooms have no labels and are not in the "
                f"figures: {', '.join(map(str, unknown[:20]))}",
                logger="current",
                level=logging.WARNING,
            )
        results = [result for result in results if result[1] is not None]
        if not results:
            return {}
        names, full, confusions = zip(*results, strict=True)
        if any(full) != all(full):
            raise ValueError(
                "some rooms were predicted at full resolution, others subsampled: no figure is "
                "computed of both"
            )
        confusion = np.sum(confusions, axis=0)
        classes = self.dataset_meta["classes"]
        kind = "full_resolution" if all(full) else "val_subsampled"
        print_log(f"{kind}\n{class_table(confusion, classes)}", logger="current")
        if self.confusion_file is not None:
            write_confusion(Path(self.confusion_file), confusion, classes, kind, names)
        return {f"{kind}/{name}": value for name, value in figures(confusion, classes).items()}
