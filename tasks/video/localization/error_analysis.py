"""What wrong predictions of actions are, and which actions are missed.

The kinds of predictions are those of Alwassel et al., "Diagnosing Error in Temporal Action
Detectors", ECCV 2018, https://arxiv.org/abs/1807.10706 (DETAD).
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from math import inf

import numpy as np

from .average_precision import (
    SMALLEST_UNION,
    annotations_by_class,
    match,
    overlaps,
    predictions_by_class,
)

KINDS = (
    "true positive",
    "double detection",
    "wrong label",
    "localization",
    "confusion",
    "background",
)
# What overlaps no annotation by as much shows none of them.
BACKGROUND = 0.1
# So many times the annotations of a class are its best predictions that are looked at.
MULTIPLES = 10


def analyse_errors(
    database: Mapping[str, Mapping],
    results: Mapping[str, Sequence[Mapping]],
    subset: str,
    overlap: float,
    edges: Sequence[float],
    blocked: Collection[str] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Count what the best predictions of a subset are, and which of its actions they find.

    A prediction that takes no free annotation of its class by ``overlap`` is judged by the one, of
    any class, that it overlaps most, of its own class where several are equal: by ``overlap`` at
    least, it is a double detection, or has the wrong label; by ``BACKGROUND`` at least, it is badly
    localized, or confused with another class. Annotations that repeat one count once, as in the mAP
    by OpenTAD's rules.

    Args:
        database: As in ``mean_average_precision``.
        results: As in ``mean_average_precision``; videos outside of the subset are left out.
        subset: The part of the database that is looked at.
        overlap: From which intersection over union on an annotation is found: above ``BACKGROUND``,
            1 at most.
        edges: Seconds, in order, between which lengths of actions are told apart.
        blocked: Videos that are left out.

    Returns:
        Predictions, int64 (MULTIPLES, KINDS): in a row, of each class with n annotations, its best
        n, its next n, and so on. Actions, int64 (len(edges) + 1, 2): by length, from the shortest,
        how many there are and how many of them those predictions find.

    Raises:
        ValueError: ``overlap`` is not in its range, ``edges`` are none or not in order, there is no
            annotation, or no prediction is of a class that has one, or one is no prediction.
    """
    if not BACKGROUND < overlap <= 1:
        raise ValueError(f"an overlap is above {BACKGROUND}, 1 at most, got {overlap}")
    if not edges or not all(0 < one < other for one, other in pairwise([*edges, inf])):
        raise ValueError(f"edges are seconds above 0, one above the other, got {list(edges)}")
    truth = annotations_by_class(database, subset, blocked, merge=True)
    if not truth:
        raise ValueError(f"there is no annotation in the subset {subset!r}")
    of_subset = {
        video: found
        for video, found in results.items()
        if database.get(video, {}).get("subset") == subset
    }
    predicted = predictions_by_class(of_subset, blocked)
    if truth.keys().isdisjoint(predicted):
        raise ValueError(
            f"no prediction for the videos of {subset!r} is of a class of theirs: classes are "
            f"{', '.join(sorted(truth)[:5])}, …; labels of predictions "
            f"{', '.join(sorted(map(str, predicted))[:5]) or 'none'}"
        )
    of_all: dict[str, list[tuple[str, tuple[float, float]]]] = {}
    for label, annotations in truth.items():
        for video, segments in annotations.items():
            of_all.setdefault(video, []).extend((label, segment) for segment in segments)
    kinds = np.zeros((MULTIPLES, len(KINDS)), np.int64)
    actions = np.zeros((len(edges) + 1, 2), np.int64)
    for label, annotations in truth.items():
        for segments in annotations.values():
            np.add.at(actions[:, 0], _bin(segments, edges), 1)
        if label not in predicted:
            continue
        videos, segments, scores = predicted[label]
        order, (taken,) = match(annotations, videos, segments, scores, [overlap], SMALLEST_UNION)
        count = sum(map(len, annotations.values()))
        for rank, index in enumerate(order[: count * MULTIPLES]):
            video = videos[index]
            if taken[rank] >= 0:
                kind = "true positive"
                actions[_bin([annotations[video][taken[rank]]], edges), 1] += 1
            else:
                kind = _mistake(label, segments[index], of_all.get(video, []), overlap)
            kinds[rank // count, KINDS.index(kind)] += 1
    return kinds, actions


def _bin(segments: Sequence[tuple[float, float]], edges: Sequence[float]) -> np.ndarray:
    """Which lengths, by their numbers, segments are of: those at an edge are of the shorter."""
    starts, ends = np.array(segments, float).reshape(-1, 2).T
    return np.searchsorted(edges, ends - starts)


def _mistake(
    label: str,
    segment: np.ndarray,
    annotations: Sequence[tuple[str, tuple[float, float]]],
    overlap: float,
) -> str:
    """Which of ``KINDS`` a prediction is that finds nothing, of its video's ``annotations``."""
    if not annotations:
        return "background"
    places = np.array([place for _, place in annotations])
    shared = overlaps(segment[None], places, SMALLEST_UNION)[0]
    most = shared.max()
    if most < BACKGROUND:
        return "background"
    same = label in [name for (name, _), s in zip(annotations, shared, strict=True) if s == most]
    if most >= overlap:
        return "double detection" if same else "wrong label"
    return "localization" if same else "confusion"
