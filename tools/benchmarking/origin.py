"""How a benchmark's result came to be, as its file says it."""

import platform
import sys
from datetime import date

import timm
import torch

import dr2net
from tools.result_files import hardware

NOT_TIMED = "any: nothing here is timed"


def origin(script: str, device: str | None = None) -> dict:
    """Return command, date, hardware and versions.

    Args:
        script: Path of the script from the root.
        device: That it measured times on, or None.
    """
    threads = f", {torch.get_num_threads()} threads"
    return {
        "command": " ".join(["python", script, *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "hardware": hardware(device) + threads if device else NOT_TIMED,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "dr2net": dr2net.__version__,
        },
    }
