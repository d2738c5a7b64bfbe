"""What a step of each way of the study takes: memory by the allocator, and time.

    python tools/experiments/costs.py                # results/study_costs.json
    python tools/experiments/costs.py --rounds 0     # memory alone, on a busy machine
    python tools/experiments/costs.py --device cuda --precision bfloat16 --batch 64

At the size at which DINOv2 is finetuned rather than at the study's, whose images are so small that
a step is all weights: 224 × 224 px.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dr2net
from tools.arguments import positive
from tools.benchmarks.measurements import in_precision, peak_bytes, quartiles, seconds_of_step
from tools.experiments.pretrained import dinov2_small
from tools.experiments.ways import WAYS, Way, prepare, select
from tools.result_files import markdown_table, origin, write_json

SIZE, CLASSES = 224, 10
MOMENTS = 2  # of AdamW, as large as the weights that it trains
NOTES = (
    "DINOv2 ViT-S/14, {batch} images of {size} × {size} px, {precision}. Whole step: the network's "
    "weights, the gradients of those that are trained, AdamW's two moments of them, and the peak "
    "of forward and backward beyond these, by PyTorch's allocator; 1 MB = 10^6 bytes. Ways that "
    "move (α, β) are measured where they keep most.{times}"
)
TIMES = (
    " Time: ratios to conventional steps of the same turn, median (quartiles) of {rounds} turns."
)


def measure(rounds: int, device: str, batch: int, precision: str) -> dict[str, dict]:
    """Return bytes and seconds of a step of each way; ways take turns."""
    warnings.filterwarnings("ignore", message=".*gradients cannot be trusted")
    torch.manual_seed(0)
    images = torch.randn(batch, 3, SIZE, SIZE, device=device)
    labels = torch.randint(0, CLASSES, (batch,), device=device)
    found, losses = {}, {}
    for name, way in WAYS.items():
        if way.beta is not None and way.same_as:
            continue  # the second way to the same network
        model = make(way).to(device)
        losses[name] = loss_of(model, images, labels, precision)
        select(way, model, losses[name], seed=0)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        taken = peak_bytes(losses[name], trained, device)
        weights = sum(parameter.nbytes for parameter in model.parameters())
        state = (1 + MOMENTS) * sum(parameter.nbytes for parameter in trained)
        found[name] = {**taken, "weights": weights, "state": state, "seconds": []}
        model.zero_grad(set_to_none=True)
        if not rounds:
            losses.pop(name)
    for turn in range(rounds + 2 if rounds else 0):
        for name, loss in losses.items():
            seconds = seconds_of_step(loss, device)
            if turn > 1:  # the first two warm up
                found[name]["seconds"].append(seconds)
    return found


def make(way: Way) -> nn.Module:
    """Return what a way finetunes, at the coefficients of its schedule that keep most."""
    model, schedule = prepare(way, dinov2_small(SIZE, CLASSES, way.pretrained), steps=100)
    if schedule is not None:
        smallest = min(range(101), key=lambda step: schedule.at(step)[1])
        schedule.apply(model, smallest)
        dr2net.set_reversible(model, True)
    return model


def loss_of(
    model: nn.Module, images: Tensor, labels: Tensor, precision: str
) -> Callable[[], Tensor]:
    """Return a function that runs forward."""

    def loss() -> Tensor:
        with in_precision(precision, images.device.type):
            return F.cross_entropy(model(images), labels)

    return loss


def whole_step(costs: dict) -> int:
    """Return the bytes of a whole step."""
    return costs["weights"] + costs["state"] + costs["peak"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="timed turns; 0: memory alone")
    parser.add_argument("--threads", type=positive, default=2, help="of the CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=Path("results/study_costs.json"))
    arguments = parser.parse_args()
    if arguments.rounds < 0:
        parser.error("--rounds has to be 0 or more")
    torch.set_num_threads(arguments.threads)
    device, precision = arguments.device, arguments.precision
    found = measure(arguments.rounds, device, arguments.batch, precision)
    reference = found["conventional"]
    rows = []
    for name, costs in found.items():
        row = {
            "finetuning": name,
            "whole step (MB)": f"{whole_step(costs) / 1e6:,.0f}",
            "beyond weights and state (MB)": f"{costs['peak'] / 1e6:,.0f}",
            "kept (MB)": f"{costs['kept'] / 1e6:,.0f}",
        }
        if arguments.rounds:
            pairs = zip(costs["seconds"], reference["seconds"], strict=True)
            row["s/step"] = f"{statistics.median(costs['seconds']):.3f}"
            row["time / conventional"] = quartiles(a / b for a, b in pairs)
        rows.append(row)
    times = TIMES.format(rounds=arguments.rounds) if arguments.rounds else ""
    result = {
        "title": "What a step of each way takes.",
        **origin(
            "tools/experiments/costs.py", ["timm", "peft"], device if arguments.rounds else None
        ),
        "columns": list(rows[0]),
        "rows": rows,
        "notes": NOTES.format(batch=arguments.batch, size=SIZE, precision=precision, times=times),
        "measured": found,
    }
    write_json(arguments.out, result)
    print(markdown_table(result["columns"], result["rows"]))


if __name__ == "__main__":
    main()
