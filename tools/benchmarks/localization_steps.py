"""Whole training steps of localizers by window length: the memory of all of it, and time, on a GPU.

    python tools/benchmarks/localization_steps.py  # writes results/localization_steps.json

The models are those of configs/video/localization/, a window in a batch, in bfloat16 by autocast.
What does not fit in the GPU's memory is said in the table. Takes a minute or two.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.benchmarks.localization import (  # isort: skip - registers the models
    BACKBONES,
    CHECKPOINTED,
    CHUNK,
    CONVENTIONAL,
    WAYS,
    Case,
    loss_of,
    model_of,
)

import torch
from mmaction.registry import MODELS
from torch import Tensor

from tools.arguments import positive
from tools.benchmarks.measurements import in_precision, peak_bytes, seconds_of_step
from tools.result_files import markdown_table, origin, write_json

CASES = (
    *(Case("vitb", frames, 160) for frames in (192, 384, 768, 1536, 2304)),
    Case("vits", 768, 160),
    Case("vitl", 768, 160),
)
STATE = 4  # of the weights' size: themselves, gradients, AdamW's two moments
WARMUP = 2


def measure(case: Case, way: str, rounds: int, device: str) -> dict:
    """Return ``whole`` and ``kept`` bytes of a step and ``seconds`` of each; ``fits`` False alone
    where the device has not enough memory."""
    try:
        torch.manual_seed(0)
        with torch.device(device):
            settings = model_of(way, case.backbone)
            model = MODELS.build({**settings, "positions": case.frames})
            windows = torch.rand(1, case.frames // CHUNK, 3, CHUNK, case.pixels, case.pixels)
            run = loss_of(model, windows)

        def loss() -> Tensor:
            with in_precision("bfloat16", device):
                return run()

        parameters = list(model.parameters())
        taken = peak_bytes(loss, parameters, device)
        seconds = [seconds_of_step(loss, device) for _ in range(WARMUP + rounds)][WARMUP:]
    except torch.cuda.OutOfMemoryError:
        return {"fits": False}
    weights = sum(parameter.nbytes for parameter in parameters)
    whole = STATE * weights + taken["peak"]
    return {"fits": True, "whole": whole, "kept": taken["kept"], "seconds": seconds}


def cell(found: dict[str, dict], way: str) -> str:
    """What the table says of a way."""
    here, reference = found[way], found[CHECKPOINTED]
    if not here["fits"]:
        return "does not fit"
    text = f"{here['whole'] / 1e9:.1f} GB, {statistics.median(here['seconds']):.2f} s"
    if way == CHECKPOINTED or not reference["fits"]:
        return text
    ratio = statistics.median(here["seconds"]) / statistics.median(reference["seconds"])
    return f"{text} ({here['whole'] / reference['whole']:.2f}, {ratio:.2f})"


def main() -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=positive, default=5, help="timed steps of each")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--frames", nargs="+", type=positive, help="only windows of these")
    parser.add_argument("--out", type=Path, help="by default results/localization_steps.json")
    arguments = parser.parse_args()
    if arguments.out is None and (arguments.frames or arguments.device != "cuda"):
        parser.error("--out: a part of the table, or another device's, needs a file of its own")
    arguments.out = arguments.out or ROOT / "results/localization_steps.json"
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: PyTorch finds no GPU here")
    logging.disable(logging.WARNING)
    rows, measured = [], []
    for case in CASES:
        if arguments.frames and case.frames not in arguments.frames:
            continue
        found = {}
        for way in WAYS:
            found[way] = measure(case, way, arguments.rounds, arguments.device)
            gc.collect()
            if arguments.device.startswith("cuda"):
                torch.cuda.empty_cache()
        rows.append(
            {
                "backbone": BACKBONES[case.backbone],
                "frames": f"{case.frames:,}",
                "conventional": cell(found, CONVENTIONAL),
                "checkpointed": cell(found, CHECKPOINTED),
                "Dr²Net": cell(found, "dr2net"),
            }
        )
        print(rows[-1], flush=True)
        measured.append({"backbone": case.backbone, "frames": case.frames, "ways": found})
        write_json(
            arguments.out,
            {
                "title": "Whole training steps of localizers, end to end.",
                **origin("tools/benchmarks/localization_steps.py", ["mmaction2"], arguments.device),
                "columns": list(rows[0]),
                "rows": rows,
                "notes": (
                    "One window of frames of 160 × 160 px, 20 classes, bfloat16 by autocast. "
                    "Memory: weights, their gradients, AdamW's two moments, and the peak of "
                    "forward and backward beyond these, by PyTorch's allocator, 1 GB = 10^9 "
                    "bytes; frames left out. Time: of forward and backward, one way after the "
                    f"other, median of {arguments.rounds} after {WARMUP} to warm up. In brackets: "
                    "both as shares of checkpointed."
                ),
                "measured": measured,
            },
        )
    print(f"\n{markdown_table(list(rows[0]), rows)}\n")


if __name__ == "__main__":
    main()
