"""Draw docs/images/coefficient_plane.png, the (α, β) plane: python tools/pages/plane_picture.py"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

PICTURE = Path(__file__).resolve().parents[2] / "docs/images/coefficient_plane.png"
COUPLINGS = 24  # attention and MLP of 12 blocks
# Okabe and Ito's colours, which colour-blind readers can tell apart.
LINE, PAPER, INK = "#0072B2", "#D55E00", "0.15"


def growth(alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Return by what the streams of a chain are multiplied, if its modules add nothing.

    x_i = α·x_{i-1} + β·x_{i-2} grows by the larger root of λ² = α·λ + β at every coupling.
    """
    return ((alpha + np.sqrt(alpha**2 + 4 * beta)) / 2) ** COUPLINGS


def main() -> None:
    """Draw the picture."""
    figure, axes = plt.subplots(figsize=(7.2, 5.4), layout="constrained")
    alpha, beta = np.meshgrid(np.linspace(0, 1, 201), np.linspace(0.001, 1, 201))
    levels = [1e-3, 1e-2, 1e-1, 1, 10, 100, 1000]
    filled = axes.contourf(
        alpha, beta, np.log10(growth(alpha, beta)), np.log10(levels), cmap="RdBu_r", alpha=0.45,
        extend="both",
    )  # fmt: skip
    bar = figure.colorbar(filled, ticks=np.log10(levels), pad=0.11)
    bar.ax.set_yticklabels([f"{level:g}" for level in levels])
    bar.set_label(f"growth of the streams over {COUPLINGS} couplings")
    axes.plot([1, 0], [0, 1], color=LINE, lw=3, label="the line α + β = 1")
    axes.plot(
        [1, 0], [0.1, 1], color=PAPER, lw=2, ls="--", label="the paper's way, (1, 0.1) to (0, 1)"
    )
    under = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 2}
    label = {"fontsize": 10.5, "color": INK, "bbox": under}
    arrow = {"arrowstyle": "-", "color": INK}
    axes.plot(1, 0, "o", color=INK, ms=9, clip_on=False)
    axes.annotate("pretrained network\n(1, 0)", (1, 0), (0.48, 0.02), arrowprops=arrow, **label)
    axes.plot(7 / 8, 1 / 8, "o", color=LINE, ms=9)
    axes.annotate(
        "held, the default\n(7/8, 1/8)", (7 / 8, 1 / 8), (0.4, 0.16), arrowprops=arrow, **label
    )
    axes.plot(0, 1, "s", color=PAPER, ms=9, clip_on=False)
    axes.annotate(
        "earlier reversible\nnetworks (0, 1)", (0, 1), (0.03, 0.42), arrowprops=arrow, **label
    )
    bits = axes.secondary_yaxis("right")
    bits.set_yticks([2.0**-n for n in (4, 3, 2, 1)] + [1], ["4", "3", "2", "1", "0"])
    bits.set_ylabel("bits kept of each element, at this β")
    axes.set(xlabel="α, the weight of the first residual", ylabel="β, the weight of the second")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper right")
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    main()
