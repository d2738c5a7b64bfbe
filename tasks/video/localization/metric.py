"""Mean average precision of whole videos, from predictions of their windows."""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_local_path, put_text
from mmengine.logging import print_log
from mmengine.registry import METRICS
from mmengine.structures import InstanceData

from .annotations import BadAnnotationError, read_blocked, read_database
from .average_precision import RULES, mean_average_precision
from .postprocessing import merge_windows


@METRICS.register_module()
class LocalizationMetric(BaseMetric):
    """mAP over thresholds of overlap, between 0 and 1: ``localization/mAP`` and ``mAP_0.50``, ….

    Args:
        ann_file: The annotation file.
        subset: Its subset.
        thresholds: Of overlap.
        nms: Arguments of ``merge_windows``.
        block_list: A file of videos that are left out, or None.
        rules: As in ``mean_average_precision``.
        video_classes: Of class-agnostic models: ``dict(file, top)``, where the ``top`` classes of
            a video come from, as in ActionFormer: a JSON object of ``class``, names, and
            ``results``, video to scores of the classes. An action has each of them, with the
            product of the scores.
        outfile: Write the actions here too, in ActivityNet's submission format.
        format_only: Only write that: annotations are not looked at, which those of a test may lack.
        collect_device: As in ``BaseMetric``.
        prefix: As in ``BaseMetric``.

    Raises:
        ValueError: ``rules`` is unknown, or ``format_only`` is without ``outfile``; when the
            figures are computed, as in ``mean_average_precision``, or the file of
            ``video_classes`` lacks a video.
        BadAnnotationError: When the figures are computed: a file is not of its format.
    """

    default_prefix = "localization"

    def __init__(
        self,
        ann_file: str,
        subset: str,
        thresholds: Sequence[float],
        nms: dict | None = None,
        block_list: str | None = None,
        rules: str = "opentad",
        video_classes: dict | None = None,
        outfile: str | None = None,
        format_only: bool = False,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if rules not in RULES:
            raise ValueError(f"rules {rules!r} are unknown: use one of {', '.join(RULES)}")
        if format_only and outfile is None:
            raise ValueError("format_only=True needs outfile: where the actions are written")
        self.ann_file = ann_file
        self.subset = subset
        self.thresholds = thresholds
        self.nms = nms or {}
        self.block_list = block_list
        self.rules = rules
        self.video_classes = video_classes
        self.outfile = outfile
        self.format_only = format_only

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the predictions of windows.

        Args:
            data_batch: Not used.
            data_samples: With ``video_id`` and ``pred_instances``.
        """
        for sample in data_samples:
            found = sample["pred_instances"]
            kept = {key: found[key].cpu() for key in ("segments", "scores", "labels")}
            self.results.append((sample["video_id"], kept))

    def compute_metrics(self, results: list[tuple[str, dict]]) -> dict[str, float]:
        """Merge windows to videos and evaluate them.

        Args:
            results: (video, predictions) of every window.
        """
        windows: dict[str, list[InstanceData]] = defaultdict(list)
        for video, found in results:
            windows[video].append(InstanceData(**found))
        name = self._classifier() if self.video_classes else self._classes
        actions = {
            video: name(video, merge_windows(of_video, **self.nms))
            for video, of_video in windows.items()
        }
        if self.outfile is not None:
            text = json.dumps(submission(actions), indent=1)
            put_text(text, self.outfile, backend_args={"backend": "atomic_local"})
            print_log(f"{len(actions)} videos in {self.outfile}", logger="current")
        if self.format_only:
            return {}
        with get_local_path(self.ann_file) as path:
            database = read_database(Path(path))
        blocked = read_blocked(Path(self.block_list)) if self.block_list else frozenset()
        self._say_what_is_missing(database, blocked, actions)
        found = mean_average_precision(
            database, actions, self.subset, self.thresholds, blocked, self.rules
        )
        by_threshold = zip(self.thresholds, found["by_threshold"], strict=True)
        return {"mAP": found["mAP"]} | {f"mAP_{t:.2f}": float(value) for t, value in by_threshold}

    def _classes(self, video: str, found: InstanceData) -> list[dict]:
        names = self.dataset_meta["classes"]
        return actions_of(found, [names[label] for label in found.labels.tolist()])

    def _classifier(self) -> "VideoClasses":
        return VideoClasses(**self.video_classes)

    def _say_what_is_missing(
        self, database: Mapping[str, Mapping], blocked: Collection[str], actions: Mapping
    ) -> None:
        missing = [
            video
            for video, entry in database.items()
            if entry.get("subset") == self.subset and video not in blocked and video not in actions
        ]
        if missing:
            print_log(
                f"{len(missing):,} videos of {self.subset!r} were not predicted and count as "
                f"missed, {', '.join(missing[:5])} among them",
                logger="current",
            )


class VideoClasses:
    """The best classes of each video, from a file: see ``LocalizationMetric``."""

    def __init__(self, file: str, top: int = 2) -> None:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not {"class", "results"} <= content.keys():
            raise BadAnnotationError(
                f'{file} has to be an object with "class" (names) and "results" (video to scores)'
            )
        self.file, self.top = file, top
        self.names, self.scores = content["class"], content["results"]

    def __call__(self, video: str, found: InstanceData) -> list[dict]:
        """Actions of the best classes of ``video``."""
        scores = np.asarray(self.scores.get(video, ()), float)
        if scores.shape != (len(self.names),):
            raise ValueError(
                f"{self.file}: video {video} has {scores.size} scores of classes; expected "
                f"{len(self.names)}"
            )
        actions = []
        for label in (-scores).argsort(kind="stable")[: self.top]:
            of_class = actions_of(found, [self.names[label]] * len(found.scores))
            actions += [{**action, "score": action["score"] * scores[label]} for action in of_class]
        return actions


def actions_of(found: InstanceData, names: Sequence[str]) -> list[dict]:
    """Predictions as ``dict(label, segment, score)``, seconds and plain numbers."""
    columns = zip(names, found.segments.tolist(), found.scores.tolist(), strict=True)
    return [{"label": name, "segment": segment, "score": score} for name, segment, score in columns]


def submission(actions: Mapping[str, list[dict]]) -> dict:
    """ActivityNet's submission format."""
    return {"version": "VERSION 1.3", "results": dict(actions), "external_data": {}}
