"""Transforms of VideoMAE's recipe that mmaction2 lacks or does not do safely."""

import random
from pathlib import Path

import decord
import numpy as np
from mmaction.datasets.transforms import DecordInit
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from PIL import Image
from timm.data.auto_augment import rand_augment_transform


@TRANSFORMS.register_module()
class DecordOpen(DecordInit):
    """mmaction2's ``DecordInit`` that hands decord the path of a local file.

    ``DecordInit`` hands it the file's bytes, and decord 0.6.0 crashes the whole process on the
    bytes of a truncated AVI where it reads what is there from the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The video has no frames.
        RuntimeError: decord cannot open it.
    """

    def __init__(self, num_threads: int = 1) -> None:
        super().__init__(num_threads=num_threads)

    def _get_video_reader(self, filename: str) -> decord.VideoReader:
        if not Path(filename).is_file():
            raise FileNotFoundError("there is no such file")
        reader = decord.VideoReader(filename, num_threads=self.num_threads)
        if len(reader) == 0:
            raise ValueError("the video has no frames")
        return reader


@TRANSFORMS.register_module()
class ClipRandAugment(BaseTransform):
    """RandAugment (arXiv 1909.13719) with the same operations on every frame of a clip.

    The operations are timm's, as in VideoMAE, whose configuration string is taken as it is.

    Required and modified key: ``imgs``, a list of (H, W, 3) uint8 RGB arrays.

    Args:
        config: timm's configuration string, like ``rand-m7-n4-mstd0.5-inc1``.
        crop_size: Translations reach up to 0.45 of it, in pixels.
    """

    def __init__(self, config: str = "rand-m7-n4-mstd0.5-inc1", crop_size: int = 224) -> None:
        self.config = config
        self.crop_size = crop_size
        self._augment = rand_augment_transform(
            config,
            {
                "translate_const": int(crop_size * 0.45),
                "interpolation": Image.Resampling.BICUBIC,
            },
        )

    def transform(self, results: dict) -> dict:
        """Augment ``results["imgs"]``."""
        # timm draws operations, magnitudes and signs from these two as it goes through an image.
        states = random.getstate(), np.random.get_state()  # noqa: NPY002
        frames = []
        for frame in results["imgs"]:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            frames.append(np.array(self._augment(Image.fromarray(frame))))
        results["imgs"] = frames
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(config={self.config!r}, crop_size={self.crop_size})"
