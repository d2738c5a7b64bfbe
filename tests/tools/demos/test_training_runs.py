import json
import os
import signal
import subprocess
import sys

import pytest

from tools.demos import training_runs
from tools.demos.training_runs import (
    Run,
    TrainingError,
    finish,
    finish_test,
    locked,
    read_curves,
)

LOCK_AND_WAIT = """
import subprocess, sys, time
from pathlib import Path
from tools.demos.training_runs import locked
with locked(Path(sys.argv[1])) as lock:
    child = subprocess.Popen(["sleep", "30"], pass_fds=[lock])
    print(child.pid, flush=True)
    time.sleep(30)
"""


def write_scalars(folder, started, lines):
    path = folder / started / "vis_data/scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines))


def test_curves_join_resumptions_and_pass_over_a_line_cut_short(tmp_path):
    def train(iteration, loss):
        return json.dumps({"iter": iteration, "loss": loss, "alpha": 1.0, "beta": 0.1})

    def val(epoch, top1):
        figures = {"acc/top1": top1, "mIoU": top1 / 2}
        return json.dumps(figures | {"step": epoch, "time": 0.1, "data_time": 0.01})

    first = [train(5, 2.0), train(10, 1.5), val(1, 0.25), train(15, 9.0), '{"iter": 20, "lo']
    write_scalars(tmp_path, "20260101_000000", first)
    write_scalars(tmp_path, "20260101_000100", [train(15, 1.0), train(20, 0.5), val(2, 0.75)])
    assert read_curves(tmp_path) == {
        "iter": [5, 10, 15, 20],
        "loss": [2.0, 1.5, 1.0, 0.5],
        "alpha": [1.0] * 4,
        "beta": [0.1] * 4,
        "epoch": [1, 2],
        "top1": [0.25, 0.75],
        "mIoU": [0.125, 0.375],
    }


def test_second_process_is_kept_out_even_by_a_child_of_a_killed_one(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", LOCK_AND_WAIT, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        cwd=training_runs.ROOT,
    )
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(BlockingIOError, match="is in use by another run"), locked(tmp_path):
            pass
        holder.kill()
        holder.stdout.close()
        holder.wait()
        with pytest.raises(BlockingIOError, match="is in use by another run"), locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_runs_of_other_code_data_or_versions_are_discarded_with_a_word(tmp_path, capsys):
    runs = tmp_path / "runs"
    for packages, shrink, kept in ((["torch"], 1, True), (["torch"], 2, False), ([], 2, False)):
        training_runs.discard_outdated(runs, ["torch"], 1)
        runs.mkdir(exist_ok=True)
        training_runs.discard_outdated(runs, packages, shrink)
        assert runs.exists() == kept
        assert ("trained anew" in capsys.readouterr().out) != kept


def test_failed_training_shows_the_end_of_its_log(tmp_path):
    run = Run("broken", tmp_path / "no_such_config.py", 0, {})
    with (
        locked(tmp_path) as lock,
        pytest.raises(TrainingError, match=r"(?s)broken: .*train.log ends"),
    ):
        finish(run, tmp_path / "work", 1, lock)


def test_failed_test_shows_the_end_of_its_own_log(tmp_path):
    run = Run("broken", tmp_path / "no_such_config.py", 0, {})
    with (
        locked(tmp_path) as lock,
        pytest.raises(TrainingError, match=r"(?s)broken: .*test.log ends"),
    ):
        finish_test(run, tmp_path / "work", tmp_path / "weights.pth", lock)


def test_finished_test_is_not_repeated(tmp_path):
    (tmp_path / "figures.json").write_text('{"top1": 0.5}')
    run = Run("done", tmp_path / "no_such_config.py", 0, {})
    with locked(tmp_path) as lock:
        assert finish_test(run, tmp_path, tmp_path / "weights.pth", lock) == {"top1": 0.5}


def test_finished_training_is_not_repeated(tmp_path):
    (tmp_path / "curves.json").write_text('{"top1": [0.5]}')
    run = Run("done", tmp_path / "no_such_config.py", 0, {})
    with locked(tmp_path) as lock:
        assert finish(run, tmp_path, 1, lock) == {"top1": [0.5]}


def test_a_folder_of_runs_that_is_not_of_a_demo_stays(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/events.out").touch()
    with pytest.raises(FileExistsError, match="runs is not of a demo: give another folder"):
        training_runs.discard_outdated(tmp_path / "runs", ["torch"], 1)
    assert (tmp_path / "runs/events.out").exists()
