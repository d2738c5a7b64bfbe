"""Tests of Triton's kernels: on a GPU, and in the interpreter.

Triton chooses its interpreter when it is imported, so that it takes a process of its own.
"""

import os
import subprocess
import sys

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

outside_of_the_interpreter = pytest.mark.skipif(
    INTERPRETED, reason="this is the interpreter's process"
)


def runs_kernels(test):
    """Marks a test that runs in the interpreter's process and, compiled, on a GPU."""
    absent = not INTERPRETED and not torch.cuda.is_available()
    test = pytest.mark.skipif(absent, reason="needs a CUDA device, or Triton's interpreter")(test)
    return test if INTERPRETED else pytest.mark.gpu(test)


def run_in_the_interpreter(file):
    """Runs a file's tests there, and requires that they pass."""
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    print(finished.stdout, finished.stderr)
    assert finished.returncode == 0
    assert " passed" in finished.stdout
