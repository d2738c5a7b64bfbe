"""What ``--deterministic`` does beside mmengine, which has PyTorch use deterministic algorithms.

It chooses cuBLAS's workspace, and where PyTorch refuses an operation, which has no deterministic
form, it has the error say where the model calls it.
"""

import os
import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.hooks import Hook

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# The values with which PyTorch lets cuBLAS run; the first is the faster and takes 24 MB.
ACCEPTED = (":4096:8", ":16:8")
TORCH = str(Path(torch.__file__).parent)


def choose_workspace() -> None:
    """Give cuBLAS a workspace with which it is deterministic; a value of the user's stays.

    cuBLAS reads the environment when CUDA starts, so that this comes before it.

    Raises:
        ValueError: The environment has another value.
        RuntimeError: CUDA has started without one.
    """
    if WORKSPACE not in os.environ and torch.cuda.is_initialized():
        raise RuntimeError(
            f"Deterministic algorithms: CUDA has started without {WORKSPACE}, which is read "
            f"but once. Start the process with {WORKSPACE}={ACCEPTED[0]}."
        )
    found = os.environ.setdefault(WORKSPACE, ACCEPTED[0])
    if found not in ACCEPTED:
        raise ValueError(
            f"Deterministic algorithms: {WORKSPACE}={found}, with which cuBLAS has none. Set it "
            f"to {' or '.join(ACCEPTED)}, or leave it unset."
        )


class FirstIterationHook(Hook):
    """Ends what ``explain_refusals`` records when an iteration has gone through."""

    def after_train_iter(self, *_: object, **__: object) -> None:
        torch.autograd.set_detect_anomaly(False)


@contextmanager
def explain_refusals() -> Iterator[None]:
    """Have PyTorch's refusal of an operation say where the model calls it, and what to do.

    In backward none of the model's functions is on the stack. So autograd's anomaly mode records
    where forward called each operation, which costs time; ``FirstIterationHook`` ends it.

    Raises:
        RuntimeError: In the place of PyTorch's.
    """
    recorded: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def record(message: Warning | str, *args: object, **kwargs: object) -> None:
            if "Traceback of forward call" in str(message):
                recorded.append(str(message))
            else:
                show(message, *args, **kwargs)

        warnings.filterwarnings("always", message="Error detected in")
        warnings.showwarning = record
        torch.autograd.set_detect_anomaly(True, check_nan=False)
        try:
            yield
        except RuntimeError as error:
            refused = re.search(r"(\S+) does not have a deterministic implementation", str(error))
            if refused is None:
                raise
            # Of nested backwards, the innermost fails first.
            stack = recorded[0] if recorded else "".join(traceback.format_tb(error.__traceback__))
            raise RuntimeError(
                f"--deterministic: {refused[1]} has no deterministic form on this device; it is "
                f"called in {_last_outside_of_torch(stack)}. Train without --deterministic, on the "
                "CPU (CUDA_VISIBLE_DEVICES=), or without this operation."
            ) from error
        finally:
            torch.autograd.set_detect_anomaly(False)


def _last_outside_of_torch(stack: str) -> str:
    """The last function of a printed stack that is not PyTorch's, with its file and line."""
    calls = re.findall(r'File "(.+)", line (\d+), in (.+)', stack)
    own = [call for call in calls if not call[0].startswith(TORCH)] or calls
    file, line, function = own[-1]
    return f"{function} ({file}, line {line})"
