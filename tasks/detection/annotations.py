"""Read a COCO annotation file and name what is wrong in it, by file and id.

pycocotools and mmdet accept almost any file: boxes without area and boxes of unknown categories
disappear without a word, the second of two annotations with one id replaces the first, and an image
whose size is not the annotated one shifts every box. Here each of these is a ``Finding``, which
ends the run (``"strict"``) or leaves out exactly the entry it names (``"skip"``).
"""

import json
import logging
import math
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from PIL import Image

KINDS = (
    "duplicate category",
    "malformed image entry",
    "duplicate image id",
    "file of several images",
    "missing file",
    "unreadable file",
    "wrong size",
    "turned image",
    "empty image",
    "malformed annotation",
    "duplicate annotation id",
    "unknown image",
    "unknown category",
    "coordinate not finite",
    "box without area",
    "box outside the image",
)
# How many findings an error or a log message spells out; the others are counted.
SPELLED_OUT = 20
EXIF_ORIENTATION = 0x0112
# Of its values, those that turn by a quarter; 2 to 4 mirror, or turn by a half.
QUARTER_TURNS = (5, 6, 7, 8)
# What PIL raises for damaged files.
DAMAGED = (OSError, ValueError, SyntaxError)


@dataclass(frozen=True)
class Finding:
    """Something wrong: its kind, one of ``KINDS``, where it stands and what was found there."""

    kind: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.what}"


class BadInputError(ValueError):
    """An annotation file, or an image it names, is not what it has to be; see ``findings``."""

    def __init__(self, message: str, findings: list[Finding]) -> None:
        super().__init__(message)
        self.findings = findings


def read_coco(path: Path, annotated: bool = True) -> dict[str, Any]:
    """Read a COCO file.

    Args:
        path: The file.
        annotated: False takes files without ``annotations`` as if these were empty: those of test
            sets whose labels are kept secret, such as COCO's test-dev.

    Raises:
        FileNotFoundError: There is no such file.
        BadInputError: It is not JSON, lacks one of the three lists, or its table of categories
            has an entry without id and name, one id twice, or one name twice with annotations of
            both.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"annotation file {path} does not exist; docs/detection.md says how to prepare one"
        )
    try:
        coco = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise BadInputError(f"{path} is not a JSON file: {error}", []) from error
    if not annotated and isinstance(coco, dict) and "annotations" not in coco:
        print_log(
            f"{path} has no annotations: detections can be written (tools/test.py --format-only), "
            "and no figures computed",
            logger="current",
            level=logging.WARNING,
        )
        coco = {"annotations": [], **coco}
    lists = ("images", "annotations", "categories")
    missing = [k for k in lists if not isinstance(coco, dict) or not isinstance(coco.get(k), list)]
    if missing:
        raise BadInputError(
            f"{path} is not a COCO file: it has to hold the lists {', '.join(lists)}, "
            f"and there is none named {', '.join(missing)}",
            [],
        )
    for key in ("id", "name"):
        values = [isinstance(entry, dict) and entry.get(key) for entry in coco["categories"]]
        unfit = [v for v in values if v is None or v is False or isinstance(v, list | dict)]
        counted = values if key == "id" else _names_in_use(coco)
        twice = [v for v, count in Counter(map(str, counted)).items() if count > 1]
        if unfit or twice:
            raise BadInputError(
                f"{path}: every category needs {key} of its own, found "
                + (f"{twice[0]} twice" if twice else f"an entry without {key}"),
                [],
            )
    return coco


def _used(coco: dict[str, Any]) -> set[int | str]:
    """The category ids that annotations have."""
    entries = (a.get("category_id") for a in coco["annotations"] if isinstance(a, dict))
    return {entry for entry in entries if isinstance(entry, int | str)}


def _names_in_use(coco: dict[str, Any]) -> list[object]:
    used = _used(coco)
    return [c.get("name") for c in coco["categories"] if isinstance(c, dict) and c["id"] in used]


def _needless_categories(coco: dict[str, Any]) -> dict[int | str, int | str]:
    """Unused categories whose name another one has, with that one's id."""
    used, by_name = _used(coco), defaultdict(list)
    for category in coco["categories"]:
        by_name[category["name"]].append(category["id"])
    needless = {}
    for identities in by_name.values():
        kept = next((identity for identity in identities if identity in used), identities[0])
        needless |= {identity: kept for identity in identities if identity != kept}
    return needless


def category_ids(coco: dict[str, Any], names: Collection[str], path: Path) -> list[int]:
    """Return the category ids of ``names``, in their order.

    Raises:
        BadInputError: The file has no category of one of the names.
    """
    needless = _needless_categories(coco)
    by_name = {c["name"]: c["id"] for c in coco["categories"] if c["id"] not in needless}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise BadInputError(
            f"{path} has no category named {', '.join(missing)}; it has {', '.join(by_name)}. "
            "Name the classes to be used in metainfo=dict(classes=...)",
            [],
        )
    return [by_name[name] for name in names]


