"""Small real video files and annotation files for tests."""

from pathlib import Path

import cv2
import numpy as np


def write_clip(
    path: Path, frames: int = 20, size: tuple[int, int] = (64, 48), speed: int = 2
) -> Path:
    """Encode a bright square that moves to the right; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, size)
    width, height = size
    for number in range(frames):
        frame = np.full((height, width, 3), 90, np.uint8)
        left = number * speed % (width - 16)
        frame[height // 3 : height // 3 + 16, left : left + 16] = (220, 180, 250)
        writer.write(frame)
    writer.release()
    return path


def write_annotation(path: Path, lines: list[str]) -> Path:
    """Write an annotation file of the given lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def write_kinetics(root: Path, videos: int = 4, classes: int = 2) -> Path:
    """Write a small data set in OpenMMLab's Kinetics layout; return its folder."""
    for split, folder in (("train", "videos_train"), ("val", "videos_val")):
        lines = []
        for number in range(videos):
            # A space in the name and a class folder, as in Kinetics.
            name = f"class {number % classes}/clip_{number}.mp4"
            write_clip(root / folder / name, speed=1 + number % classes)
            lines.append(f"{name} {number % classes}")
        write_annotation(root / f"kinetics400_{split}_list_videos.txt", lines)
    return root
