"""The model card: what a published network is, where it comes from, and how it is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch

__all__ = ["ENTRIES", "file_hash", "how_trained", "write_card"]

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
