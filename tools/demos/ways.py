"""What the demos of all tasks share: finetune a pretrained network in several ways, and compare.

A demo says what is its own in a ``Demo`` and calls ``main(demo)``. That writes the data, pretrains
conventionally on one part of it and finetunes on the other, every way with several seeds, by
tools/train.py; what was trained held at a point of the line α + β = 1 it tests as the plain network
as well. Then it measures a training step of each way, prints the table, and saves result and
picture. A run that was cut short is resumed and a finished one is kept, until code, settings or
versions change.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from dr2net.openmmlab.checkpoint import open_checkpoint
from tasks.files import whole
from tools.arguments import positive
from tools.demos.measurements import measure
from tools.demos.table import Figures, make_rows
from tools.demos.training_runs import (
    Run,
    TrainingError,
    discard_outdated,
    finish,
    finish_test,
    last_checkpoint,
    locked,
)
from tools.result_files import markdown_table, origin, write_json

# By way and seed: what ``training_runs.read_curves`` returns.
Curves = dict[str, list[dict[str, list]]]

SCRATCH = "from scratch"
CONVENTIONAL = "conventional"
CHECKPOINTED = "checkpointed"
PREVIOUS = "previous reversible, (0, 1)"
SCHEDULED = "Dr²Net, the paper's schedule"
HELD = "Dr²Net, held at (7/8, 1/8)"
PLAIN = "the same, as the plain network"

# What the config files of the ways that train are called before the network's name.
TRAINED = {
    SCRATCH: "from_scratch",
    CONVENTIONAL: "conventional",
    CHECKPOINTED: "checkpointed",
    PREVIOUS: "previous_reversible",
    SCHEDULED: "dr2net_paper",
    HELD: "dr2net",
}
NOTES = (
    "The difference to conventional is paired by seed, its interval Student's. Checkpointed was "
    "trained with the first seed alone: its losses and final weights were those of conventional, "
    "bit for bit, so that its accuracy is. The plain network is the pretrained architecture, at "
    "(α, β) = (1, 0), with the weights that the Dr²Net held at (7/8, 1/8) ended with. The peak is "
    "the most that a training step takes at any moment beyond weights and their gradients, from "
    "PyTorch's allocator; kept is what autograd holds from forward to backward; 1 MB = 10^6 bytes. "
    "The gradient error is the relative L2 difference from the gradients of the same equations "
    "with activations stored. Seconds are medians of steps in which the networks took turns."
)
# Further notes, of ways that not every demo has.
NOTES_OF_WAYS = {
    SCRATCH: "The step from scratch is the conventional one.",
    SCHEDULED: "Where α and β move, figures are given at both ends.",
}


def config_files(folder: Path, network: str) -> dict[str, Path]:
    """Return the config file of each way that trains, by its name in the table."""
    return {name: folder / f"{prefix}_{network}.py" for name, prefix in TRAINED.items()}


@dataclass(frozen=True)
class Demo:
    """What sets a task's demo apart.

    Args:
        name: The task, as in ``tools/demos/NAME.py``, which names result and picture as well.
        data: Folder for its data, unless the command line names another.
        title: First line of the table.
        notes: What the figures mean, before ``NOTES`` and those of its ways.
        packages: Distributions whose versions are written down and decide whether runs are kept.
        write_data: Called with the folder of the data and by how much to shrink it; writes the
            parts ``pretrain`` and ``finetune``, or nothing where they are complete.
        settings: Called with the folder of one part; returns what is changed of a config for it,
            as for ``--cfg-options``.
        pretraining: Config file of the pretraining.
        ways: What ``config_files`` returns; the backbones are ``Dr2NetBackbone``s (at (1, 0) where
            they are plain), and the hook of the schedule is ``default_hooks.coefficients``.
        figures: The columns of validated figures, the one to be printed and compared first: from
            their heading to the name that a validation logs them by, less what comes before its
            last "/". They are between 0 and 1 and shown in per cent.
        columns: Headings of further columns, of those in ``measurements.COLUMNS``.
        draw: Called as ``draw(path, result, runs, data)``, with the PNG file to write, the result
            (``figures``, ``curves`` and ``measured`` by way), the folder whose ``CONFIG_seed0`` are
            work folders, and the folder of the data.
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
    draw: Callable[[Path, dict, Path, Path], None]
    transferred: tuple[str, ...] = ("backbone.",)
    steps: int = 15


def main(demo: Demo) -> None:
    """Run the demo as the command line says."""
    parser = argparse.ArgumentParser(description=demo.title)
    work = Path(f"work_dirs/demo_{demo.name}")
    parser.add_argument("--work-dir", type=Path, default=work)
    parser.add_argument("--data", type=Path, default=demo.data, help="folder for the data")
    parser.add_argument("--results", type=Path, help="folder for the result, or the work folder")
    parser.add_argument("--seeds", type=positive, default=2, help="trainings of each way")
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
    settings = demo.settings(arguments.data / "finetune")
    curves, plain = finetune(demo, runs, settings, pretrained, arguments.seeds, lock)
    check_same_training(curves, demo.ways, runs)
    figures = gather_figures(curves, plain, demo.figures.values())

    print("measuring memory, time and gradients", flush=True)
    measured = measure(demo.ways, settings | {"load_from": str(pretrained)}, demo.steps)
    measured[PLAIN] = measured[HELD]  # as which it was trained
    rows = make_rows(figures, measured, demo.figures, demo.columns, CONVENTIONAL, CHECKPOINTED)
    print(f"\n{markdown_table(list(rows[0]), rows)}\n")
    further = [text for way, text in NOTES_OF_WAYS.items() if way in demo.ways]
    path = (arguments.results or arguments.work_dir) / f"demo_{demo.name}.json"
    result = {
        "title": demo.title,
        **origin(f"tools/demos/{demo.name}.py", demo.packages, "cpu"),
        "columns": list(rows[0]),
        "rows": rows,
        "notes": " ".join([demo.notes, NOTES, *further]),
        "seconds": round(time.perf_counter() - started),
        "figures": figures,
        "measured": measured,
        "curves": curves,
    }
    write_json(path, result)
    picture = path.with_suffix(".png")
    demo.draw(picture, result, runs, arguments.data)
    print(f"curves: {picture}   numbers: {path}")


