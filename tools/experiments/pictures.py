"""The pictures of the study: accuracy against the memory of a step.

python tools/experiments/pictures.py     # results/study.png and study_small.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from tools.experiments.costs import whole_step
from tools.experiments.tables import half_width
from tools.experiments.ways import WAYS, Way
from tools.figures import save_figure

ROOT = Path(__file__).resolve().parents[2]
PICTURES = {
    "study.png": ("fashion_1000", "emoji_400"),
    "study_small.png": ("fashion", "emoji"),
}
COLOURS = {
    "plain networks": "tab:grey",
    "part of the weights": "tab:olive",
    "previous reversible, the paper's": "tab:red",
    "Dr²Net held on the line": "tab:blue",
    "the same, as the plain network": "tab:cyan",
}


def kind_of(way: Way) -> str | None:
    """Return the kind that a way is drawn as, or None where it is not."""
    if way.trained != "all" or way.channels:
        return "part of the weights"
    if way.beta is None:
        return "plain networks"
    if way.arithmetic == "float":
        return None
    if way.alpha is None and not isinstance(way.beta, tuple):
        return "Dr²Net held on the line"
    return "previous reversible, the paper's"


def draw_study(axes: Axes, study: dict, costs: dict) -> None:
    """Draw one study's ways: mean and interval over seeds, against the whole step's bytes.

    Ways that end with the weights of another, as checkpointing does, have its accuracy.
    """
    rates = {row["finetuning"]: float(row["learning rate"]) for row in study["rows"]}
    labels = []
    for way in WAYS:
        kind, like = kind_of(WAYS[way]), WAYS[way].same_as or way
        if kind is None or way not in costs or like not in rates:
            continue
        x = whole_step(costs[way]) / 1e6
        runs = [run for run in study["runs"] if (run["way"], run["rate"]) == (like, rates[like])]
        figures = {kind: "test"}
        if kind == "Dr²Net held on the line":
            figures["the same, as the plain network"] = "plain"
        for label, key in figures.items():
            values = [run[key] for run in runs]
            axes.errorbar(
                x * (1 if key == "test" else 1.02),  # beside each other
                np.mean(values),
                half_width(values) if len(values) > 1 else None,
                fmt="o" if key == "test" else "s",
                markersize=5,
                capsize=2,
                linewidth=0.8,
                color=COLOURS[label],
                label=label,
            )
        labels.append((float(np.mean([run["test"] for run in runs])), x, way))
    _write_apart(axes, labels)
    axes.set_title(study["title"].removesuffix(", every way of finetuning."), fontsize=9)
    axes.set_xscale("log")
    ticks = [100, 200, 500, 1000, 2000, 4000]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.25)
    axes.set_xlabel("memory of a step at 224 px, batch 64, weights and optimizer included (MB)")
    axes.set_ylabel("top-1 (%)")
    axes.grid(alpha=0.3)


def _write_apart(axes: Axes, labels: list[tuple[float, float, str]]) -> None:
    """Write names beside (y, x) of their points, those of neighbours above each other."""
    low, high = axes.get_ylim()
    gap, written = 0.03 * (high - low), []
    for y, x, text in sorted(labels):
        left = text.startswith("LoRA,") or text.endswith("channels, held (7/8, 1/8)")
        near = [at for at, other in written if max(x, other) / min(x, other) < 1.5]
        at = max([y, *(other + gap for other in near if other > y - gap)])
        written.append((at, x))
        axes.annotate(
            text,
            (x, y),
            (x / 1.06 if left else x * 1.06, at),
            fontsize=7,
            va="center",
            ha="right" if left else "left",
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "grey"},
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    folder = parser.parse_args().results
    costs = json.loads((folder / "study_costs.json").read_text())["measured"]
    for picture, studies in PICTURES.items():
        draw_studies(folder / picture, [folder / f"study_{study}.json" for study in studies], costs)


def draw_studies(picture: Path, results: list[Path], costs: dict) -> None:
    """Draw studies beside each other."""
    figure, (every,) = plt.subplots(
        1, len(results), figsize=(6.5 * len(results), 5.5), squeeze=False, layout="constrained"
    )
    for axes, path in zip(every, results, strict=True):
        draw_study(axes, json.loads(path.read_text()), costs)
    labels: dict[str, object] = {}
    for axes in every:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=3, fontsize=8)
    save_figure(figure, picture, dpi=150)


if __name__ == "__main__":
    main()
