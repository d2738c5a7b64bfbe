"""Draw what a model predicted of rooms, from the file that a test saved.

    python tools/test.py CONFIG CHECKPOINT --dump predictions.pkl
    python tools/room_pictures.py predictions.pkl pictures
    python tools/room_pictures.py predictions.pkl pictures --ply --rooms Area_5/office_1
    python tools/room_pictures.py predictions.pkl --show --rooms Area_5/office_1

Each room becomes ``Area_5_office_1.png``: its colours, true classes and predicted classes in a row.
With ``--ply`` also ``Area_5_office_1_true.ply`` and ``Area_5_office_1_predicted.ply``, in the
colours of the classes, for any viewer. ``--show`` opens Open3D's window, where there is a display.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from mmengine.fileio import load
from mmengine.utils import track_iter_progress

from tasks.pointcloud.class_names import CLASSES
from tasks.pointcloud.pictures import class_colors, draw_room, show_room
from tasks.pointcloud.room_files import BadRoomError, read_room
from tasks.pointcloud.room_writing import write_ply
from tasks.pointcloud.structures import IGNORE
from tools.classes import read_names


def draw_prediction(
    prediction: dict,
    folder: Path | None,
    ply: bool,
    show: bool,
    white: float | None = None,
    classes: Sequence[str] = CLASSES,
) -> None:
    """Draw one room of a file of predictions.

    Args:
        prediction: As ``tools/test.py --dump`` saves it: ``path``, ``name``, ``pred_segment`` and,
            where the room has labels, ``gt_segment``.
        folder: Takes picture and .ply files; None for neither.
        ply: Whether to write .ply files too.
        show: Whether to open a window.
        white: As in ``room_files.read_room``.
        classes: The names of the classes.

    Raises:
        BadRoomError: The predictions are not of every point of the room.
    """
    name = prediction["name"]
    room = read_room(prediction["path"], white=white, labels=False, colors=None)
    segments = {"predicted": np.asarray(prediction["pred_segment"])}
    if "gt_segment" in prediction:
        segments = {"true": np.asarray(prediction["gt_segment"]), **segments}
    truth, predicted = segments.get("true"), segments["predicted"]
    if len(predicted) != len(room.coord):
        raise BadRoomError(
            f"{name}: {len(predicted)} predictions for {len(room.coord)} points; pictures are of "
            "tests at full resolution, by a FullResolutionSegmentor"
        )
    if folder is not None:
        stem = name.replace("/", "_")
        title = f"{name}: {len(predicted):,} points"
        if truth is not None:
            right = (predicted == truth)[truth != IGNORE].mean()
            title = f"{name}: {100 * right:.1f} % of {len(truth):,} points"
        file = folder / f"{stem}.png"
        draw_room(file, room.coord, room.color, predicted, truth, classes, title)
        if ply:
            for kind, labels in segments.items():
                file = folder / f"{stem}_{kind}.ply"
                write_ply(file, room.coord, class_colors(labels, classes), labels, classes)
    if show:
        colorings = [class_colors(labels, classes) for labels in segments.values()]
        show_room(room.coord, room.color, *colorings, title=name)


def main(arguments: list[str] | None = None) -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("predictions", type=Path, help="saved by tools/test.py --dump")
    parser.add_argument("folder", type=Path, nargs="?", help="takes the pictures")
    parser.add_argument("--rooms", nargs="+", metavar="AREA/ROOM", help="only these")
    parser.add_argument("--ply", action="store_true", help="write .ply files too")
    parser.add_argument("--show", action="store_true", help="open a window for each room")
    parser.add_argument("--classes", help="rooms of other sets: a text file, a name a line")
    parser.add_argument("--white", type=float, help="the number of full brightness in the files")
    args = parser.parse_args(arguments)
    if args.folder is None and not args.show:
        parser.error("name a folder for the pictures, or --show")
    if args.ply and args.folder is None:
        parser.error("--ply needs a folder")
    if not args.predictions.is_file():
        parser.error(f"{args.predictions} does not exist: tools/test.py --dump writes it")
    predictions = load(args.predictions)
    known = {prediction["name"]: prediction for prediction in predictions}
    rooms = args.rooms or list(known)
    missing = [room for room in rooms if room not in known]
    if missing:
        parser.error(f"no predictions of {', '.join(missing)}; there are {', '.join(known)}")
    classes = CLASSES if args.classes is None else read_names(args.classes)
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    try:
        for room in track_iter_progress(rooms):
            draw_prediction(known[room], args.folder, args.ply, args.show, args.white, classes)
    except (BadRoomError, FileNotFoundError, RuntimeError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
