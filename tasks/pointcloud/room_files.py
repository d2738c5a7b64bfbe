"""Rooms in the files that are in use, found, read and checked; ``room_writing`` writes ours.

| layout | found as |
|---|---|
| ours, and Pointcept's | ``Area_k/<room>/``: coord.npy, color.npy, segment.npy, instance.npy |
| mmdetection3d's | ``points/Area_k_<room>.bin``, and in ``semantic_mask/``, ``instance_mask/`` |
| one file a room | ``Area_k/<room>.ply``, .pcd, .las, .npy; or ``Area_k_<room>.ply`` and so on |
| those of any set | ``<folder>/<room>/coord.npy`` and so on; or ``<folder>/<room>.ply`` and so on |

A .npy file that is a room alone is (N, 3) x y z, (N, 6) with r g b, or (N, 7) with labels, as
PointNet's.

Our folders have a fifth file, ``room.json``, whose ``classes`` are the names of the labels in their
order, and our .ply files say the same in a comment of their header. Other files do not tell in
which of the two common orders their labels are (``class_names``), and have to be told.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from .class_names import CLASS_ORDERS, CLASSES, named_order
from .room_readers import (
    STATEMENT,
    BadRoomError,
    read_bin,
    read_folder,
    read_las,
    read_npy,
    read_open3d,
)
from .structures import IGNORE

_SINGLE_FILES = (".ply", ".pcd", ".las", ".npy")
# What is a room by itself, wherever it lies.
ENDINGS = (*_SINGLE_FILES, ".bin")
_LAYOUTS = (
    "Area_k/ROOM/coord.npy, points/Area_k_ROOM.bin, or Area_k/ROOM.ply, .pcd, .las or .npy; "
    "tools/prepare_pointcloud.py writes the first from Stanford3dDataset_v1.2_Aligned_Version"
)
_COLORS_NEEDED = (
    "networks here use colours. To train and test without, say colors=False in the config's "
    "datasets: all points are black then"
)


@dataclass(frozen=True)
class RoomFile:
    """Where a room is: its area or folder, its name within it, and its own folder or file."""

    area: int | str
    name: str
    path: Path

    @property
    def area_name(self) -> str:
        """As ``Area_1``, or the name of the folder."""
        return self.area if isinstance(self.area, str) else f"Area_{self.area}"

    @property
    def full_name(self) -> str:
        """As ``Area_1/office_2``."""
        return f"{self.area_name}/{self.name}"


@dataclass(frozen=True)
class Room:
    """The N points of a room.

    ``coord`` is float32 (N, 3) in metres, counted from ``origin``, a whole metre near the room
    where the file has more than 1 km, which float32 would round. ``color`` is uint8 (N, 3), RGB.
    ``segment`` is int64 (N,), the classes' numbers or ``IGNORE``, and ``instance`` int64 (N,), the
    objects' numbers; both are None where the files have none. ``has_colors`` is False where the
    files have none, or none were asked for: all points are black then.
    """

    coord: np.ndarray
    color: np.ndarray
    segment: np.ndarray | None
    instance: np.ndarray | None
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    has_colors: bool = True


def is_room(path: Path) -> bool:
    """Whether a path looks like a room: a folder with ``coord.npy``, or a file with an ending."""
    if path.is_dir():
        return (path / "coord.npy").is_file()
    is_part = path.suffix == ".npy" and (path.parent / "coord.npy").is_file()
    return path.suffix.lower() in ENDINGS and path.is_file() and not is_part


def find_rooms(root: str | Path, areas: Sequence[int | str]) -> list[RoomFile]:
    """Find the rooms of the areas below ``root``, whatever their layout, in the order of names.

    Args:
        root: The folder of a set.
        areas: Numbers of S3DIS's areas, and names of folders in ``root`` that have rooms in them,
            ``"."`` for ``root`` itself.

    Raises:
        FileNotFoundError: ``root`` is not there, or has no room of one of the areas.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist. Expected are rooms as {_LAYOUTS}.")
    folders = [area for area in areas if isinstance(area, str)]
    areas = [area for area in areas if not isinstance(area, str)]
    others = [room for folder in folders for room in _rooms_in(root, folder)]
    return _rooms_of_areas(root, areas) + others


def _rooms_in(root: Path, folder: str) -> list[RoomFile]:
    paths = sorted((root / folder).iterdir()) if (root / folder).is_dir() else []
    rooms = [
        RoomFile(folder, path.name if path.is_dir() else path.stem, path)
        for path in paths
        # Of a room that lacks coord.npy, reading it says so.
        if is_room(path) or any((path / f"{name}.npy").is_file() for name in ("color", "segment"))
    ]
    if not rooms:
        what = "has no rooms" if paths else "does not exist or is empty"
        raise FileNotFoundError(
            f"{root / folder} {what}. Expected are rooms: "
            f"folders with coord.npy, or files that end in {', '.join(ENDINGS)}"
        )
    return _each_once(rooms)


def _each_once(rooms: list[RoomFile]) -> list[RoomFile]:
    for one, other in pairwise(rooms):
        if one.full_name == other.full_name:
            raise BadRoomError(
                f"{one.full_name} is there twice, as {one.path} and {other.path}: remove one"
            )
    return rooms


