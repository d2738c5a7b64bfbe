"""Which frames of a video a model sees, and when they are: everything in seconds.

Both samplers set ``frame_inds`` (with ``num_clips`` chunks of ``clip_len`` frames, which is what
the backbone takes at once), ``start`` (seconds of the first sample), ``frame_seconds`` (from one
sample to the next) and ``valid_frames`` (samples that are not padding).
"""

from collections.abc import Sequence

import numpy as np
import torch
from mmaction.structures import ActionDataSample
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from mmengine.structures import InstanceData

from .dataset import count_samples

# Seconds, and share of the annotated duration, by which a file may be shorter than annotated:
# durations are rounded, and videos were encoded again.
SHORTER = (1.0, 0.02)
# Draws of a training window; then one without an action is taken, as ActionFormer does.
TRIES = 200


def check_duration(results: dict) -> None:
    """Compare an opened video, ``total_frames`` and ``avg_fps``, with its annotated ``duration``.

    Raises:
        ValueError: The file is shorter than annotated, or does not say its frame rate.
    """
    if not results["avg_fps"] > 0:
        raise ValueError(f"it has a frame rate of {results['avg_fps']}")
    seconds = results["total_frames"] / results["avg_fps"]
    duration = results["duration"]
    if seconds < duration - max(SHORTER[0], SHORTER[1] * duration):
        raise ValueError(f"it has {seconds:.1f} s, and its annotations are of {duration:.1f} s")


class _Sampler(BaseTransform):
    """What both samplers share: checks of the video, and chunks."""

    def __init__(self, num_frames: int, chunk_frames: int = 16) -> None:
        if num_frames < 1 or num_frames % chunk_frames:
            raise ValueError(
                f"num_frames {num_frames} has to be a positive multiple of the {chunk_frames} "
                "frames of a chunk"
            )
        self.num_frames = num_frames
        self.chunk_frames = chunk_frames

    def _frames(self, results: dict, seconds: np.ndarray) -> np.ndarray:
        """The frames of the file at these seconds."""
        check_duration(results)
        total, rate = results["total_frames"], results["avg_fps"]
        return np.clip(np.rint(seconds * rate), 0, total - 1).astype(np.int64)

    def _finish(self, results: dict, frames: np.ndarray, **where: float) -> dict:
        return {
            **results,
            **where,
            "frame_inds": frames,
            "clip_len": self.chunk_frames,
            "num_clips": self.num_frames // self.chunk_frames,
            "frame_interval": 1,
            "num_frames": self.num_frames,
        }


@TRANSFORMS.register_module()
class SampleWindow(_Sampler):
    """A window of frames at a fixed rate: the one the item names, or a random one (training).

    A random window holds at least ``completeness`` of an action, if one can be found; actions of
    which it holds less are not trained on, others are cut at its ends. The last frame is repeated
    where the video is shorter than the window.

    Args:
        num_frames: Samples of a window.
        frame_rate: Samples per second.
        completeness: Share of an action that has to lie within a random window.
        crop_ratio: A video that fits into the window is cut to a random share of its length, as
            augmentation, between these two; None leaves it whole.
        chunk_frames: Frames of a chunk.
    """

    def __init__(
        self,
        num_frames: int,
        frame_rate: float,
        completeness: float = 0.75,
        crop_ratio: Sequence[float] | None = (0.9, 1.0),
        chunk_frames: int = 16,
    ) -> None:
        super().__init__(num_frames, chunk_frames)
        self.frame_rate = frame_rate
        self.completeness = completeness
        self.crop_ratio = crop_ratio

    def transform(self, results: dict) -> dict:
        """Sample frames of ``results["first"]``, or at random."""
        count = count_samples(results["duration"], self.frame_rate)
        if "first" in results:
            first = results["first"]
            length = min(self.num_frames, count - first)
        else:
            first, length = self._draw(results, count)
        samples = first + np.minimum(np.arange(self.num_frames), length - 1)
        frames = self._frames(results, samples / self.frame_rate)
        return self._finish(
            results,
            frames,
            start=first / self.frame_rate,
            frame_seconds=1 / self.frame_rate,
            valid_frames=length,
        )

    def _draw(self, results: dict, count: int) -> tuple[int, int]:
        """First sample and length of a random window; the actions are cut to it."""
        length = min(self.num_frames, count)
        if count <= self.num_frames and self.crop_ratio is not None:
            low, high = (max(1, round(ratio * count)) for ratio in self.crop_ratio)
            length = np.random.randint(low, min(high, count) + 1)  # noqa: NPY002
        segments = results["segments"]
        for _ in range(TRIES):
            first = np.random.randint(count - length + 1)  # noqa: NPY002
            ends = np.array([first, first + length]) / self.frame_rate
            cut = segments.clip(*ends)
            inside = np.ptp(cut, axis=1) >= self.completeness * np.ptp(segments, axis=1)
            if inside.any():
                break
        results["segments"], results["labels"] = cut[inside], results["labels"][inside]
        return first, length

    def __repr__(self) -> str:
        return (
            f"SampleWindow(num_frames={self.num_frames}, frame_rate={self.frame_rate}, "
            f"completeness={self.completeness}, crop_ratio={self.crop_ratio})"
        )


@TRANSFORMS.register_module()
class SampleWholeVideo(_Sampler):
    """As many frames as asked for, spread evenly over the whole video.

    Args:
        num_frames: Samples of a video, each at the middle of its share of it.
        chunk_frames: Frames of a chunk.
    """

    def transform(self, results: dict) -> dict:
        """Sample frames."""
        each = results["total_frames"] / results["avg_fps"] / self.num_frames
        middles = (np.arange(self.num_frames) + 0.5) * each - 0.5 / results["avg_fps"]
        return self._finish(
            results,
            self._frames(results, middles),
            start=0.0,
            frame_seconds=results["duration"] / self.num_frames,
            valid_frames=self.num_frames,
        )

    def __repr__(self) -> str:
        return f"SampleWholeVideo(num_frames={self.num_frames})"


@TRANSFORMS.register_module()
class PackWindow(BaseTransform):
    """Make tensors: ``inputs``, uint8 (chunks, 3, frames, height, width), and a data sample.

    The data sample has ``gt_instances`` of ``segments`` (actions, 2), seconds of the video, and
    ``labels``; what ``META`` names is its metainfo, and whether labels are ``class_agnostic``.
    """

    META = ("video_id", "duration", "start", "frame_seconds", "valid_frames", "num_frames")

    def transform(self, results: dict) -> dict:
        """Pack ``imgs``, ``segments`` and ``labels``."""
        about = {key: results[key] for key in self.META}
        about["class_agnostic"] = results.get("class_agnostic", False)
        sample = ActionDataSample(metainfo=about)
        sample.gt_instances = InstanceData(
            segments=torch.tensor(results["segments"], dtype=torch.float32),
            labels=torch.tensor(results["labels"]),
        )
        return {"inputs": torch.from_numpy(results["imgs"]), "data_samples": sample}
