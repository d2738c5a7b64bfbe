"""Sum the confusion matrices of several tests, such as the six folds of S3DIS, and print the table.

    python tools/sum_folds.py work_dirs/fold_*/confusion.json
    python tools/sum_folds.py work_dirs/fold_*/confusion.json --out six_fold.json

Each file is written by ``PointSegmentationMetric(confusion_file=...)`` in a test at full
resolution. Six-fold figures are those of the sum of the matrices, every point counted once, not the
mean of six figures.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from tasks.pointcloud.confusion import class_table, figures
from tools.result_files import write_json

AREAS = {f"Area_{number}" for number in range(1, 7)}


def sum_files(files: Sequence[Path]) -> tuple[np.ndarray, list[str], Counter[str]]:
    """Return the sum of the matrices, the classes, and how many rooms each area has.

    Raises:
        ValueError: A file is none of ``PointSegmentationMetric``, is of subsampled clouds, of other
            classes than the first, or has a room that another has too.
    """
    contents = [_read(file) for file in files]
    classes = contents[0]["classes"]
    for file, content in zip(files, contents, strict=True):
        if content["kind"] != "full_resolution":
            raise ValueError(
                f"{file} is of predictions of {content['kind']} clouds: test at full resolution, "
                "with a FullResolutionSegmentor and PackRoom"
            )
        if content["classes"] != classes:
            raise ValueError(f"{file} has other classes, or another order, than {files[0]}")
    counts = Counter(room for content in contents for room in content["rooms"])
    twice = [room for room, count in counts.items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} rooms are in several of the files, such as {twice[0]}: each fold tests "
            "another area"
        )
    confusion = np.sum([content["confusion"] for content in contents], axis=0)
    return confusion, classes, Counter(room.split("/")[0] for room in sorted(counts))


def _read(file: Path) -> dict:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"{file} is no JSON ({error}): run the test again that writes it"
        ) from None
    keys = ("kind", "classes", "rooms", "confusion")
    if not isinstance(content, dict) or not set(keys) <= set(content):
        raise ValueError(
            f"{file} has not the keys {', '.join(keys)} of a confusion matrix: give what "
            "PointSegmentationMetric(confusion_file=...) writes"
        )
    return content


def main(arguments: list[str] | None = None) -> None:
    """Sum the files that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="confusion matrices")
    parser.add_argument(
        "--out", type=Path, help="write the figures there, as JSON; null where there is none"
    )
    args = parser.parse_args(arguments)
    missing = [str(file) for file in args.files if not file.is_file()]
    if missing:
        parser.error(f"{', '.join(missing)} does not exist")
    try:
        confusion, classes, areas = sum_files(args.files)
    except ValueError as error:
        sys.exit(str(error))
    print("rooms:", ", ".join(f"{area} {count}" for area, count in areas.items()))
    if set(areas) != AREAS:
        print(f"not all six areas, only {', '.join(areas)}")
    print(class_table(confusion, classes))
    if args.out is not None:
        values = {k: None if math.isnan(v) else v for k, v in figures(confusion, classes).items()}
        write_json(args.out, {"areas": list(areas), **values})


if __name__ == "__main__":
    main()
