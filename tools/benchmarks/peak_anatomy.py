"""What the peak of a training step is made of: streams, remainders, gradients, one module.

    python tools/benchmarks/peak_anatomy.py  # writes results/peak_anatomy.json and .png

Needs torch, timm and matplotlib.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import dr2net
from tools.arguments import positive
from tools.benchmarks.candidates import loss_of, share_weights, trained
from tools.benchmarks.checkpointing import SLICE_TOKENS
from tools.benchmarks.measurements import peak_bytes
from tools.benchmarks.methods import CHECKPOINT, CONVENTIONAL, IN_SLICES, METHODS
from tools.benchmarks.networks import build, make_input
from tools.benchmarks.pictures import draw_anatomy
from tools.result_files import markdown_table, origin, write_json

PARTS = (
    "activations",
    "streams",
    "remainders",
    "stem and head",
    "gradients of the streams",
    "one module",
)
WAYS = (
    CONVENTIONAL,
    CHECKPOINT,
    "Dr²Net, exact (1, 0.1)",
    "Dr²Net, exact (0, 1)",
    f"Dr²Net, exact (0, 1), {IN_SLICES}",
)


def anatomy(
    model: nn.Module, loss: Callable[[], Tensor], parameters: list[Tensor], elements: int
) -> dict[str, int]:
    """Bytes of each of ``PARTS`` at the peak of a step; those that a method has not are left out.

    Args:
        model: What ``loss`` runs.
        loss: Runs forward.
        parameters: Those that are trained.
        elements: Of a stream.
    """
    step = peak_bytes(loss, parameters, "cpu")
    rest = step["peak"] - step["kept"]
    if not dr2net.chains(model):
        return {"activations": step["kept"], "one module": rest}
    # Streams are integers, remainders bytes.
    kept = {torch.int32: 0, torch.int64: 0, torch.uint8: 0}

    def count(tensor: Tensor) -> Tensor:
        if tensor.dtype in kept:
            kept[tensor.dtype] += tensor.nbytes
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        value = loss()
    del value
    streams, remainders = kept[torch.int32] + kept[torch.int64], kept[torch.uint8]
    gradients = 2 * elements * torch.float32.itemsize
    return {
        "streams": streams,
        "remainders": remainders,
        "stem and head": step["kept"] - streams - remainders,
        "gradients of the streams": gradients,
        "one module": rest - gradients,
    }


def measure(network: str, size: int, batch: int) -> dict[str, dict[str, int]]:
    """Return ``anatomy`` of each of ``WAYS``."""
    torch.manual_seed(0)
    original = build(network, None, size, 0)
    x = make_input(batch, size, 0, "cpu")
    elements = original.forward_features(x).numel()
    found = {}
    for name in WAYS:
        model = share_weights(original)
        METHODS[name].make(model)
        found[name] = anatomy(model, loss_of(model, x, "float32"), trained(model), elements)
    return found


def main() -> None:
    """Measure, and write the result file and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_small")
    parser.add_argument("--size", type=positive, default=448, help="pixels of a side")
    parser.add_argument("--batch", type=positive, default=2)
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder to write to")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    found = measure(arguments.model, arguments.size, arguments.batch)
    rows = []
    for name, parts in found.items():
        cells = {part: f"{parts[part] / 1e6:,.1f}" if part in parts else "" for part in PARTS}
        rows.append({"method": name, **cells, "peak": f"{sum(parts.values()) / 1e6:,.1f}"})
    print(f"\n{markdown_table(list(rows[0]), rows)}\n")
    result = {
        "title": (
            f"MB at the peak of a step: {arguments.model}, {arguments.size} × {arguments.size} px, "
            f"batch {arguments.batch}, float32."
        ),
        **origin("tools/benchmarks/peak_anatomy.py", ["timm"]),
        "columns": list(rows[0]),
        "rows": rows,
        "notes": (
            "Exact, from PyTorch's allocator, beyond weights and gradients of the parameters, "
            "1 MB = 10^6 bytes. Activations: all that is kept when forward has returned; a Dr²Net "
            "keeps streams, remainders, and what stem and head keep. One module: the rest at the "
            "peak: what a module's recomputation and backward hold for a while, the gradients of "
            f"its parameters among them. Slices: of {SLICE_TOKENS['cpu']} tokens."
        ),
        "measured": found,
    }
    path = arguments.results / "peak_anatomy.json"
    write_json(path, result)
    draw_anatomy(path.with_suffix(".png"), result)


if __name__ == "__main__":
    main()
