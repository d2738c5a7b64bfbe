"""Turn the published annotations of small-object sets into COCO files.

    python tools/prepare_detection.py soda-d Annotations/train.json train.json --images Images
    python tools/prepare_detection.py visdrone VisDrone2019-DET-train train.json
    python tools/prepare_detection.py ai-tod aitodv2_train.json train.json --images train/images
    python tools/prepare_detection.py tinyperson tiny_set_train.json train.json --images train

The images stay where they are. What the sets mark in ways of their own as not to be learned and not
to be counted becomes COCO's ``iscrowd=1``. What is malformed is named by file and line or id and
nothing is written; with ``--skip-bad`` exactly that is left out, and counted.
docs/detection.md has the layouts.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.utils import track_iter_progress
from PIL import Image

from tasks.detection.annotations import (
    DAMAGED,
    BadInputError,
    Finding,
    clean,
    image_name,
    image_size,
    read_coco,
    settle,
    size_of,
)
from tasks.detection.class_names import METAINFO
from tools.result_files import write_json

VISDRONE_FIELDS = "x, y, width, height, score, category, truncation, occlusion"


def convert_coco_like(
    path: Path,
    classes: tuple[str, ...],
    ignored_classes: tuple[str, ...] = (),
    flags: tuple[str, ...] = ("ignore",),
) -> dict:
    """Read a file that is COCO's but for how it marks what is to be ignored.

    Args:
        path: The file.
        classes: The names its categories may have.
        ignored_classes: Further such names; annotations of these categories become crowds.
        flags: Keys of an annotation of which any that is true makes it a crowd.

    Raises:
        BadInputError: The file is not a COCO file, or has a category of another name.
    """
    coco = read_coco(path)
    names = {category["id"]: category["name"] for category in coco["categories"]}
    unknown = [name for name in names.values() if name not in (*classes, *ignored_classes)]
    if unknown:
        raise BadInputError(
            f"{path} has categories that the set does not have: {', '.join(map(str, unknown))}; "
            f"expected {', '.join((*classes, *ignored_classes))}",
            [],
        )
    annotations = []
    for annotation in coco["annotations"]:
        if isinstance(annotation, dict):
            ignored = any(annotation.get(flag) for flag in flags)
            # An id may be of any type here; clean() names those that are of the wrong one.
            ignored |= names.get(_hashable(annotation.get("category_id"))) in ignored_classes
            if ignored:
                annotation = annotation | {"iscrowd": 1}
            # pycocotools takes no notice of it, and mmdet drops what has it.
            annotation = {key: value for key, value in annotation.items() if key != "ignore"}
        annotations.append(annotation)
    return coco | {"annotations": annotations}


def convert_visdrone(folder: Path) -> tuple[dict, list[Finding], Callable[[dict], str]]:
    """Read VisDrone-DET: ``images/NAME.jpg`` and ``annotations/NAME.txt`` in ``folder``.

    A line of an annotation file is one box: x, y, width, height in pixels, a score that is 1 for
    what is evaluated and 0 for what is not, the category (0 ignored regions, 1 to 10 the classes,
    11 others), truncation and occlusion. Ignored regions, others and boxes of score 0 become
    crowds; truncation and occlusion stay as keys of the annotation.

    Returns:
        The COCO file, what was malformed in the lines, and the place of an annotation of it.

    Raises:
        FileNotFoundError: One of the two folders is not there, or there is no image.
    """
    for part in ("images", "annotations"):
        if not (folder / part).is_dir():
            raise FileNotFoundError(
                f"{folder / part} does not exist: VisDrone-DET has a folder images with NAME.jpg "
                "and a folder annotations with NAME.txt"
            )
    paths = sorted((folder / "images").glob("*.jpg"))
    if not paths:
        raise FileNotFoundError(f"{folder / 'images'} holds no .jpg file")
    table = {0: "ignored regions", 11: "others"} | dict(
        enumerate(METAINFO["visdrone"]["classes"], start=1)
    )
    images, annotations, findings, places = [], [], [], {}
    texts = {text.stem: text for text in sorted((folder / "annotations").glob("*.txt"))}
    for name in sorted(texts.keys() - {path.stem for path in paths}):
        findings.append(
            Finding("missing file", str(texts[name]), f"there is no {folder}/images/{name}.jpg")
        )
    for path in track_iter_progress(paths):
        text = folder / "annotations" / f"{path.stem}.txt"
        if not text.is_file():
            findings.append(Finding("missing file", str(path), f"{text} does not exist"))
            continue
        try:
            width, height = image_size(path)
        except DAMAGED as error:
            findings.append(Finding("unreadable file", str(path), str(error)))
            continue
        identity = len(images) + 1
        images.append({"id": identity, "file_name": path.name, "width": width, "height": height})
        lines = text.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                # Some lines of the published files end in a comma.
                values = [int(value) for value in line.strip().rstrip(",").split(",")]
            except ValueError:
                values = []
            place = f"{text}, line {number}"
            if len(values) != 8 or values[4] not in (0, 1):
                what = f"expected the whole numbers {VISDRONE_FIELDS}, score 0 or 1, found {line!r}"
                findings.append(Finding("malformed annotation", place, what))
                continue
            *box, score, category, truncation, occlusion = values
            annotation = {
                "id": len(places) + 1,
                "image_id": identity,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(category in (0, 11) or score == 0),
                "truncation": truncation,
                "occlusion": occlusion,
            }
            places[annotation["id"]] = place
            annotations.append(annotation)
    categories = [{"id": number, "name": table[number]} for number in range(12)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    return coco, findings, lambda annotation: places[annotation["id"]]


def name_parts(coco: dict) -> dict:
    """Make the entries of TinyPerson's corner annotation those of files of their own.

    An image entry there has ``corner``, the pixels left, top, right and bottom of a part of the
    image ``file_name``; its boxes are counted from the part's corner. Here it gets the name
    NAME_LEFT_TOP_RIGHT_BOTTOM.png, the size of the part, and the image's name as ``cut_from``.
    An entry without corner, or with one that is no such part, stays as it is.
    """
    return coco | {"images": [*map(_name_part, coco["images"])]}


def _name_part(image: object) -> object:
    corner = image.get("corner") if isinstance(image, dict) else None
    if not (
        isinstance(corner, list)
        and len(corner) == 4
        and all(isinstance(value, int) and value >= 0 for value in corner)
        and corner[0] < corner[2]
        and corner[1] < corner[3]
        and isinstance(image.get("file_name"), str)
    ):
        return image
    return image | {
        "file_name": f"{Path(image['file_name']).with_suffix('')}_{'_'.join(map(str, corner))}.png",
        "width": corner[2] - corner[0],
        "height": corner[3] - corner[1],
        "cut_from": image["file_name"],
    }


def check_part(image: dict, images: Path) -> Finding | None:
    """Find what hinders an entry of ``name_parts`` from being cut from its image in ``images``."""
    where, corner = image_name(image), image.get("corner")
    if "cut_from" not in image:
        expected = "needs corner=[left, top, right, bottom] in whole pixels, as others of the file"
        return Finding("malformed image entry", where, f"{expected}, found {corner}")
    path = images / image["cut_from"]
    if not path.is_file():
        return Finding("missing file", where, f"{path} does not exist")
    try:
        width, height = _decoded_size(path)
    except DAMAGED as error:
        return Finding("unreadable file", where, f"{path}: {error}")
    if corner[2] > width or corner[3] > height:
        what = f"corner {corner} is not within {path} of {width} × {height} pixels"
        return Finding("wrong size", where, what)
    return None


@cache
def _decoded_size(path: Path) -> tuple[int, int]:
    """Width and height of an image all of which can be read."""
    with Image.open(path) as whole:
        whole.load()
        return whole.size


def cut_parts(coco: dict, images: Path, target: Path) -> None:
    """Write the parts that ``check_part`` found nothing wrong with to ``target``, without loss."""
    by_image = defaultdict(list)
    for part in coco["images"]:
        by_image[part["cut_from"]].append(part)
    for file_name, parts in track_iter_progress(list(by_image.items())):
        with Image.open(images / file_name) as whole:
            for part in parts:
                path = target / part["file_name"]
                path.parent.mkdir(parents=True, exist_ok=True)
                unfinished = path.with_name(path.name + ".partial")
                whole.crop(part["corner"]).save(unfinished, format="PNG")
                unfinished.replace(path)


def main(arguments: list[str] | None = None) -> None:
    """Convert what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="layout", required=True)
    for layout, source in {
        "soda-d": "Annotations/train.json, val.json or test.json",
        "visdrone": "folder with images and annotations, like VisDrone2019-DET-train",
        "ai-tod": "annotation file of AI-TOD-v2",
        "tinyperson": "annotation file of TinyPerson, of whole images or of corners",
    }.items():
        command = commands.add_parser(layout, help=f"from {source}")
        command.add_argument("source", type=Path, help=source)
        command.add_argument("target", type=Path, help="COCO file to write")
        command.add_argument(
            "--skip-bad", action="store_true", help="leave out what is malformed, and count it"
        )
        if layout != "visdrone":
            command.add_argument(
                "--images", type=Path, help="folder of the images, to check files and sizes"
            )
            command.add_argument(
                "--boxes-as-shown",
                action="store_true",
                help="boxes are known to be drawn on images as EXIF turns them",
            )
        if layout == "tinyperson":
            command.add_argument(
                "--cut-to", type=Path, help="folder for the parts of a corner annotation's images"
            )
    args = parser.parse_args(arguments)
    bad_input = "skip" if args.skip_bad else "strict"

    images, findings, locate = getattr(args, "images", None), [], None
    if images is not None and not images.is_dir():
        parser.error(f"--images {images} is no folder")
    classes, ignored = METAINFO[args.layout]["classes"], METAINFO[args.layout]["ignored_classes"]
    if args.layout == "visdrone":
        coco, findings, locate = convert_visdrone(args.source)
    elif args.layout == "tinyperson":
        # Files for the official task have both classes as one.
        coco = convert_coco_like(args.source, (*classes, "person"), (), ("ignore", "uncertain"))
        if any(isinstance(image, dict) and "corner" in image for image in coco["images"]):
            if images is None or args.cut_to is None:
                parser.error(f"{args.source} speaks of parts of images: give --images and --cut-to")
            coco, findings = clean(name_parts(coco), check=partial(check_part, images=images))
            settle(findings, bad_input, args.source, size_of(coco))
            cut_parts(coco, images, args.cut_to)
            images, findings = args.cut_to, []
        elif args.cut_to is not None:
            parser.error(f"{args.source} speaks of whole images: leave out --cut-to")
    else:
        coco = convert_coco_like(args.source, classes, ignored)
    shown = getattr(args, "boxes_as_shown", True)
    coco, found = clean(coco, images, locate=locate, boxes_as_shown=shown)
    settle([*findings, *found], bad_input, args.source, size_of(coco))
    if not coco["images"]:
        raise BadInputError(f"{args.source}: no image is left, so nothing is written", findings)
    write_json(args.target, coco)
    crowds = sum(bool(annotation["iscrowd"]) for annotation in coco["annotations"])
    print(f"{args.target}: {size_of(coco)}, {crowds:,} of these ignored")


def _hashable(value: object) -> object:
    return None if isinstance(value, list | dict) else value


if __name__ == "__main__":
    try:
        main()
    except (BadInputError, FileNotFoundError) as error:
        sys.exit(str(error))