def _rooms_of_areas(root: Path, areas: Sequence[int]) -> list[RoomFile]:
    found = [
        # Of a room that lacks a file, reading it says which.
        *{path.parent for end in ("*.npy", STATEMENT) for path in root.glob(f"Area_*/*/{end}")},
        *root.glob("points/Area_*.bin"),
        *(path for end in _SINGLE_FILES for path in root.glob(f"Area_*{end}")),
        *(path for end in _SINGLE_FILES for path in root.glob(f"Area_*/*{end}")),
    ]
    rooms = []
    for path in found:
        relative = path.relative_to(root)
        name = relative.as_posix() if path.is_dir() else relative.with_suffix("").as_posix()
        match = re.fullmatch(r"(?:points/)?Area_(\d+)[/_](.+)", name)
        # A room being converted, or left by a conversion that was killed.
        if match and not path.name.endswith(".partial"):
            rooms.append(RoomFile(int(match[1]), match[2], path))
    present = sorted({room.area for room in rooms})
    missing = [area for area in areas if area not in present]
    if missing:
        raise FileNotFoundError(
            f"{root} has no room of {_areas(missing)}, it has {_areas(present) or 'no area'}. "
            f"Expected are rooms as {_LAYOUTS}. If the areas are meant to be missing, name others "
            "in the config: areas=[...], numbers or the names of folders"
        )
    return _each_once(sorted((r for r in rooms if r.area in areas), key=lambda r: (r.area, r.name)))


def _areas(areas: Sequence[int]) -> str:
    return ", ".join(f"Area_{area}" for area in areas)


