"""What the demos of all tasks share: finetune a pretrained network three ways, and compare.

A demo says what is its own in a ``Demo`` and calls ``main(demo)``. That writes the data, pretrains
conventionally on one part of it and finetunes on the other, every way with several seeds, by
tools/train.py; then it measures a training step of each, prints the table, and saves result and
picture. A run that was cut short is resumed and a finished one is kept, until code, settings or
versions change.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from dr2net.openmmlab.checkpoint import open_checkpoint
from tools.arguments import positive
from tools.demos.measurements import describe, measure
from tools.demos.training_runs import (
    Run,
    TrainingError,
    discard_outdated,
    finish,
    last_checkpoint,
    locked,
)
from tools.result_files import markdown_table, origin, write_json

# By way and seed: what ``training_runs.read_curves`` returns.
Curves = dict[str, list[dict[str, list]]]


@dataclass(frozen=True)
class Demo:
    """What sets a task's demo apart.

    Args:
        name: The task, as in ``tools/demo_NAME.py``, which names result and picture as well.
        data: Folder for its data, unless the command line names another.
        title: First line of the table.
        notes: What the columns mean.
        packages: Distributions whose versions are written down and decide whether runs are kept.
        write_data: Called with the folder of the data and by how much to shrink it; writes the
            parts ``pretrain`` and ``finetune``, or nothing where they are complete.
        settings: Called with the folder of one part; returns what is changed of a config for it,
            as for ``--cfg-options``.
        pretraining: Config file of the pretraining.
        ways: Config file of each way of finetuning, by its name in the table; the backbone is a
            ``Dr2NetBackbone`` (at (1, 0) where conventional), and the hook of a Dr²Net is
            ``default_hooks.coefficients``.
        figures: The columns of validated figures, the one to be printed first: from their heading
            to the name that a validation logs them by, less what comes before its last "/".
            They are between 0 and 1 and shown in per cent.
        columns: Headings of further columns, of those in ``measurements.COLUMNS``.
        draw: Called as ``draw(path, curves, runs, data)``, with the PNG file to write, the curves,
            the folder whose ``CONFIG_seed0`` are work folders, and the folder of the data.
        transferred: Prefixes of the pretrained weights that finetuning starts from.
        steps: Training steps to be timed of each network.
    """

    name: str
    data: Path
    title: str
    notes: str
    packages: tuple[str, ...]
    write_data: Callable[[Path, int], None]
    settings: Callable[[Path], dict[str, str]]
    pretraining: Path
    ways: dict[str, Path]
    figures: dict[str, str]
    columns: tuple[str, ...]
    draw: Callable[[Path, Curves, Path, Path], None]
    transferred: tuple[str, ...] = ("backbone.",)
    steps: int = 15


def main(demo: Demo) -> None:
    """Run the demo as the command line says."""
    parser = argparse.ArgumentParser(description=demo.title)
    work = Path(f"work_dirs/demo_{demo.name}")
    parser.add_argument("--work-dir", type=Path, default=work)
    parser.add_argument("--data", type=Path, default=demo.data, help="folder for the data")
    parser.add_argument("--results", type=Path, help="folder for the result, or the work folder")
    parser.add_argument("--seeds", type=positive, default=3, help="trainings of each way")
    parser.add_argument("--shrink", type=positive, default=1, help="this many times less data")
    arguments = parser.parse_args()
    try:
        # One at a time in a work folder, and one writer of the data.
        with ExitStack() as locks:
            lock = locks.enter_context(locked(arguments.work_dir))
            if arguments.data.parent.resolve() != arguments.work_dir.resolve():
                locks.enter_context(locked(arguments.data.parent))
            run_demo(demo, arguments, lock)
    except (BlockingIOError, FileExistsError, TrainingError) as error:
        sys.exit(str(error))


def run_demo(demo: Demo, arguments: argparse.Namespace, lock: int) -> None:
    """Run every part that is not finished yet; print the table and save result and picture."""
    started = time.perf_counter()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    print(f"writing data to {arguments.data}", flush=True)
    demo.write_data(arguments.data, arguments.shrink)
    runs = arguments.work_dir / "runs"
    discard_outdated(runs, demo.packages, arguments.shrink)
    pretrained = pretrain(demo, runs, arguments.data / "pretrain", lock)
    settings = demo.settings(arguments.data / "finetune") | {"load_from": str(pretrained)}
    curves = finetune(demo, runs, settings, arguments.seeds, lock)

    print("measuring memory, time and gradients", flush=True)
    measured = measure(demo.ways, settings, demo.steps)
    rows = [_row(demo, name, curves[name], measured) for name in demo.ways]
    print(f"\n{markdown_table(list(rows[0]), rows)}\n")
    result = (arguments.results or arguments.work_dir) / f"demo_{demo.name}.json"
    write_json(
        result,
        {
            "title": demo.title,
            **origin(f"tools/demo_{demo.name}.py", demo.packages, "cpu"),
            "columns": list(rows[0]),
            "rows": rows,
            "notes": demo.notes,
            "seconds": round(time.perf_counter() - started),
            "measured": measured,
            "curves": curves,
        },
    )
    picture = result.with_suffix(".png")
    demo.draw(picture, curves, runs, arguments.data)
    print(f"curves: {picture}   numbers: {result}")


def pretrain(demo: Demo, runs: Path, data: Path, lock: int) -> Path:
    """Pretrain in ``runs``; return the file of the weights that are transferred."""
    run = Run("pretraining", demo.pretraining, 0, demo.settings(data))
    _report(demo, run, finish(run, runs / "pretrain", min(2, os.cpu_count() or 1), lock))
    weights = open_checkpoint(last_checkpoint(runs / "pretrain"))["state_dict"]
    kept = {name: value for name, value in weights.items() if name.startswith(demo.transferred)}
    pretrained = runs / "pretrained.pth"
    partial = pretrained.with_name(pretrained.name + ".partial")
    torch.save({"state_dict": kept}, partial)
    partial.replace(pretrained)
    return pretrained


def finetune(demo: Demo, runs: Path, settings: dict[str, str], seeds: int, lock: int) -> Curves:
    """Finetune every way with every seed, one thread each; return the curves."""
    todo = [
        Run(f"{name}, seed {seed}", config, seed, settings)
        for seed in range(seeds)
        for name, config in demo.ways.items()
    ]

    def train(run: Run) -> dict[str, list]:
        curves = finish(run, runs / f"{run.config.stem}_seed{run.seed}", 1, lock)
        _report(demo, run, curves)
        return curves

    executor = ThreadPoolExecutor(os.cpu_count())
    try:
        found = list(executor.map(train, todo))
    finally:
        executor.shutdown(cancel_futures=True)
    return {name: found[number :: len(demo.ways)] for number, name in enumerate(demo.ways)}


def _report(demo: Demo, run: Run, curves: dict[str, list]) -> None:
    label, key = next(iter(demo.figures.items()))
    print(f"{run.name}: {label} {100 * curves[key][-1]:.1f}", flush=True)


def _row(demo: Demo, name: str, seeds: list[dict], measured: dict[str, dict]) -> dict[str, str]:
    row = {"finetuning": name}
    for label, key in demo.figures.items():
        values = [100 * curves[key][-1] for curves in seeds]
        row[label] = f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
    ends = [found for label, found in measured.items() if label.startswith(name)]
    return row | describe(ends, demo.columns)
