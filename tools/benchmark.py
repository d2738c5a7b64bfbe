"""Memory, time and gradient error of a ViT finetuned conventionally and reversibly, in one run.

    python tools/benchmark.py                      # the CPU table of the README
    python tools/benchmark.py --steps 3 --depth 2  # a smoke test

Needs torch and timm. All methods take turns, step by step, after a warm-up, so that what else the
machine does falls on all of them; times are medians with quartiles, and ratios are within the run.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from datetime import date
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import timm
import torch
from torch import Tensor, nn

import dr2net
from tools.result_files import write_json

Make = Callable[[nn.Module], nn.Module]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=12, help="blocks")
    parser.add_argument("--width", type=int, default=384, help="channels")
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--side", type=int, default=28, help="tokens are side × side")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each method")
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps of each method")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument(
        "--compile", action="store_true", help="also with compiled modules (needs a C++ compiler)"
    )
    parser.add_argument("--out", type=Path, help="result file (JSON) to write")
    return parser.parse_args()


def checkpointed(model: nn.Module) -> nn.Module:
    model.set_grad_checkpointing(True)
    return model


def reversible(
    model: nn.Module, alpha: float, beta: float, arithmetic: str = "exact", stored: bool = False
) -> nn.Module:
    dr2net.convert(model, alpha, beta, arithmetic)
    dr2net.set_reversible(model, not stored)
    return model


def compiled(make: Make, model: nn.Module) -> nn.Module:
    model = make(model)
    for block in model.blocks:
        block.attn.compile()
        block.mlp.compile()
    return model


METHODS: dict[str, Make] = {
    "conventional": lambda model: model,
    "checkpoint per block": checkpointed,
    "reversible, float (1, 0.1)": partial(reversible, alpha=1, beta=0.1, arithmetic="float"),
    "reversible, float (0, 1)": partial(reversible, alpha=0, beta=1, arithmetic="float"),
}
# Dr²Net, and the reference that each time is compared with: the same equations, stored.
STORED: dict[str, str] = {}
for alpha, beta in ((1, 0.1), (0.5, 0.5), (0, 1)):
    exact, stored = (f"Dr²Net, {kind} ({alpha}, {beta})" for kind in ("exact", "stored"))
    STORED[exact] = stored
    METHODS[exact] = partial(reversible, alpha=alpha, beta=beta)
    METHODS[stored] = partial(reversible, alpha=alpha, beta=beta, stored=True)
COMPILED: dict[str, Make] = {
    f"{name}, compiled modules": partial(compiled, METHODS[name])
    for name in ("conventional", "Dr²Net, exact (0, 1)", "Dr²Net, stored (0, 1)")
}
STORED["Dr²Net, exact (0, 1), compiled modules"] = "Dr²Net, stored (0, 1), compiled modules"


def make_step(model: nn.Module, images: Tensor, bf16: bool) -> Callable[[], Tensor]:
    """Returns a function that runs forward and returns the loss."""

    def forward() -> Tensor:
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
            return model(images).float().square().mean()

    return forward


def timed_step(forward: Callable[[], Tensor], model: nn.Module, device: str) -> float:
    """Seconds of a forward and a backward."""
    synchronise = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    model.zero_grad(set_to_none=True)
    synchronise()
    start = time.perf_counter()
    forward().backward()
    synchronise()
    return time.perf_counter() - start


def chain_bytes(model: nn.Module, arguments: argparse.Namespace) -> float:
    """Bytes that the blocks alone keep for backward, per element of the stream."""
    tokens = torch.randn(
        arguments.batch, arguments.side**2, arguments.width, device=arguments.device
    )
    tokens.requires_grad_()
    blocks = model.blocks
    if getattr(model, "grad_checkpointing", False):
        blocks = partial(timm.models.checkpoint_seq, model.blocks)

    def forward() -> Tensor:
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=arguments.bf16):
            return blocks(tokens)

    return dr2net.diagnostics.bytes_kept(forward) / tokens.numel()


def gradient_error(name: str, model: nn.Module, forward: Callable[[], Tensor]) -> str:
    """Against the same equations with activations stored, where the method is a reversible one."""
    if name in STORED or "reversible" in name:
        return f"{dr2net.diagnostics.gradient_error(model, forward):.2g}"
    return ""


def quartiles(values: Iterable[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def paired_ratio(seconds: dict[str, list[float]], name: str, reference: str) -> str:
    """Ratios of steps that ran in the same turn, so that drifts of the machine cancel."""
    return quartiles(a / b for a, b in zip(seconds[name], seconds[reference], strict=True))


def hardware(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def measure(arguments: argparse.Namespace) -> dict:
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    original = timm.models.VisionTransformer(
        img_size=arguments.side * 16,
        patch_size=16,
        embed_dim=arguments.width,
        depth=arguments.depth,
        num_heads=arguments.heads,
        num_classes=10,
        class_token=False,
        global_pool="avg",
    ).to(arguments.device)
    size = arguments.side * 16
    images = torch.randn(arguments.batch, 3, size, size, device=arguments.device)
    methods = METHODS | COMPILED if arguments.compile else METHODS
    models = {name: make(copy.deepcopy(original)).train() for name, make in methods.items()}
    steps = {name: make_step(model, images, arguments.bf16) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(arguments.warmup + arguments.steps):
        for name, model in models.items():
            taken = timed_step(steps[name], model, arguments.device)
            if turn >= arguments.warmup:
                seconds[name].append(taken)
    rows = []
    for name, model in models.items():
        row = {
            "method": name,
            "bytes kept per element": f"{chain_bytes(model, arguments):.1f}",
            "seconds per step": quartiles(seconds[name]),
            "time / conventional": paired_ratio(seconds, name, "conventional"),
            "time / stored": paired_ratio(seconds, name, STORED[name]) if name in STORED else "",
            "gradient error against stored": gradient_error(name, model, steps[name]),
        }
        if arguments.device.startswith("cuda"):
            row["peak memory, MiB"] = f"{peak_memory(steps[name], model):.0f}"
        rows.append(row)
    tokens = arguments.side**2
    return {
        "title": (
            f"ViT, width {arguments.width}, {arguments.depth} blocks, {tokens} tokens, batch "
            f"{arguments.batch}, {'bfloat16 autocast' if arguments.bf16 else 'float32'}"
        ),
        "command": "python " + " ".join([str(Path(sys.argv[0])), *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "hardware": f"{hardware(arguments.device)}, {arguments.threads} threads",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "dr2net": dr2net.__version__,
        },
        "columns": list(rows[0]),
        "rows": rows,
        "notes": (
            f"Median (quartiles) of {arguments.steps} steps, the methods taking turns; ratios are "
            "of steps of the same turn. Bytes kept from forward to backward by the blocks alone, "
            "per element of a stream. Stored: the same equations with activations stored, to which "
            "the gradient error is relative."
        ),
        "seconds": seconds,
    }


def peak_memory(forward: Callable[[], Tensor], model: nn.Module) -> float:
    """MiB that a step takes at most above what is allocated before it."""
    model.zero_grad(set_to_none=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    forward().backward()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def main() -> None:
    arguments = parse_arguments()
    # The float inverse at (1, 0.1) is there to be measured, untrustworthy as it is.
    warnings.filterwarnings("ignore", message=".*gradients cannot be trusted")
    result = measure(arguments)
    columns = result["columns"]
    widths = [max(len(column), *(len(row[column]) for row in result["rows"])) for column in columns]
    for cells in [dict(zip(columns, columns, strict=True)), *result["rows"]]:
        pairs = zip(columns, widths, strict=True)
        print("  ".join(cells[column].ljust(width) for column, width in pairs))
    if arguments.out:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
