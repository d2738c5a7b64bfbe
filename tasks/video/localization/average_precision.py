"""Mean average precision by temporal overlap, as it is published for THUMOS14 and ActivityNet-1.3.

The definition is that of ActivityNet's evaluator (Evaluation/eval_detection.py of
https://github.com/activitynet/ActivityNet), which ActionFormer and OpenTAD use for THUMOS14 too:
predictions of a class, best score first, each take the free annotation of their video that they
overlap most, if by the threshold at least; precision is interpolated over every recall (PASCAL VOC
2011); classes count alike, and so do thresholds.
"""

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

THUMOS14 = (0.3, 0.4, 0.5, 0.6, 0.7)
ACTIVITYNET = tuple(np.linspace(0.5, 0.95, 10).tolist())

RULES = ("opentad", "activitynet")
# Annotations whose ends are so near (seconds) are one, by OpenTAD's rules.
SAME = 1e-3
# What unions of segments count as at least, by OpenTAD's rules (seconds).
SMALLEST_UNION = 1e-8

Segments = dict[str, list[tuple[float, float]]]


def mean_average_precision(
    database: Mapping[str, Mapping],
    results: Mapping[str, Sequence[Mapping]],
    subset: str,
    thresholds: Sequence[float],
    blocked: Collection[str] = (),
    rules: str = "opentad",
) -> dict[str, Any]:
    """Evaluate predictions as the published evaluators do, to the last bit.

    Args:
        database: Video to ``dict(subset, annotations)``, an annotation being ``dict(label,
            segment)``: what stands under ``database`` in an annotation file.
        results: Video to its predictions, ``dict(label, segment, score)``; segments are (start,
            end) in seconds. Those of labels that the subset does not have count for nothing, those
            of videos outside of it as false, as the evaluators have it.
        subset: The part of the database that is evaluated.
        thresholds: Overlaps (intersection over union) above 0.
        blocked: Videos that are left out.
        rules: In what the evaluators differ. "opentad" takes annotations of no length out, and all
            but one of those that are the same within a millisecond; a union of no length is no
            overlap. "activitynet" takes annotations as they are, and a prediction of no length
            finds one of no length, wherever in the video it is (0 / 0 is not below a threshold).

    Returns:
        ``mAP``: the mean over thresholds and classes; ``by_threshold``: float64 (thresholds);
        ``by_class``: float64 (thresholds, classes); ``classes``: their names, in the order of the
        annotations.

    Raises:
        ValueError: ``rules`` is unknown, there is no annotation, a threshold is not in (0, 1], or
            a prediction is no ``dict(label, segment, score)`` of finite numbers.
    """
    if rules not in RULES:
        raise ValueError(f"rules {rules!r} are unknown: use one of {', '.join(RULES)}")
    thresholds = [float(threshold) for threshold in thresholds]
    if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
        raise ValueError(f"thresholds of overlap lie in (0, 1], got {thresholds}")
    truth = annotations_by_class(database, subset, blocked, merge=rules == "opentad")
    if not truth:
        found = sorted({str(video.get("subset")) for video in database.values()})
        raise ValueError(
            f"there is no annotation in the subset {subset!r}; the annotations have the subsets "
            f"{', '.join(found) or 'none'}"
        )
    predicted = predictions_by_class(results, blocked)
    smallest_union = SMALLEST_UNION if rules == "opentad" else None
    by_class = np.zeros((len(thresholds), len(truth)))
    for column, (label, annotations) in enumerate(truth.items()):
        if label in predicted:
            _, found = match(annotations, *predicted[label], thresholds, smallest_union)
            count = sum(map(len, annotations.values()))
            by_class[:, column] = [_area_under_interpolated(row >= 0, count) for row in found]
    by_threshold = by_class.mean(axis=1)
    return {
        "mAP": float(by_threshold.mean()),
        "by_threshold": by_threshold,
        "by_class": by_class,
        "classes": list(truth),
    }


def overlaps(segments: np.ndarray, others: np.ndarray, smallest_union: float | None) -> np.ndarray:
    """Intersection over union of (N, 2) with (M, 2) segments: float64 (N, M).

    ``smallest_union`` is what unions count as at least; None leaves them, and 0 / 0 is NaN.
    """
    starts = np.maximum(segments[:, None, 0], others[None, :, 0])
    ends = np.minimum(segments[:, None, 1], others[None, :, 1])
    shared = (ends - starts).clip(0)
    lengths, other_lengths = (s[:, 1] - s[:, 0] for s in (segments, others))
    union = other_lengths[None] + lengths[:, None] - shared
    if smallest_union is not None:
        union = union.clip(smallest_union)
    with np.errstate(divide="ignore", invalid="ignore"):
        return shared / union


