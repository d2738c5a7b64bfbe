"""The demos' picture: what every way reaches against its memory, and curves of the trainings."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from tools.figures import save_figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; lines and markers differ in
# style as well.
STYLES = [
    ("0.45", ":", "v"),
    ("#0072B2", "-", "s"),
    ("#56B4E9", "-", "D"),
    ("#E69F00", "--", "^"),
    ("#009E73", "-.", "o"),
    ("#D55E00", "-", "o"),
    ("#CC79A7", "-", "*"),
]


def draw(path: Path, result: dict, key: str, chance: float | None = None, **labels: str) -> None:
    """Write a PNG file; the arguments are those of ``draw_panels``."""
    figure = plt.figure(figsize=(13, 4.6), layout="constrained")
    draw_panels(figure.subplots(1, count_panels(result)), result, key, chance, **labels)
    save_figure(figure, path)


def count_panels(result: dict) -> int:
    """Return how many panels ``draw_panels`` takes: two where ways were validated but once."""
    return 3 if _is_validated_often(result) else 2


def draw_panels(
    panels: Sequence[Axes],
    result: dict,
    key: str,
    chance: float | None = None,
    *,
    title: str,
    label: str,
    loss_label: str,
) -> None:
    """Draw the figure against the peak memory of a step, the loss, and the figure over the epochs.

    A legend below the figure that holds the panels names the ways.

    Args:
        panels: As many as ``count_panels`` says.
        result: ``figures`` by way, in the order of the legend, ``measured`` and ``curves``; a way
            whose curves have not as many seeds as its figures is drawn in the first panel alone.
        key: The figure's name; it is between 0 and 1 and drawn in per cent.
        chance: The figure of guessing, from 0 to 1.
        title: Title of the figure's panels.
        label: Label of the figure's axis.
        loss_label: Label of the loss's axis.
    """
    memory, loss, *over_epochs = panels
    for (name, reached), (colour, line, marker) in zip(
        result["figures"].items(), STYLES, strict=False
    ):
        values = 100 * np.array(reached[key])
        peak = max(found["peak_bytes"] for found in result["measured"][name]) / 1e6
        mean = values.mean()
        size = 11 if marker == "*" else 8
        memory.errorbar(
            peak,
            mean,
            [[mean - values.min()], [values.max() - mean]],
            color=colour,
            marker=marker,
            markersize=size,
            markeredgecolor="white",
            capsize=3,
            linestyle="none",
            label=name,
        )
        seeds = result["curves"].get(name, [])
        if len(seeds) != len(values):
            continue
        style = {"color": colour, "linestyle": line, "linewidth": 2}
        epochs = seeds[0]["epoch"][-1]
        steps = np.array(seeds[0]["iter"]) * epochs / seeds[0]["iter"][-1]
        _draw_seeds(loss, steps, seeds, "loss", 1, style)
        for panel in over_epochs:
            validated = style | {"marker": marker, "markersize": 4}
            _draw_seeds(panel, np.array(seeds[0]["epoch"]), seeds, key, 100, validated)
    memory.set(title=title, xlabel="peak of a training step (MB)", ylabel=label)
    memory.set_xlim(left=0)
    loss.set(title="Training loss", xlabel="epoch", ylabel=loss_label)
    loss.set_xlim(left=0)
    loss.set_ylim(bottom=0)
    for panel in over_epochs:
        panel.set(title=title, xlabel="epoch", ylabel=label, ylim=(0, 100))
        panel.set_xlim(left=0)
        if chance is not None:
            panel.axhline(100 * chance, color="0.5", linewidth=1)
            panel.annotate(
                "chance", (1, 100 * chance), color="0.4", xytext=(2, 3), textcoords="offset points"
            )
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    handles, names = memory.get_legend_handles_labels()
    memory.figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)


def _is_validated_often(result: dict) -> bool:
    return any(len(seeds[0]["epoch"]) > 1 for seeds in result["curves"].values())


def _draw_seeds(
    panel: Axes, steps: np.ndarray, seeds: list[dict], key: str, factor: float, style: dict
) -> None:
    """Draw the mean over the seeds, and a band from the lowest to the highest."""
    values = factor * np.array([curves[key] for curves in seeds])
    panel.plot(steps, values.mean(0), **style)
    panel.fill_between(steps, values.min(0), values.max(0), color=style["color"], alpha=0.15, lw=0)
