"""Videos listed in an annotation file: Kinetics and Something-Something V2 in OpenMMLab's layout.

mmaction2's ``VideoDataset`` splits an annotation line at every space, accepts any label, and stops
a training run at the first video that cannot be read. This one names what is wrong with a line,
replaces an unreadable video in training by another (``UnreadableVideosHook`` names and counts
them), and stops at one in validation and test, where a replacement would falsify the result.
"""

import logging
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import decord
import numpy as np
from mmaction.datasets import BaseActionDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from dr2net.openmmlab.random_state import sample_random_state

# What mmaction2's and our transforms raise where a file is missing, damaged or not a video.
UNREADABLE = (decord.DECORDError, OSError, RuntimeError, ValueError, IndexError)


class UnreadableVideoError(RuntimeError):
    """A video is missing, damaged or not a video."""


def decode(results: dict, transforms: list[Callable], where: str) -> tuple[dict, list[Callable]]:
    """Run the transforms of a pipeline until one has decoded the video, whatever it is called.

    Returns:
        The item, which has ``imgs``, and the transforms that come after.

    Raises:
        UnreadableVideoError: The video cannot be read; the message begins with ``where``.
        ValueError: None of the transforms decodes.
    """
    try:
        for number, transform in enumerate(transforms, start=1):
            results = transform(results)
            if "imgs" in results:
                return results, transforms[number:]
    except UNREADABLE as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UnreadableVideoError(f"{where} cannot be read: {reason[-1]}") from error
    except KeyError as error:
        if error.args[0] not in ("imgs", "img_shape"):  # what decoding gives
            raise
    raise ValueError(
        "the pipeline decodes nothing: it needs one like dict(type='DecordDecode'), "
        f"got {[type(transform).__name__ for transform in transforms]}"
    )


