"""Figures of a confusion matrix, and its file."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def figures(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Compute the figures of S3DIS's tables, between 0 and 1.

    A class that no point has and none is predicted as has no IoU and is left out of mIoU; one that
    is predicted though no point has it counts with 0. mAcc is the mean over the classes that some
    point has. So do scikit-learn's ``jaccard_score`` and ``recall_score`` and mmdetection3d's
    ``seg_eval``. (openpoints counts a missing class as 1, Pointcept as 0. Area 5 lacks none.)

    Args:
        confusion: Numbers of points, (C, C), by true class (rows) and predicted class.
        classes: Their names.

    Returns:
        ``mIoU``, ``mAcc``, ``OA``, and ``IoU_<class>`` and ``Acc_<class>`` of every class, NaN
        where there is none.
    """
    hit = np.diag(confusion).astype(np.float64)
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        iou, accuracy = hit / (true + predicted - hit), hit / true
    values = {
        "mIoU": _mean(iou),
        "mAcc": _mean(accuracy),
        "OA": float(hit.sum() / confusion.sum()) if confusion.sum() else float("nan"),
    }
    for name, numbers in (("IoU", iou), ("Acc", accuracy)):
        values |= {f"{name}_{c}": float(v) for c, v in zip(classes, numbers, strict=True)}
    return values


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")


def class_table(confusion: np.ndarray, classes: Sequence[str]) -> str:
    """Format the figures as a table in percent, a line for each class and one for the means."""
    values = figures(confusion, classes)
    true = confusion.sum(axis=1)
    lines = [f"{'class':<10} {'IoU (%)':>8} {'Acc (%)':>8} {'points':>12}"]
    for name, count in zip(classes, true.tolist(), strict=True):
        iou, accuracy = (_percent(values[f"{figure}_{name}"]) for figure in ("IoU", "Acc"))
        lines.append(f"{name:<10} {iou:>8} {accuracy:>8} {count:>12,}")
    lines.append(
        f"{'mean':<10} {_percent(values['mIoU']):>8} {_percent(values['mAcc']):>8} "
        f"{int(true.sum()):>12,}   OA {_percent(values['OA'])} %"
    )
    return "\n".join(lines)


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def write_confusion(
    file: Path, confusion: np.ndarray, classes: Sequence[str], kind: str, rooms: Sequence[str]
) -> None:
    """Write a confusion matrix as JSON, with what it was counted on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "kind": kind,
        "rooms": sorted(rooms),
        "classes": list(classes),
        "confusion": confusion.tolist(),
    }
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(content) + "\n")
    partial.replace(file)
