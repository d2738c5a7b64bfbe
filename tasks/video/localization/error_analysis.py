"""What wrong predictions of actions are, and which actions are missed.

The kinds of predictions are those of Alwassel et al., "Diagnosing Error in Temporal Action
Detectors", ECCV 2018, https://arxiv.org/abs/1807.10706 (DETAD).
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from math import inf

import numpy as np

from .average_precision import (
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
SMALLEST_UNION = 1e-8  # as in the mAP by OpenTAD's rules


def analyse_errors(
    database: Mapping[str, Mapping],
    results: Mapping[str, Sequence[Mapping]],
    subset: str,
    overlap: float,
    edges: Sequence[float],
    blocked: Collection[str] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Count what the best predictions of a subset are, and which of its actions they find.

    A prediction that finds no free annotation of its class by ``overlap`` is judged by the one, of
    any class, that it overlaps most: by ``overlap`` at least, it is a double detection, or has the
    wrong label; by ``BACKGROUND`` at least, it is badly localized, or confused with another class.

    Args:
        database: As in ``mean_average_precision``.
        results: As in ``mean_average_precision``.
        subset: The part of the database that is looked at.
        overlap: From which intersection over union on an annotation is found, in (0, 1].
        edges: Seconds, in order, between which lengths of actions are told apart.
        blocked: Videos that are left out.

    Returns:
        Predictions, int64 (MULTIPLES, KINDS): in a row, of each class with n annotations, its best
        n, its next n, and so on. Actions, int64 (len(edges) + 1, 2): by length, from the shortest,
        how many there are and how many of them those predictions find.

    Raises:
        ValueError: ``overlap`` or ``edges`` are others, or a prediction is none.
    """
    if not BACKGROUND < overlap <= 1:
        raise ValueError(f"an overlap is in ({BACKGROUND}, 1], got {overlap}")
    if not all(0 < one < other for one, other in pairwise([*edges, inf])):
        raise ValueError(f"edges are seconds above 0, one above the other, got {list(edges)}")
    truth = annotations_by_class(database, subset, blocked, merge=True)
    predicted = predictions_by_class(results, blocked)
    of_all: dict[str, tuple[list[str], list[tuple[float, float]]]] = {}
    for label, annotations in truth.items():
        for video, segments in annotations.items():
            labels, places = of_all.setdefault(video, ([], []))
            labels += [label] * len(segments)
            places += segments
    kinds = np.zeros((MULTIPLES, len(KINDS)), np.int64)
    actions = np.zeros((len(edges) + 1, 2), np.int64)
    for label, annotations in truth.items():
        for segments in annotations.values():
            np.add.at(actions[:, 0], _bin(segments, edges), 1)
        if label not in predicted:
            continue
        videos, segments, scores = predicted[label]
        matched = match(annotations, videos, segments, scores, [overlap], SMALLEST_UNION)[0]
        count = sum(map(len, annotations.values()))
        best = scores.argsort()[::-1][: count * MULTIPLES]
        for rank, index in enumerate(best):
            video, found = videos[index], matched[rank]
            if found >= 0:
                kind = 0
                actions[_bin([annotations[video][found]], edges), 1] += 1
            else:
                kind = _kind(label, segments[index], of_all.get(video), overlap)
            kinds[rank // count, kind] += 1
    return kinds, actions


def _bin(segments: Sequence[tuple[float, float]], edges: Sequence[float]) -> np.ndarray:
    """Which lengths, by their numbers, segments are of: those at an edge are of the shorter."""
    starts, ends = np.array(segments, float).reshape(-1, 2).T
    return np.searchsorted(edges, ends - starts)


def _kind(
    label: str,
    segment: np.ndarray,
    annotations: tuple[list[str], list[tuple[float, float]]] | None,
    overlap: float,
) -> int:
    """Which of ``KINDS`` a prediction that finds nothing is."""
    if annotations is None:
        return KINDS.index("background")
    labels, places = annotations
    shared = overlaps(segment[None], np.array(places), SMALLEST_UNION)[0]
    nearest = int(shared.argmax())
    if shared[nearest] < BACKGROUND:
        return KINDS.index("background")
    same = labels[nearest] == label
    if shared[nearest] >= overlap:
        return KINDS.index("double detection" if same else "wrong label")
    return KINDS.index("localization" if same else "confusion")
