"""Measure the whole peak of a training step, weights and optimizer included, by what it is made of.

    python tools/benchmarks/selection.py  # writes results/selection_memory.json and .png

A ViT-B on 16 × 224 × 224 clips (1,568 tokens), trained conventionally, as a Dr²Net, with a tenth of
its input channels (``dr2net.select_channels``), and as both. Takes some minutes and 4 GB of memory;
needs torch, timm and matplotlib.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

import dr2net
from tools.arguments import positive
from tools.benchmarks.networks import NETWORKS, build, make_input
from tools.benchmarks.pictures import draw_parts
from tools.result_files import markdown_table, origin, write_json

PARTS = ("weights", "optimizer state", "gradients", "activations")
CONVENTIONAL, DR2NET, CHANNELS = "conventional", "Dr²Net", "10 % of channels"
BOTH = f"{DR2NET}, {CHANNELS}"
SLICED = f"{BOTH}, MLPs of 512 tokens"
WAYS = (CONVENTIONAL, DR2NET, CHANNELS, BOTH, SLICED)
MARK = "gradient of bytes: "


def peak_of_step(
    loss: Callable[[], Tensor], parameters: list[Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, int]:
    """Bytes of each of ``PARTS`` at the moment of a step's peak, exact, from the allocator.

    Forward, backward and the optimizer's step, when gradients of the step before are gone and the
    optimizer has its state.

    Args:
        loss: Runs forward.
        parameters: All of the network's, frozen ones too.
        optimizer: One that has made a step.
    """

    def mark(parameter: Tensor) -> None:
        with record_function(f"{MARK}{parameter.grad.nbytes}"):
            pass

    trained = [parameter for parameter in parameters if parameter.requires_grad]
    handles = [parameter.register_post_accumulate_grad_hook(mark) for parameter in trained]
    optimizer.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        loss().backward()
        optimizer.step()
    for handle in handles:
        handle.remove()
    taken = peak = gradients = at_peak = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name().startswith(MARK):
            gradients += int(event.name().removeprefix(MARK))
        elif event.name() == "[memory]":
            taken += event.nbytes()
            if taken > peak:
                peak, at_peak = taken, gradients
    state = [value for held in optimizer.state.values() for value in held.values()]
    return {
        "weights": sum(parameter.nbytes for parameter in parameters),
        "optimizer state": sum(value.nbytes for value in state if isinstance(value, Tensor)),
        "gradients": at_peak,
        "activations": peak - at_peak,
    }


def make(way: str, network: str, size: int, frames: int) -> nn.Module:
    """Return the network in training mode, as a Dr²Net where the way is one."""
    torch.manual_seed(0)
    model = build(network, None, size, frames)
    if DR2NET in way:
        dr2net.convert(model)
    if way == SLICED:
        dr2net.slice_mlps(model, tokens=512)
    return model


def measure(
    network: str, size: int, frames: int, batch: int, ways: Iterable[str] = WAYS
) -> dict[str, dict[str, int]]:
    """Return ``peak_of_step`` of each of the ``ways``, of the second step."""
    found = {}
    for way in ways:
        model = make(way, network, size, frames)
        x = make_input(batch, size, frames, "cpu")

        def loss(model: nn.Module = model, x: Tensor = x) -> Tensor:
            return model(x).square().mean()

        if CHANNELS in way:
            selection = dr2net.select_channels(model, loss, budget="10%", batches=1, share=1.0)
            print(selection)
        parameters = list(model.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, fused=True)  # which needs no memory of its own
        loss().backward()
        optimizer.step()
        found[way] = peak_of_step(loss, parameters, optimizer)
        print(way, found[way], flush=True)
    return found


def main() -> None:
    """Measure, and write the result file and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_base", choices=NETWORKS)
    parser.add_argument("--size", type=positive, default=224, help="pixels of a side")
    parser.add_argument("--frames", type=int, default=16, help="of a clip; 0 for images")
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder to write to")
    arguments = parser.parse_args()
    found = measure(arguments.model, arguments.size, arguments.frames, arguments.batch)
    conventional = sum(found[CONVENTIONAL].values())
    rows = []
    for way, parts in found.items():
        total = sum(parts.values())
        cells = {f"{part} (MB)": f"{parts[part] / 1e6:,.1f}" for part in PARTS}
        share = {"share of conventional": f"{total / conventional:.2f}"}
        rows.append({"training": way, **cells, "peak (MB)": f"{total / 1e6:,.1f}", **share})
    print(f"\n{markdown_table(list(rows[0]), rows)}\n")
    result = {
        "title": (
            f"The whole peak of a training step: {arguments.model}, {arguments.frames or 1} × "
            f"{arguments.size} × {arguments.size} px, batch {arguments.batch}, float32, AdamW."
        ),
        **origin("tools/benchmarks/selection.py", ["timm"]),
        "columns": list(rows[0]),
        "rows": rows,
        "notes": (
            "Exact, from PyTorch's allocator, 1 MB = 10^6 bytes, of forward, backward and the step "
            "of a fused AdamW that has its state; parts are those of the moment of the peak. "
            "Weights: all, and the trained slices of them. Gradients: of parameters, as far as "
            "they are there at that moment. Activations: the rest, which is what is kept from "
            "forward to backward and what one module's backward takes. 10 % of channels: of the "
            "cost of all input channels of all layers, drawn uniformly; the classifier trains "
            "whole; biases, norms and embeddings are frozen. Dr²Net: (0.875, 0.125)."
        ),
        "measured": found,
    }
    path = arguments.results / "selection_memory.json"
    write_json(path, result)
    draw_parts(path.with_suffix(".png"), result["title"], found)


if __name__ == "__main__":
    main()
