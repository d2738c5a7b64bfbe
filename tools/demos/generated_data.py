"""Generated data sets: a folder holds all of one, of the settings asked for, or is not there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from tools.result_files import write_json

# Of a name that no other file has: the whole folder of such a file is written anew.
SETTINGS = "generated_with.json"


def write_once(folder: Path, settings: dict, write: Callable[[Path], None]) -> None:
    """Write a data set into ``folder``, or do nothing where it is there already.

    A set that was cut short, or is of other settings, is written anew; ``folder`` appears only when
    all of it is written. Of several processes one writes, and the others wait for it.

    Args:
        folder: Takes the set, and ``SETTINGS``.
        settings: All that the set depends on.
        write: Called with the folder to write to.

    Raises:
        FileExistsError: ``folder`` holds something else.
    """
    written = folder / SETTINGS
    if _read(written) == settings:  # and no lock, as its place may be read-only
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if _read(written) == settings:
            return
        if folder.exists() and any(folder.iterdir()) and not written.is_file():
            raise FileExistsError(
                f"{folder} holds something else: name a folder that is not there yet"
            )
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        write(partial)
        write_json(partial / SETTINGS, settings)
        if written.is_file():
            print(f"{folder} is of other settings: written anew", flush=True)
            shutil.rmtree(folder)
        partial.rename(folder)


def _read(file: Path) -> dict | None:
    """What a file says, or None where it is not there or cut short."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
