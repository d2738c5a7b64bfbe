"""The formats of rooms: what each file holds, unchecked; ``room_files.read_room`` checks it.

Each function returns coordinates (N, 3); colours (N, 3) or None; labels and objects (N,) or None;
and the names of the classes in the order of the labels, where the file states them, or None.
"""

import json
import struct
from pathlib import Path

import numpy as np

STATEMENT = "room.json"
# What labels are called in .ply, .pcd and .las files: here, by KPConv, and by others. CloudCompare
# puts "scalar_" before the name and writes capitals.
_LABEL_NAMES = ("segment", "class", "label", "classification")


class BadRoomError(ValueError):
    """A room's file is not what it should be; the message names it and says what to do."""


def read_folder(path: Path) -> tuple:
    arrays = {}
    for name in ("coord", "color", "segment", "instance"):
        file = path / f"{name}.npy"
        if file.is_file():
            try:
                arrays[name] = np.load(file)
            except (ValueError, EOFError, OSError) as error:
                raise BadRoomError(
                    f"{file} is not a whole .npy file ({error}): convert or download it again"
                ) from error
    if "coord" not in arrays:
        raise FileNotFoundError(f"{path / 'coord'}.npy does not exist; a room needs it")
    segment, instance = (
        arrays[name].reshape(-1) if name in arrays else None for name in ("segment", "instance")
    )
    statement = path / STATEMENT
    stated = _stated_classes(statement) if statement.is_file() else None
    return arrays["coord"], arrays.get("color"), segment, instance, stated


def _stated_classes(file: Path) -> list[str]:
    try:
        return json.loads(file.read_text())["classes"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadRoomError(
            f'{file} does not say its classes, {{"classes": [...]}} ({error!r}): convert the room '
            "again, or write them"
        ) from error


def read_bin(path: Path) -> tuple:
    """mmdetection3d's: float32 x y z r g b, and int64 labels in files of the same name."""
    values = np.fromfile(path, np.float32)
    if values.size % 6:
        raise BadRoomError(
            f"{path} holds {values.size} float32 numbers, which is no multiple of 6 (x y z r g b "
            "of every point): it was cut short, or is of another layout"
        )
    points, labels = values.reshape(-1, 6), []
    for folder in ("semantic_mask", "instance_mask"):
        file = path.parent.parent / folder / path.name
        labels.append(np.fromfile(file, np.int64) if file.is_file() else None)
    return points[:, :3], points[:, 3:], *labels, None


def read_npy(path: Path) -> tuple:
    """Points with x y z, r g b and labels side by side, as PointNet's files of S3DIS."""
    try:
        values = np.load(path)
    except (ValueError, EOFError, OSError) as error:
        raise BadRoomError(f"{path} is not a whole .npy file ({error})") from error
    if values.ndim != 2 or values.shape[1] not in (3, 6, 7):
        raise BadRoomError(
            f"{path} has the shape {values.shape}, expected (points, 3) of x y z, (points, 6) with "
            "r g b too, or (points, 7) with labels too"
        )
    color = values[:, 3:6] if values.shape[1] > 3 else None
    return values[:, :3], color, values[:, 6] if values.shape[1] == 7 else None, None, None


def read_open3d(path: Path, labels: bool) -> tuple:
    """A .ply or .pcd file; labels that nobody wants may have more than one name."""
    import open3d

    cloud = open3d.t.io.read_point_cloud(str(path))
    if "positions" not in cloud.point:
        raise BadRoomError(f"{path} cannot be read by Open3D: is it a whole {path.suffix} file?")
    parts = {name: cloud.point[name].numpy() for name in cloud.point}
    segment = _one_of(path, parts) if labels else None
    instance = parts.get("instance")
    stated = _stated_in_ply(path) if path.suffix.lower() == ".ply" else None
    flat = [None if values is None else values.reshape(-1) for values in (segment, instance)]
    return parts["positions"], parts.get("colors"), *flat, stated


def _stated_in_ply(path: Path) -> list[str] | None:
    with path.open("rb") as file:
        for line in file:
            words = line.decode("ascii", "replace").split()
            if words[:2] == ["comment", "classes"]:
                text = line.decode("utf-8", "replace").split("classes", 1)[1].strip()
                return json.loads(text) if text.startswith("[") else words[2:]
            if words[:1] == ["end_header"]:
                break
    return None


def read_las(path: Path, labels: bool) -> tuple:
    """A .las file; labels as in ``read_open3d``."""
    import laspy

    try:
        las = laspy.read(path)
    except (laspy.LaspyException, ValueError, EOFError, OSError, struct.error) as error:
        raise BadRoomError(f"{path} cannot be read by laspy ({error}): is it whole?") from error
    names = set(las.point_format.dimension_names)
    extra = {name: np.asarray(las[name]) for name in names if _plain(name) in _LABEL_NAMES}
    # Every .las file has room for it; 0 is "never classified".
    if "classification" in extra and (len(extra) > 1 or not extra["classification"].any()):
        del extra["classification"]
    instance = np.asarray(las["instance"]) if "instance" in names else None
    color = None
    if {"red", "green", "blue"} <= names:
        color = np.stack([las.red, las.green, las.blue], axis=1)
    segment = _one_of(path, extra) if labels else None
    return np.asarray(las.xyz), color, segment, instance, None


def _one_of(path: Path, parts: dict[str, np.ndarray]) -> np.ndarray | None:
    found = [name for known in _LABEL_NAMES for name in sorted(parts) if _plain(name) == known]
    if len(found) > 1:
        raise BadRoomError(
            f"{path} has several properties that may be its labels, {' and '.join(found)}: remove "
            "those that are not"
        )
    return parts[found[0]] if found else None


def _plain(name: str) -> str:
    return name.lower().removeprefix("scalar_")
