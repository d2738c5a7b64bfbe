"""Writes rooms as folders of .npy files and as .ply files, whole or not at all."""

import glob
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .class_names import CLASSES
from .room_files import Room
from .room_readers import STATEMENT


def write_room(folder: Path, room: Room, classes: Sequence[str] = CLASSES, **said: object) -> None:
    """Write a room as a folder, in Pointcept's layout with a statement of what labels mean.

    ``coord.npy`` is float32 (N, 3), ``color.npy`` uint8 (N, 3), ``segment.npy`` and
    ``instance.npy`` int16 (N,); ``room.json`` has ``classes`` and whatever else is ``said``. The
    folder appears when all of it is written; one that is there already is left as it is.

    Raises:
        ValueError: There are more objects than int16 can count.
    """
    if room.instance is not None and room.instance.max() > np.iinfo(np.int16).max:
        raise ValueError(f"{folder}: {room.instance.max()} objects, instance.npy holds 32,767")
    # Of its own for each process, so that two which write the same room do not mix their files.
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        np.save(partial / "coord.npy", room.coord)
        np.save(partial / "color.npy", room.color)
        for name in ("segment", "instance"):
            values = getattr(room, name)
            if values is not None:
                np.save(partial / f"{name}.npy", values.astype(np.int16))
        statement = json.dumps({"classes": list(classes), **said}, indent=1, ensure_ascii=False)
        (partial / STATEMENT).write_text(statement + "\n")
        if not is_converted(folder):
            for voxels in folder.glob("voxels_*.npz*"):  # kept beside a room that was removed
                voxels.unlink(missing_ok=True)
        partial.rename(folder)
    except OSError:
        # Another process was sooner, and may have cleared this one's files away.
        if not is_converted(folder):
            raise
        shutil.rmtree(partial, ignore_errors=True)


def is_converted(folder: Path) -> bool:
    """Whether ``write_room`` has written this room."""
    return (folder / STATEMENT).is_file()


def clear_partial_rooms(rooms: Iterable[Path]) -> None:
    """Remove what killed processes left of these rooms, where the room is there whole.

    A process that writes such a room at this moment takes the room as it is. What is left of a
    room that is not there yet stays: nobody can tell whether its process still writes.
    """
    for folder in rooms:
        if is_converted(folder):
            for left in folder.parent.glob(f"{glob.escape(folder.name)}.*.partial"):
                shutil.rmtree(left, ignore_errors=True)


def write_ply(
    file: Path,
    coord: np.ndarray,
    color: np.ndarray,
    segment: np.ndarray,
    classes: Sequence[str] = CLASSES,
) -> None:
    """Write a binary .ply file by Open3D: x, y, z, red, green, blue and ``segment`` (uint8).

    A comment of its header, ``comment classes ceiling floor …``, says what ``segment`` means.

    Args:
        file: A path that ends in .ply.
        coord: Float (N, 3), metres; written as they are, float32 or float64.
        color: Uint8 (N, 3), what the points are shown in.
        segment: (N,) the numbers of classes, 255 for none.
        classes: Their names in the order of their numbers.
    """
    import open3d

    kind = np.float64 if coord.dtype == np.float64 else np.float32
    cloud = open3d.t.geometry.PointCloud(np.ascontiguousarray(coord, kind))
    cloud.point.colors = np.ascontiguousarray(color, np.uint8)
    cloud.point.segment = np.ascontiguousarray(segment, np.uint8).reshape(-1, 1)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.stem}.partial.ply")
    if not open3d.t.io.write_point_cloud(str(partial), cloud):
        raise OSError(
            f"Open3D cannot write {partial}: is the folder writable and the disk not full?"
        )
    magic, encoding, rest = partial.read_bytes().split(b"\n", 2)
    names = " ".join(classes)
    if len(names.split()) != len(classes) or names.startswith("["):  # a name has a space
        names = json.dumps(list(classes), ensure_ascii=False)
    comment = f"comment classes {names}".encode()
    partial.write_bytes(b"\n".join([magic, encoding, comment, rest]))
    partial.replace(file)
