"""Memory, time and gradient error of ways to train a network with less memory, in one run.

    python tools/benchmark.py                                       # a ViT-S, on the CPU
    python tools/benchmark.py --all --out work_dirs/benchmark.json
    python tools/benchmark.py --compile --out results/benchmark_compiled.json
    python tools/benchmark.py --device cuda --models vit_base vit_large --frames 16 \
        --batches 16 --precisions bfloat16 --all --out results/benchmark_gpu.json

Needs torch and timm, and matplotlib for --plot; torch_remat, trl and peft for the methods that are
theirs. What cannot run here is left out, and the table says why. Every combination of models,
depths, sizes, frames, batches and precisions is a case. In a case all methods take turns, step by
step, after a warm-up, so that what else the machine does falls on all of them; ratios are of steps
of the same turn.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import dr2net
from tools.arguments import positive
from tools.benchmarks.candidates import (
    gradient_errors,
    loss_of,
    make_candidate,
    time_in_turns,
    trained,
)
from tools.benchmarks.measurements import (
    largest_batch,
    peak_bytes,
    process_peak,
    quartiles,
    seconds_of_streams,
)
from tools.benchmarks.methods import (
    CHECKPOINT,
    COMPILER,
    CONVENTIONAL,
    GPU,
    LORA_RANK,
    SLICE_TOKENS,
    Method,
    methods_for,
)
from tools.benchmarks.networks import NETWORKS, build, make_input
from tools.result_files import markdown_table, origin, write_json

COMPARED = 2  # samples of a batch whose gradients are, for float64 takes four times the memory


@dataclass(frozen=True)
class Case:
    """What is trained: a network, its input, and the precision of its modules."""

    model: str
    depth: int | None
    size: int
    frames: int
    batch: int
    precision: str

    def __str__(self) -> str:
        depth = f" of {self.depth} blocks" if self.depth else ""
        frames = f"{self.frames} × " if self.frames else ""
        shape = f"{frames}{self.size} × {self.size} px"
        return f"{self.model}{depth}, {shape}, batch {self.batch}, {self.precision}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["vit_small"], choices=NETWORKS)
    parser.add_argument(
        "--depths", nargs="+", type=positive, default=[None], help="blocks; by default the model's"
    )
    parser.add_argument("--sizes", nargs="+", type=positive, default=[448], help="pixels of a side")
    parser.add_argument("--frames", nargs="+", type=int, default=[0], help="of videos; 0: images")
    parser.add_argument("--batches", nargs="+", type=positive, default=[2])
    parser.add_argument(
        "--precisions", nargs="+", default=["float32"], choices=["float32", "bfloat16"],
        help="bfloat16 by autocast",
    )  # fmt: skip
    parser.add_argument("--all", action="store_true", help="all methods, twice as many")
    parser.add_argument("--methods", nargs="+", metavar="TEXT", help="those whose name has a TEXT")
    parser.add_argument("--budget", type=float, default=8.0, help="GiB, for the largest batch")
    parser.add_argument("--threads", type=positive, default=2, help="of the CPU")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each; 0: bytes alone")
    parser.add_argument("--warmup", type=int, default=1, help="untimed steps of each method")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--compile", action="store_true", help="also torch.compile (needs a C++ compiler)"
    )
    parser.add_argument("--out", type=Path, help="result file (JSON) to write")
    parser.add_argument("--plot", type=Path, help="picture of time against memory (PNG) to write")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: PyTorch finds no GPU here")
    everything = arguments.all or bool(arguments.methods)
    methods, left_out = methods_for(arguments.device, everything, arguments.compile)
    if arguments.methods:
        known = [*methods, *left_out]
        chosen = {name for name in known if any(text in name for text in arguments.methods)}
        unknown = [t for t in arguments.methods if not any(t in name for name in known)]
        if unknown:
            parser.error(f"--methods: none has {unknown} in its name: {'; '.join(known)}")
        if any(name in methods and methods[name].lora for name in chosen):
            chosen.add(f"LoRA, {CONVENTIONAL}")
        chosen |= {CONVENTIONAL, CHECKPOINT}  # which others are compared with
        methods = {name: method for name, method in methods.items() if name in chosen}
        left_out = {name: reason for name, reason in left_out.items() if name in chosen}
    arguments.methods, arguments.left_out = methods, left_out
    if arguments.steps < 0 or arguments.warmup < 0 or arguments.budget <= 0:
        parser.error("--budget has to be above 0, --steps and --warmup not below")
    if arguments.plot and not arguments.steps:
        parser.error("--plot shows times: it needs --steps")
    return arguments


def measure(
    case: Case, methods: dict[str, Method], arguments: argparse.Namespace
) -> dict[str, dict]:
    """Return each method's bytes and, where steps are timed, its seconds and gradient errors."""
    torch.manual_seed(0)
    device = arguments.device
    original = build(case.model, case.depth, case.size, case.frames).to(device)
    x = make_input(case.batch, case.size, case.frames, device)
    double_batch = torch.cat([x, x])
    candidates = {
        name: make_candidate(method, original, x, case.precision, device)
        for name, method in methods.items()
    }
    networks = {name: candidate.network for name, candidate in candidates.items()}
    losses = {name: loss_of(c.forward, x, case.precision) for name, c in candidates.items()}
    timed: dict[str, dict] = {name: {} for name in methods}
    if arguments.steps:
        seconds = time_in_turns(losses, networks, device, arguments.warmup, arguments.steps)
        dtype = torch.bfloat16 if case.precision == "bfloat16" else torch.float32
        few = x[:COMPARED]
        of_few = {n: loss_of(c.forward, few, case.precision) for n, c in candidates.items()}
        errors = gradient_errors(original, few, methods, of_few, networks)
        for name, here in timed.items():
            here["seconds"], here["errors"] = seconds[name], errors[name]
            here["streams"] = (
                seconds_of_streams(networks[name], losses[name], dtype, device)
                if dr2net.chains(networks[name])
                else None
            )
    found = {}
    for name, candidate in candidates.items():
        parameters = trained(candidate.network)
        # Gradients, and AdamW's two moments.
        state = 3 * sum(parameter.nbytes for parameter in parameters)
        state += sum(parameter.nbytes for parameter in candidate.network.parameters())
        bytes_here = peak_bytes(losses[name], parameters, device)
        larger = loss_of(candidate.forward, double_batch, case.precision)
        two = {
            case.batch: bytes_here["peak"],
            2 * case.batch: peak_bytes(larger, parameters, device)["peak"],
        }
        found[name] = {
            "bytes": {**bytes_here, "whole step": state + bytes_here["peak"]},
            "process": None if device.startswith("cuda") else process_peak(losses[name]),
            "largest batch": largest_batch(int(arguments.budget * 2**30), state, two),
            **timed[name],
        }
        if candidate.peaks:
            found[name] |= {"setting": candidate.setting, "peaks by setting": candidate.peaks}
        candidate.network.zero_grad()
    return found


