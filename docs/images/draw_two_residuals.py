"""Draw two_residuals.png beside this file: python docs/images/draw_two_residuals.py"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can tell apart.
ALPHA, BETA, INK = "#0072B2", "#D55E00", "0.15"
# Places of x_0, x_1, ... on the axis, and of the modules between them.
STREAMS = [0.0, 3.0, 6.0, 9.0]
MODULES = [1.25, 4.25, 7.25]


def draw_network(axes: Axes, title: str, reversible: bool) -> None:
    """Draw three residual modules in a row; with ``reversible``, with both residuals."""
    for number, place in enumerate(STREAMS):
        axes.text(place, 0, f"$x_{number}$", ha="center", va="center", fontsize=15, color=INK)
    for number, place in enumerate(MODULES, start=1):
        box = {"boxstyle": "round,pad=0.45", "facecolor": "0.93", "edgecolor": INK}
        axes.text(place, 0, f"$F_{number}$", ha="center", va="center", fontsize=14, bbox=box)
        axes.text(place + 1.1, 0, "+", ha="center", va="center", fontsize=14, color=INK)
        start, end = STREAMS[number - 1], place + 1.1
        _arrow(axes, (start + 0.3, 0), (place - 0.5, 0), INK)
        _arrow(axes, (place + 0.5, 0), (end - 0.2, 0), INK)
        _arrow(axes, (end + 0.2, 0), (STREAMS[number] - 0.3, 0), INK)
        _arrow(axes, (start, 0.3), (end, 0.25), ALPHA, bend=-0.45)
        if reversible:
            label = {"ha": "center", "va": "center", "fontsize": 13}
            axes.text((start + end) / 2, 1.2, "α", color=ALPHA, **label)
            # y_0 = β · x_0 enters the first sum, so x_0 feeds the first two.
            source = STREAMS[max(number - 2, 0)]
            bend = 0.3 if number > 1 else 0.2
            _arrow(axes, (source, -0.3), (end, -0.25), BETA, bend)
            lowest = -0.28 - bend * (end - source) / 2
            under = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axes.text((source + end) / 2, lowest, "β", color=BETA, bbox=under, **label)
    axes.set_title(title, loc="left", fontsize=12, color=INK)
    axes.set(xlim=(-0.5, 9.5), ylim=(-1.6 if reversible else -0.6, 1.45))
    axes.set_axis_off()


def _arrow(axes: Axes, start: tuple, end: tuple, colour: str, bend: float | None = None) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
    if bend is not None:
        style["connectionstyle"] = f"arc3,rad={bend}"
    axes.annotate("", end, start, arrowprops=style)


def main() -> None:
    """Draw the picture."""
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(8.5, 4.4), layout="constrained", height_ratios=(2, 3)
    )
    draw_network(upper, "Pretrained: one residual, activations stored", reversible=False)
    draw_network(
        lower,
        "Dr²Net: a second residual, over two modules, lets inputs be computed back from outputs",
        reversible=True,
    )
    figure.savefig(Path(__file__).with_name("two_residuals.png"), dpi=130)


if __name__ == "__main__":
    main()
