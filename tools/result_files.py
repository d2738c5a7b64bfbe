"""Result files: a table, the numbers behind it, and how they came to be, as JSON.

Keys: ``title``, ``command``, ``date``, ``hardware``, ``versions`` (package to version),
``columns``, ``rows`` (each a dict of column to text), ``notes`` (one text), and raw data under any
other key.
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

import dr2net
from tasks.files import write_text


def write_json(path: Path, value: object) -> None:
    """Write ``value`` to ``path``, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def markdown_table(columns: list[str], rows: list[dict[str, str]]) -> str:
    """Return ``rows`` as a Markdown table whose columns are aligned for reading as plain text."""
    lines = [columns, *([row[column] for column in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(n) for cell, n in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in padded)


def origin(script: str, packages: Iterable[str] = (), device: str | None = None) -> dict:
    """Return command, date, hardware and versions: how the result of this process came to be.

    Args:
        script: Path of the script from the root.
        packages: Distributions that matter, beside torch.
        device: That it measured times on, or None.
    """
    threads = f", {torch.get_num_threads()} threads"
    return {
        "command": shlex.join(["python", script, *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "hardware": hardware(device) + threads if device else "any: nothing here is timed",
        "versions": versions_of(packages)
        | {"torch": torch.__version__, "dr2net": dr2net.__version__},
    }


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of installed distributions."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def hardware(device: str) -> str:
    """Return the name of the GPU, or the processor's and how many cores there are."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
