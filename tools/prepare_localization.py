"""Check a set for temporal action localization, name its classes, and make a small set of it.

    python tools/prepare_localization.py classes thumos_14_anno.json category_idx.txt
    python tools/prepare_localization.py check thumos_14_anno.json --classes category_idx.txt \\
        --videos raw_data/video --unreadable blocked.txt
    python tools/prepare_localization.py small activity_net.v1-3.min.json small.json --videos 50 \\
        --labels Surfing "Long jump"

"check" names bad annotations and, with --videos, each video that is missing, damaged or shorter
than annotated, and exits with 1 where there are any; --unreadable writes the names of such videos,
which is a block list for the configs. docs/localization.md has the layouts.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.fileio import put_text
from mmengine.utils import track_iter_progress

import tasks.video.localization  # noqa: F401 - mends mmaction2, which the modules below import
from tasks.video.localization.annotations import (
    SPELLED_OUT,
    BadAnnotationError,
    clean,
    read_blocked,
    read_classes,
    read_database,
)
from tasks.video.localization.transforms import check_duration
from tasks.video.transforms import DecordOpen
from tools.arguments import positive
from tools.result_files import write_json

# What opening a file raises where it is missing, damaged, not a video, or too short.
UNREADABLE = (OSError, RuntimeError, ValueError)


def labels_of(database: Mapping[str, Mapping]) -> list[str]:
    """Every label of a database, sorted."""
    lists = [entry.get("annotations") for entry in database.values()]
    found = [a for annotations in lists if isinstance(annotations, list) for a in annotations]
    return sorted({str(a["label"]) for a in found if isinstance(a, dict) and "label" in a})


def unreadable_videos(
    database: Mapping[str, Mapping], folder: Path, file_name: str
) -> dict[str, str]:
    """Videos that cannot be opened or are shorter than annotated, and why."""
    opening = DecordOpen()
    found = {}
    for video in track_iter_progress(list(database)):
        path = folder / file_name.format(video)
        try:
            opened = opening.transform({"filename": str(path)})
            check_duration(opened | {"duration": database[video]["duration"]})
        except UNREADABLE as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            found[video] = f"{path}: {reason[-1]}"
    return found


def check(arguments: argparse.Namespace) -> int:
    """Print what is wrong; return how much that is."""
    database = read_database(arguments.annotations)
    if arguments.block_list:
        blocked = read_blocked(arguments.block_list)
        database = {video: entry for video, entry in database.items() if video not in blocked}
    classes = read_classes(arguments.classes)
    good, findings = clean(database, classes, arguments.ignored_labels)
    unreadable = {}
    if arguments.videos:
        unreadable = unreadable_videos(good, arguments.videos, arguments.file_name)
    shown = [*findings, *unreadable.values()]
    for line in shown[:SPELLED_OUT]:
        print(line)
    if len(shown) > SPELLED_OUT:
        print(f"and {len(shown) - SPELLED_OUT:,} more")
    if arguments.unreadable:
        write_lines(arguments.unreadable, unreadable)
    subsets = Counter(str(entry.get("subset")) for entry in good.values())
    actions = sum(len(entry["annotations"]) for entry in good.values())
    print(
        f"{arguments.annotations}: {len(good):,} videos ("
        + ", ".join(f"{count:,} of {subset}" for subset, count in sorted(subsets.items()))
        + f"), {actions:,} actions of {len(classes)} classes; {len(findings):,} bad entries, "
        f"{len(unreadable):,} unreadable videos"
    )
    return len(shown)


def make_small(database: Mapping[str, dict], videos: int, labels: Collection[str]) -> dict:
    """Keep the first ``videos`` of each subset that have an action of ``labels``, and those alone.

    Raises:
        BadAnnotationError: A label is in no video.
    """
    unknown = sorted(set(labels) - set(labels_of(database)))
    if unknown:
        raise BadAnnotationError(f"no video has the labels {', '.join(unknown)}")
    taken: Counter[str] = Counter()
    small = {}
    for video, entry in database.items():
        annotations = [a for a in entry.get("annotations", []) if a["label"] in labels]
        if annotations and taken[entry["subset"]] < videos:
            taken[entry["subset"]] += 1
            small[video] = {**entry, "annotations": annotations}
    return small


def write_lines(path: Path, lines: Collection[str]) -> None:
    """Write a text file, whole or not at all."""
    put_text("".join(f"{line}\n" for line in lines), path, backend_args={"backend": "atomic_local"})


def main(arguments: list[str] | None = None) -> int:
    """Do as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, description in {
        "classes": "write the names of all labels, sorted, one a line",
        "check": "name bad annotations and unreadable videos",
        "small": "write the annotations of a few videos",
    }.items():
        command = commands.add_parser(name, help=description, description=description)
        command.add_argument("annotations", type=Path, help="annotation file")
        if name != "check":
            command.add_argument("target", type=Path, help="file to write")
        if name == "classes":
            command.add_argument("--ignored-labels", nargs="*", default=["Ambiguous"])
        elif name == "check":
            command.add_argument("--classes", type=Path, required=True, help="class file")
            command.add_argument("--videos", type=Path, help="folder of the videos")
            command.add_argument("--file-name", default="{}.mp4", help="{} is a video's name")
            command.add_argument("--block-list", type=Path, help="videos to leave out")
            command.add_argument("--unreadable", type=Path, help="block list to write")
            command.add_argument("--ignored-labels", nargs="*", default=["Ambiguous"])
        else:
            command.add_argument("--videos", type=positive, default=50, help="of each subset")
            command.add_argument("--labels", nargs="*", help="classes to keep; all if left out")
    args = parser.parse_args(arguments)
    if args.command == "check":
        if args.videos and not args.videos.is_dir():
            parser.error(f"--videos {args.videos} is no folder")
        if args.unreadable and not args.videos:
            parser.error("--unreadable needs --videos")
        return min(1, check(args))
    database = read_database(args.annotations)
    if args.command == "classes":
        names = [name for name in labels_of(database) if name not in args.ignored_labels]
        write_lines(args.target, names)
        print(f"{args.target}: {len(names)} classes")
        return 0
    small = make_small(database, args.videos, args.labels or labels_of(database))
    write_json(args.target, {"database": small})
    print(f"{args.target}: {len(small):,} videos")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BadAnnotationError, FileNotFoundError) as error:
        sys.exit(str(error))
