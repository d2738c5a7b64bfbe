"""The study: every way of finetuning, several seeds, learning rates searched, on real weights.

    pip install --no-deps -r requirements/experiments.txt
    apt-get install dataset-fashion-mnist fonts-noto-color-emoji unicode-data
    python tools/experiments/study.py fashion --processes 2     # about 2 hours on 2 cores
    python tools/experiments/study.py emoji --processes 2

Each run is a file below work_dirs/study; what is there is not run again, so the command goes on
where it was stopped, and ``--ways`` or ``--seeds`` may be asked for later. The learning rate of a
way is the best by validation of neighbours a factor of about 3 apart: three at least, and more
while the best is the lowest or the highest of them. On a GPU, minutes a table and 14 processes:

    python tools/experiments/study.py fashion_1000 --device cuda --processes 14
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from mmengine.utils import ProgressBar

from tools.arguments import positive
from tools.demos.training_runs import locked
from tools.experiments.finetuning import RECIPES, Recipe, finetune
from tools.experiments.tables import table_of
from tools.experiments.ways import WAYS
from tools.result_files import markdown_table, origin, write_json

RATES = tuple(float(f"{digit}e{exponent}") for exponent in range(-7, 0) for digit in (1, 3))
Run = dict  # of ``finetune``


def main() -> None:
    arguments = parse_arguments()
    recipe = RECIPES[arguments.study]
    folder = arguments.work_dir / arguments.study
    path = arguments.out / f"study_{arguments.study}.json"
    seeds = range(arguments.seeds)
    ways = [name for name in WAYS if not arguments.ways or any(t in name for t in arguments.ways)]
    if not ways:
        raise SystemExit(f"--ways: none has {arguments.ways} in its name: {'; '.join(WAYS)}")
    # The runs of a study that is under way can be looked at.
    with nullcontext() if arguments.table else locked(folder):
        keep_recipe(folder, recipe)
        runs = read_runs(folder, path)
        if not arguments.table:
            refuse_other_devices(runs, arguments.device)
            run_all(recipe, folder, runs, ways, seeds, arguments.processes, arguments.device)
    check_twins(runs)
    searching = seeds[: recipe.searching_seeds]
    finished = [
        way
        for way in WAYS
        if not WAYS[way].same_as and not list(missing(runs, [way], seeds, searching))
    ]
    if not finished:
        raise SystemExit(f"no way has all of its runs with {len(seeds)} seeds: nothing is written")
    rates = {way: chosen_rate(runs, way, searching) for way in finished}
    gpus = sorted({run["gpu"] for run in runs if "gpu" in run})
    result = {
        **table_of(recipe, runs, rates, len(searching)),
        **origin("tools/experiments/study.py", ["timm", "peft"]),
        **({"hardware": ", ".join(gpus)} if gpus else {}),
        **when_and_by_what(runs, path),
        # Whatever the options of the runs, which may be of several days.
        "command": f"python tools/experiments/study.py {arguments.study}",
        "recipe": described(recipe),
        "runs": runs,
    }
    write_json(path, result)
    print(markdown_table(result["columns"], result["rows"]))


def when_and_by_what(runs: list[Run], result: Path) -> dict:
    """Return date and versions of a result file that has these runs already, made elsewhere."""
    written = json.loads(result.read_text()) if result.is_file() else {"runs": []}
    if any(run not in written["runs"] for run in runs):
        return {}
    return {key: written[key] for key in ("date", "versions")}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=RECIPES)
    parser.add_argument("--ways", nargs="+", metavar="TEXT", help="those whose name has a TEXT")
    parser.add_argument("--seeds", type=positive, default=5)
    parser.add_argument("--processes", type=positive, default=1, help="each of one thread")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", action="store_true", help="run nothing: write the result")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/study"))
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the result")
    return parser.parse_args()


def described(recipe: Recipe) -> dict:
    """Return a recipe as JSON has it."""
    return json.loads(json.dumps(asdict(recipe) | {"draw": recipe.draw.__name__}))


def keep_recipe(folder: Path, recipe: Recipe) -> None:
    """Note what the runs of ``folder`` are of.

    Raises:
        FileExistsError: They are of another recipe.
    """
    path = folder / "recipe.json"
    if path.is_file() and json.loads(path.read_text()) != described(recipe):
        raise FileExistsError(
            f"{path} is of another recipe than this study's: give another --work-dir, or remove it"
        )
    write_json(path, described(recipe))


def read_runs(folder: Path, result: Path) -> list[Run]:
    """Return the runs that are finished: those of ``folder``, and those that a result file has.

    A result file of another recipe counts for nothing.
    """
    recipe = json.loads((folder / "recipe.json").read_text())
    written = json.loads(result.read_text()) if result.is_file() else {}
    found = written["runs"] if written.get("recipe") == recipe else []
    found += [json.loads(path.read_text()) for path in (folder / "runs").glob("*.json")]
    by_job = {(run["way"], run["rate"], run["seed"]): run for run in found if run["way"] in WAYS}
    order = list(WAYS)
    return [by_job[job] for job in sorted(by_job, key=lambda job: (order.index(job[0]), *job[1:]))]


def refuse_other_devices(runs: list[Run], device: str) -> None:
    """See that runs are of this device, for bits differ by it.

    Raises:
        SystemExit: They are not.
    """
    here = None if device == "cpu" else torch.cuda.get_device_name(device)
    others = {run.get("gpu") for run in runs} - {here}
    if others:
        raise SystemExit(
            f"runs that are there are of {', '.join(str(name or 'a CPU') for name in others)}, not "
            f"of {here or 'a CPU'}: give another --work-dir and --out, or the same --device"
        )


def check_twins(runs: list[Run]) -> None:
    """See that ways that compute the same ended with the same weights.

    Raises:
        AssertionError: They did not.
    """
    weights = {(run["way"], run["rate"], run["seed"]): run["weights"] for run in runs}
    for (way, rate, seed), found in weights.items():
        twin = WAYS[way].same_as
        if twin and weights[twin, rate, seed] != found:
            raise AssertionError(
                f"{way} did not end with the weights of {twin} (rate {rate}, seed {seed})"
            )


def run_all(
    recipe: Recipe,
    folder: Path,
    runs: list[Run],
    ways: list[str],
    seeds: range,
    processes: int,
    device: str,
) -> None:
    """Run what is missing, the first ways first, and add it to ``runs``."""
    progress = ProgressBar(0)
    going: dict[Future, tuple[str, float, int]] = {}
    # Python 3.10 has no such limit.
    fresh = {"max_tasks_per_child": 25} if sys.version_info >= (3, 11) else {}
    pool = ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=end_with_parent, **fresh
    )
    with pool:
        while True:
            for job in missing(runs, ways, seeds, seeds[: recipe.searching_seeds]):
                if len(going) == processes:
                    break
                if job not in going.values():
                    function = partial(finetune, recipe, device=device)
                    going[pool.submit(function, *job)] = job
            if not going:
                return
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                del going[future]
                run = future.result()
                runs.append(run)
                write_json(folder / "runs" / file_name(run), run)
                progress.update()


def end_with_parent() -> None:
    """Let this process end when the one that started it has, however that was ended."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def file_name(run: Run) -> str:
    """Return the name of a run's file."""
    words = "".join(letter if letter.isalnum() else "_" for letter in run["way"])
    return f"{words}-{run['rate']:.3g}-{run['seed']}.json"