def rows_of(case: Case, found: dict[str, dict], budget: float) -> Iterator[dict[str, str]]:
    """The rows of a case in the table."""
    for name, here in found.items():
        setting = f": {here['setting']:g}" if "setting" in here else ""
        row = {
            "method": f"{name}{setting}",
            "kept (MB)": f"{here['bytes']['kept'] / 1e6:,.1f}",
            "peak (MB)": f"{here['bytes']['peak'] / 1e6:,.1f}",
            "whole step (MB)": f"{here['bytes']['whole step'] / 1e6:,.1f}",
            "process (MB)": "" if here["process"] is None else f"{here['process'] / 1e6:,.0f}",
            f"batch in {budget:g} GiB": str(here["largest batch"]),
        }
        yield row | (timed_cells if "seconds" in here else peak_ratios)(case, name, found)


def peak_ratios(case: Case, name: str, found: dict[str, dict]) -> dict[str, str]:
    """What the row of a method that was not timed has besides."""
    peaks = {method: here["bytes"]["peak"] for method, here in found.items()}
    return {
        f"peak / {text}": f"{peaks[name] / peaks[method]:.3f}" if method != name else ""
        for text, method in (("conventional", CONVENTIONAL), ("checkpoint", CHECKPOINT))
    }


def timed_cells(case: Case, name: str, found: dict[str, dict]) -> dict[str, str]:
    """What the row of a method that was timed has besides."""
    here = found[name]

    def ratio(reference: str) -> str:
        if reference == name:
            return ""
        pairs = zip(here["seconds"], found[reference]["seconds"], strict=True)
        return quartiles(a / b for a, b in pairs)

    median = statistics.median(here["seconds"])
    error = here["errors"]
    return {
        "s/step": quartiles(here["seconds"], 3 if median < 0.5 else 2),
        "samples/s": f"{case.batch / median:.3g}",
        "time / conventional": ratio(CONVENTIONAL),
        "time / checkpoint": ratio(CHECKPOINT),
        "streams / step": "" if here["streams"] is None else f"{here['streams'] / median:.1%}",
        "error, float64": f"{error['float64']:.2g}",
        "error, stored": f"{error['stored']:.2g}" if "stored" in error else "",
    }