def without_repetitions(annotations: Sequence[Mapping]) -> list[Mapping]:
    """Leave out annotations of no length, and those that repeat an earlier one of their label."""
    kept: list[Mapping] = []
    for annotation in annotations:
        (start, end), label = annotation["segment"], annotation["label"]
        repeated = any(
            label == other["label"]
            and abs(start - other["segment"][0]) <= SAME
            and abs(end - other["segment"][1]) <= SAME
            for other in kept
        )
        if end > start and not repeated:
            kept.append(annotation)
    return kept


def annotations_by_class(
    database: Mapping[str, Mapping], subset: str, blocked: Collection[str], merge: bool
) -> dict[str, Segments]:
    """Label to video to segments, labels in the order in which they come first."""
    found: dict[str, Segments] = {}
    for video, entry in database.items():
        if entry.get("subset") != subset or video in blocked:
            continue
        annotations = entry.get("annotations", [])
        for annotation in without_repetitions(annotations) if merge else annotations:
            start, end = map(float, annotation["segment"])
            of_class = found.setdefault(annotation["label"], {})
            of_class.setdefault(video, []).append((start, end))
    return found


def predictions_by_class(
    results: Mapping[str, Sequence[Mapping]], blocked: Collection[str]
) -> dict[str, tuple[list[str], np.ndarray, np.ndarray]]:
    """Label to videos (N), segments (N, 2) and scores (N), in the order of ``results``."""
    rows: dict[str, list[tuple]] = defaultdict(list)
    for video, predictions in results.items():
        if video in blocked:
            continue
        for number, prediction in enumerate(predictions):
            try:
                (start, end), score = prediction["segment"], prediction["score"]
                label = prediction["label"]
                finite = all(isinstance(v, Real) and np.isfinite(v) for v in (start, end, score))
                finite = finite and isinstance(label, Hashable)
            except (KeyError, TypeError, ValueError):
                finite = False
            if not finite:
                raise ValueError(
                    f"video {video}, prediction {number}: expected dict(label, segment=(start, "
                    f"end), score) of finite numbers, got {prediction!r}"
                )
            rows[label].append((video, (float(start), float(end)), score))
    return {
        label: (
            [video for video, _, _ in found],
            np.array([segment for _, segment, _ in found]),
            np.array([score for _, _, score in found]),
        )
        for label, found in rows.items()
    }


def match(
    annotations: Segments,
    videos: list[str],
    segments: np.ndarray,
    scores: np.ndarray,
    thresholds: Sequence[float],
    smallest_union: float | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Let predictions of one class take annotations of it, best score first.

    Returns:
        The order in which they come, int (predictions); and, in that order, which annotation of its
        video each takes, int (thresholds, predictions), -1 for none.
    """
    # Where scores are equal, the order is that in which this call of the evaluators leaves them.
    order = scores.argsort()[::-1]
    found = np.full((len(thresholds), len(order)), -1)
    ranks: dict[str, list[int]] = defaultdict(list)
    for rank, index in enumerate(order):
        if videos[index] in annotations:
            ranks[videos[index]].append(rank)
    for video, of_video in ranks.items():
        overlap = overlaps(segments[order[of_video]], np.array(annotations[video]), smallest_union)
        nearest = overlap.argsort(axis=1)[:, ::-1]
        # Not "at least": NaN passes, as it does in ActivityNet's evaluator.
        enough = ~(overlap[None] < np.array(thresholds)[:, None, None])
        free = np.ones((len(thresholds), overlap.shape[1]), bool)
        for row in np.flatnonzero(enough.any(axis=(0, 2))):
            for level in np.flatnonzero(enough[:, row].any(axis=1)):
                for column in nearest[row]:
                    if enough[level, row, column] and free[level, column]:
                        free[level, column] = False
                        found[level, of_video[row]] = column
                        break
    return order, found


def _area_under_interpolated(hits: np.ndarray, annotations: int) -> float:
    """Average precision of predictions, best first, of which bool (N) says which are true."""
    found = np.cumsum(hits).astype(float)
    recall = np.concatenate([[0], found / float(annotations), [1]])
    precision = np.concatenate([[0], found / np.arange(1.0, len(hits) + 1), [0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(np.sum((recall[steps] - recall[steps - 1]) * precision[steps]))
