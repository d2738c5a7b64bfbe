"""What kinds of errors a detector makes, counted by class.

After Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors",
https://arxiv.org/abs/2008.08115, with its thresholds. Here every error is counted instead of
weighed by the AP it costs, and a missed object is any that no detection was right about, so that
found and missed add up to all objects.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask
from terminaltables import AsciiTable

COLUMNS = (
    "objects",
    "found",
    "missed",
    "duplicate",
    "wrong class",
    "localisation",
    "background",
)


def count_errors(
    coco: dict[str, Any],
    detections: list[dict],
    categories: Sequence[int],
    score: float = 0.3,
    match: float = 0.5,
    touch: float = 0.1,
) -> dict[str, dict[str, int]]:
    """Sort detections and objects into right ones and kinds of errors.

    In the order of their scores, detections take the free object of their class that they overlap
    most, as in COCO. One that gets none is a

    - ``duplicate``: it overlaps an object of its class that is taken by at least ``match``,
    - ``wrong class``: it overlaps an object of another class by at least ``match``,
    - ``localisation``: it overlaps an object of its class by at least ``touch``,
    - ``background``: none of these,

    the first that applies; one of which at least ``match`` lies in a crowd of its class counts
    nowhere. Errors are counted under the class of the detection, ``missed`` under the object's.

    Args:
        coco: Ground truth, as ``annotations.clean`` returns it.
        detections: As in ``metric.average_precision``.
        categories: The category ids of the classes.
        score: Detections below this score are left out.
        match: Intersection over union at which a detection may be right.
        touch: Intersection over union at which a detection is about an object.

    Returns:
        ``COLUMNS`` by the names of the classes, and their sums under ``"all"``.
    """
    names = {c["id"]: c["name"] for c in coco["categories"] if c["id"] in categories}
    counts = {names[category]: dict.fromkeys(COLUMNS, 0) for category in categories}
    truth, found = defaultdict(list), defaultdict(list)
    for annotation in coco["annotations"]:
        if annotation["category_id"] in names:
            truth[annotation["image_id"]].append(annotation)
    for detection in sorted(detections, key=lambda detection: -detection["score"]):
        if detection["score"] >= score:
            found[detection["image_id"]].append(detection)

    for image in coco["images"]:
        objects, guesses = truth[image["id"]], found[image["id"]]
        crowd = np.array([bool(o["iscrowd"]) for o in objects], bool)
        classes = np.array([o["category_id"] for o in objects])
        free = ~crowd
        overlaps = np.zeros((len(guesses), len(objects)))
        if objects and guesses:
            boxes = ([entry["bbox"] for entry in entries] for entries in (guesses, objects))
            # Of a crowd: the part of the detection that lies in it.
            overlaps = mask.iou(*boxes, crowd.astype(np.uint8).tolist())
        for guess, overlap in zip(guesses, overlaps, strict=True):
            own = classes == guess["category_id"]
            row = counts[names[guess["category_id"]]]
            right = own & free & (overlap >= match)
            if right.any():
                free[np.argmax(np.where(right, overlap, -1))] = False
                row["found"] += 1
            elif (own & crowd & (overlap >= match)).any():
                continue
            elif (own & ~crowd & (overlap >= match)).any():
                row["duplicate"] += 1
            elif (~own & ~crowd & (overlap >= match)).any():
                row["wrong class"] += 1
            elif (own & ~crowd & (overlap >= touch)).any():
                row["localisation"] += 1
            else:
                row["background"] += 1
        for category, name in names.items():
            own = (classes == category) & ~crowd
            counts[name]["objects"] += int(own.sum())
            counts[name]["missed"] += int((own & free).sum())
    total = {column: sum(row[column] for row in counts.values()) for column in COLUMNS}
    return counts | {"all": total}


def error_table(counts: dict[str, dict[str, int]]) -> str:
    """Return what ``count_errors`` counted as a table for a terminal."""
    rows = [[name, *(str(row[column]) for column in COLUMNS)] for name, row in counts.items()]
    return AsciiTable([["class", *COLUMNS], *rows]).table