NOTES = (
    "Kept: bytes of the device when forward has returned; peak: at most, at any moment of the "
    "step; both beyond weights and gradients of the parameters, exact, from PyTorch's allocator, "
    "1 MB = 10^6 bytes. Whole step: all weights, and of those that are trained gradients and "
    "AdamW's two moments, and the peak. Process: by how much the step raised the memory of the "
    "process. Largest batch: in which the whole step fits, by the line through the peaks of this "
    "batch and of twice as many.{times} Best: of several settings, the one with the lowest peak, "
    "which is named (blocks that are recomputed at once, 0.5 for attention and MLP apart; share of "
    "activations that the compiler may keep). Slices: of {tokens} tokens. LoRA: of rank {rank} in "
    "all products of the blocks, the head trained with it.{left_out}"
)
TIMES = (
    " Time: median (quartiles) of {steps} steps, the methods taking turns after {warmup} to warm "
    "up; ratios are of steps of the same turn. Streams: the arithmetic of the streams, run alone, "
    "as a share of the step. Errors: relative L2 difference of the gradients of all parameters "
    "that are trained, from float64 and from the same equations with activations stored, of the "
    "first {compared} samples."
)


def notes_of(arguments: argparse.Namespace) -> str:
    """What stands below the table."""
    times = (
        TIMES.format(steps=arguments.steps, warmup=arguments.warmup, compared=COMPARED)
        if arguments.steps
        else ""
    )
    reasons = "; ".join(f"{name} ({reason})" for name, reason in arguments.left_out.items())
    return NOTES.format(
        times=times,
        tokens=SLICE_TOKENS[torch.device(arguments.device).type],
        rank=LORA_RANK,
        left_out=f" Left out: {reasons}." if reasons else "",
    )


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    # The float inverse at (1, 0.1) is there to be measured, untrustworthy as it is.
    warnings.filterwarnings("ignore", message=".*gradients cannot be trusted")
    names = ("models", "depths", "sizes", "frames", "batches", "precisions")
    cases = [Case(*values) for values in product(*(getattr(arguments, name) for name in names))]
    timed_on = arguments.device if arguments.steps else None
    packages = {need for method in arguments.methods.values() for need in method.needs}
    packages -= {GPU, COMPILER}
    for name, reason in arguments.left_out.items():
        print(f"left out: {name}: {reason}")
    rows, measured = [], []
    for case in cases:
        found = measure(case, arguments.methods, arguments)
        mine = list(rows_of(case, found, arguments.budget))
        print(f"{case}\n\n{markdown_table(list(mine[0]), mine)}\n", flush=True)
        rows += [{"case": str(case), **row} if len(cases) > 1 else row for row in mine]
        measured.append({"case": asdict(case), "methods": found})
        result = {
            "title": str(cases[0]) if len(cases) == 1 else "Ways to train with less memory.",
            **origin("tools/benchmark.py", ["timm", *sorted(packages)], timed_on),
            "columns": list(rows[0]),
            "rows": rows,
            "notes": notes_of(arguments),
            "left out": arguments.left_out,
            "measured": measured,
        }
        # After every case, so that a long run that is cut short has not been in vain.
        if arguments.out:
            write_json(arguments.out, result)
        if arguments.plot:
            from tools.benchmarks.pictures import draw_time_against_memory

            draw_time_against_memory(arguments.plot, result)
        gc.collect()


if __name__ == "__main__":
    main()