def check_mode(bad_input: str) -> None:
    """Raise ValueError where the mode is none of the two."""
    if bad_input not in ("strict", "skip"):
        raise ValueError(f"bad_input has to be 'strict' or 'skip', got {bad_input!r}")


def clean(
    coco: dict[str, Any],
    folder: Path | None = None,
    objects: Collection[int] | None = None,
    locate: Callable[[dict], str] | None = None,
    check: Callable[[dict], Finding | None] | None = None,
    boxes_as_shown: bool = False,
) -> tuple[dict[str, Any], list[Finding]]:
    """Return the good entries of a COCO file, and what was found in the others.

    An image that is left out takes its annotations along. Absent ``area`` and ``iscrowd``, which
    COCO's own files always have, become that of the box and 0.

    Args:
        coco: What ``read_coco`` returned; stays as it is.
        folder: Where the image files are; their headers are read, and their sizes after the
            rotation that EXIF asks for are compared. None: no file is looked at.
        objects: The category ids of objects, for which ``"empty image"`` is reported where an
            image has none. None: images may be empty.
        locate: Says where an annotation comes from; otherwise it is named by its id and image.
        check: Finds what else is wrong in an image's entry.
        boxes_as_shown: Boxes are known to be drawn on images as EXIF turns them. Otherwise
            ``"turned image"`` is reported where boxes may miss: sizes do not tell.
    """
    names = {category["id"]: category["name"] for category in coco["categories"]}
    needless = _needless_categories(coco)
    findings = [
        Finding(
            "duplicate category",
            f"category {i} ({names[i]})",
            f"no annotation has it, and {kept} has its name",
        )
        for i, kept in needless.items()
    ]
    images: dict[Any, dict] = {}
    listed = set()
    for number, image in enumerate(coco["images"]):
        bad = _check_image(image, number, images, folder)
        if bad is None and check is not None:
            bad = check(image)
        listed.add(image.get("id") if isinstance(image, dict) else None)
        if bad is None:
            images[image["id"]] = image
        else:
            findings.append(bad)
    findings += _several_of_a_file(images)
    if folder is not None and not boxes_as_shown:
        findings += _turned(images, coco["annotations"], folder)

    categories = names.keys() - needless.keys()
    annotations: dict[Any, dict] = {}
    for number, annotation in enumerate(coco["annotations"]):
        bad = _check_annotation(annotation, number, images, listed, annotations, categories)
        if bad is None and annotation["image_id"] in images:
            _, _, width, height = annotation["bbox"]
            annotations[annotation["id"]] = {"area": width * height, "iscrowd": 0} | annotation
        elif bad is not None:
            if locate is not None and isinstance(annotation, dict):
                bad = Finding(bad.kind, locate(annotation), bad.what)
            findings.append(bad)

    if objects is not None:
        used = {a["image_id"] for a in annotations.values() if a["category_id"] in objects}
        for identity in [i for i in images if i not in used]:
            image = images.pop(identity)
            what = "no object in it (allow_empty=True takes such images)"
            findings.append(Finding("empty image", image_name(image), what))
        annotations = {i: a for i, a in annotations.items() if a["image_id"] in images}
    cleaned = coco | {
        "images": [*images.values()],
        "annotations": [*annotations.values()],
        "categories": [c for c in coco["categories"] if c["id"] in categories],
    }
    return cleaned, findings


def settle(findings: list[Finding], bad_input: str, path: Path, kept: str) -> None:
    """End the run over findings, or log that they were left out.

    Args:
        findings: What ``clean`` found.
        bad_input: ``"strict"`` or ``"skip"``.
        path: The file they were found in.
        kept: What is left, for the log: "120 images with 3,411 annotations".

    Raises:
        BadInputError: There are findings, and the mode is strict.
    """
    if not findings:
        return
    counts = Counter(finding.kind for finding in findings)
    spelled_out = "".join(f"\n  {finding}" for finding in findings[:SPELLED_OUT])
    if len(findings) > SPELLED_OUT:
        spelled_out += f"\n  ... and {len(findings) - SPELLED_OUT} more"
    total = ", ".join(f"{kind}: {count}" for kind, count in counts.items())
    if bad_input == "strict":
        raise BadInputError(
            f"bad input in {path} ({total}):{spelled_out}\nMend the file, or set "
            "bad_input='skip' (tools/prepare_detection.py: --skip-bad) to leave out exactly these",
            findings,
        )
    print_log(
        f"left out of {path} as bad input ({total}); kept: {kept}:{spelled_out}",
        logger="current",
        level=logging.WARNING,
    )


def size_of(coco: dict[str, Any]) -> str:
    """Return a text like "120 images with 3,411 annotations"."""
    return f"{len(coco['images']):,} images with {len(coco['annotations']):,} annotations"


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height from the header of an image file, as loading it will give them.

    Raises:
        OSError: The file is missing, damaged or not an image.
    """
    size, orientation = _size_and_orientation(path)
    # cv2 and PIL's exif_transpose follow it.
    return size[::-1] if orientation in QUARTER_TURNS else size


def _size_and_orientation(path: Path) -> tuple[tuple[int, int], int]:
    """Width and height of the pixels as they are stored, and what EXIF says of turning them."""
    with images_of_any_size(), Image.open(path) as image:
        return image.size, image.getexif().get(EXIF_ORIENTATION, 1)


@contextmanager
def images_of_any_size() -> Iterator[None]:
    """Switch off PIL's guard against images of more than 89 million pixels: headers are small."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged EXIF data
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def image_name(image: dict) -> str:
    """Return what an image is called in findings."""
    return f"image {image['id']} ({image['file_name']})"


