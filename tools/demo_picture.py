"""The demo's picture: loss, top-1 and coefficients of every way of finetuning, over the epochs."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can tell apart; lines differ in style as well.
STYLES = [("#0072B2", "-"), ("#E69F00", "--"), ("#009E73", "-.")]


def draw(curves: dict[str, list[dict]], chance: float, path: Path) -> None:
    """Draw the curves of ``training_runs.read_curves``, one list of seeds for each way.

    Args:
        curves: By the way's name, in the order of the legend; three at most.
        chance: Top-1 of guessing, from 0 to 1.
        path: PNG file to write.
    """
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    loss, top1, coefficients = panels
    epochs = max(seeds[0]["epoch"][-1] for seeds in curves.values())
    for (name, seeds), (colour, line) in zip(curves.items(), STYLES, strict=False):
        style = {"color": colour, "linestyle": line, "label": name, "linewidth": 2}
        steps = np.array(seeds[0]["iter"]) * epochs / seeds[0]["iter"][-1]
        _draw_seeds(loss, steps, seeds, "loss", 1, style)
        _draw_seeds(top1, np.array(seeds[0]["epoch"]), seeds, "top1", 100, style | {"marker": "o"})
        if "alpha" in seeds[0]:
            for key, symbol, dashes in (("alpha", "α", "-"), ("beta", "β", ":")):
                label = f"{symbol} of {name}"
                coefficients.plot(steps, seeds[0][key], dashes, color=colour, label=label, lw=2)
    top1.axhline(100 * chance, color="0.5", linewidth=1)
    top1.annotate(
        "chance", (0, 100 * chance), color="0.4", xytext=(2, 3), textcoords="offset points"
    )
    for panel, title, label in (
        (loss, "Training loss", "cross-entropy (nats)"),
        (top1, "Accuracy on clips not trained on", "top-1 (%)"),
        (coefficients, "Coefficients", "value"),
    ):
        panel.set(title=title, xlabel="epoch", ylabel=label, xlim=(0, epochs))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False)
    loss.set_ylim(bottom=0)
    top1.set_ylim(0, 100)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=120)
    plt.close(figure)
    partial.replace(path)


def _draw_seeds(
    panel: Axes, steps: np.ndarray, seeds: list[dict], key: str, factor: float, style: dict
) -> None:
    """Draw the mean over the seeds, and a band from the lowest to the highest."""
    values = factor * np.array([curves[key] for curves in seeds])
    panel.plot(steps, values.mean(0), **style)
    panel.fill_between(steps, values.min(0), values.max(0), color=style["color"], alpha=0.15, lw=0)