@DATASETS.register_module()
class VideoListDataset(BaseActionDataset):
    """Dataset over an annotation file of lines ``relative/path.mp4 label``.

    The path may contain spaces; the last word of the line is the label, counted from 0. Blank
    lines are passed over.

    Args:
        ann_file: The annotation file.
        pipeline: Transforms, of which one decodes the video: from there on items have ``imgs``.
        data_prefix: ``dict(video=FOLDER)``, the folder that the paths are relative to.
        num_classes: Labels are checked to lie in ``0 .. num_classes - 1``; None checks only that
            they are not negative, or lie below the number of ``metainfo``'s ``classes``.
        labels: False for a test set without labels, whose lines are paths alone.
        num_repeats: Repeated augmentation (Hoffer et al., arXiv 1901.09335): a video is decoded
            once and what follows the decoding is drawn ``num_repeats`` times. An item is then a
            list of that length; use it with ``collate_fn=dict(type="repeat_pseudo_collate")``.
        max_replacements: How many unreadable videos in a row end a training run.
        test_mode: An unreadable video is an error instead of being replaced, and the data sample
            has the video's ``filename``.
        **kwargs: The remaining arguments of mmengine's ``BaseDataset``.

    Raises:
        FileNotFoundError: The annotation file or the video folder does not exist.
        ValueError: An annotation line does not parse or its label is out of range; the annotation
            file is empty. On indexing: the pipeline decodes nothing.
        UnreadableVideoError: On indexing; see ``test_mode`` and ``max_replacements``.
    """

    def __init__(
        self,
        ann_file: str,
        pipeline: list[dict | Callable],
        data_prefix: dict | None = None,
        num_classes: int | None = None,
        labels: bool = True,
        num_repeats: int = 1,
        max_replacements: int = 10,
        test_mode: bool = False,
        **kwargs: object,
    ) -> None:
        if not labels and not test_mode:
            raise ValueError("labels=False is for tests: training needs labels")
        self.labels = labels
        self.num_repeats = num_repeats
        self.max_replacements = max_replacements
        super().__init__(
            ann_file,
            pipeline=pipeline,
            data_prefix=data_prefix or {"video": ""},
            num_classes=num_classes,
            test_mode=test_mode,
            **kwargs,
        )

    def missing_files(self) -> list[str]:
        """Return the listed videos that do not exist, with where they are listed."""
        self.full_init()
        folders: dict[Path, set[Path]] = {}
        missing = []
        for index in range(len(self)):
            item = self.get_data_info(index)
            # A list of each folder is quicker than a look at each file, on network file systems.
            path = Path(item["filename"])
            if path.parent not in folders:
                folders[path.parent] = set(path.parent.iterdir()) if path.parent.is_dir() else set()
            if path not in folders[path.parent]:
                missing.append(f"{path} ({self.ann_file}, {self._place(item)})")
        return list(dict.fromkeys(missing))  # a video may be listed more than once

    def load_data_list(self) -> list[dict]:
        """Parse the annotation file into ``dict(filename, label, line)`` items."""
        annotation, folder = Path(self.ann_file), Path(self.data_prefix["video"])
        for path, found in ((annotation, annotation.is_file()), (folder, folder.is_dir())):
            if not found:
                raise FileNotFoundError(
                    f"{path} does not exist. Expected are an annotation file, {annotation}, of "
                    f"lines 'relative/path.mp4 label' and a folder, {folder}, that the paths are "
                    "relative to; docs/video.md says how to prepare them."
                )
        # Paths are bytes to the system: an undecodable one is passed on as it is.
        with annotation.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            data_list = [
                self._parse(line.strip(), number)
                for number, line in enumerate(lines, start=1)
                if line.strip()
            ]
        if not data_list:
            raise ValueError(f"annotation file {annotation} lists no video")
        found = {item["label"] for item in data_list}
        self.highest_label = max(found)
        count = self._count()
        if not self.test_mode and count is not None and len(found) < count:
            print_log(
                f"{annotation} has videos of {len(found)} of the {count} classes, labels up to "
                f"{self.highest_label}. If there are no others, say so at the top of the config: "
                "classes = FILE with a name a line, a list of names, or their number",
                logger="current",
                level=logging.WARNING,
            )
        return data_list

    def _count(self) -> int | None:
        classes = self.metainfo.get("classes")
        return len(classes) if classes else self.num_classes

    def _parse(self, line: str, number: int) -> dict:
        if not self.labels:
            filename = str(Path(self.data_prefix["video"]) / line)
            return {"filename": filename, "label": -1, "line": number}
        path, _, label = line.replace("\t", " ").rpartition(" ")
        where = f"{self.ann_file}, line {number}"
        if not path or not label.isdecimal():
            raise ValueError(f"{where}: expected 'relative/path.mp4 label', got {line!r}")
        count = self._count()
        if count is not None and int(label) >= count:
            raise ValueError(f"{where}: label {label} is not in 0 .. {count - 1}, got {line!r}")
        filename = str(Path(self.data_prefix["video"]) / path.rstrip())
        return {"filename": filename, "label": int(label), "line": number}

    def __getitem__(self, index: int) -> dict | list[dict]:
        """Return one sample, or ``num_repeats`` of it; the data sample lists what it replaced."""
        self.full_init()
        with sample_random_state(index):
            (decoded, augmentation), unreadable = self._decode_or_replace(int(index))
            samples = [self._augment(decoded, augmentation) for _ in range(self.num_repeats)]
        if self.test_mode:
            samples[0]["data_samples"].set_metainfo({"filename": decoded["filename"]})
        if unreadable:
            samples[0]["data_samples"].set_metainfo({"unreadable_videos": unreadable})
        return samples[0] if self.num_repeats == 1 else samples

    def _decode_or_replace(self, index: int) -> tuple[tuple[dict, list], list[str]]:
        unreadable: list[str] = []
        while True:
            try:
                return self._decode(index), unreadable
            except UnreadableVideoError as error:
                if self.test_mode:
                    raise
                unreadable.append(str(error))
            if len(unreadable) == self.max_replacements:
                raise UnreadableVideoError(
                    f"{len(unreadable)} videos in a row cannot be read; are the videos complete, "
                    f"in {self.data_prefix['video']}?\n" + "\n".join(unreadable)
                )
            index = np.random.randint(len(self))  # noqa: NPY002 - seeded by sample_random_state

    def _decode(self, index: int) -> tuple[dict, list]:
        info = self.get_data_info(index)
        where = f"{info['filename']} ({self.ann_file}, {self._place(info)})"
        return decode(info, self.pipeline.transforms, where)

    def _place(self, results: dict) -> str:
        """Where in the annotation file a video stands."""
        return f"line {results['line']}"

    def _augment(self, decoded: dict, transforms: list) -> dict:
        results = deepcopy(decoded) if self.num_repeats > 1 else decoded
        for transform in transforms:
            results = transform(results)
        return results
