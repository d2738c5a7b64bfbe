import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEMOS = {
    "demo": "video",
    "demo-detection": "detection",
    "demo-pointcloud": "pointcloud",
    "demo-localization": "video",
}
TARGETS = ("test", "test-slow", "lint", *DEMOS, "benchmark")
SETUP = (
    "Makefile",
    "pyproject.toml",
    "requirements/constraints.txt",
    "requirements/docs.txt",
    "tools/system_libraries.py",
)

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def checkout(tmp_path):
    """The files that setup needs, without an environment."""
    for name in SETUP:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make(folder, *arguments, path=None):
    # Those of the make that runs the tests are not for this one.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=inherited | ({"PATH": path} if path else {}),
        capture_output=True,
        text=True,
    )


def python_that(folder, lines):
    """A stand-in for Python 3.11 whose virtual environments hold a pip of the given lines."""
    stand_in = folder / "stand_in"
    stand_in.write_text(
        "#!/bin/sh\n"
        'case "$*" in *venv*) mkdir -p .venv/bin;'
        f" printf '#!/bin/sh\\n{lines}\\n' > .venv/bin/python; chmod +x .venv/bin/python;; esac\n"
    )
    stand_in.chmod(0o755)
    return f"PYTHON={stand_in}"


def test_missing_python_is_named(checkout):
    done = make(checkout, "PYTHON=python_of_nowhere", "setup")
    assert done.returncode
    assert 'needs Python 3.11 and "python_of_nowhere" did not start' in done.stderr
    assert not (checkout / ".venv").exists()


def test_failed_setup_is_not_taken_for_complete(checkout):
    assert make(checkout, python_that(checkout, "exit 1"), "setup").returncode
    assert (checkout / ".venv").exists()
    done = make(checkout, python_that(checkout, "echo installed"), "setup")
    assert done.returncode == 0
    assert "installed" in done.stdout


def test_complete_setup_is_kept_until_its_files_change(checkout):
    python = python_that(checkout, "echo installed")
    assert "installed" in make(checkout, python, "setup").stdout
    assert "installed" not in make(checkout, python, "setup").stdout
    ready = (checkout / ".venv/ready").stat().st_mtime
    os.utime(checkout / "pyproject.toml", (ready + 10, ready + 10))
    assert "installed" in make(checkout, python, "setup").stdout


@pytest.mark.parametrize(("target", "task"), DEMOS.items())
def test_a_demo_installs_what_it_needs_and_no_more(checkout, target, task):
    installed = re.findall(r"pip install .*", make(checkout, "--dry-run", target).stdout)
    assert len(installed) == 1
    end = f"--constraint requirements/constraints.txt --editable '.[{task}]'"
    assert installed[0].endswith(end)


def test_after_a_whole_setup_a_demo_installs_nothing(checkout):
    make(checkout, python_that(checkout, "echo installed"), "setup")
    for target in DEMOS:
        assert "pip install" not in make(checkout, "--dry-run", target).stdout


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_sets_itself_up(checkout, target):
    assert ".venv/bin/python -m pip install" in make(checkout, "--dry-run", target).stdout


def test_help_lists_the_targets(checkout):
    listed = make(checkout).stdout
    for target in ("setup", *TARGETS, "test-gpu", "clean"):
        assert f"make {target} " in listed


def test_tests_run_after_lint_in_parallel_and_show_the_slowest(checkout):
    commands = make(checkout, "--dry-run", "test").stdout.splitlines()
    lint, tests = commands.index(".venv/bin/mypy"), commands[-1]
    assert lint == len(commands) - 2
    assert tests.startswith('.venv/bin/python -m pytest -m "not slow" --numprocesses auto')
    assert tests.endswith(" --durations=30")


def test_tests_that_need_a_gpu_run_in_the_environment_that_is_given(checkout):
    given = make(checkout, "PYTHON=echo given", "test-gpu")
    assert given.stdout.splitlines() == ["echo given -m pytest -m gpu", "given -m pytest -m gpu"]
    assert not (checkout / ".venv").exists()


def test_ci_runs_the_tests():
    ci = ROOT / ".ci/run"
    assert os.access(ci, os.X_OK)
    assert ci.read_text().rstrip().endswith("make test")
