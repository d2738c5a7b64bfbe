"""Timelines: actions over the seconds of a video, and some of its frames above them."""

from collections.abc import Collection, Mapping, Sequence
from os import PathLike

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..pictures import MOST_FRAMES, evenly

WIDTH = 12.0  # inches


def draw_timeline(
    file: str | PathLike,
    lanes: Mapping[str, Sequence[Mapping]],
    frames: Sequence[np.ndarray],
    seconds: tuple[float, float],
    title: str,
) -> None:
    """Write a picture of what happens when.

    Args:
        file: A path that ends in the format to write, like ``.png``.
        lanes: By the name at the left, actions as ``dict(label, segment, score)``, ``segment``
            being (start, end) in seconds; one without a ``score`` is as high as the lane.
        frames: (H, W, 3) uint8 RGB each, evenly over the time; at most eight are drawn.
        seconds: From when to when the time is.
        title: Stands above.
    """
    height, width = frames[0].shape[:2]
    below = 0.7 + 0.45 * max(1, len(lanes))
    above = WIDTH / MOST_FRAMES * height / width
    figure = Figure(figsize=(WIDTH, above + below + 0.8), layout="constrained")
    grid = figure.add_gridspec(2, MOST_FRAMES, height_ratios=[above + 0.2, below])
    chosen = evenly(len(frames), MOST_FRAMES)
    each = (seconds[1] - seconds[0]) / len(frames)
    for place, index in enumerate(chosen):
        axes = figure.add_subplot(grid[0, place])
        axes.imshow(frames[index])
        axes.set_title(f"{seconds[0] + (index + 0.5) * each:.1f} s", fontsize=8)
        axes.axis("off")
    draw_lanes(figure.add_subplot(grid[1, :]), lanes, seconds)
    figure.suptitle(_plain(title), fontsize=10)
    figure.savefig(file, dpi=110)


def draw_lanes(
    axes: Axes, lanes: Mapping[str, Sequence[Mapping]], seconds: tuple[float, float]
) -> None:
    """Draw actions as bars as high as their scores, in a colour a label; see ``draw_timeline``.

    A legend tells the labels where lanes are called otherwise.
    """
    labels = list(dict.fromkeys(a["label"] for actions in lanes.values() for a in actions))
    palette = matplotlib.colormaps["tab10" if len(labels) <= 10 else "tab20"]
    colours = {label: palette(number % palette.N) for number, label in enumerate(labels)}
    named: set[str] = set()
    for row, actions in enumerate(lanes.values()):
        # The best ones last, above the others.
        for action in sorted(actions, key=lambda action: action.get("score", 1.0)):
            (start, end), label = action["segment"], action["label"]
            score = action.get("score")
            tall = 0.8 * (1.0 if score is None else score)
            axes.barh(
                row + 0.4 - tall / 2,
                end - start,
                tall,
                left=start,
                color=(*colours[label][:3], 0.75),
                edgecolor="white",
                linewidth=0.5,
                label=None if label in named else _plain(label),
            )
            named.add(label)
            if score is not None:
                place = (start + end) / 2, row + 0.4 - tall
                axes.text(*place, f"{score:.2f}", ha="center", va="bottom", fontsize=6)
    axes.set_yticks(range(len(lanes)), [_plain(name) for name in lanes], fontsize=8)
    axes.set(xlim=seconds, ylim=(max(1, len(lanes)) - 0.5, -0.6), xlabel="seconds")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    if named - set(lanes):
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7, frameon=False)


def by_label(actions: Collection[Mapping]) -> dict[str, list[Mapping]]:
    """Lanes of one label each, in the order of their first actions."""
    lanes: dict[str, list[Mapping]] = {}
    for action in sorted(actions, key=lambda action: action["segment"][0]):
        lanes.setdefault(action["label"], []).append(action)
    return lanes


def _plain(text: str) -> str:
    """Text that matplotlib is not to take for mathematics."""
    return text.replace("$", r"\$")
