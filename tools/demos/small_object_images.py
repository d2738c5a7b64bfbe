"""Write a small COCO-format set of high-resolution images with many objects of 8 to 32 pixels.

    python tools/demos/small_object_images.py data/small_objects

An image has 1024 × 1024 pixels: ground with structure at every scale from 4 to 256 pixels, on it
three hundred objects, and between them scratches and smudges that are none. The class is the shape;
size, turn, contrast, colour and place are drawn without regard to it.

The part ``pretrain`` has warm ground, the part ``finetune`` cold ground, on which objects stand out
less; each has ``train.json`` and ``val.json``, and the images in folders of the same names.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np

from tools.demos.generated_data import write_once
from tools.result_files import write_json

SIDE = 1024  # pixels of an image
OBJECTS = 300  # in an image
SCRATCHES = SMUDGES = 40  # in an image
SIZES = (8, 48)  # pixels of the longer side of a box
IMAGES = {
    "pretrain": {"train": 24, "val": 4},
    "finetune": {"train": 2, "val": 4},
}
# Mean colours, RGB.
GROUNDS = {"pretrain": (130, 105, 80), "finetune": (80, 105, 115)}
# How much lighter or darker than the ground objects and smudges are.
CONTRASTS = {"pretrain": (40, 80), "finetune": (30, 60)}
SEED = 0

Mask = np.ndarray
# Of coordinates between -1.5 and 1.5: what belongs to a shape.
Shape = Callable[[np.ndarray, np.ndarray], Mask]


def _disc(x: np.ndarray, y: np.ndarray) -> Mask:
    return x**2 + y**2 < 1


def _square(x: np.ndarray, y: np.ndarray) -> Mask:
    return np.maximum(abs(x), abs(y)) < 0.8


def _triangle(x: np.ndarray, y: np.ndarray) -> Mask:
    return (y > -0.5) & (y < 1 - 1.73 * abs(x))


def _bar(x: np.ndarray, y: np.ndarray) -> Mask:
    return (abs(x) < 1) & (abs(y) < 0.35)


def _ring(x: np.ndarray, y: np.ndarray) -> Mask:
    return _disc(x, y) & ~_disc(x / 0.5, y / 0.5)


def _cross(x: np.ndarray, y: np.ndarray) -> Mask:
    return (np.minimum(abs(x), abs(y)) < 0.28) & (np.maximum(abs(x), abs(y)) < 1)


def _corner(x: np.ndarray, y: np.ndarray) -> Mask:
    return _square(x, y) & (np.minimum(x, y) < -0.2)


def _crescent(x: np.ndarray, y: np.ndarray) -> Mask:
    return _disc(x, y) & ~_disc((x - 0.5) / 0.8, y / 0.8)


SHAPES: dict[str, Shape] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "bar": _bar,
    "ring": _ring,
    "cross": _cross,
    "corner": _corner,
    "crescent": _crescent,
}


def draw_image(part: str, random: np.random.Generator) -> tuple[np.ndarray, list[tuple]]:
    """Draw an image of a part.

    Returns:
        (SIDE, SIDE, 3) uint8 RGB; label, left, top, width and height of each object, in whole
        pixels. Boxes do not overlap.
    """
    contrast = CONTRASTS[part]
    image = _draw_ground(GROUNDS[part], random)
    for _ in range(SCRATCHES):
        _draw_scratch(image, GROUNDS[part] + random.normal(size=3) * 30, random)
    for _ in range(SMUDGES):
        side = int(random.integers(8, 48))
        smudge = cv2.getGaussianKernel(side, side / 5)
        _paint(
            image,
            smudge @ smudge.T / smudge.max() ** 2,
            _find_place(side, side, [], random),
            contrast,
            random,
        )
    shapes, objects = list(SHAPES.values()), []
    for label in random.integers(len(shapes), size=OBJECTS).tolist():
        mask = _draw_shape(shapes[label], random)
        height, width = mask.shape
        left, top = _find_place(width, height, [box for _, *box in objects], random)
        _paint(image, mask, (left, top), contrast, random)
        objects.append((label, left, top, width, height))
    return np.clip(image, 0, 255).round().astype(np.uint8), objects


def _draw_ground(colour: tuple[int, int, int], random: np.random.Generator) -> np.ndarray:
    """Draw noise of several scales, the coarser the stronger, in shades of a colour."""
    ground = np.full((SIDE, SIDE, 3), colour, np.float32)
    for scale in (4, 16, 64, 256):
        cells = random.normal(size=(SIDE // scale, SIDE // scale, 3)).astype(np.float32)
        cells = 0.8 * cells[..., :1] + 0.4 * cells  # brightness more than colour
        ground += 4 * scale**0.25 * cv2.resize(cells, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return ground


def _draw_shape(shape: Shape, random: np.random.Generator) -> Mask:
    """Draw a turned shape: how much of it each pixel of its box shows, (height, width)."""
    y, x = np.mgrid[-1.5:1.5:128j, -1.5:1.5:128j]
    angle = random.uniform(0, 2 * np.pi)
    mask = shape(np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    # Small ones are more frequent, as in sets of small objects.
    size = SIZES[0] * (SIZES[1] / SIZES[0]) ** random.random()
    height, width = np.maximum(1, np.round(size * np.array(mask.shape) / max(mask.shape))).astype(
        int
    )
    return cv2.resize(mask, (int(width), int(height)), interpolation=cv2.INTER_AREA)


def _draw_scratch(image: np.ndarray, colour: np.ndarray, random: np.random.Generator) -> None:
    """Draw a thin bent line."""
    points = random.integers(0, SIDE, 2) + random.normal(size=(3, 2)).cumsum(0) * 20
    cv2.polylines(image, [points.round().astype(np.int32)], False, colour.tolist(), 1, cv2.LINE_AA)


def _find_place(
    width: int, height: int, taken: list[list[int]], random: np.random.Generator
) -> tuple[int, int]:
    """Return left and top of a box inside the image and 2 pixels away from the boxes ``taken``."""
    boxes = np.array(taken).reshape(-1, 4)
    while True:
        left, top = random.integers(0, (SIDE - width + 1, SIDE - height + 1)).tolist()
        beside = (left + width + 2 <= boxes[:, 0]) | (boxes[:, 0] + boxes[:, 2] + 2 <= left)
        above = (top + height + 2 <= boxes[:, 1]) | (boxes[:, 1] + boxes[:, 3] + 2 <= top)
        if (beside | above).all():
            return left, top


def _paint(
    image: np.ndarray,
    mask: Mask,
    place: tuple[int, int],
    contrast: tuple[float, float],
    random: np.random.Generator,
) -> None:
    """Paint over the image where the mask is, lighter or darker than what is there."""
    left, top = place
    height, width = mask.shape
    under = image[top : top + height, left : left + width]
    direction = random.normal(size=3) * 0.3 + random.choice((-1, 1))
    colour = under.mean((0, 1)) + random.uniform(*contrast) * direction
    under += mask[..., None] * (colour + random.normal(size=under.shape) * 5 - under)


def write_data_set(folder: Path, shrink: int = 1) -> None:
    """Write both parts into ``folder``, or do nothing where a complete set is there already.

    The files are those of ``SEED``, the same on every call; ``write_once`` writes them.

    Args:
        folder: Takes ``pretrain`` and ``finetune``.
        shrink: Write this many times fewer images, for tests.

    Raises:
        FileExistsError: ``folder`` holds something else.
    """
    settings = {
        "side": SIDE,
        "objects": OBJECTS,
        "sizes": list(SIZES),
        "grounds": {part: list(colour) for part, colour in GROUNDS.items()},
        "contrasts": {part: list(contrast) for part, contrast in CONTRASTS.items()},
        "shapes": list(SHAPES),
        "seed": SEED,
        "images": {
            part: {split: max(1, count // shrink) for split, count in splits.items()}
            for part, splits in IMAGES.items()
        },
    }

    def write(target: Path) -> None:
        for part, splits in settings["images"].items():
            for split, count in splits.items():
                _write_split(target / part, part, split, count)

    write_once(folder, settings, write)


def _write_split(folder: Path, part: str, split: str, count: int) -> None:
    (folder / split).mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        key = [SEED, list(IMAGES).index(part), ["train", "val"].index(split), number]
        image, objects = draw_image(part, np.random.default_rng(key))
        path = folder / split / f"{number:04d}.jpg"
        if not cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95]):
            raise OSError(
                f"{path} cannot be written: is the folder writable and the disk not full?"
            )
        images.append({"id": number, "file_name": path.name, "width": SIDE, "height": SIDE})
        annotations += [
            {
                "id": len(annotations) + index,
                "image_id": number,
                "category_id": label + 1,
                "bbox": [left, top, width, height],
                "area": width * height,
                "iscrowd": 0,
            }
            for index, (label, left, top, width, height) in enumerate(objects, start=1)
        ]
    categories = [{"id": n, "name": name} for n, name in enumerate(SHAPES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(folder / f"{split}.json", content)


def main() -> None:
    """Write the data set into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    write_data_set(parser.parse_args().folder)


if __name__ == "__main__":
    main()
