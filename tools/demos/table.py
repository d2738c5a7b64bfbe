"""The demos' table: what each way of finetuning reaches, what a step of it takes."""

import statistics
from collections.abc import Iterable, Sequence

from scipy import stats

from tools.demos.measurements import describe

# By way, figure and seed: the last validation, from 0 to 1.
Figures = dict[str, dict[str, list[float]]]

DIFFERENCE = "to conventional (95 % interval)"


def make_rows(
    figures: Figures,
    measured: dict[str, list[dict]],
    labels: dict[str, str],
    columns: Iterable[str],
    reference: str,
    same: str,
) -> list[dict[str, str]]:
    """Return the rows of the table, one a way in the order of ``figures``.

    Args:
        figures: What the ways have reached, in as many seeds each.
        measured: What ``measurements.measure`` returns, of the same ways.
        labels: From a column's heading to the figure that it shows in per cent; how far the first
            is from the reference's comes after it.
        columns: Headings of ``measurements.COLUMNS``.
        reference: The way that the others are compared with.
        same: The way whose trainings are those of ``reference``, bit for bit.
    """
    first = next(iter(labels.values()))
    rows = []
    for name, reached in figures.items():
        row = {"finetuning": name}
        for label, key in labels.items():
            row[label] = spread(reached[key])
            if key == first:
                row[DIFFERENCE] = difference(reached[key], figures[reference][key])
        if name in (reference, same):
            row[DIFFERENCE] = "0" if name == reference else "0, the same weights"
        rows.append(row | describe(measured[name], columns))
    return rows


def spread(values: Sequence[float]) -> str:
    """Mean (lowest to highest) in per cent."""
    low, mean, high = (100 * f(values) for f in (min, statistics.mean, max))
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def difference(values: Sequence[float], reference: Sequence[float]) -> str:
    """Mean of ``values`` − ``reference`` in points, and its 95 % interval where there is one."""
    mean, half = paired_difference(values, reference)
    text = f"{100 * mean:+.1f}"
    if half is not None:
        text += f" ({100 * (mean - half):+.1f} to {100 * (mean + half):+.1f})"
    return text.replace("-", "−")


def paired_difference(
    values: Sequence[float], reference: Sequence[float]
) -> tuple[float, float | None]:
    """Mean of the differences seed by seed, and half of its 95 % interval.

    The interval is that of Student's t for pairs; None where there is but one.
    """
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    mean = statistics.mean(differences)
    if len(differences) == 1:
        return mean, None
    quantile = stats.t.ppf(0.975, len(differences) - 1)
    return mean, float(quantile * stats.sem(differences))
