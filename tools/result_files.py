"""Result files: a table, the numbers behind it, and how they came to be, as JSON.

Keys: ``title``, ``command``, ``date``, ``hardware``, ``versions`` (package to version),
``columns``, ``rows`` (each a dict of column to text), ``notes`` (one text), and raw data under any
other key.
"""

import json
import os
import platform
from pathlib import Path

import torch


def write_json(path: Path, value: object) -> None:
    """Write ``value`` to ``path``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def markdown_table(columns: list[str], rows: list[dict[str, str]]) -> str:
    """Return ``rows`` as a Markdown table whose columns are aligned for reading as plain text."""
    lines = [columns, *([row[column] for column in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(n) for cell, n in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in padded)


def hardware(device: str) -> str:
    """Return the name of the GPU, or the processor's and how many cores there are."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
