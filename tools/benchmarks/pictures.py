"""Pictures of what the benchmarks measured; they need matplotlib."""

from itertools import cycle
from pathlib import Path
from statistics import median

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from tools.figures import save_figure

# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = {
    "conventional": "#000000",
    "checkpoint": "#0072B2",
    "selective": "#56B4E9",
    "compiled": "#CC79A7",
    "offload": "#F0E442",
    "previous reversible": "#E69F00",
    "torch_remat": "#332288",
    "LoRA": "#999999",
    "(1, 0.1)": "#D55E00",
    "(15/16, 1/16)": "#004D40",
    "(7/8, 1/8)": "#009E73",
    "(3/4, 1/4)": "#66C2A4",
    "(1/2, 1/2)": "#8DB600",
    "(0, 1)": "#882255",
}


def colour_of(method: str) -> str:
    """The colour of the first key that stands in the method's name, from the specific ones on."""
    order = ("LoRA", "previous reversible", *(key for key in COLOURS if "(" in key), *COLOURS)
    last = [key for key in order if key not in ("conventional", "compiled")]
    return COLOURS[next((key for key in [*last, "compiled"] if key in method), "conventional")]


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def draw_time_against_memory(path: Path, result: dict) -> None:
    """Peak memory and time of each method as shares of conventional's, one plot for each case."""
    cases = result["measured"]
    lines = max(len(measured["methods"]) for measured in cases)
    figure, plots = plt.subplots(
        1,
        len(cases),
        figsize=(7 * len(cases) + 5, max(5, 0.2 * lines)),
        squeeze=False,
        layout="constrained",
    )
    for axes, measured in zip(plots[0], cases, strict=True):
        base = measured["methods"]["conventional"]
        shapes = {colour: cycle("os^DvPX*p<>hd") for colour in COLOURS.values()}
        for name, found in measured["methods"].items():
            colour = colour_of(name)
            ratios = [a / b for a, b in zip(found["seconds"], base["seconds"], strict=True)]
            memory = found["bytes"]["peak"] / base["bytes"]["peak"]
            axes.scatter(
                memory, median(ratios), s=80, color=colour, marker=next(shapes[colour]), label=name
            )
        axes.set_xlim(left=0)
        axes.set_xlabel("peak memory of a step / conventional")
        axes.set_ylabel("time of a step / conventional")
        axes.set_title(result["title"] if len(cases) == 1 else _case_title(measured["case"]))
        _tidy(axes)
    plots[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    save_figure(figure, path, bbox_inches="tight")


def _case_title(case: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in case.items() if value not in (None, 0))


def draw_scaling(path: Path, result: dict) -> None:
    """Memory, and where it was measured time, over what a sweep changed."""
    measured = result["measured"]
    keys = [
        (key, label)
        for key, label in (
            ("kept", "kept from forward to backward (MB)"),
            ("peak", "peak of a step (MB)"),
            ("seconds", "seconds per step"),
        )
        if any(key in here for by_value in measured.values() for here in by_value.values())
    ]
    figure, plots = plt.subplots(
        1, len(keys), figsize=(5 * len(keys), 4), squeeze=False, layout="constrained"
    )
    for axes, (key, label) in zip(plots[0], keys, strict=True):
        for name, by_value in measured.items():
            here = {int(value): found[key] for value, found in by_value.items() if key in found}
            numbers = [
                median(number) if key == "seconds" else number / 1e6 for number in here.values()
            ]
            axes.plot(list(here), numbers, "o-", label=name, color=colour_of(name))
        values = [int(value) for value in max(measured.values(), key=len)]
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.set_xticks(values, [f"{value:,}" for value in values])
        axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(result["label"])
        axes.set_title(label)
        _tidy(axes)
    lines, names = plots[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(result["title"])
    save_figure(figure, path, bbox_inches="tight")


def draw_error_plane(path: Path, result: dict) -> None:
    """Gradient error over the (α, β) plane, a plot for each arithmetic, and the schedule's path."""
    errors = result["errors"]
    figure, plots = plt.subplots(1, len(errors), figsize=(13, 5), layout="constrained")
    # Errors of 1 are as wrong as they get; 0, which has no logarithm, is told by its text.
    scale = mpl.colors.LogNorm(1e-4, 1)
    for axes, (name, rows) in zip(plots, errors.items(), strict=True):
        # What is not a number is as wrong as what is off by all of its size; what was refused is
        # left white.
        special = {"NaN": 1.0, "beyond range": float("nan")}
        numbers = [[special.get(error, error) for error in row] for row in rows]
        clipped = np.clip(np.array(numbers, float), 1e-4, 1.0)  # which leaves NaN
        image = axes.imshow(clipped, origin="lower", norm=scale, cmap="YlOrRd", aspect="auto")
        for y, row in enumerate(rows):
            for x, error in enumerate(row):
                text = error if error in special else "0" if error == 0 else f"{error:.0e}"
                dark = numbers[y][x] > 0.1
                axes.text(x, y, text, ha="center", va="center", color="w" if dark else "k")
        axes.set_xticks(range(len(result["alphas"])), [f"{value:g}" for value in result["alphas"]])
        axes.set_yticks(range(len(result["betas"])), [f"{value:g}" for value in result["betas"]])
        axes.set_xlabel("α")
        axes.set_ylabel("β")
        axes.set_title(name)
    figure.colorbar(image, ax=plots, label="relative gradient error")
    figure.suptitle(result["title"])
    save_figure(figure, path, bbox_inches="tight")


def draw_anatomy(path: Path, result: dict) -> None:
    """What the peak of a step is made of: a bar for each method."""
    parts = {
        "activations": "#999999",
        "streams": "#009E73",
        "remainders": "#D55E00",
        "stem and head": "#56B4E9",
        "gradients of the streams": "#E69F00",
        "one module": "#0072B2",
    }
    methods = result["measured"]
    figure, (whole, near) = plt.subplots(1, 2, figsize=(14, 4.5), layout="constrained")
    for axes in (whole, near):
        for place, found in enumerate(reversed(list(methods.values()))):
            left = 0.0
            for part, colour in parts.items():
                width = found.get(part, 0) / 1e6
                axes.barh(place, width, left=left, color=colour, label=part if not place else None)
                left += width
        axes.set_yticks(range(len(methods)), reversed(list(methods)))
        axes.set_xlabel("MB at the peak of a step")
        _tidy(axes)
    reversible = [sum(found.values()) for name, found in methods.items() if "Dr²Net" in name]
    near.set_xlim(0, max(reversible) / 1e6 * 1.2)
    near.set_yticklabels([])
    near.set_title("the same, nearer")
    whole.legend(loc="lower right", fontsize=8)
    whole.set_title(result["title"])
    save_figure(figure, path, bbox_inches="tight")


def draw_peaks(path: Path, title: str, peaks: dict[str, tuple[int, int]]) -> None:
    """A bar for each way of training: what forward keeps, and what is added to that at the peak.

    Args:
        peaks: bytes kept and bytes at the peak, by the way.
    """
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(peaks) + 1.2), layout="constrained")
    ways = list(peaks)[::-1]
    kept, most = (np.array([peaks[way][i] for way in ways]) / 1e6 for i in (0, 1))
    axes.barh(ways, kept, color="#0072B2", label="kept from forward to backward")
    axes.barh(ways, most - kept, left=kept, color="#E69F00", label="added at the peak")
    for way, end in zip(ways, most, strict=True):
        axes.text(end, way, f" {end:,.0f}", va="center")
    axes.set_xlabel("MB beyond weights and gradients")
    axes.margins(x=0.1)
    axes.set_title(title, loc="right", fontsize=10)
    axes.legend(loc="lower right")
    _tidy(axes)
    save_figure(figure, path, bbox_inches="tight")


