"""The model card: what a published network is, where it comes from, and how it is loaded.

And what it has scored, as Hugging Face's Hub reads it, https://huggingface.co/docs/hub/eval-results.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import torch

__all__ = ["ENTRIES", "check_results", "file_hash", "how_trained", "write_card", "write_results"]

ENTRIES = {
    "data": "Trained on",
    "recipe": "Recipe",
    "metric": "Measured",
    "memory": "Memory of training",
    "licence": "Licence",
}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def how_trained(pair: tuple[float, float] | None) -> str:
    """The card's words for a network that was trained up to this (α, β), or without."""
    if pair is None:
        return "conventionally, without a second residual"
    return f"as a Dr²Net (arXiv 2401.04105), at last at (α, β) = ({pair[0]:g}, {pair[1]:g})"


def write_card(
    folder: Path,
    name: str,
    library: str,
    pair: tuple[float, float] | None,
    usage: str,
    weights: Path,
    card: Mapping[str, str],
) -> None:
    """Writes ``README.md`` with what Hugging Face's Hub reads at its top.

    Args:
        pair: (α, β) of the training's end; None for a conventional one.
        usage: Python code that loads the network.
        weights: the file, in ``folder``.

    Raises:
        ValueError: the card has an entry that is none of ``ENTRIES``.
    """
    unknown = sorted(set(card) - set(ENTRIES))
    if unknown:
        raise ValueError(f"card has {', '.join(unknown)}: use {', '.join(ENTRIES)}.")
    lines = [
        "---",
        f"library_name: {library}",
        *(
            [f"license: {json.dumps(card['licence'], ensure_ascii=False)}"]
            if "licence" in card
            else []
        ),
        "tags: [dr2net]",
        "---",
        "",
        f"# {name}",
        "",
        f"Finetuned {how_trained(pair)}, by dr2net with PyTorch {torch.__version__}.",
        "",
        "```python",
        usage,
        "```",
        "",
        *(f"- {title}: {card.get(key, 'not stated')}" for key, title in ENTRIES.items()),
        f"- `{weights.name}`: SHA-256 {file_hash(weights)}",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def check_results(results: Sequence[tuple[str, str, float]]) -> None:
    """Refuses figures that the Hub does not read.

    Args:
        results: as for ``write_results``.

    Raises:
        ValueError: a dataset has no such name, a task is empty or given twice, or a value is not
            finite.
    """
    for number, (dataset, task, value) in enumerate(results):
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", dataset) or "--" in dataset:
            raise ValueError(
                f"results has the dataset {dataset!r}: give its name on the Hub, with its owner's, "
                "such as ILSVRC/imagenet-1k."
            )
        if not task.strip() or not math.isfinite(value):
            raise ValueError(
                f"results has {value!r} for the task {task!r} of {dataset}: give the task's name "
                "and a finite number."
            )
        if (dataset, task) in {(one, of_it) for one, of_it, _ in results[:number]}:
            raise ValueError(f"results has the task {task!r} of {dataset} twice: give it once.")


def write_results(folder: Path, results: Sequence[tuple[str, str, float]]) -> None:
    """Writes ``.eval_results/NAME.yaml`` for each dataset that was tested on.

    Args:
        results: (dataset, task, value) each: the dataset's name on the Hub, such as
            ``ILSVRC/imagenet-1k``, the task of its leaderboard, and the figure in its unit.

    Raises:
        ValueError: as ``check_results``.
    """
    check_results(results)
    files = defaultdict(list)
    for dataset, task, value in results:
        files[dataset].append(
            f"- dataset:\n    id: {json.dumps(dataset)}\n"
            f"    task_id: {json.dumps(task, ensure_ascii=False)}\n"
            f"  value: {Decimal(str(float(value))):f}\n"  # without an exponent, YAML 1.1's own kind
        )
    for dataset, entries in files.items():
        file = folder / ".eval_results" / f"{dataset.replace('/', '--')}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(entries), encoding="utf-8")
