"""Write a small set of videos of a minute, each with several motions one after another.

    python tools/demos/motion_videos.py data/motion_videos

The motions are those of motion_clips.py: an object goes in one direction and then in another, and
the class is the pair. Here it rests between them, and has the same kind of texture as the ground,
only somewhat brighter. In the clips of the part ``pretrain`` it stands out more: bright, over dark
ground, and moves in other pairs of directions.

``pretrain`` holds clips and lists as Kinetics has them (docs/video.md), ``finetune`` videos and
annotations as THUMOS14 has them (docs/localization.md).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from tools.demos import motion_clips
from tools.demos.generated_data import write_once
from tools.demos.motion_clips import DIRECTIONS, SIDE, draw_mask, paste, smooth_noise, write_video
from tools.result_files import write_json

FRAMES_PER_SECOND = 4
CLIPS_PER_CLASS = {"train": 300, "val": 30}
VIDEOS = {"training": 40, "validation": 30}
# Seconds, drawn evenly from between the two.
LENGTH, ACTION, PAUSE = (56, 64), (3.0, 6.0), (1.5, 4.0)
SPEED = 0.3, 0.45  # frame's sides per second
CONTRAST = 0.7  # of the textures
BRIGHTER = 0.3  # the object than the ground, from 0 to 1
SEED = 0
PRETRAINED_TURNS, TURNS = (0, 1), (2, 3)  # straight on and right; back and left
CLASSES = motion_clips.class_names(TURNS)


def draw_video(random: np.random.Generator) -> tuple[np.ndarray, list[dict]]:
    """Draw a video.

    Returns:
        Frames, (frames, SIDE, SIDE, 3) uint8, RGB; and its actions, ``dict(label, segment)`` with
        the seconds from when to when each is, in order and apart.
    """
    frames = round(random.uniform(*LENGTH) * FRAMES_PER_SECOND)
    actions = _draw_actions(frames / FRAMES_PER_SECOND, random)
    radius = int(random.integers(7, 11))
    # Cells of 4 pixels in both.
    ground, texture = (
        0.5 + CONTRAST * (smooth_noise(random, 4 * cells, cells) - 0.5)
        for cells in (SIDE // 4, radius)
    )
    texture = texture + BRIGHTER
    mask = draw_mask(random, radius)
    places = random.uniform(0, SIDE, 2) + random.uniform(*SPEED) * SIDE * _way(actions, frames)
    drawn = [paste(ground, texture, mask, *place) for place in places]
    return np.clip(255 * np.stack(drawn), 0, 255).astype(np.uint8), actions


def _draw_actions(seconds: float, random: np.random.Generator) -> list[dict]:
    """Draw what happens in a video of so many seconds, to a tenth of a second."""
    actions, labels = [], []
    start = random.uniform(*PAUSE)
    while (end := start + random.uniform(*ACTION)) < seconds:
        labels = labels or random.permutation(CLASSES).tolist()
        actions.append({"label": labels.pop(), "segment": [round(start, 1), round(end, 1)]})
        start = end + random.uniform(*PAUSE)
    return actions


def _way(actions: list[dict], frames: int) -> np.ndarray:
    """From the first frame to each, float64 (frames, 2), in seconds of moving right and down."""
    time = np.arange(frames) / FRAMES_PER_SECOND
    way = np.zeros((frames, 2))
    for action in actions:
        start, end = action["segment"]
        middle = (start + end) / 2
        halves = zip(action["label"].split("_then_"), ((start, middle), (middle, end)), strict=True)
        for direction, (first, last) in halves:
            angle = DIRECTIONS.index(direction) * np.pi / 2
            moved = time.clip(first, last) - first
            way += moved[:, None] * [np.cos(angle), np.sin(angle)]
    return way


def write_data_set(folder: Path, shrink: int = 1) -> None:
    """Write both parts into ``folder``, or do nothing where a complete set is there already.

    The files are those of ``SEED``, the same on every call; ``write_once`` writes them.

    Args:
        folder: Takes ``pretrain`` and ``finetune``.
        shrink: Write this many times fewer clips of each class and videos, for tests.

    Raises:
        FileExistsError: ``folder`` holds something else.
    """
    clips, videos = (
        # Two clips of a class make a batch of 16, and a smaller one would be left out of an epoch.
        {split: max(2, count // shrink) for split, count in counts.items()}
        for counts in (CLIPS_PER_CLASS, VIDEOS)
    )
    settings = {
        "side": SIDE,
        "frames_per_second": FRAMES_PER_SECOND,
        "turns": [*PRETRAINED_TURNS, *TURNS],
        "ground": motion_clips.GROUNDS["pretrain"],
        "clips_per_class": clips,
        "videos": videos,
        "seconds": [*LENGTH, *ACTION, *PAUSE],
        "speed": [*SPEED],
        "contrast": CONTRAST,
        "brighter": BRIGHTER,
        "seed": SEED,
    }

    def write(target: Path) -> None:
        for split, count in clips.items():
            motion_clips.write_split(
                target / "pretrain", "pretrain", split, count, PRETRAINED_TURNS
            )
        _write_videos(target / "finetune", videos)

    write_once(folder, settings, write)


def _write_videos(folder: Path, videos: dict[str, int]) -> None:
    database = {}
    for subset_number, (subset, count) in enumerate(videos.items()):
        for number in range(count):
            random = np.random.default_rng([SEED, subset_number, number])
            frames, actions = draw_video(random)
            name = f"{subset}_{number:04d}"
            write_video(folder / f"videos/{name}.mp4", frames, FRAMES_PER_SECOND)
            database[name] = {
                "subset": subset,
                "duration": len(frames) / FRAMES_PER_SECOND,
                "annotations": actions,
            }
    write_json(folder / "annotations.json", {"database": database})
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))


def main() -> None:
    """Write the data set into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    write_data_set(parser.parse_args().folder)


if __name__ == "__main__":
    main()
