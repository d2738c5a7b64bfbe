"""Converted rooms for tests: those of tools/demos/furnished_rooms.py, as small as a test needs."""

from tools.demos.furnished_rooms import write_rooms
from tools.prepare_pointcloud import convert_room, find_raw_rooms


def write_converted(folder, rooms=1, points=1500, look="office"):
    """Write and convert Areas 1 to 6; return the folder that has them."""
    raw = write_rooms(folder / "raw", look, rooms, points)
    for room in find_raw_rooms(raw):
        outcome = convert_room(room, folder / "s3dis" / room.relative_to(raw))
        assert not outcome.problems
    return folder / "s3dis"
