"""Annotation files of temporal action localization, and what may be wrong in them.

The format is ActivityNet's, in which OpenTAD keeps THUMOS14 as well::

    {"database": {"VIDEO": {"subset": "training", "duration": 61.5,
                            "annotations": [{"label": "Surfing", "segment": [1.2, 30.1]}]}}}

with times in seconds. A class file (OpenTAD's ``category_idx.txt``) has one name a line; a label is
the number of its line, from 0. A list of blocked videos is a JSON list or object, or one name a
line.
"""

import json
from collections.abc import Collection, Mapping
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

# How many findings an error or a log message spells out; the others are counted.
SPELLED_OUT = 20
# Seconds by which an annotation may end after its video: published durations are rounded, and it
# is cut there. Beyond that it is named.
BEYOND_THE_END = 1.0


class BadAnnotationError(ValueError):
    """An annotation file is not what it has to be; ``findings`` has everything that is wrong."""

    def __init__(self, message: str, findings: Collection[str] = ()) -> None:
        super().__init__(message)
        self.findings = list(findings)


def read_database(path: Path) -> dict[str, dict]:
    """Read what stands under ``database`` in an annotation file.

    Raises:
        FileNotFoundError: There is no such file.
        BadAnnotationError: It is not JSON or has no object ``database`` of objects.
    """
    content = _read_json(path)
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict) or not all(isinstance(v, dict) for v in database.values()):
        raise BadAnnotationError(
            f'{path} has to be an object {{"database": {{VIDEO: {{"subset", "duration", '
            '"annotations"}}}, as OpenTAD and ActivityNet have it; docs/localization.md'
        )
    return database


def read_classes(path: Path) -> tuple[str, ...]:
    """Read a class file.

    Raises:
        FileNotFoundError: There is no such file.
        BadAnnotationError: It names no class, or one twice.
    """
    names = tuple(line.strip() for line in _text(path).splitlines() if line.strip())
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not names or repeated:
        raise BadAnnotationError(
            f"{path} has to name each class once, one a line; "
            + (f"it repeats {', '.join(repeated)}" if repeated else "it is empty")
        )
    return names


def read_blocked(path: Path) -> frozenset[str]:
    """Read a list of videos that are left out: JSON (a list, or an object's keys), or lines.

    Raises:
        FileNotFoundError: There is no such file.
    """
    text = _text(path)
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list | dict):
        found = [line.strip() for line in text.splitlines() if line.strip()]
    return frozenset(map(str, found))


def clean(
    database: Mapping[str, Mapping[str, Any]],
    classes: Collection[str],
    ignored_labels: Collection[str] = (),
) -> tuple[dict[str, dict], list[str]]:
    """Separate what can be trained on from what is wrong.

    Args:
        database: Video to entry, as in the file.
        classes: Names that a label may be.
        ignored_labels: Names whose annotations are left out without being wrong ("Ambiguous").

    Returns:
        The database without what is wrong, and a line for each thing that is: videos whose
        duration is not a positive number of seconds or whose annotations are not a list, and
        annotations of no class, reversed, empty, outside the video. Annotations that end at most
        ``BEYOND_THE_END`` seconds after the video are cut there.
    """
    kept: dict[str, dict] = {}
    findings: list[str] = []
    for video, entry in database.items():
        duration, annotations = entry.get("duration"), entry.get("annotations", [])
        if not _is_number(duration) or duration <= 0:
            findings.append(f"video {video}: duration {duration!r} is no positive number")
            continue
        if not isinstance(annotations, list):
            findings.append(f"video {video}: annotations are no list, but {annotations!r}")
            continue
        good = []
        for number, annotation in enumerate(annotations):
            if isinstance(annotation, dict) and annotation.get("label") in ignored_labels:
                continue
            wrong = _what_is_wrong(annotation, duration, classes)
            if wrong:
                findings.append(f"video {video}, annotation {number}: {wrong}")
            else:
                start, end = annotation["segment"]
                good.append({**annotation, "segment": [float(start), float(min(end, duration))]})
        kept[video] = {**entry, "annotations": good}
    return kept, findings


def settle(findings: Collection[str], bad_input: str, path: Path) -> None:
    """Raise ("strict") or log ("skip") what is wrong in ``path``.

    Raises:
        ValueError: ``bad_input`` is neither.
        BadAnnotationError: It is "strict" and there are findings.
    """
    if bad_input not in ("strict", "skip"):
        raise ValueError(f"bad_input is 'strict' or 'skip', got {bad_input!r}")
    if not findings:
        return
    named = "\n".join(list(findings)[:SPELLED_OUT])
    more = len(findings) - SPELLED_OUT
    listed = named + (f"\nand {more:,} more" if more > 0 else "")
    if bad_input == "strict":
        raise BadAnnotationError(
            f"{path} has {len(findings):,} bad entries; correct them, or leave them out with "
            f"bad_input='skip':\n{listed}",
            findings,
        )
    print_log(f"{path}: {len(findings):,} bad entries left out:\n{listed}", logger="current")


def _what_is_wrong(annotation: Any, duration: float, classes: Collection[str]) -> str:
    """Say what is wrong with an annotation, or nothing."""
    if not isinstance(annotation, dict) or not {"label", "segment"} <= annotation.keys():
        return f"expected an object with label and segment, got {annotation!r}"
    label, segment = annotation["label"], annotation["segment"]
    if not isinstance(segment, list | tuple) or len(segment) != 2:
        return f"segment has to be [start, end] in seconds, got {segment!r}"
    start, end = segment
    if not _is_number(start) or not _is_number(end):
        return f"segment has to be two finite numbers of seconds, got {segment!r}"
    if label not in classes:
        return f"label {label!r} is no class"
    if end < start:
        return f"segment {segment} is reversed"
    if end == start:
        return f"segment {segment} is empty"
    if start < 0:
        return f"segment {segment} begins before the video"
    if start >= duration or end > duration + BEYOND_THE_END:
        return f"segment {segment} goes beyond the video's end at {duration:g} s"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)


def _text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; docs/localization.md has the layouts")
    return path.read_text(encoding="utf-8-sig")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise BadAnnotationError(f"{path} is not JSON: {error}") from error
