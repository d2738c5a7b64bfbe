"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(file: str | Path) -> Iterator[Path]:
    """Give a path to write to, which becomes ``file`` at the end; its folder is made if need be."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Of its own for each process.
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def write_text(file: str | Path, text: str) -> None:
    """Write ``text`` to ``file`` in UTF-8, whole or not at all; its folder is made if need be."""
    with whole(file) as partial:
        partial.write_text(text, encoding="utf-8")
