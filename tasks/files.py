"""Files that appear whole or not at all."""

import os
from pathlib import Path


def write_text(file: str | Path, text: str) -> None:
    """Write ``text`` to ``file`` in UTF-8, whole or not at all; its folder is made if need be."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Of its own for each process.
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