def pretrain(demo: Demo, runs: Path, data: Path, lock: int) -> Path:
    """Pretrain in ``runs``; return the file of the weights that are transferred."""
    run = Run("pretraining", demo.pretraining, 0, demo.settings(data))
    # With one thread, so that sums are taken in one order however many cores there are.
    _report(demo, run.name, finish(run, runs / "pretrain", 1, lock))
    weights = open_checkpoint(last_checkpoint(runs / "pretrain"))["state_dict"]
    kept = {name: value for name, value in weights.items() if name.startswith(demo.transferred)}
    return _save(kept, runs / "pretrained.pth")


def finetune(
    demo: Demo, runs: Path, settings: dict[str, str], pretrained: Path, seeds: int, lock: int
) -> tuple[Curves, list[dict[str, float]]]:
    """Finetune every way with every seed, one thread each; checkpointed with the first alone.

    Returns:
        The curves; and seed by seed what the networks that were held reach as plain ones.
    """
    from_pretrained = settings | {"load_from": str(pretrained)}
    todo = [
        Run(f"{name}, seed {seed}", config, seed, settings if name == SCRATCH else from_pretrained)
        for seed in range(seeds)
        for name, config in demo.ways.items()
        if seed == 0 or name != CHECKPOINTED
    ]

    def train(run: Run) -> dict[str, list]:
        curves = finish(run, work_folder(runs, run.config, run.seed), 1, lock)
        _report(demo, run.name, curves)
        return curves

    def test_plain(seed: int) -> dict[str, float]:
        run = Run(f"{PLAIN}, seed {seed}", demo.ways[CONVENTIONAL], seed, settings)
        held = work_folder(runs, demo.ways[HELD], seed)
        figures = finish_test(run, held / "plain", plain_weights(held), lock)
        _report(demo, run.name, {key: [value] for key, value in figures.items()})
        return figures

    executor = ThreadPoolExecutor(os.cpu_count())
    try:
        found = list(zip(todo, executor.map(train, todo), strict=True))
        plain = list(executor.map(test_plain, range(seeds)))
    finally:
        executor.shutdown(cancel_futures=True)
    curves = {
        name: [curves for run, curves in found if run.config == config]
        for name, config in demo.ways.items()
    }
    return curves, plain


def work_folder(runs: Path, config: Path, seed: int) -> Path:
    """Return the work folder of a way's run."""
    return runs / f"{config.stem}_seed{seed}"


def plain_weights(held: Path) -> Path:
    """Save the weights that a run ended with, without the coefficients; return the file.

    A network that is built at (1, 0) and takes them is the plain one.
    """
    weights = open_checkpoint(last_checkpoint(held))["state_dict"]
    kept = {name: value for name, value in weights.items() if not name.endswith("coefficients")}
    return _save(kept, held / "plain/weights.pth")


def check_same_training(curves: Curves, ways: dict[str, Path], runs: Path) -> None:
    """Compare the checkpointed training with the conventional one of the same seed, bit for bit.

    Raises:
        TrainingError: Losses, figures or final weights differ.
    """
    same = curves[CHECKPOINTED][0] == curves[CONVENTIONAL][0]
    one, other = (
        open_checkpoint(last_checkpoint(work_folder(runs, ways[name], 0)))["state_dict"]
        for name in (CHECKPOINTED, CONVENTIONAL)
    )
    different = [name for name in other if not torch.equal(one[name], other[name])]
    if not same or different:
        raise TrainingError(
            f"checkpointed and conventional training with seed 0 in {runs} differ, where they must "
            f"be equal bit for bit: {'losses and figures, ' if not same else ''}"
            f"{len(different)} of {len(other)} weights. Compare their train.log; remove both "
            "folders to train them again."
        )


def gather_figures(curves: Curves, plain: list[dict[str, float]], keys: Collection[str]) -> Figures:
    """Return what every way has reached after its last epoch, figure by figure and seed by seed.

    Checkpointed, which is the conventional training, has that one's figures.
    """
    figures = {
        name: {key: [curve[key][-1] for curve in seeds] for key in keys}
        for name, seeds in curves.items()
    }
    figures[CHECKPOINTED] = figures[CONVENTIONAL]
    figures[PLAIN] = {key: [found[key] for found in plain] for key in keys}
    return figures


def _save(weights: dict[str, torch.Tensor], path: Path) -> Path:
    """Save weights as a checkpoint, whole or not at all."""
    with whole(path) as partial:
        torch.save({"state_dict": weights}, partial)
    return path


def _report(demo: Demo, name: str, figures: dict[str, list]) -> None:
    label, key = next(iter(demo.figures.items()))
    if key not in figures:  # of a pretraining of another task: its own come after the epochs
        names = list(figures)
        key = names[names.index("epoch") + 1]
        label = f"{key} (%)"
    print(f"{name}: {label} {100 * figures[key][-1]:.1f}", flush=True)