def _several_of_a_file(images: dict[Any, dict]) -> list[Finding]:
    """Take images out of which others have the file: objects of one were background in another."""
    of_file = defaultdict(list)
    for identity, image in images.items():
        of_file[os.path.normpath(image["file_name"])].append(identity)
    findings = []
    for identities in (found for found in of_file.values() if len(found) > 1):
        for identity in identities:
            others = ", ".join(str(other) for other in identities if other != identity)
            where = image_name(images.pop(identity))
            findings.append(Finding("file of several images", where, f"it is that of {others} too"))
    return findings


def _turned(images: dict[Any, dict], annotations: list, folder: Path) -> list[Finding]:
    """Take images out that EXIF turns without a change of size, if there are boxes in them."""
    annotated = {a["image_id"] for a in annotations if isinstance(a, dict) and _has_image(a)}
    findings = []
    for identity in [identity for identity in images if identity in annotated]:
        (width, height), orientation = _size_and_orientation(folder / images[identity]["file_name"])
        if orientation in (2, 3, 4) or (orientation in QUARTER_TURNS and width == height):
            what = (
                f"EXIF orientation {orientation} mirrors or turns it as it is loaded, and whether "
                "its boxes were drawn so is not known: boxes_as_shown=True says that all were; "
                "otherwise take the orientation out of the file"
            )
            findings.append(Finding("turned image", image_name(images.pop(identity)), what))
    return findings


def _has_image(annotation: dict) -> bool:
    return isinstance(annotation.get("image_id"), int | str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_image(image: Any, number: int, images: dict, folder: Path | None) -> Finding | None:
    if not (
        isinstance(image, dict)
        and isinstance(image.get("id"), int | str)
        and isinstance(image.get("file_name"), str)
        and all(_is_number(image.get(key)) and image[key] > 0 for key in ("width", "height"))
    ):
        expected = "needs id, file_name, and width and height above 0"
        return Finding("malformed image entry", f"entry {number} of images", f"{expected}: {image}")
    where = image_name(image)
    if image["id"] in images:
        first = images[image["id"]]["file_name"]
        return Finding("duplicate image id", where, f"the id is that of {first}")
    if folder is None:
        return None
    path = folder / image["file_name"]
    if not path.is_file():
        return Finding("missing file", where, f"{path} does not exist")
    try:
        found = image_size(path)
    except DAMAGED as error:
        return Finding("unreadable file", where, f"{path}: {error}")
    if found != (image["width"], image["height"]):
        annotated = f"{image['width']} × {image['height']}"
        return Finding(
            "wrong size", where, f"annotated {annotated}, {path} has {found[0]} × {found[1]}"
        )
    return None


def _check_annotation(
    annotation: Any,
    number: int,
    images: dict,
    listed: set,
    annotations: dict,
    categories: set,
) -> Finding | None:
    box = annotation.get("bbox") if isinstance(annotation, dict) else None
    if not (
        isinstance(box, list)
        and len(box) == 4
        and all(map(_is_number, box))
        and all(
            isinstance(annotation.get(key), int | str) for key in ("id", "image_id", "category_id")
        )
    ):
        identity = annotation.get("id") if isinstance(annotation, dict) else None
        where = f"entry {number} of annotations" if identity is None else f"annotation {identity}"
        expected = "needs id, image_id, category_id and bbox of four numbers"
        return Finding("malformed annotation", where, f"{expected}: {annotation}"[:300])
    image = images.get(annotation["image_id"])
    where = f"annotation {annotation['id']} of " + (
        f"image {annotation['image_id']}" if image is None else image_name(image)
    )
    if annotation["id"] in annotations:
        return Finding("duplicate annotation id", where, "another annotation has this id")
    if image is None:
        if annotation["image_id"] in listed:
            return None  # left out with its image
        return Finding("unknown image", where, "no image has this id")
    if annotation["category_id"] not in categories:
        known = ", ".join(map(str, sorted(categories, key=str)))
        return Finding("unknown category", where, f"{annotation['category_id']}, known are {known}")
    area = annotation.get("area", 1)
    if not all(map(math.isfinite, box)) or not _is_number(area) or not math.isfinite(area):
        return Finding("coordinate not finite", where, f"bbox {box}, area {area}")
    x, y, width, height = box
    if width <= 0 or height <= 0 or area <= 0:
        return Finding("box without area", where, f"bbox {box}, area {area}")
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        size = f"{image['width']} × {image['height']}"
        return Finding("box outside the image", where, f"bbox {box} in an image of {size}")
    return None
