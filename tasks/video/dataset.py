"""Videos listed in an annotation file: Kinetics and Something-Something V2 in OpenMMLab's layout.

mmaction2's ``VideoDataset`` splits an annotation line at every space, accepts any label, and stops
a training run at the first video that cannot be read. This one names what is wrong with a line,
replaces an unreadable video in training by another (``UnreadableVideosHook`` names and counts
them), and stops at one in validation and test, where a replacement would falsify the result.
"""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import decord
import numpy as np
from mmaction.datasets import BaseActionDataset
from mmengine.registry import DATASETS

from dr2net.openmmlab.random_state import sample_random_state

# What mmaction2's and our transforms raise where a file is missing, damaged or not a video.
_UNREADABLE = (decord.DECORDError, OSError, RuntimeError, ValueError, IndexError)


class UnreadableVideoError(RuntimeError):
    """A video is missing, damaged or not a video."""


@DATASETS.register_module()
class VideoListDataset(BaseActionDataset):
    """Dataset over an annotation file of lines ``relative/path.mp4 label``.

    The path may contain spaces; the last word of the line is the label, counted from 0. Blank
    lines are passed over.

    Args:
        ann_file: The annotation file.
        pipeline: Transforms, of which one decodes the video (its type ends in ``Decode``).
        data_prefix: ``dict(video=FOLDER)``, the folder that the paths are relative to.
        num_classes: Labels are checked to lie in ``0 .. num_classes - 1``; None checks only that
            they are not negative.
        num_repeats: Repeated augmentation (Hoffer et al., arXiv 1901.09335): a video is decoded
            once and what follows the decoding is drawn ``num_repeats`` times. An item is then a
            list of that length; use it with ``collate_fn=dict(type="repeat_pseudo_collate")``.
        max_replacements: How many unreadable videos in a row end a training run.
        test_mode: An unreadable video is an error instead of being replaced.
        **kwargs: The remaining arguments of mmengine's ``BaseDataset``.

    Raises:
        FileNotFoundError: The annotation file or the video folder does not exist.
        ValueError: An annotation line does not parse or its label is out of range; the annotation
            file is empty; the pipeline decodes nothing.
        UnreadableVideoError: On indexing; see ``test_mode`` and ``max_replacements``.
    """

    def __init__(
        self,
        ann_file: str,
        pipeline: list[dict | Callable],
        data_prefix: dict | None = None,
        num_classes: int | None = None,
        num_repeats: int = 1,
        max_replacements: int = 10,
        test_mode: bool = False,
        **kwargs: object,
    ) -> None:
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
        transforms = self.pipeline.transforms
        decoders = [i for i, t in enumerate(transforms) if type(t).__name__.endswith("Decode")]
        if not decoders:
            raise ValueError(
                "the pipeline decodes nothing: it needs one like dict(type='DecordDecode'), "
                f"got {[type(t).__name__ for t in transforms]}"
            )
        self._decoding = transforms[: decoders[-1] + 1]
        self._augmentation = transforms[decoders[-1] + 1 :]

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
        return data_list

    def _parse(self, line: str, number: int) -> dict:
        path, _, label = line.replace("\t", " ").rpartition(" ")
        where = f"{self.ann_file}, line {number}"
        if not path or not label.isdecimal():
            raise ValueError(f"{where}: expected 'relative/path.mp4 label', got {line!r}")
        if self.num_classes is not None and int(label) >= self.num_classes:
            raise ValueError(
                f"{where}: label {label} is not in 0 .. {self.num_classes - 1}, got {line!r}"
            )
        filename = str(Path(self.data_prefix["video"]) / path.rstrip())
        return {"filename": filename, "label": int(label), "line": number}

    def __getitem__(self, index: int) -> dict | list[dict]:
        """Return one sample, or ``num_repeats`` of it; the data sample lists what it replaced."""
        self.full_init()
        with sample_random_state(index):
            decoded, unreadable = self._decode_or_replace(int(index))
            samples = [self._augment(decoded) for _ in range(self.num_repeats)]
        if unreadable:
            samples[0]["data_samples"].set_metainfo({"unreadable_videos": unreadable})
        return samples[0] if self.num_repeats == 1 else samples

    def _decode_or_replace(self, index: int) -> tuple[dict, list[str]]:
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

    def _decode(self, index: int) -> dict:
        results = self.get_data_info(index)
        try:
            for transform in self._decoding:
                results = transform(results)
        except _UNREADABLE as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UnreadableVideoError(
                f"{results['filename']} ({self.ann_file}, {self._place(results)}) "
                f"cannot be read: {reason[-1]}"
            ) from error
        return results

    def _place(self, results: dict) -> str:
        """Where in the annotation file a video stands."""
        return f"line {results['line']}"

    def _augment(self, decoded: dict) -> dict:
        results = deepcopy(decoded) if self.num_repeats > 1 else decoded
        for transform in self._augmentation:
            results = transform(results)
        return results
