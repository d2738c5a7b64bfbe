"""The demos' picture: loss, a validated figure and coefficients of every way, over the epochs."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; lines differ in style as well.
STYLES = [("#0072B2", "-"), ("#E69F00", "--"), ("#009E73", "-.")]


def draw(
    path: Path, curves: dict[str, list[dict]], key: str, chance: float | None = None, **labels: str
) -> None:
    """Write a PNG file of three panels; the arguments are those of ``draw_curves``."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    draw_curves(panels, curves, key, chance, **labels)
    save(figure, path)


def draw_curves(
    panels: Sequence[Axes],
    curves: dict[str, list[dict]],
    key: str,
    chance: float | None = None,
    *,
    title: str,
    label: str,
    loss_label: str,
) -> None:
    """Draw the curves of ``training_runs.read_curves``, one list of seeds for each way.

    Args:
        panels: Take the loss, the figure and the coefficients.
        curves: By the way's name, in the order of the legend; three at most.
        key: The figure's name in the curves; it is between 0 and 1 and drawn in per cent.
        chance: The figure of guessing, from 0 to 1.
        title: Title of the figure's panel.
        label: Label of the figure's axis.
        loss_label: Label of the loss's axis.
    """
    loss, figure, coefficients = panels
    epochs = max(seeds[0]["epoch"][-1] for seeds in curves.values())
    validated_once = all(len(seeds[0]["epoch"]) == 1 for seeds in curves.values())
    for (name, seeds), (colour, line) in zip(curves.items(), STYLES, strict=False):
        style = {"color": colour, "linestyle": line, "label": name, "linewidth": 2}
        steps = np.array(seeds[0]["iter"]) * epochs / seeds[0]["iter"][-1]
        _draw_seeds(loss, steps, seeds, "loss", 1, style)
        if not validated_once:
            validated = np.array(seeds[0]["epoch"])
            _draw_seeds(figure, validated, seeds, key, 100, style | {"marker": "o"})
        if "alpha" in seeds[0]:
            for coefficient, symbol, dashes in (("alpha", "α", "-"), ("beta", "β", ":")):
                values = seeds[0][coefficient]
                text = f"{symbol} of {name}"
                coefficients.plot(steps, values, dashes, color=colour, label=text, lw=2)
    if chance is not None:
        figure.axhline(100 * chance, color="0.5", linewidth=1)
        figure.annotate(
            "chance", (0, 100 * chance), color="0.4", xytext=(2, 3), textcoords="offset points"
        )
    for panel, heading, axis in (
        (loss, "Training loss", loss_label),
        (figure, title, label),
        (coefficients, "Coefficients", "value"),
    ):
        panel.set(title=heading, xlabel="epoch", ylabel=axis, xlim=(0, epochs))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False)
    loss.set_ylim(bottom=0)
    figure.set_ylim(0, 100)
    if validated_once:
        _draw_ends(figure, curves, key)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG file, whole or not at all, and close the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=120)
    plt.close(figure)
    partial.replace(path)


def _draw_ends(panel: Axes, curves: dict[str, list[dict]], key: str) -> None:
    """Draw each seed's one figure as a point over its way's name, and their mean as a line."""
    for place, (seeds, (colour, _)) in enumerate(zip(curves.values(), STYLES, strict=False)):
        values = [100 * seed[key][0] for seed in seeds]
        panel.plot([place] * len(values), values, "o", color=colour, alpha=0.6)
        panel.hlines(np.mean(values), place - 0.2, place + 0.2, color=colour, linewidth=2)
    panel.set(xlabel="", xlim=(-0.5, len(curves) - 0.5), ylim=(None, None))
    panel.set_xticks(range(len(curves)), [name.replace(" ", "\n") for name in curves])
    panel.autoscale(axis="y")
    panel.margins(y=0.3)


def _draw_seeds(
    panel: Axes, steps: np.ndarray, seeds: list[dict], key: str, factor: float, style: dict
) -> None:
    """Draw the mean over the seeds, and a band from the lowest to the highest."""
    values = factor * np.array([curves[key] for curves in seeds])
    panel.plot(steps, values.mean(0), **style)
    panel.fill_between(steps, values.min(0), values.max(0), color=style["color"], alpha=0.15, lw=0)
