"""Tell what wrong predictions of actions are, and how long the actions are that are missed.

    python tools/test.py CONFIG CHECKPOINT --format-only submission
    python tools/localization_errors.py thumos_14_anno.json submission/actions.json errors.png \\
        --subset validation --lengths 3 6 12 18

prints two tables and draws them: of the best predictions, how many are true, double detections, of
the wrong label, badly localized, confused with another class, or background (DETAD's kinds); and of
the actions of each length, how many these predictions find. Annotations that are wrong, which
tools/prepare_localization.py names, count for nothing.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib.pyplot as plt
import numpy as np

import tasks.video.localization  # noqa: F401 - mends mmaction2, which the modules below import
from tasks.video.localization.annotations import (
    BadAnnotationError,
    clean,
    read_blocked,
    read_database,
)
from tasks.video.localization.error_analysis import KINDS, analyse_errors
from tools.figures import save_figure
from tools.prepare_localization import labels_of
from tools.result_files import markdown_table


def read_submission(path: Path) -> dict[str, list[dict]]:
    """Read the results of a submission in ActivityNet's format.

    Raises:
        FileNotFoundError: There is no such file.
        BadAnnotationError: It is not of that format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        results = content["results"]
        if not all(isinstance(found, list) for found in results.values()):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadAnnotationError(
            f'{path} has to be an object {{"results": {{VIDEO: [{{"label", "segment", "score"}}]}}'
            "}, as tools/test.py CONFIG CHECKPOINT --format-only FOLDER writes it"
        ) from None
    return results


def tables(
    kinds: np.ndarray, actions: np.ndarray, edges: Sequence[float]
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the rows of both tables, shares in per cent."""
    best = []
    for number, row in enumerate(kinds, start=1):
        shares = [f"{100 * n / row.sum():.1f}" if row.sum() else "" for n in row]
        counts = {"best predictions": f"{number}G", "count": f"{row.sum():,}"}
        best.append(counts | dict(zip(KINDS, shares, strict=True)))
    lengths = []
    for name, (count, found) in zip(_names(edges), actions, strict=True):
        share = f"{100 * found / count:.1f}" if count else ""
        lengths.append({"length (s)": name, "actions": f"{count:,}", "found (%)": share})
    return best, lengths


def draw(path: Path, kinds: np.ndarray, actions: np.ndarray, edges: Sequence[float]) -> None:
    """Write a picture of both tables, PNG."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4), layout="constrained", width_ratios=(3, 2)
    )
    shares = 100 * kinds / np.maximum(kinds.sum(axis=1, keepdims=True), 1)
    colours = ("#2a7f3f", "#a6d96a", "#2b5fa5", "#f4a582", "#b2182b", "#bdbdbd")
    below = np.zeros(len(kinds))
    names = [f"{number}G" for number in range(1, len(kinds) + 1)]
    for kind, share, colour in zip(KINDS, shares.T, colours, strict=True):
        left.bar(names, share, 0.85, below, color=colour, label=kind)
        below += share
    left.set(xlabel="best predictions: G is as many as a class has actions", ylabel="%")
    left.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    found = 100 * actions[:, 1] / np.maximum(actions[:, 0], 1)
    bars = right.bar(_names(edges), found, color="#2a7f3f")
    right.bar_label(bars, [f"of {count:,}" for count in actions[:, 0]], fontsize=8)
    right.set(xlabel="length of actions (s)", ylabel="found (%)", ylim=(0, 105))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _names(edges: Sequence[float]) -> list[str]:
    ends = [f"{edge:g}" for edge in edges]
    between = [f"{one} to {other}" for one, other in pairwise(ends)]
    return [f"up to {ends[0]}", *between, f"above {ends[-1]}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations", type=Path, help="annotation file (JSON)")
    parser.add_argument("submission", type=Path, help="actions found (JSON)")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    parser.add_argument("--subset", required=True, help="of the annotations")
    parser.add_argument("--overlap", type=float, default=0.5, help="from which an action is found")
    parser.add_argument(
        "--lengths",
        type=float,
        nargs="+",
        default=[30, 60, 120, 180],
        help="seconds between which lengths are told apart",
    )
    parser.add_argument("--blocked", type=Path, help="file of videos that are left out")
    parser.add_argument(
        "--ignored-labels", nargs="+", default=(), help="of annotations that are left out"
    )
    args = parser.parse_args(arguments)
    try:
        database = read_database(args.annotations)
        database, wrong = clean(database, labels_of(database), args.ignored_labels)
        if wrong:
            print(f"{len(wrong)} annotations or videos are wrong and left out", file=sys.stderr)
        subsets = sorted({str(entry.get("subset")) for entry in database.values()})
        if args.subset not in subsets:
            parser.error(f"--subset {args.subset}: the annotations have {', '.join(subsets)}")
        blocked = read_blocked(args.blocked) if args.blocked else frozenset()
        kinds, actions = analyse_errors(
            database,
            read_submission(args.submission),
            args.subset,
            args.overlap,
            args.lengths,
            blocked,
        )
        draw(args.picture, kinds, actions, args.lengths)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    for rows in tables(kinds, actions, args.lengths):
        print(f"{markdown_table(list(rows[0]), rows)}\n")
    print(f"picture: {args.picture}")


if __name__ == "__main__":
    main()
