"""Predict with a trained model: python tools/predict.py CONFIG CHECKPOINT INPUT... --out DIR.

    python tools/predict.py configs/video/dr2net_vitb_k400.py CHECKPOINT clip.mp4 --out out
    python tools/predict.py configs/video/localization/dr2net_vitb_thumos14.py CHECKPOINT \
        match.mp4 --out out
    python tools/predict.py configs/detection/dr2net_retinanet_swint_coco.py CHECKPOINT \
        photographs --out out
    python tools/predict.py configs/pointcloud/dr2net_pix4point_s3dis.py CHECKPOINT \
        office.ply hall.las --out out

An input is a file, or a folder whose files, and those of its sub-folders, are taken. Of each come
a picture (``.png``) and what was predicted (``.json``), of a room the points in the colours of
their classes (``.ply``) too. An input that cannot be read is named, and the others go on; the exit
status is then 1.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.utils import track_iter_progress

from dr2net.openmmlab import convert_by_config
from dr2net.openmmlab.checkpoint import expect_whole_models
from tools.arguments import positive
from tools.classes import class_names
from tools.command_line import add_config_options, read_config
from tools.result_files import write_json

# The modules that predict, by the type of the model, or else by the default_scope of configs.
MODELS_OF_TASKS = {"ActionLocalizer": "tasks.video.localization.prediction"}
TASKS = {
    "mmaction": "tasks.video.prediction",
    "mmdet": "tasks.detection.prediction",
    "mmengine": "tasks.pointcloud.prediction",
}


def main(arguments: list[str] | None = None) -> list[str]:
    """Predict as the command line says; return what was wrong with inputs, a message each."""
    parser = argparse.ArgumentParser(description="Predict with a trained model.")
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="files or folders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the results")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; by default a GPU where there is one")
    parser.add_argument("--top", type=positive, default=5, help="videos: classes shown (5)")
    parser.add_argument(
        "--clips",
        type=positive,
        help="videos, for one class each: clips over each; by default as in the config's test",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.3,
        help="images, and actions in videos: the lowest score drawn (0.3)",
    )
    parser.add_argument(
        "--tile-size",
        type=positive,
        metavar="PIXELS",
        help="images: tiles that larger ones are cut into; by default those of the config, or, "
        "where it has none, tiles for images that the test would shrink to less than a half",
    )
    parser.add_argument("--white", type=float, help="rooms: the number of full brightness")
    add_config_options(parser)
    args = parser.parse_args(arguments)
    if not 0 <= args.score_threshold <= 1:
        parser.error(f"--score-threshold {args.score_threshold}: give a score between 0 and 1")

    config = read_config(args)
    task = task_of(config)
    chosen, problems = find_inputs(args.inputs, task, args.out)
    total = len(chosen) + len(problems)
    for problem in problems:
        print(problem, file=sys.stderr)
    if chosen:
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, classes = load_model(config, args.checkpoint, device)
        options = {name: vars(args)[name] for name in task.OPTIONS}
        predict = task.predictor(model, config, classes, **options)
        for file, target in track_iter_progress(list(chosen.items())):
            try:
                write_prediction(predict, file, args.out / target)
            except (OSError, ValueError) as error:
                message = str(error)
                named = message.startswith(str(file))
                problems.append(message if named else f"{file}: {message}")
                print(f"\n{problems[-1]}", file=sys.stderr)
    print(f"{total - len(problems)} of {total} inputs predicted, into {args.out}")
    return problems


def task_of(config: Config) -> ModuleType:
    """Return the module that predicts for a config.

    Raises:
        ValueError: The config is of another library.
    """
    scope = config.get("default_scope")
    if scope not in TASKS:
        raise ValueError(
            f"the config's default_scope is {scope!r}: models of {', '.join(TASKS)} can be used "
            "(mmengine's are those of tasks.pointcloud)"
        )
    kind = str(config.model.get("type")).rpartition(".")[2]
    return import_module(MODELS_OF_TASKS.get(kind, TASKS[scope]))


def find_inputs(
    inputs: Sequence[Path], task: ModuleType, out: Path
) -> tuple[dict[Path, Path], list[str]]:
    """Find what to predict.

    Args:
        inputs: Files and folders, as the command line names them.
        task: Its ``is_input`` tells what it reads, ``KIND`` and ``ENDINGS`` what that is called.
        out: The folder of results.

    Returns:
        By input, where its results go: a path below ``out``, without an ending. And a message,
        ``input …``, for each of the inputs that is missing or nothing that the task reads.
    """
    found: dict[Path, Path] = {}
    problems = []
    expected = f"{task.KIND} ({', '.join(task.ENDINGS)})"
    for given in inputs:
        if not given.exists():
            problems.append(f"input {given} does not exist")
        elif task.is_input(given):
            found[given] = Path(given.name)
        elif not given.is_dir():
            problems.append(f"input {given} is no {expected}")
        elif out.resolve() in (given.resolve(), *given.resolve().parents):
            problems.append(f"input {given} is in the folder of results: give another by --out")
        else:
            # Not what an earlier run wrote there.
            inside = [
                path
                for path in sorted(given.rglob("*"))
                if task.is_input(path) and out.resolve() not in path.resolve().parents
            ]
            found |= {path: path.relative_to(given) for path in inside}
            if not inside:
                problems.append(f"input {given} has no {expected} in it")
    # Without the ending, but where two files differ in nothing else.
    stems = Counter(target.with_suffix("") for target in found.values())
    targets = {
        file: target if stems[target.with_suffix("")] > 1 else target.with_suffix("")
        for file, target in found.items()
    }
    counts = Counter(targets.values())
    twice = [str(file) for file, target in targets.items() if counts[target] > 1]
    if twice:
        raise ValueError(
            f"{' and '.join(twice)} would have one name in {out}: predict them by commands with "
            "folders of their own, or give the folder that they have in common"
        )
    return targets, problems


def load_model(config: Config, checkpoint: str, device: str) -> tuple[BaseModel, list[str] | None]:
    """Build a config's model and load its weights.

    Returns:
        The model on its device, to test with; the names of its classes, None where neither
        checkpoint nor config has them.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: It lacks weights of the model, or is of another equation.
    """
    init_default_scope(config.default_scope)
    model = MODELS.build(config.model)
    convert_by_config(model, config)
    with expect_whole_models():
        loaded = load_checkpoint(model, checkpoint, map_location="cpu")
    return model.to(device).eval(), class_names(config, loaded.get("meta") or {})


def write_prediction(predict: Callable[[Path, Path], dict], file: Path, target: Path) -> None:
    """Write the results of one input, all of them or none.

    Args:
        predict: Given the input and a path without an ending, it writes pictures of that name, and
            returns what goes into the JSON file.
        file: The input.
        target: Where the results go, without an ending.

    Raises:
        ValueError: The input cannot be read, or a result would take the place of a file beside it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=".partial_") as folder:
        partial = Path(folder) / target.name
        content = predict(file, partial)
        write_json(partial.with_name(f"{partial.name}.json"), {"file": str(file), **content})
        results = sorted(Path(folder).iterdir())
        places = {result: target.with_name(result.name) for result in results}
        # Beside the input are others, and their labels in .json files; not what a run has written.
        if target.parent.samefile(file.parent):
            for place in places.values():
                if place.exists():
                    raise ValueError(
                        f"its result would take the place of {place}: give another folder by --out"
                    )
        for result, place in places.items():
            result.replace(place)


if __name__ == "__main__":
    if main():
        sys.exit(1)
