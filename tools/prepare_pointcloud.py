"""Turn the raw S3DIS into a folder of .npy files a room.

    python tools/prepare_pointcloud.py Stanford3dDataset_v1.2_Aligned_Version data/s3dis

reads ``Area_k/<room>/Annotations/<class>_<i>.txt``, lines ``x y z r g b``, and writes
``data/s3dis/Area_k/<room>/coord.npy, color.npy, segment.npy, instance.npy, room.json``: all points
in the order of the sorted files and of their lines. Rooms that are there are kept, so that a
conversion that was killed goes on where it was.

A line that is not six numbers is named by file and line. The ones that are known in the published
files are repaired as others do by hand; with any other, its room is not written, and the command
fails after all the others are. Objects of other names than the 13 classes become clutter and are
counted. docs/pointcloud.md has the layout.
"""

import argparse
import os
import re
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import parent_process
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from mmengine.utils import ProgressBar

from tasks.pointcloud.class_names import CLASSES
from tasks.pointcloud.room_files import STATEMENT, Room
from tasks.pointcloud.room_writing import clear_partial_rooms, is_converted, write_room
from tools.arguments import positive

# What is known of the published files: a byte that is no text, where others have put by hand what
# must have been there.
KNOWN_REPAIRS = {
    # Line 180389, in v1.2 aligned: a space is missing between two colours
    # (https://github.com/charlesq34/pointnet/issues/45).
    "Area_5/hallway_6/Annotations/ceiling_1.txt": (rb"185[\x00-\x1f]187", b"185 187"),
    # Line 323474, in v1.2 as it was: a digit is missing behind a decimal point, where the others
    # of the file are zero (https://github.com/zeliu98/CloserLook3D/issues/15).
    "Area_5/office_19/Annotations/ceiling_1.txt": (rb"103\.0[\x00-\x1f]0000", b"103.000000"),
}
SHOWN = 20  # bad lines, in the message that ends the command


class Outcome(NamedTuple):
    """What came of a room: repairs and bad lines as text, files of unknown names, points."""

    repairs: list[str]
    problems: list[str]
    unknown: dict[str, list[str]]
    points: int


def find_raw_rooms(root: Path) -> list[Path]:
    """Return the folders of rooms below ``root``, sorted.

    Raises:
        FileNotFoundError: There is none, or one of them has no folder ``Annotations``.
    """
    folders = sorted(path for path in root.glob("Area_*/[!.]*") if path.is_dir())
    rooms = [path for path in folders if (path / "Annotations").is_dir()]
    if not rooms:
        raise FileNotFoundError(
            f"{root} has no folder Area_k/ROOM/Annotations: give the folder that the archive "
            "Stanford3dDataset_v1.2_Aligned_Version.zip unpacks to"
        )
    bare = [path for path in folders if path not in rooms]
    if bare:
        raise FileNotFoundError(
            f"{', '.join(map(str, bare))}: no folder Annotations there. Unpack the archive again; "
            "what is no room has to be moved out of the areas"
        )
    return rooms


def convert_room(source: Path, target: Path) -> Outcome:
    """Read the objects of a room and write it to ``target``, unless a line of it is bad."""
    parts, segment, instance = [], [], []
    repairs, problems, unknown = [], [], {}
    files = sorted((source / "Annotations").glob("*.txt"))
    if not files:
        problems.append(f"{source}/Annotations holds no .txt file")
    for number, file in enumerate(files):
        points, repaired, bad = read_object(file)
        repairs += repaired
        problems += bad
        name = file.stem.split("_")[0]
        if name not in CLASSES:
            unknown.setdefault(name, []).append(file.name)
            name = "clutter"
        parts.append(points)
        segment.append(np.full(len(points), CLASSES.index(name)))
        instance.append(np.full(len(points), number))
    points = sum(map(len, parts))
    if not problems:
        values = np.concatenate(parts)
        room = Room(
            values[:, :3].astype(np.float32),
            values[:, 3:].astype(np.uint8),
            np.concatenate(segment),
            np.concatenate(instance),
        )
        write_room(
            target,
            room,
            objects=[file.stem for file in files],
            unknown_names=unknown,
            repairs=repairs,
        )
    return Outcome(repairs, problems, unknown, points)