def read_room(
    path: str | Path,
    classes: Sequence[str] = CLASSES,
    class_order: str | None = None,
    white: float | None = None,
    labels: bool = True,
    colors: bool | None = True,
    numbers: Sequence[int] | None = None,
) -> Room:
    """Read a room and check it.

    Args:
        path: The folder or file, as ``find_rooms`` gives it.
        classes: The classes in the order that labels are wanted in.
        class_order: Whose order the labels in the file have, one of ``CLASS_ORDERS``, where that is
            not stated in the file or differs from ``classes``; labels are renumbered to that of
            ``classes``.
        white: The number that stands for full brightness in the file. By default what the format
            has: 255, or 65,535 in .las files, or 1 for floating-point colours in .ply and .pcd
            files.
        labels: False leaves ``segment`` and ``instance`` out, and with them what is said of
            orders.
        colors: True needs colours; False makes all points black, whether there are colours or not;
            None makes them black where there are none.
        numbers: Of each of ``classes``, the label that means it in files that do not state their
            classes; points of other labels are ignored. By default labels count from 0, in the
            order of ``classes``.

    Raises:
        FileNotFoundError: A file of the room is not there.
        BadRoomError: A coordinate is not finite, colours are not in their range, a label is not
            that of a class, labels are in another order than asked for or in one that nobody
            stated, or parts of the room are of different lengths.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if path.is_dir():
        coord, color, segment, instance, stated = read_folder(path)
    elif ending == ".bin":
        coord, color, segment, instance, stated = read_bin(path)
    elif ending == ".npy":
        coord, color, segment, instance, stated = read_npy(path)
    elif ending in (".ply", ".pcd"):
        coord, color, segment, instance, stated = read_open3d(path, labels)
    elif ending == ".las":
        coord, color, segment, instance, stated = read_las(path, labels)
        white = 65535 if white is None else white
    else:
        raise BadRoomError(f"{path} is not a room: expected {_LAYOUTS}")
    if color is None and colors:
        if path.is_dir():
            raise FileNotFoundError(
                f"{path / 'color'}.npy does not exist; a room needs it: {_COLORS_NEEDED}"
            )
        raise BadRoomError(f"{path} has no colours (red, green, blue): {_COLORS_NEEDED}")
    has_colors = color is not None and colors is not False
    if not has_colors:
        color, white = np.zeros((len(coord), 3), np.uint8), 255
    for part, values in (("colours", color), ("labels", segment), ("instances", instance)):
        if values is not None and len(values) != len(coord):
            raise BadRoomError(
                f"{path}: {len(coord)} points and {len(values)} {part}; its files do not belong "
                "together: convert or download the room again"
            )
    if not len(coord):
        raise BadRoomError(f"{path} holds no points: convert or download the room again")
    _check_coord(path, coord)
    if white is None:
        white = 1 if ending in (".ply", ".pcd") and color.dtype.kind == "f" else 255
    if not labels:
        segment = instance = None
    if segment is not None:
        if numbers is not None and stated is None:
            segment = _renumber(path, segment, numbers, classes)
        else:
            segment = _number(path, segment, stated, classes, class_order)
    origin = np.zeros(3)
    if coord.dtype == np.float64 and np.abs(coord).max() > 1000:
        origin = np.floor(coord.min(axis=0))
        coord = coord - origin
    return Room(
        np.ascontiguousarray(coord, np.float32),
        _as_bytes(path, color, white),
        segment,
        None if instance is None else instance.reshape(-1).astype(np.int64),
        tuple(origin.tolist()),
        has_colors,
    )


def _check_coord(path: Path, coord: np.ndarray) -> None:
    if coord.ndim != 2 or coord.shape[1] != 3:
        raise BadRoomError(f"{path}: coordinates of shape {coord.shape}, expected (points, 3)")
    bad = np.flatnonzero(~np.isfinite(coord).all(axis=1))
    if len(bad):
        raise BadRoomError(
            f"{path}: {len(bad)} of {len(coord)} points have a coordinate that is NaN or infinite, "
            f"the first is point {bad[0]}, {coord[bad[0]].tolist()}: remove them from all files "
            "of the room"
        )


def _as_bytes(path: Path, color: np.ndarray, white: float) -> np.ndarray:
    if color.ndim != 2 or color.shape[1] != 3:
        raise BadRoomError(f"{path}: colours of shape {color.shape}, expected (points, 3)")
    low, high = float(color.min()), float(color.max())
    if not (low >= 0 and high <= white):  # NaN included
        raise BadRoomError(
            f"{path}: colours from {low:g} to {high:g}, expected 0 to {white:g}. If full "
            "brightness is another number in these files, say white=255 (or 1, or 65535) in the "
            "config"
        )
    # The brightest point of a real room is far from black.
    if 0 < high <= white / 255 or (white == 65535 and 0 < high <= 255):
        least = 1 if high <= 1 else 255
        raise BadRoomError(
            f"{path}: colours from {low:g} to {high:g}, where 0 to {white:g} was expected: they "
            f"seem to be in 0 to {least}. If so, say white={least} in the config"
        )
    if color.dtype == np.uint8 and white == 255:
        return color
    return np.rint(np.asarray(color, np.float64) * (255 / white)).astype(np.uint8)


def _number(
    path: Path,
    labels: np.ndarray,
    stated: Sequence[str] | None,
    classes: Sequence[str],
    class_order: str | None,
) -> np.ndarray:
    """Return labels, int64, in the order of ``classes``."""
    if class_order is not None and class_order not in CLASS_ORDERS:
        raise ValueError(f"class_order is one of {', '.join(CLASS_ORDERS)}, got {class_order!r}")
    named = None if class_order is None else CLASS_ORDERS[class_order]
    if stated is None and named is None and set(classes) != set(CLASSES):
        stated = classes  # a set of its own, whose labels are in the order that the config says
    if stated is None and named is None:
        raise BadRoomError(
            f"{path} does not say which class its labels mean, and two orders are in use. Say "
            f"whose the file is, by class_order in the config: one of {', '.join(CLASS_ORDERS)}"
        )
    if stated is not None and named is not None and tuple(stated) != named:
        raise BadRoomError(
            f"{path} says that its labels are in {named_order(stated)}, the config says "
            f"class_order={class_order!r}: leave class_order out, or correct it"
        )
    order = tuple(named or stated)
    if (named is None and order != tuple(classes)) or set(order) != set(classes):
        owners = [name for name, known in CLASS_ORDERS.items() if known == order]
        remedy = (
            f"say class_order={owners[0]!r} in the config, and labels are renumbered"
            if owners and set(order) == set(classes)
            else "write the file anew in that order"
        )
        raise BadRoomError(
            f"{path} has its labels in {named_order(order)}, wanted is {named_order(classes)}: "
            f"{remedy}"
        )
    labels = np.where(np.isnan(labels), -1, labels)  # as CloudCompare has points without a label
    whole = labels.astype(np.int64)
    ignored = (whole == IGNORE) | (whole == -1)  # Pointcept's is -1
    bad = ~ignored & ((whole < 0) | (whole >= len(order)) | (whole != labels))
    if bad.any():
        values = ", ".join(f"{value:g}" for value in np.unique(labels[bad])[:5].tolist())
        raise BadRoomError(
            f"{path}: {int(bad.sum())} of {len(labels)} labels are out of range: {values}. "
            f"Expected are 0 to {len(order) - 1}, or {IGNORE} or -1 for points to be ignored. Of "
            "files with numbers of their own, say them in the config: numbers=[...], one a class"
        )
    table = np.full(IGNORE + 1, IGNORE)
    table[: len(order)] = [list(classes).index(name) for name in order]
    return table[np.where(ignored, IGNORE, whole)]


def _renumber(
    path: Path, labels: np.ndarray, numbers: Sequence[int], classes: Sequence[str]
) -> np.ndarray:
    """Return labels, int64, in the order of ``classes``, of files that have others."""
    if len(numbers) != len(classes) or len(set(numbers)) != len(numbers):
        raise ValueError(
            f"numbers={list(numbers)} has to be {len(classes)} different labels, one for each of "
            f"{', '.join(classes)}"
        )
    segment = np.full(len(labels), IGNORE, np.int64)
    for label, number in enumerate(numbers):
        segment[labels == number] = label
    if (segment == IGNORE).all():
        raise BadRoomError(
            f"{path}: none of its labels is one of numbers={list(numbers)}; it has "
            f"{', '.join(f'{value:g}' for value in np.unique(labels)[:10].tolist())}"
        )
    return segment
