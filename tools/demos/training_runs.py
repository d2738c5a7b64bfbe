"""Runs of tools/train.py in processes of their own: resumed when cut short, kept when finished."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tools.result_files import versions_of, write_json

ROOT = Path(__file__).resolve().parents[2]
# What a validation logs beside its figures.
NOT_A_FIGURE = {"data_time", "time", "step"}


class TrainingError(RuntimeError):
    """A training process failed."""


@dataclass(frozen=True)
class Run:
    """One training: its name, its config file and what is changed of the config."""

    name: str
    config: Path
    seed: int
    settings: dict[str, str]


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Keep a second process out of ``folder``; yields the file descriptor that holds the lock.

    Child processes that are given the descriptor hold the lock as well, so that trainings which
    outlive a killed parent still keep others out.

    Raises:
        BlockingIOError: Another process is at work in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{folder} is in use by another run, or by trainings that one left behind when it "
                "was killed: wait for it to end, or use another --work-dir and --data"
            ) from error
        yield file.fileno()


def discard_outdated(runs: Path, packages: Iterable[str], shrink: int) -> None:
    """Remove the folder ``runs`` if it is of other code, settings or versions than the present.

    Args:
        runs: Work folders of runs; what they are of is written beside it.
        packages: Distributions whose versions matter.
        shrink: By how much their data is smaller than it is.

    Raises:
        FileExistsError: ``runs`` was not made by this.
    """
    digest = hashlib.sha256(f"{shrink} {versions_of(packages)}".encode())
    for folder in ("dr2net", "tasks", "tools", "configs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    written, fingerprint = runs.with_name("fingerprint"), digest.hexdigest()
    if runs.exists() and not written.is_file():
        raise FileExistsError(f"{runs} is not of a demo: give another folder with --work-dir")
    if not written.is_file() or written.read_text() != fingerprint:
        if runs.exists():
            print(f"{runs} is of other code, settings or versions: trained anew", flush=True)
        shutil.rmtree(runs, ignore_errors=True)
        written.write_text(fingerprint)


def finish(run: Run, folder: Path, threads: int, lock: int) -> dict[str, list]:
    """Train ``run`` in ``folder`` to its end, or keep what was trained there; return its curves.

    Args:
        run: What to train.
        folder: Its work folder. It must not hold another run.
        threads: CPU threads of the process.
        lock: The descriptor of ``locked``.

    Raises:
        TrainingError: Training failed; the error shows the end of its log.
    """
    finished = folder / "curves.json"
    if finished.is_file():
        return json.loads(finished.read_text())
    _train(run, folder, threads, lock)
    curves = read_curves(folder)
    write_json(finished, curves)
    return curves


def finish_test(run: Run, folder: Path, weights: Path, lock: int) -> dict[str, float]:
    """Test ``weights`` in the network of ``run``, or keep what was found; return the figures.

    Args:
        run: Whose config and settings the test has.
        folder: Its work folder.
        weights: The checkpoint.
        lock: The descriptor of ``locked``.

    Returns:
        Each figure by what its name is after the last "/".

    Raises:
        TrainingError: The test failed; the error shows the end of its log.
    """
    finished = folder / "figures.json"
    if finished.is_file():
        return json.loads(finished.read_text())
    _run_tool("test.py", run, folder, [weights], 1, lock)
    *_, newest = sorted(folder.glob("*/*.json"))  # named by the time
    logged = json.loads(newest.read_text())
    figures = {
        name.rpartition("/")[2]: value for name, value in logged.items() if name not in NOT_A_FIGURE
    }
    write_json(finished, figures)
    return figures


def _train(run: Run, folder: Path, threads: int, lock: int) -> None:
    _run_tool("train.py", run, folder, ["--seed", str(run.seed), "--resume"], threads, lock)


def _run_tool(
    tool: str, run: Run, folder: Path, options: list[str | Path], threads: int, lock: int
) -> None:
    """Run a script of tools/ with a run's config and settings, its output in ``tool``'s log."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / tool.replace(".py", ".log")
    command = [sys.executable, ROOT / "tools" / tool, run.config, *options]
    command += ["--work-dir", folder, "--cfg-options"]
    command += [f"{name}={value}" for name, value in run.settings.items()]
    with log.open("w") as output:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Threads that spin while they wait would slow down what else runs on the machine.
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
            pass_fds=[lock],
            check=False,
        )
    if done.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise TrainingError(f"{run.name}: ended with {done.returncode}. {log} ends:\n{end}")


def read_curves(folder: Path) -> dict[str, list]:
    """Read what a run logged, over all its resumptions.

    Returns:
        ``iter``, ``loss`` and, where the run logged them, ``alpha`` and ``beta``, of equal length;
        ``epoch`` and each figure of the validations, by what its name is after the last "/":
        ``top1`` for ``acc/top1``.
    """
    train: dict[int, dict] = {}
    val: dict[int, dict] = {}
    # Folders are named by the time: what a resumed run repeats replaces what was logged before.
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        for line in path.read_text().splitlines():
            with suppress(json.JSONDecodeError):  # a line that a kill cut short
                values = json.loads(line)
                if "loss" in values:
                    train[values["iter"]] = values
                else:
                    val[values["step"]] = values
    logged = [train[iteration] for iteration in sorted(train)]
    curves = {name: [values[name] for values in logged] for name in ("iter", "loss")}
    if logged and "alpha" in logged[0]:
        curves |= {name: [values[name] for values in logged] for name in ("alpha", "beta")}
    curves["epoch"] = sorted(val)
    figures = [name for name in next(iter(val.values()), {}) if name not in NOT_A_FIGURE]
    for name in figures:
        curves[name.rpartition("/")[2]] = [val[epoch][name] for epoch in curves["epoch"]]
    return curves


def last_checkpoint(folder: Path) -> Path:
    """Return the checkpoint that ends a finished run."""
    return Path((folder / "last_checkpoint").read_text().strip())
