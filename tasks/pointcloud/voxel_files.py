"""The voxels of a room, made once and kept in a file beside it.

| room | its voxels of 0.04 m |
|---|---|
| a folder, ``Area_1/office_1/`` | ``Area_1/office_1/voxels_0.04.npz`` |
| a file, ``Area_1/office_1.ply`` | ``Area_1/office_1.ply.voxels_0.04.npz`` |

A file has the numbers of the points' voxels and a digest of the coordinates that they were made of.
Where that is another, or the file is not whole, voxels are made anew. So it may be removed at any
time, and needs no thought where a room changes.
"""

import glob
import hashlib
import logging
import time
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np
from mmengine.logging import print_log

from .voxels import voxel_numbers

MOST_SECONDS_OF_A_WRITE = 600


def kept_voxels(coord: np.ndarray, voxel_size: float, room: str | Path | None) -> np.ndarray:
    """As ``voxels.voxel_numbers``; read from the file beside ``room``, which is written if need be.

    A kill at any moment leaves the old file or the new one, and any number of processes may do the
    same at once. Where the folder cannot be written, voxels are made each time, which is logged
    once by each process.

    Args:
        coord: Float (N, 3), metres.
        voxel_size: The edge of a voxel, metres.
        room: The folder or file of the room; None, or a path where nothing is, to keep nothing.
    """
    if room is None or not Path(room).exists():
        return voxel_numbers(coord, voxel_size)
    file = _file_beside(Path(room), voxel_size)
    digest = hashlib.blake2b(np.ascontiguousarray(coord), digest_size=16).hexdigest()
    numbers = _read(file, digest)
    if numbers is None:
        numbers = voxel_numbers(coord, voxel_size)
        _write_once(file, digest, numbers)
    return numbers


def _file_beside(room: Path, voxel_size: float) -> Path:
    name = f"voxels_{voxel_size}.npz"
    return room / name if room.is_dir() else room.with_name(f"{room.name}.{name}")


def _read(file: Path, digest: str) -> np.ndarray | None:
    try:
        with np.load(file, allow_pickle=False) as content:
            return content["numbers"] if content["digest"] == digest else None
    except Exception:  # it is not there, or raises whatever its damage leads to
        return None


# Whatever comes of it, a process tries once.
_tried: set[Path] = set()
_failed: set[Path] = set()


def _write_once(file: Path, digest: str, numbers: np.ndarray) -> None:
    if file in _tried:
        return
    _tried.add(file)
    for left in file.parent.glob(f"{glob.escape(file.name)}.*.tmp"):  # by killed processes
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > MOST_SECONDS_OF_A_WRITE:
                left.unlink()
    # Of its own for each process, on whatever machine.
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            with partial.open("xb") as stream:
                np.savez(stream, digest=digest, numbers=numbers)
            partial.replace(file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        if not _failed:
            print_log(
                f"{file} cannot be written ({error.strerror}): the voxels of rooms are made each "
                "time that a room is read. A folder that can be written saves that",
                logger="current",
                level=logging.WARNING,
            )
        _failed.add(file)