def read_object(file: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """Read the points of an object: float64 (n, 6), repairs, and what is wrong."""
    try:
        with file.open(encoding="ascii") as lines, warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy's of an empty file
            points = np.loadtxt(lines, comments=None, ndmin=2)
        if _is_right(points):
            return points, [], []
    except (ValueError, UserWarning):  # a ValueError also of bytes that are not ASCII
        pass
    return _read_line_by_line(file)


def _is_right(points: np.ndarray) -> bool:
    if points.shape[1] != 6 or not np.isfinite(points).all():
        return False
    color = points[:, 3:]
    return bool(((color >= 0) & (color <= 255) & (color == np.floor(color))).all())


def _read_line_by_line(file: Path) -> tuple[np.ndarray, list[str], list[str]]:
    known = re.compile(rb"(?!)"), b""
    for name, (pattern, replacement) in KNOWN_REPAIRS.items():
        if file.as_posix().endswith(f"/{name}"):
            known = re.compile(pattern), replacement
    points, repairs, problems = [], [], []
    lines = file.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        point = _parse(line)
        if isinstance(point, str):
            repaired = known[0].sub(known[1], line)
            again = _parse(repaired)
            if repaired == line or isinstance(again, str):
                problems.append(f"{file}, line {number}: {point}, got {_show(line)}")
                continue
            repairs.append(f"{file}, line {number}: {_show(line)} read as {_show(repaired)}")
            point = again
        if point:
            points.append(point)
    if not points and not problems:
        problems.append(f"{file} holds no points")
    return np.array(points).reshape(-1, 6), repairs, problems


def _parse(line: bytes) -> list[float] | str:
    """Return the six numbers of a line, none of a blank one, or what is wrong with it."""
    try:
        values = [float(word) for word in line.decode("ascii").split(" ") if word]
    except ValueError:
        return "expected 'x y z r g b'"
    if not values and not line.strip():
        return []
    if len(values) != 6:
        return f"expected the 6 numbers 'x y z r g b', found {len(values)}"
    if not np.isfinite(values).all():
        return "a number is not finite"
    if not _is_right(np.array([values])):
        return "expected colours in whole numbers from 0 to 255"
    return values


def _show(line: bytes) -> str:
    return repr(line[:100].decode("latin1"))


def convert(source: Path, target: Path, workers: int) -> list[Outcome]:
    """Convert every room that is not there yet, in several processes with a progress bar.

    Raises:
        FileNotFoundError: ``source`` is not as the archive unpacks.
        FileExistsError: In the place of a room stands something else.
        ChildProcessError: A process was killed.
    """
    places = {room: target / room.relative_to(source) for room in find_raw_rooms(source)}
    todo = {room: place for room, place in places.items() if not is_converted(place)}
    # Asked once more: another run may have finished a room since.
    if other := [p for p in todo.values() if p.exists() and not is_converted(p)]:
        raise FileExistsError(
            f"{', '.join(map(str, other))}: not converted rooms, as they have no {STATEMENT}. "
            "Remove them, or name another target"
        )
    if len(todo) < len(places):
        print(f"{len(places) - len(todo)} of {len(places)} rooms are there already")
    # Large rooms first, so that none is left to one process at the end.
    todo = dict(sorted(todo.items(), key=lambda pair: -_size(pair[0])))
    progress = ProgressBar(len(todo)) if todo else None
    outcomes = {}
    with ProcessPoolExecutor(workers, initializer=_end_with_parent) as executor:
        running = {executor.submit(convert_room, *pair): pair[0] for pair in todo.items()}
        for done in as_completed(running):
            try:
                outcomes[running[done]] = done.result()
            except BrokenProcessPool:
                left = ", ".join(str(room) for room in todo if room not in outcomes)
                raise ChildProcessError(
                    f"a process was killed, perhaps as memory ran out; left are {left}. Run it "
                    "again: it goes on there. --workers 1 takes the least memory"
                ) from None
            progress.update()
    print()
    clear_partial_rooms(places.values())
    return [outcomes[room] for room in sorted(outcomes)]


def _size(room: Path) -> int:
    return sum(file.stat().st_size for file in (room / "Annotations").glob("*.txt"))


def _end_with_parent() -> None:
    """End this process when its parent is killed; it would wait for work for ever."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def report(outcomes: list[Outcome]) -> Iterator[str]:
    """Say what was converted, repaired, and taken for clutter."""
    whole = [outcome for outcome in outcomes if not outcome.problems]
    yield f"{len(whole)} rooms converted, {sum(outcome.points for outcome in whole):,} points"
    for repair in (repair for outcome in outcomes for repair in outcome.repairs):
        yield f"repaired: {repair}"
    unknown: Counter[str] = Counter()
    for outcome in outcomes:
        unknown.update({name: len(files) for name, files in outcome.unknown.items()})
    for name, count in sorted(unknown.items()):
        yield f"taken for clutter: {name}, {count} objects"


def main(arguments: list[str] | None = None) -> None:
    """Convert what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="the folder with Area_1 to Area_6")
    parser.add_argument("target", type=Path, help="the folder to write them to")
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count(), help="processes; each holds a room"
    )
    args = parser.parse_args(arguments)
    try:
        outcomes = convert(args.source, args.target, args.workers)
    except (FileNotFoundError, FileExistsError, ChildProcessError) as error:
        sys.exit(str(error))
    print("\n".join(report(outcomes)))
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    if problems:
        more = [f"… and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        rooms = sum(bool(outcome.problems) for outcome in outcomes)
        sys.exit(
            "\n".join([*problems[:SHOWN], *more])
            + f"\n{rooms} rooms were not written: correct these lines and run the command again, "
            "which keeps what is converted"
        )


if __name__ == "__main__":
    main()
