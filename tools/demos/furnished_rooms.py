"""Write small furnished rooms with the 13 classes of S3DIS, in S3DIS's raw layout.

    python tools/demos/furnished_rooms.py data/rooms/office
    python tools/demos/furnished_rooms.py data/rooms/home --look home --rooms 2 --points 4000

writes ``Stanford3dDataset_v1.2_Aligned_Version/Area_k/office_n/`` with ``office_n.txt`` (all
points) and ``Annotations/<class>_<i>.txt`` (one file an object), lines ``x y z r g b`` in metres
and 0 to 255, for Areas 1 to 6. The first room of every area has all classes, the others lack some.

Every kind of thing has any colour, another in each room, and walls, columns and beams of a room
share theirs more or less: colour alone does not tell the classes apart, nor does height, but shape
does and what is around. Points and colours are noisy, in an office as of a poorer scanner.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from tools.arguments import positive
from tools.demos import furniture
from tools.demos.furniture import Face, box
from tools.demos.generated_data import write_once

FOLDER = "Stanford3dDataset_v1.2_Aligned_Version"
AREAS = (1, 2, 3, 4, 5, 6)
STEP = 10.0  # metres between the corners of neighbouring rooms
COLOR_NOISE = 9.0
# How likely a room other than the first of its area has them.
CHANCES = {
    "beam": 0.7,
    "column": 0.7,
    "window": 0.8,
    "board": 0.7,
    "sofa": 0.6,
    "bookcase": 0.8,
}
# What has a colour of its own in each room; every piece of clutter has one.
COLORED = (
    "ceiling",
    "floor",
    "wall",
    "window",
    "door",
    "table",
    "chair",
    "sofa",
    "bookcase",
    "board",
)
# How many times more points than other objects of the same surface.
WEIGHTS = {
    "ceiling": 0.4,
    "floor": 0.4,
    "wall": 0.4,
    "table": 2.0,
    "chair": 2.5,
    "sofa": 0.7,
    "bookcase": 0.6,
    "clutter": 2.5,
}


class Look(NamedTuple):
    """What rooms of one kind have in common: their name; heights and noise of points in metres."""

    room: str
    ceiling: tuple[float, float]
    table: tuple[float, float]
    seat: tuple[float, float]
    noise: float


LOOKS = {
    "office": Look("office", (2.5, 3.1), table=(0.70, 0.78), seat=(0.42, 0.50), noise=0.03),
    "home": Look("lounge", (2.3, 2.7), table=(0.42, 0.60), seat=(0.36, 0.44), noise=0.006),
}


class NoRoomLeftError(Exception):
    """A piece of furniture finds no place."""


class _Room:
    """A room under construction: its objects, and what of walls and floor is taken."""

    def __init__(self, size: np.ndarray, random: np.random.Generator) -> None:
        self.size = size  # width, depth and height, metres
        self.random = random
        self.things: list[tuple[str, list[Face]]] = []
        self.holes: list[tuple[np.ndarray, np.ndarray]] = []  # boxes that walls leave open
        self._taken: list[tuple[np.ndarray, np.ndarray]] = []

    def hang(
        self, name: str, wall: int, size: Sequence[float], bottom: float, color: np.ndarray
    ) -> None:
        """Put a flat thing of width and height ``size`` somewhere along a wall.

        A board hangs before the wall; doors and windows lie in a hole of it.
        """
        wide, high = size
        along = self.random.uniform(0.15, self.size[wall % 2] - wide - 0.15)
        y = 0.04 if name == "board" else -0.1
        faces = box((wide, 0.02, high), (along, y, bottom), color)[2:4]
        self.things.append((name, [_at_wall(face, wall, self.size) for face in faces]))
        if y < 0:
            hole = box((wide, 0.1, high), (along, -0.05, bottom), color)
            self.holes.append(_bounds([_at_wall(face, wall, self.size) for face in hole]))

    def stand(self, name: str, faces: list[Face], wall: int | None = None) -> None:
        """Put a piece where nothing stands yet: with its back at a wall, or anywhere, turned.

        Raises:
            NoRoomLeftError: No place was found.
        """
        low, high = _bounds(faces)
        for _ in range(60):
            if wall is None:
                turn = self.random.uniform(0, 2 * np.pi)
                reach = np.linalg.norm((high - low)[:2]) / 2
                to = self.random.uniform(reach, np.maximum(self.size[:2] - reach, reach))
                moved = [_turned(face, turn, (low + high)[:2] / 2, to) for face in faces]
            else:
                along = self.random.uniform(0.05, self.size[wall % 2] - high[0] - 0.05)
                shift = np.array([along, 0.02, 0.0])
                moved = [face._replace(corner=face.corner + shift) for face in faces]
                moved = [_at_wall(face, wall, self.size) for face in moved]
            bounds = _bounds(moved)
            if all(_apart(bounds, other) for other in self._taken):
                self._taken.append(bounds)
                self.things.append((name, moved))
                return
        raise NoRoomLeftError


def draw_room(
    look: Look, everything: bool, points: int, random: np.random.Generator
) -> list[tuple[str, np.ndarray]]:
    """Draw the objects of a room: the class and float64 (n, 6) ``x y z r g b`` of each.

    Args:
        look: What the room looks like.
        everything: Whether it has all 13 classes; otherwise it may lack some.
        points: About how many points all objects have together.
        random: Where everything is drawn from.
    """
    while True:
        try:
            room = _furnish(look, everything, random)
            break
        except NoRoomLeftError:
            continue
    surfaces = [
        WEIGHTS.get(name, 1.0) * sum(face.area for face in faces) for name, faces in room.things
    ]
    counts = np.maximum(points * np.array(surfaces) / sum(surfaces), 20).astype(int)
    return [
        (name, _sample(name, faces, count, room.holes, look.noise, random))
        for (name, faces), count in zip(room.things, counts.tolist(), strict=True)
    ]


def _furnish(look: Look, everything: bool, random: np.random.Generator) -> _Room:
    size = random.uniform((3.4, 3.2, look.ceiling[0]), (5.0, 4.6, look.ceiling[1]))
    has = {name: everything or random.random() < chance for name, chance in CHANCES.items()}
    colors = {name: random.uniform(30, 225, 3) for name in COLORED}
    for name in ("beam", "column"):
        colors[name] = colors["wall"] + random.normal(0, 12, 3)

    room = _Room(size, random)
    top, bottom, *sides = box(size, (0, 0, 0), colors["wall"])
    room.things += [
        ("ceiling", [top._replace(color=colors["ceiling"])]),
        ("floor", [bottom._replace(color=colors["floor"])]),
        *(("wall", [side]) for side in sides),
    ]
    walls = random.permutation(4).tolist()
    room.hang("door", walls[0], random.uniform((0.8, 1.95), (1.0, 2.1)), 0.0, colors["door"])
    if has["window"]:
        panes = random.uniform((1.0, 0.9), (1.8, 1.2))
        room.hang("window", walls[1], panes, 0.9, colors["window"])
    if has["board"]:
        room.hang("board", walls[2], random.uniform((1.2, 0.8), (2.0, 1.1)), 0.9, colors["board"])
    if has["beam"]:
        drop = random.uniform(0.2, 0.4)
        at = (random.uniform(0.2, 0.7) * size[0], 0, size[2] - drop)
        room.things.append(("beam", box((0.3, size[1], drop), at, colors["beam"])))

    if has["column"]:
        side = random.uniform(0.3, 0.45)
        room.stand("column", box((side, side, size[2]), (0, 0, 0), colors["column"]), walls[2])
    if has["bookcase"]:
        wide, high = random.uniform((0.8, 1.4), (1.4, 2.0))
        case = furniture.bookcase(wide, high, colors["bookcase"], random)
        room.stand("bookcase", case, walls[3])
    if has["sofa"]:
        wide, seat = random.uniform(1.2, 1.8), random.uniform(*look.seat)
        room.stand("sofa", furniture.sofa(wide, seat, colors["sofa"]), walls[1])
    wide, deep = random.uniform((0.9, 0.6), (1.4, 0.8))
    desk = furniture.table(wide, deep, random.uniform(*look.table), colors["table"])
    room.stand("table", desk)
    top = room.things[-1][1][0]
    for _ in range(random.integers(1, 4)):
        seat = random.uniform(*look.seat)
        room.stand("chair", furniture.chair(seat, colors["chair"]))
    for _ in range(random.integers(2, 5)):
        thing = random.uniform((0.12, 0.12, 0.12), (0.4, 0.4, 0.7))
        room.stand("clutter", box(thing, (0, 0, 0), random.uniform(30, 225, 3)))
    for _ in range(random.integers(1, 4)):
        thing = random.uniform((0.1, 0.1, 0.05), (0.3, 0.25, 0.4))
        a, b = random.uniform(0.05, 0.7, 2)
        place = top.corner + a * top.first + b * top.second
        room.things.append(("clutter", box(thing, place, random.uniform(30, 225, 3))))
    return room


def _sample(
    name: str,
    faces: list[Face],
    count: int,
    holes: list[tuple[np.ndarray, np.ndarray]],
    noise: float,
    random: np.random.Generator,
) -> np.ndarray:
    """Draw ``count`` points of an object, of a wall those outside of its holes."""
    areas = np.array([face.area for face in faces])
    chosen = random.choice(len(areas), count, p=areas / areas.sum())
    corner, first, second, color = (
        np.stack([getattr(face, part) for face in faces])[chosen] for part in Face._fields
    )
    a, b = random.random((2, count, 1))
    place = corner + a * first + b * second
    # Light from above, and uneven as a scanner's panoramas leave it.
    shade = 0.86 + 0.06 * place[:, 2:] + 0.05 * np.sin(place[:, :1] + 2 * place[:, 1:2])
    in_hole = np.zeros(count, bool)
    if name == "wall":
        for low, high in holes:
            in_hole |= ((place > low) & (place < high)).all(axis=1)
    place = place + random.normal(0, noise, place.shape)
    color = color * shade + random.normal(0, COLOR_NOISE, color.shape)
    points = np.hstack([place, np.clip(np.rint(color), 0, 255)])
    return points[~in_hole]


def _at_wall(face: Face, wall: int, size: np.ndarray) -> Face:
    """Turn a face with the wall behind it, y = 0, to one of the four walls of the room."""
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    turn = np.linalg.matrix_power(quarter, wall)
    width, depth = size[:2]
    origin = np.array([(0, 0, 0), (width, 0, 0), (width, depth, 0), (0, depth, 0)][wall])
    return Face(turn @ face.corner + origin, turn @ face.first, turn @ face.second, face.color)


def _turned(face: Face, angle: float, middle: np.ndarray, to: np.ndarray) -> Face:
    """Turn a face around the vertical axis at ``middle``, and bring that to ``to``."""
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    corner = turn @ (face.corner - [*middle, 0]) + [*to, 0]
    return Face(corner, turn @ face.first, turn @ face.second, face.color)


def _bounds(faces: list[Face]) -> tuple[np.ndarray, np.ndarray]:
    corners = np.concatenate([face.corners for face in faces])
    return corners.min(axis=0), corners.max(axis=0)


def _apart(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    return bool((one[0] > other[1] + 0.05).any() or (other[0] > one[1] + 0.05).any())


def write_rooms(
    folder: Path, look: str = "office", rooms: int = 3, points: int = 12_000, seed: int = 0
) -> Path:
    """Write Areas 1 to 6 into ``folder``, or nothing where they are there already.

    The files of the same arguments are the same, byte by byte. A set that was cut short, or is of
    other arguments, is written anew; ``folder`` appears only when all of it is written.

    Args:
        folder: Takes the folder ``Stanford3dDataset_v1.2_Aligned_Version``.
        look: One of ``LOOKS``.
        rooms: Rooms an area.
        points: About how many points a room has.
        seed: Other seeds give other rooms.

    Returns:
        The raw folder, with ``Area_1`` to ``Area_6`` in it.

    Raises:
        FileExistsError: ``folder`` holds something else.
    """
    settings = {"look": look, "rooms": rooms, "points": points, "seed": seed}

    def write(partial: Path) -> None:
        for area in AREAS:
            for number in range(1, rooms + 1):
                random = np.random.default_rng([seed, list(LOOKS).index(look), area, number])
                objects = draw_room(LOOKS[look], number == 1, points, random)
                name = f"{LOOKS[look].room}_{number}"
                corner = np.array([STEP * number, STEP * area, 0, 0, 0, 0])
                _write_room(partial / FOLDER / f"Area_{area}" / name, objects, corner)

    write_once(folder, settings, write)
    return folder / FOLDER


def _write_room(folder: Path, objects: list[tuple[str, np.ndarray]], corner: np.ndarray) -> None:
    (folder / "Annotations").mkdir(parents=True)
    counts: dict[str, int] = {}
    texts = []
    for name, points in objects:
        counts[name] = counts.get(name, 0) + 1
        lines = (
            f"{x:.3f} {y:.3f} {z:.3f} {r:.0f} {g:.0f} {b:.0f}\n"
            for x, y, z, r, g, b in (points + corner).tolist()
        )
        texts.append("".join(lines))
        (folder / "Annotations" / f"{name}_{counts[name]}.txt").write_text(texts[-1])
    (folder / f"{folder.name}.txt").write_text("".join(texts))


def main(arguments: list[str] | None = None) -> None:
    """Write the rooms that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help=f"takes {FOLDER}")
    parser.add_argument("--look", choices=LOOKS, default="office")
    parser.add_argument("--rooms", type=positive, default=3, help="rooms an area")
    parser.add_argument("--points", type=positive, default=12_000, help="about how many a room has")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    print(write_rooms(args.folder, args.look, args.rooms, args.points, args.seed))


if __name__ == "__main__":
    main()
