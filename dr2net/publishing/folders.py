"""Folders that are there whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["new_folder"]


@contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """A neighbouring folder to write to, which takes the name ``folder`` at the end.

    Of two processes that write to one name, the second to end gets the error.

    Raises:
        FileExistsError: ``folder`` holds something already.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already: give the name of a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}_") as own:
        draft = Path(own) / folder.name  # of the usual rights, which a temporary folder has not
        draft.mkdir()
        yield draft
        try:
            draft.rename(folder)  # over an empty folder as well
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise FileExistsError(f"{folder} was written by another process meanwhile.") from error