def draw_depths(path: Path, result: dict) -> None:
    """Peaks of methods by depth, from the result of ``depths.py``."""
    figure, axes = plt.subplots(figsize=(13, 6), layout="constrained")
    kinds = {"MLPs in slices": "--", "whole blocks": ":"}
    by_depth = result["measured"]
    depths = [int(depth) for depth in by_depth]
    names = [name for name in result["work"] if name != "conventional"]  # far above all others
    count = sum("Dr²Net" not in name for name in names)
    others = iter(plt.get_cmap("Blues_r")(np.linspace(0, 0.7, count)))
    for name in names:
        axes.plot(
            depths,
            [found[name]["peak"] / 1e6 for found in by_depth.values()],
            next((line for text, line in kinds.items() if text in name), "-"),
            marker="o" if "Dr²Net" in name else "s",
            color=colour_of(name) if "Dr²Net" in name else next(others),
            label=name,
        )
    axes.set_xticks(depths)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("blocks")
    axes.set_ylabel("peak of a step (MB)")
    axes.set_title(result["title"])
    _tidy(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    save_figure(figure, path, bbox_inches="tight")


def draw_parts(path: Path, title: str, found: dict[str, dict[str, int]]) -> None:
    """A bar for each way of training, made of the parts of its peak in bytes."""
    colours = ("#999999", "#E69F00", "#D55E00", "#0072B2")
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(found) + 1.4), layout="constrained")
    ways = list(found)[::-1]
    left = np.zeros(len(ways))
    for part, colour in zip(next(iter(found.values())), colours, strict=True):
        widths = np.array([found[way][part] for way in ways]) / 1e6
        axes.barh(ways, widths, left=left, color=colour, label=part)
        left += widths
    for way, end in zip(ways, left, strict=True):
        axes.text(end, way, f" {end:,.0f}", va="center")
    axes.set_xlabel("MB at the peak of a step")
    axes.margins(x=0.1)
    axes.set_title(title, loc="right", fontsize=9)
    axes.legend(loc="lower right")
    _tidy(axes)
    save_figure(figure, path, bbox_inches="tight")
