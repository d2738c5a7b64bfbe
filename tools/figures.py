"""Pictures of this project's own figures."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from tasks.files import whole


def save_figure(figure: Figure, path: Path, dpi: int = 120, **options: Any) -> None:
    """Write a PNG file, whole or not at all, and close the figure."""
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=dpi, **options)
    plt.close(figure)
