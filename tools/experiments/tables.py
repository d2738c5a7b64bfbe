"""The table of a study: means with intervals, and differences from conventional finetuning."""

from __future__ import annotations

import numpy as np
from scipy import stats

from tools.experiments.finetuning import Recipe
from tools.experiments.ways import WAYS

CONFIDENCE = 0.95
REFERENCE = "conventional"
NOTES = (
    "Top-1 on {test} images that were neither trained nor validated on: mean of the seeds and its "
    "{confidence:.0%} interval (Student's t). Beside it the mean difference from conventional "
    "finetuning, paired by seed, with the interval and the p of a paired t test; nothing is "
    "corrected for the number of ways. Plain: the same weights put back into the unchanged "
    "network, at (1, 0). A seed draws {train} images to train on, {validation} to validate on and "
    "those to test on, the new head, and the order of the images. Learning rate: the best by mean "
    "validation accuracy{searching} among neighbours a factor of about 3 apart, three or more, "
    "until the best is neither the lowest nor the highest. {steps} steps of {batch}, "
    "{size} × {size} px, {precision}, AdamW.{twins}"
)
TWINS = (
    " The same weights to the last bit, at the end of a run, and so no row of their own, had: {}."
)


def table_of(
    recipe: Recipe, runs: list[dict], rates: dict[str, float], searching_seeds: int
) -> dict:
    """Return the study's table, as result files have it.

    Args:
        recipe: Of the study.
        runs: What ``finetune`` returned.
        rates: The learning rate of each way that is reported. Others have no row.
        searching_seeds: How many of the seeds chose it.
    """
    twins = [
        f"{way} (as {WAYS[way].same_as})"
        for way in dict.fromkeys(run["way"] for run in runs)
        if WAYS[way].same_as
    ]
    chosen = {
        way: {run["seed"]: run for run in runs if run["way"] == way and run["rate"] == rate}
        for way, rate in rates.items()
    }
    reference = {seed: run["test"] for seed, run in chosen.get(REFERENCE, {}).items()}
    rows = []
    for way, by_seed in chosen.items():
        test = {seed: run["test"] for seed, run in by_seed.items()}
        plain = {seed: run["plain"] for seed, run in by_seed.items() if "plain" in run}
        shown = WAYS[way].ends_on_the_line
        rows.append(
            {
                "finetuning": way,
                "top-1 (%)": interval(list(test.values())),
                "to conventional": "" if way == REFERENCE else difference(test, reference),
                "plain (%)": interval(list(plain.values())) if shown else "",
                "plain to conventional": difference(plain, reference) if shown else "",
                "learning rate": f"{rates[way]:.0e}",
                "seeds": str(len(by_seed)),
            }
        )
    train, validation, test_images = recipe.numbers
    return {
        "title": f"{recipe.title}, every way of finetuning.",
        "columns": list(rows[0]) if rows else [],
        "rows": rows,
        "notes": NOTES.format(
            test=test_images,
            train=train,
            validation=validation,
            steps=recipe.steps,
            batch=recipe.batch,
            size=recipe.size,
            precision=recipe.precision,
            searching=(
                f" of the first {searching_seeds} seeds"
                if searching_seeds < max((len(s) for s in chosen.values()), default=0)
                else ""
            ),
            confidence=CONFIDENCE,
            twins=TWINS.format("; ".join(twins)) if twins else "",
        ),
    }


def half_width(values: list[float]) -> float:
    """Half the width of the interval of the mean of a few values, by Student's t."""
    return float(stats.sem(values) * stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))


def interval(values: list[float]) -> str:
    """Return mean and interval as text."""
    mean = f"{np.mean(values):.1f}"
    return f"{mean} ± {half_width(values):.1f}" if len(values) > 1 else mean


def difference(values: dict[int, float], reference: dict[int, float]) -> str:
    """Return the mean difference by seed with its interval and p, as text."""
    seeds = sorted(set(values) & set(reference))
    differences = [values[seed] - reference[seed] for seed in seeds]
    if len(seeds) < 2:
        return ""
    mean = f"{np.mean(differences):+.1f} ± {half_width(differences):.1f}"
    if np.ptp(differences) == 0:
        return mean
    p = stats.ttest_rel([values[s] for s in seeds], [reference[s] for s in seeds]).pvalue
    return f"{mean} (p {'< 0.001' if p < 0.001 else f'{p:.3f}'})"
