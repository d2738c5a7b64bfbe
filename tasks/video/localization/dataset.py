"""Untrimmed videos with annotated actions, THUMOS14 and ActivityNet-1.3, as videos."""

from collections.abc import Callable, Collection
from math import ceil
from pathlib import Path

import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ..dataset import VideoListDataset
from .annotations import (
    BadAnnotationError,
    clean,
    read_blocked,
    read_classes,
    read_database,
    settle,
)
from .average_precision import without_repetitions


@DATASETS.register_module()
class LocalizationDataset(VideoListDataset):
    """Dataset over ActivityNet's ``database`` format (``annotations``).

    An item is a whole video, from which the pipeline takes what it trains on, or, with ``window``,
    one of the windows that slide over it. Videos without annotations train nothing and are left
    out in training. Videos that are missing, damaged or shorter than annotated are replaced in
    training and named by ``UnreadableVideosHook``; in ``test_mode`` they are errors.

    Args:
        ann_file: The annotation file.
        class_file: One class name a line.
        subset: Which subset of the annotation file.
        pipeline: Transforms: one of ``SampleWindow`` and ``SampleWholeVideo``, one that decodes.
        data_prefix: ``dict(video=FOLDER)``.
        file_name: The video's file in the folder, ``{}`` standing for its name in the annotations.
        block_list: A file of videos that are left out, or None.
        window: ``dict(num_frames, frame_rate, overlap)``: windows of so many frames at so many
            frames per second, which share ``overlap`` of their length with the next. The last one
            ends with the video.
        class_agnostic: All labels are 0: proposals, for classes that come from elsewhere.
        ignored_labels: Labels that are no classes and left out ("Ambiguous" of THUMOS14).
        shortest: Annotations of at most this share of their video are not trained on.
        bad_input: "strict": annotations that are wrong are an error; "skip": they are left out,
            named and counted.
        test_mode: A video that cannot be read is an error.
        **kwargs: As in ``VideoListDataset``.

    Raises:
        FileNotFoundError: A file or the folder does not exist.
        BadAnnotationError: A file is not of its format; the subset has no video; there is
            something wrong and ``bad_input`` is "strict".
        UnreadableVideoError: On indexing, as in ``VideoListDataset``.
    """

    def __init__(
        self,
        ann_file: str,
        class_file: str,
        subset: str,
        pipeline: list[dict | Callable],
        data_prefix: dict | None = None,
        file_name: str = "{}.mp4",
        block_list: str | None = None,
        window: dict | None = None,
        class_agnostic: bool = False,
        ignored_labels: Collection[str] = (),
        shortest: float = 0.0,
        bad_input: str = "strict",
        test_mode: bool = False,
        data_root: str = "",
        **kwargs: object,
    ) -> None:
        self.subset = subset
        self.file_name = file_name
        self.window = window
        self.class_agnostic = class_agnostic
        self.ignored_labels = ignored_labels
        self.shortest = shortest
        self.bad_input = bad_input
        root = Path(data_root or "")
        self.block_list = root / block_list if block_list else None
        classes = read_classes(root / class_file)
        super().__init__(
            ann_file,
            pipeline,
            data_prefix,
            test_mode=test_mode,
            data_root=data_root,
            metainfo={"classes": classes},
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Parse the annotation file; see the class for what is left out."""
        path, folder = Path(self.ann_file), Path(self.data_prefix["video"])
        whole = read_database(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}, the folder of the videos of {path}, does not exist")
        blocked = read_blocked(self.block_list) if self.block_list else frozenset()
        database = {
            video: entry
            for video, entry in whole.items()
            if entry.get("subset") == self.subset and video not in blocked
        }
        if not database:
            subsets = sorted({str(entry.get("subset")) for entry in whole.values()})
            raise BadAnnotationError(
                f"{path} has no video in the subset {self.subset!r} that is not blocked; its "
                f"subsets are {', '.join(subsets) or 'none'}"
            )
        classes = self.metainfo["classes"]
        database, findings = clean(database, classes, self.ignored_labels)
        settle(findings, self.bad_input, path)
        items, empty = [], 0
        for video, entry in database.items():
            found = self._item(video, entry, folder, classes)
            if len(found["labels"]) or self.test_mode:
                items.extend(self._windows(found))
            else:
                empty += 1
        if empty:
            print_log(f"{path}: {empty:,} videos have no action to train on", logger="current")
        if not items:
            raise BadAnnotationError(f"{path}: no video of {self.subset!r} has an action")
        return items

    def _item(self, video: str, entry: dict, folder: Path, classes: Collection[str]) -> dict:
        duration = float(entry["duration"])
        found = [
            annotation
            for annotation in without_repetitions(entry["annotations"])
            if np.ptp(annotation["segment"]) > self.shortest * duration
        ]
        labels = [classes.index(annotation["label"]) for annotation in found]
        return {
            "filename": str(folder / self.file_name.format(video)),
            "video_id": video,
            "duration": duration,
            "segments": np.array([a["segment"] for a in found], float).reshape(-1, 2),
            "labels": np.array([0] * len(labels) if self.class_agnostic else labels, np.int64),
            "class_agnostic": self.class_agnostic,
        }

    def _windows(self, item: dict) -> list[dict]:
        if self.window is None:
            return [item]
        firsts = window_starts(item["duration"], **self.window)
        return [{**item, "first": first} for first in firsts]

    def _place(self, results: dict) -> str:
        return f"video {results['video_id']}"


def count_samples(duration: float, frame_rate: float) -> int:
    """How many samples, ``frame_rate`` a second and the first at 0, a video has."""
    return max(1, ceil(round(duration * frame_rate, 6)))


def window_starts(duration: float, num_frames: int, frame_rate: float, overlap: float) -> list[int]:
    """The first samples of windows that slide over a video of so many seconds, to its end.

    Args:
        duration: Seconds of the video.
        num_frames: Samples of a window.
        frame_rate: Samples a second.
        overlap: Share of a window that the next one has too.
    """
    step = max(1, int(num_frames * (1 - overlap)))
    last = max(0, count_samples(duration, frame_rate) - num_frames)
    return [*range(0, last, step), last]
