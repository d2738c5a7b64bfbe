"""The classes of a video file, over all of it and clip by clip, as numbers and as a picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmaction.models.recognizers.base import BaseRecognizer
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from torch import Tensor

from dr2net.openmmlab.loaders import of_the_test

from .dataset import UnreadableVideoError, decode
from .pictures import draw_frames, draw_prediction

KIND = "video"
ENDINGS = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv")
# The arguments of ``predictor`` that a command line gives.
OPTIONS = ("top", "clips")


def is_input(path: Path) -> bool:
    """Whether a path is that of a video, by its ending."""
    return path.suffix.lower() in ENDINGS and path.is_file()


def predictor(
    model: BaseRecognizer,
    config: Config,
    classes: list[str] | None,
    top: int = 5,
    clips: int | None = None,
) -> Callable[[Path, Path], dict]:
    """Return what predicts a video: given its file and a path for pictures, without an ending.

    It raises ValueError where the file cannot be read as a video. Its result has ``seconds`` and
    ``frames`` of the video, ``classes``, the best of them over all clips of the test pipeline, and
    ``clips``, from when to when each is (seconds) and its best class.

    Args:
        model: A recognizer with a ``cls_head``, in eval mode.
        config: Its config, whose test pipeline says what clips and crops are taken.
        classes: The names of its classes; None to name them by their numbers.
        top: How many of the best classes are told.
        clips: How many clips are taken, evenly over the video; None for as many as in tests.

    Raises:
        ValueError: The model is no recognizer of videos.
    """
    if not isinstance(model, BaseRecognizer) or not hasattr(model, "cls_head"):
        raise ValueError(
            f"{type(model).__name__} is no recognizer with a cls_head: only those are used"
        )
    # decord ends the whole process over some damaged files where it is given their bytes.
    pipeline = [
        dict(step, type="DecordOpen") if step["type"].endswith("DecordInit") else dict(step)
        for step in of_the_test(config.get("test_dataloader")).pipeline
    ]
    for step in pipeline:
        if step["type"] == "DecordOpen":
            step.pop("io_backend", None)
        if clips is not None and "num_clips" in step:
            step["num_clips"] = clips
    transforms = Compose(pipeline).transforms

    def name(label: int) -> str:
        return classes[label] if classes and label < len(classes) else f"class {label}"

    def predict(file: Path, target: Path) -> dict:
        given = {"filename": str(file), "label": -1, "start_index": 0, "modality": "RGB"}
        try:
            decoded, following = decode(given, transforms, "it")
        except UnreadableVideoError as error:
            raise ValueError(f"{error}: is it a whole video?") from error
        frames, at = decoded["imgs"], np.asarray(decoded["frame_inds"]).reshape(-1)
        seconds_of = 1 / max(float(decoded.get("avg_fps") or 0), 1e-3)
        length = decoded["total_frames"]
        packed = decoded
        for transform in following:
            packed = transform(packed)
        overall, by_clip = clip_scores(model, packed, decoded["num_clips"])
        parts = [
            {
                "from": round(float(inside[0] * seconds_of), 3),
                "to": round(float((inside[-1] + 1) * seconds_of), 3),
                "label": int(scores.argmax()),
                "class": name(int(scores.argmax())),
                "score": float(scores.max()),
            }
            for inside, scores in zip(np.split(at, len(by_clip)), by_clip, strict=True)
        ]
        best = overall.topk(min(top, len(overall)))
        ranked = [
            {"label": label, "class": name(label), "score": score}
            for label, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        draw_prediction(
            target.with_name(f"{target.name}.png"),
            frames,
            at * seconds_of,
            ranked,
            parts,
            f"{file.name}: {length} frames, {length * seconds_of:.1f} s",
        )
        return {
            "seconds": round(length * seconds_of, 3),
            "frames": length,
            "classes": ranked,
            "clips": parts,
        }

    return predict


def clip_scores(model: Any, packed: dict, num_clips: int) -> tuple[Tensor, Tensor]:
    """Test a video, and keep what is said of each clip.

    Args:
        model: A recognizer.
        packed: A video after its test pipeline.
        num_clips: Of how many clips; each of them comes in some crops.

    Returns:
        Probabilities over all, (classes,), averaged as the head's ``average_clips`` says; and of
        every clip, averaged over its crops, (clips, classes), where the model gives them, else
        (1, classes).
    """
    head = model.cls_head
    averaging, head.average_clips = head.average_clips, None
    try:
        with torch.no_grad():
            (sample,) = model.test_step(pseudo_collate([packed]))
    finally:
        head.average_clips = averaging
    # One row a view: for every crop all clips.
    views = sample.pred_score.float().cpu().reshape(-1, sample.pred_score.shape[-1])
    if not views.isfinite().all():
        raise ValueError("the network returned NaN or infinity, which is no prediction")
    probabilities = views.softmax(dim=1)
    overall = views.mean(dim=0).softmax(dim=0) if averaging == "score" else probabilities.mean(0)
    if len(views) % num_clips:
        return overall, overall[None]
    return overall, probabilities.reshape(-1, num_clips, views.shape[1]).mean(dim=0)


def name_of(sample: Any) -> str:
    """Return what the picture of a tested video is called."""
    return Path(sample.get("filename", "video")).stem


def draw_tested(
    sample: Any, batch: dict, number: int, classes: list[str] | None, target: Path
) -> None:
    """Write ``<target>.png`` of a tested video: frames as the network got them, best classes.

    Args:
        sample: What the model returned, with ``pred_score``.
        batch: What it was given.
        number: Of the video in the batch.
        classes: The names of the classes; None to name them by their numbers.
        target: A path without an ending.
    """
    frames = list(_clips(batch["inputs"][number])[0])
    best = sample.pred_score.float().cpu().topk(min(5, sample.pred_score.numel()))
    ranked = [
        {"class": classes[label] if classes else f"class {label}", "score": score}
        for label, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    true = sample.gt_label.flatten().tolist() if "gt_label" in sample else []
    said = [(classes[n] if classes else f"class {n}") for n in true if n >= 0]
    title = target.name + (f": {', '.join(said)}" if said else "")
    file = target.with_name(f"{target.name}.png")
    draw_prediction(file, frames, None, ranked, ranked[:1], title)


def draw_item(item: Any, classes: list[str] | None, target: Path) -> None:
    """Write ``<target>.png`` of an item of a data set: the frames that a network gets.

    Args:
        item: From a dataset; with repeated augmentation a list of what became of one video.
        classes: The names of the classes; None to name them by their numbers.
        target: A path without an ending.
    """
    repeats = item if isinstance(item, list) else [item]
    clips, titles = [], []
    for repeat in repeats:
        label = int(repeat["data_samples"].gt_label.flatten()[0])
        for clip in _clips(repeat["inputs"]):
            clips.append(clip)
            titles.append(classes[label] if classes else f"class {label}")
    draw_frames(target.with_name(f"{target.name}.png"), clips, titles)


def _clips(inputs: Tensor) -> list[np.ndarray]:
    """Return clips, (T, H, W, 3) uint8 each, of (clips, 3, T, H, W) or frames (T, 3, H, W)."""
    clips = inputs.permute(0, 2, 3, 4, 1) if inputs.ndim == 5 else inputs.permute(0, 2, 3, 1)[None]
    return list(clips.cpu().numpy().astype(np.uint8))
