"""Pictures of videos: frames, and the classes that a model gives them."""

from collections.abc import Sequence
from os import PathLike

import numpy as np
from matplotlib.figure import Figure

COLUMNS, MOST_FRAMES = 4, 8


def draw_prediction(
    file: str | PathLike,
    frames: Sequence[np.ndarray],
    seconds: np.ndarray | None,
    ranked: Sequence[dict],
    clips: Sequence[dict],
    title: str,
) -> None:
    """Write a picture of a video: frames with their time, and bars of the best classes.

    Where there are several clips, the frames are from their middles, with the class of each.

    Args:
        file: A path that ends in the format to write, like ``.png``.
        frames: (H, W, 3) uint8 RGB each, those of one clip after the other.
        seconds: When each of them is; None where that is not known.
        ranked: The best classes: ``class`` and ``score`` each.
        clips: As many as there are, with ``class`` and ``score`` each.
        title: Stands above.
    """
    size = len(frames) // len(clips)
    if len(clips) > 1:
        some = np.linspace(0, len(clips) - 1, min(len(clips), MOST_FRAMES)).round().astype(int)
        chosen = [int(clip) * size + size // 2 for clip in some]
        texts = [
            f"{seconds[i]:.1f} s: {_short(clips[c]['class'])} {clips[c]['score']:.2f}"
            for i, c in zip(chosen, some, strict=True)
        ]
    else:
        chosen = evenly(len(frames), MOST_FRAMES)
        texts = ["" if seconds is None else f"{seconds[index]:.1f} s" for index in chosen]
    rows = -(-len(chosen) // COLUMNS)
    height, width = frames[0].shape[:2]
    panel = 2.6  # inches
    bars = 0.6 + 0.28 * len(ranked)
    above = rows * (panel * height / width + 0.3)
    figure = Figure(figsize=(COLUMNS * panel, above + bars + 0.4), layout="constrained")
    grid = figure.add_gridspec(rows + 1, COLUMNS, height_ratios=[above / rows] * rows + [bars])
    for place, (index, text) in enumerate(zip(chosen, texts, strict=True)):
        axes = figure.add_subplot(grid[place // COLUMNS, place % COLUMNS])
        axes.imshow(frames[index])
        axes.set_title(text, fontsize=8)
        axes.axis("off")
    axes = figure.add_subplot(grid[rows, :])
    scores = [entry["score"] for entry in ranked]
    drawn = axes.barh(range(len(ranked)), scores, color="tab:blue")
    axes.bar_label(drawn, [f"{score:.3f}" for score in scores], padding=3, fontsize=8)
    axes.set_yticks(range(len(ranked)), [_short(e["class"], 40) for e in ranked], fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.1 * max(*scores, 1e-3)), xlabel="probability")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    figure.savefig(file, dpi=110)


def draw_frames(file: str | PathLike, clips: Sequence[np.ndarray], titles: Sequence[str]) -> None:
    """Write a picture of clips as a network gets them, a row each.

    Args:
        file: A path that ends in the format to write, like ``.png``.
        clips: (T, H, W, 3) uint8 RGB each; at most eight frames of each are drawn.
        titles: Stand above the rows.
    """
    figure = Figure(figsize=(MOST_FRAMES * 1.5, 1.8 * len(clips)), layout="constrained")
    rows = figure.subplots(len(clips), MOST_FRAMES, squeeze=False)
    for axes_of_row, clip, title in zip(rows, clips, titles, strict=True):
        for axes in axes_of_row:
            axes.axis("off")
        for axes, index in zip(axes_of_row, evenly(len(clip), MOST_FRAMES), strict=False):
            axes.imshow(clip[index])
        axes_of_row[0].set_title(title.replace("$", r"\$"), fontsize=9, loc="left")
    figure.savefig(file, dpi=100)


def evenly(count: int, most: int) -> list[int]:
    """Return at most ``most`` of ``count`` indices, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _short(text: str, most: int = 24) -> str:
    text = text.replace("$", r"\$")
    return text if len(text) <= most else f"{text[: most - 1]}…"
