"""Write a small data set of real video files whose classes only motion tells apart.

    python tools/demos/motion_clips.py data/motion

A textured object moves over a textured ground, in one direction during the first half of a clip and
in another during the second; the class is the pair of directions. Shape, textures, colours, size,
speed and starting place are drawn before the class is looked at. The place is uniform over a frame
whose edges are joined (what leaves on the right comes in on the left), so it stays uniform wherever
the object moves: every single frame has the same distribution in every class, and a network that
does not look at motion is left with chance.

The object goes straight on, turns right or turns back. The part ``pretrain`` has dark ground, the
part ``finetune`` brighter ground, on which objects stand out less; each has annotation files and
video folders as Kinetics has them (docs/video.md).
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np

from tools.demos.generated_data import write_once

SIDE = 40  # pixels
FRAMES = 16
FRAMES_PER_SECOND = 25
DIRECTIONS = ("right", "down", "left", "up")
# Quarter turns to the right between the halves of a clip.
TURNS = (0, 1, 2)
CLIPS_PER_CLASS = {
    "pretrain": {"train": 200, "val": 20},
    "finetune": {"train": 10, "val": 40},
}
SEED = 0
# Mean brightness of the ground, from 0 to 1; objects are of 0.55 at least.
GROUNDS = {"pretrain": 0.25, "finetune": 0.4}


def class_names(turns: Iterable[int] = TURNS) -> list[str]:
    """Return the classes, those of the same turn after each other, in the order of labels."""
    return [
        f"{first}_then_{DIRECTIONS[(number + turn) % 4]}"
        for turn in turns
        for number, first in enumerate(DIRECTIONS)
    ]


def draw_clip(name: str, brightness: float, random: np.random.Generator) -> np.ndarray:
    """Draw a clip of the class ``name`` over ground of a mean ``brightness``.

    Returns:
        (FRAMES, SIDE, SIDE, 3) uint8, RGB.
    """
    ground = brightness + 0.35 * (smooth_noise(random, SIDE, 6) - 0.5)
    ground = ground + random.uniform(-0.1, 0.1, 3)
    radius = int(random.integers(7, 11))
    texture, mask = draw_object(random, radius)
    place = random.uniform(0, SIDE, 2)
    distance = random.uniform(0.4, 0.6) * SIDE

    halves = [DIRECTIONS.index(direction) * np.pi / 2 for direction in name.split("_then_")]
    frames = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)
    for number, time in enumerate(np.linspace(0, 1, FRAMES)):
        lengths = distance * min(time, 0.5), distance * max(time - 0.5, 0)
        x, y = place + sum(
            length * np.array([np.cos(angle), np.sin(angle)])
            for length, angle in zip(lengths, halves, strict=True)
        )
        frames[number] = np.clip(255 * paste(ground, texture, mask, x, y), 0, 255)
    return frames


def smooth_noise(random: np.random.Generator, side: int, cells: int) -> np.ndarray:
    """Draw a smooth colour texture, (side, side, 3), mostly within 0 to 1."""
    cells = random.random((cells, cells, 3), dtype=np.float32)
    return cv2.resize(cells, (side, side), interpolation=cv2.INTER_CUBIC)


def draw_object(random: np.random.Generator, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a bright object: its texture, (4 radius, 4 radius, 3), and its mask."""
    side = 4 * radius
    colour = 0.55 + 0.45 * random.random(3)
    texture = (colour * (0.2 + 0.8 * smooth_noise(random, side, 5))).astype(np.float32)
    return texture, draw_mask(random, radius)


def draw_mask(random: np.random.Generator, radius: int) -> np.ndarray:
    """Draw a turned ellipse, rectangle or triangle: 1 inside, (4 radius, 4 radius) float32."""
    side = 4 * radius
    y, x = (np.mgrid[:side, :side] + 0.5) / radius - 2
    height = random.uniform(0.5, 0.9)
    shapes = [
        x**2 + (y / height) ** 2 < 1,
        (abs(x) < 0.9) & (abs(y) < 0.9 * height),
        (y < 0.7) & (y > 1.6 * abs(x) - 1),
    ]
    mask = shapes[random.integers(len(shapes))].astype(np.float32)
    turn = cv2.getRotationMatrix2D((side / 2 - 0.5,) * 2, random.uniform(0, 360), 1)
    return cv2.warpAffine(mask, turn, (side, side))


def paste(
    ground: np.ndarray, texture: np.ndarray, mask: np.ndarray, x: float, y: float
) -> np.ndarray:
    """Put the object on the ground at (x, y), to a fraction of a pixel, around the edges."""
    column, row = int(np.floor(x)), int(np.floor(y))
    shift = np.array([[1, 0, x - column], [0, 1, y - row]], np.float32)
    side = len(mask)
    texture, mask = (cv2.warpAffine(image, shift, (side, side)) for image in (texture, mask))
    under = np.ix_((np.arange(side) + row) % SIDE, (np.arange(side) + column) % SIDE)
    frame = ground.copy()
    frame[under] += mask[..., None] * (texture - frame[under])
    return frame


def write_video(path: Path, frames: np.ndarray, rate: int = FRAMES_PER_SECOND) -> None:
    """Encode (frames, height, width, 3) uint8 RGB as an MPEG-4 file of ``rate`` frames a second.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    size = frames.shape[2], frames.shape[1]
    codec = cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), codec, rate, size)
    if not writer.isOpened():
        raise OSError(f"{path} cannot be written: is the folder writable and the disk not full?")
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()


def write_data_set(folder: Path, shrink: int = 1) -> None:
    """Write both parts into ``folder``, or do nothing where a complete set is there already.

    The files are those of ``SEED``, the same on every call; ``write_once`` writes them.

    Args:
        folder: Takes ``pretrain`` and ``finetune``.
        shrink: Write this many times fewer clips of each class, two at least, for tests.

    Raises:
        FileExistsError: ``folder`` holds something else.
    """
    settings = {
        "side": SIDE,
        "frames": FRAMES,
        "seed": SEED,
        "turns": list(TURNS),
        "grounds": GROUNDS,
        "clips_per_class": {
            # Two of a class make a batch of 16, and a smaller one would be left out of an epoch.
            part: {split: max(2, count // shrink) for split, count in splits.items()}
            for part, splits in CLIPS_PER_CLASS.items()
        },
    }

    def write(target: Path) -> None:
        for part, splits in settings["clips_per_class"].items():
            for split, count in splits.items():
                write_split(target / part, part, split, count)

    write_once(folder, settings, write)


def write_split(
    folder: Path, part: str, split: str, count: int, turns: Iterable[int] = TURNS
) -> None:
    """Write ``count`` clips of each class of ``part`` into ``folder``, and the list of them."""
    parts, splits = list(CLIPS_PER_CLASS), ["train", "val"]
    lines = []
    for label, name in enumerate(class_names(turns)):
        for number in range(count):
            key = [SEED, parts.index(part), splits.index(split), label, number]
            path = f"{name}/{number:04d}.mp4"
            frames = draw_clip(name, GROUNDS[part], np.random.default_rng(key))
            write_video(folder / f"videos_{split}" / path, frames)
            lines.append(f"{path} {label}\n")
    (folder / f"{split}_list_videos.txt").write_text("".join(lines))


def main() -> None:
    """Write the data set into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    write_data_set(parser.parse_args().folder)


if __name__ == "__main__":
    main()
