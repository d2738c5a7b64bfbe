"""The actions of a video file: ActivityNet's submission format, and a timeline."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.structures import InstanceData
from torch import Tensor

from dr2net.openmmlab.loaders import of_the_test

from ..dataset import UNREADABLE, UnreadableVideoError, decode
from ..pictures import MOST_FRAMES
from ..prediction import ENDINGS, KIND, is_input
from ..transforms import DecordOpen
from .dataset import window_starts
from .localizer import ActionLocalizer
from .metric import actions_of, submission
from .pictures import by_label, draw_timeline
from .postprocessing import merge_windows

__all__ = ["ENDINGS", "KIND", "OPTIONS", "draw_item", "draw_tested", "is_input", "predictor"]

# The arguments of ``predictor`` that a command line gives.
OPTIONS = ("score_threshold",)
DRAWN_FROM = 0.3  # the lowest score that is drawn, where nothing else is said


def predictor(
    model: ActionLocalizer,
    config: Config,
    classes: list[str] | None,
    score_threshold: float = DRAWN_FROM,
) -> Callable[[Path, Path], dict]:
    """Return what predicts a video: given its file and a path for pictures, without an ending.

    It raises ValueError where the file cannot be read as a video. Its result is a submission in
    ActivityNet's format, of the one video by its name without an ending, with ``seconds`` and
    ``frames`` of the video beside it: all actions, best first. The picture shows the better ones.

    Args:
        model: A localizer, in eval mode.
        config: Its config, whose test says which windows are seen and how they are merged.
        classes: The names of its classes; None to name them by their numbers. Those of a model
            that tells no classes apart, whose classes come from elsewhere, are all "action".
        score_threshold: Actions of lower scores are not drawn.
    """
    find = finder(model, config, classes)

    def predict(file: Path, target: Path) -> dict:
        shown, frames, seconds = _open(file)
        actions = find(file, seconds)
        drawn = [action for action in actions if action["score"] >= score_threshold]
        draw_timeline(
            target.with_name(f"{target.name}.png"),
            by_label(drawn),
            shown,
            (0.0, seconds),
            f"{file.name}: {seconds:.1f} s, {len(drawn)} actions of {score_threshold:g} or better",
        )
        about = {"seconds": round(seconds, 3), "frames": frames}
        return about | submission({file.stem: actions})

    return predict


def finder(
    model: ActionLocalizer, config: Config, classes: Sequence[str] | None
) -> Callable[[Path, float], list[dict]]:
    """Return what finds the actions of a video, given its file and its seconds.

    It returns ``dict(label, segment, score)``, best first, and raises ValueError where the video
    cannot be read. The arguments are those of ``predictor``.
    """
    dataset = of_the_test(config.get("test_dataloader"))
    transforms = Compose(dataset.pipeline).transforms
    evaluator = config.test_evaluator
    metrics = evaluator if isinstance(evaluator, Sequence) else [evaluator]
    merging = next((metric.nms for metric in metrics if metric.get("nms")), {})
    names = class_names(classes, model.head.num_classes)

    def find(file: Path, seconds: float) -> list[dict]:
        given = {
            "filename": str(file),
            "video_id": file.stem,
            "duration": seconds,
            "segments": np.zeros((0, 2)),
            "labels": np.zeros(0, np.int64),
            "modality": "RGB",
            "start_index": 0,
        }
        window = dataset.get("window")
        starts = [{"first": n} for n in window_starts(seconds, **window)] if window else [{}]
        windows = [_of_window(model, {**given, **start}, transforms) for start in starts]
        found = merge_windows(windows, **merging)
        return actions_of(found, [names[label] for label in found.labels.tolist()])

    return find


def class_names(classes: Sequence[str] | None, count: int) -> list[str]:
    """Return a name for each of ``count`` labels, as in ``predictor``."""
    if count == 1 and len(classes or ()) != 1:
        return ["action"]
    return [_name(classes, label) for label in range(count)]


def _name(classes: Sequence[str] | None, label: int) -> str:
    return classes[label] if classes and label < len(classes) else f"class {label}"


def _open(file: Path) -> tuple[np.ndarray, int, float]:
    """Frames evenly over a video, (frames, H, W, 3) uint8 RGB; how many it has, and its seconds.

    Raises:
        ValueError: It cannot be read as a video.
    """
    try:
        opened = DecordOpen()({"filename": str(file)})
        total, rate = opened["total_frames"], opened["avg_fps"]
        if not rate > 0:
            raise ValueError(f"it has a frame rate of {rate}")
        middles = (np.arange(MOST_FRAMES) + 0.5) * total / MOST_FRAMES
        return opened["video_reader"].get_batch(middles.astype(int)).asnumpy(), total, total / rate
    except UNREADABLE as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"it cannot be read: {reason[-1]}: is it a whole video?") from error


def _of_window(model: ActionLocalizer, given: dict, transforms: Sequence[Callable]) -> InstanceData:
    """Predictions of one window of a video.

    Raises:
        ValueError: The video cannot be read, or a score is no finite number.
    """
    try:
        packed, following = decode(given, list(transforms), "it")
    except UnreadableVideoError as error:
        raise ValueError(f"{error}: is it a whole video?") from error
    for transform in following:
        packed = transform(packed)
    with torch.no_grad():
        (sample,) = model.test_step(pseudo_collate([packed]))
    found = sample.pred_instances
    if not all(values.isfinite().all() for values in (found.scores, found.segments)):
        raise ValueError("the network returned NaN or infinity, which is no prediction")
    return found


def name_of(sample: Any) -> str:
    """Return what the picture of a tested window is called."""
    return f"{sample.video_id}_{sample.start:.1f}s"


def draw_tested(
    sample: Any, batch: dict, number: int, classes: list[str] | None, target: Path
) -> None:
    """Write ``<target>.png`` of a tested window: what was annotated, and what is found.

    Args:
        sample: What the model returned, with ``pred_instances``.
        batch: What it was given.
        number: Of the window in the batch.
        classes: The names of the classes; None to name them by their numbers.
        target: A path without an ending.
    """
    found = sample.pred_instances.cpu()
    # Of the window alone; overlapping predictions are merged when whole videos are evaluated.
    merged = merge_windows([found])
    merged = merged[merged.scores >= DRAWN_FROM]
    lanes = {
        "annotated": _actions(sample.gt_instances, sample, classes),
        "found": _actions(merged, sample, classes),
    }
    _draw_window(target, lanes, batch["inputs"][number], sample)


def draw_item(item: Any, classes: list[str] | None, target: Path) -> None:
    """Write ``<target>.png`` of an item of a data set: frames as a network gets them, and actions.

    Args:
        item: From a dataset.
        classes: The names of the classes; None to name them by their numbers.
        target: A path without an ending.
    """
    sample = item["data_samples"]
    lanes = by_label(_actions(sample.gt_instances, sample, classes))
    _draw_window(target, lanes, item["inputs"], sample)


def _actions(instances: InstanceData, sample: Any, classes: Sequence[str] | None) -> list[dict]:
    """Annotated or predicted instances of a sample as actions."""
    labels = instances.labels.tolist()
    names = ["action" if sample.class_agnostic else _name(classes, label) for label in labels]
    scores = instances.scores.tolist() if "scores" in instances else [None] * len(labels)
    return [
        {"label": name, "segment": segment} | ({} if score is None else {"score": score})
        for name, segment, score in zip(names, instances.segments.tolist(), scores, strict=True)
    ]


def _draw_window(target: Path, lanes: dict, inputs: Tensor, sample: Any) -> None:
    chunks = inputs.permute(0, 2, 3, 4, 1).flatten(0, 1).cpu().numpy().astype(np.uint8)
    chunks = chunks[: sample.valid_frames]  # without the padding
    time = sample.start, sample.start + sample.valid_frames * sample.frame_seconds
    draw_timeline(target.with_name(f"{target.name}.png"), lanes, chunks, time, target.name)
