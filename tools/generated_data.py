"""Generated data sets: a folder holds all of one, of the settings asked for, or is not there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tools.result_files import write_json


def write_once(folder: Path, settings: dict, write: Callable[[Path], None]) -> None:
    """Write a data set into ``folder``, or do nothing where it is there already.

    A set that was cut short, or is of other settings, is written anew; ``folder`` appears only when
    all of it is written.

    Args:
        folder: Takes the set, and ``settings.json``.
        settings: All that the set depends on.
        write: Called with the folder to write to.

    Raises:
        FileExistsError: ``folder`` holds something else.
    """
    written = folder / "settings.json"
    if written.is_file() and json.loads(written.read_text()) == settings:
        return
    if folder.exists() and not written.is_file():
        raise FileExistsError(f"{folder} holds something else: name a folder that is not there yet")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    write_json(partial / "settings.json", settings)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