def missing(
    runs: list[Run], ways: list[str], seeds: range, searching: range
) -> Iterator[tuple[str, float, int]]:
    """Yield way, learning rate and seed of the runs that are to be made now.

    The seeds of ``searching`` run at every learning rate that is tried, the others at the best.

    What a way is compared with comes before it in ``WAYS``.
    """
    done = {(run["way"], run["rate"], run["seed"]) for run in runs}
    for way in ways:
        twin = WAYS[way].same_as
        if twin:
            wanted = [(way, chosen_rate(runs, twin, searching), 0)]
        else:
            rates = rates_to_try(runs, way, searching)
            wanted = [(way, rate, seed) for rate in rates for seed in searching]
            wanted += [(way, chosen_rate(runs, way, searching), seed) for seed in seeds]
        yield from (job for job in dict.fromkeys(wanted) if job[1] is not None and job not in done)


def rates_to_try(runs: list[Run], way: str, seeds: range) -> list[float]:
    """Return the learning rates of the search as far as it has come, lowest first."""
    middle = RATES.index(WAYS[way].rate)
    low, high = middle - 1, middle + 1
    while True:
        rates = list(RATES[low : high + 1])
        found = validations(runs, way, seeds)
        if any(rate not in found for rate in rates):
            return rates
        best = best_of({rate: found[rate] for rate in rates})
        if best == rates[0] and low:
            low -= 1
        elif best == rates[-1] and high < len(RATES) - 1:
            high += 1
        else:
            return rates


def chosen_rate(runs: list[Run], way: str, seeds: range) -> float | None:
    """Return the learning rate whose validation accuracy is the highest, or None before it is."""
    found = validations(runs, way, seeds)
    if any(rate not in found for rate in rates_to_try(runs, way, seeds)):
        return None
    return best_of(found)


def best_of(validations: dict[float, float]) -> float:
    """Return the learning rate with the highest accuracy, the lowest of equal ones."""
    return max(validations, key=lambda rate: (validations[rate], -rate))


def validations(runs: list[Run], way: str, seeds: range) -> dict[float, float]:
    """Return the mean validation accuracy of each learning rate that was run with all seeds."""
    found: dict[float, dict[int, float]] = {}
    for run in runs:
        if run["way"] == way and run["seed"] in seeds:
            found.setdefault(run["rate"], {})[run["seed"]] = run["validation"]
    return {
        rate: sum(by_seed.values()) / len(seeds)
        for rate, by_seed in found.items()
        if len(by_seed) == len(seeds)
    }


if __name__ == "__main__":
    main()
