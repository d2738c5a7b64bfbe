"""Memory, time and gradient error of ways to train a network with less memory, in one run.

    python tools/benchmark.py                                       # a ViT-S, on the CPU
    python tools/benchmark.py --compile --out results/benchmark_compiled.json
    python tools/benchmark.py --device cuda --models vit_base vit_large --frames 16 \
        --batches 16 --precisions bfloat16 --compile --out results/benchmark_gpu.json

Needs torch and timm, and matplotlib for --plot. Every combination of models, depths, sizes, frames,
batches and precisions is a case. In a case all methods take turns, step by step, after a warm-up,
so that what else the machine does falls on all of them; ratios are of steps of the same turn.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from tools.arguments import positive
from tools.benchmarks.measurements import (
    gradients_of,
    largest_batch,
    peak_bytes,
    process_peak,
    quartiles,
    relative_difference,
    seconds_of_step,
    seconds_of_streams,
)
from tools.benchmarks.methods import (
    CHECKPOINT,
    COEFFICIENTS,
    CONVENTIONAL,
    STORED,
    Method,
    methods_for,
    reversible,
)
from tools.benchmarks.networks import NETWORKS, build, make_input
from tools.result_files import markdown_table, origin, write_json


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
    parser.add_argument("--methods", nargs="+", metavar="TEXT", help="those whose name has a TEXT")
    parser.add_argument("--budget", type=float, default=8.0, help="GiB, for the largest batch")
    parser.add_argument("--threads", type=positive, default=2, help="of the CPU")
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each; 0: bytes alone")
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
    methods = methods_for(arguments.device, arguments.compile)
    if arguments.methods:
        chosen = [name for name in methods if any(text in name for text in arguments.methods)]
        # Others are compared with these.
        references = {STORED.get(name) for name in chosen} if arguments.steps else set()
        needed = {CONVENTIONAL, CHECKPOINT, *chosen, *references}
        unknown = [t for t in arguments.methods if not any(t in name for name in methods)]
        if unknown:
            parser.error(f"--methods: none has {unknown} in its name: {'; '.join(methods)}")
        methods = {name: method for name, method in methods.items() if name in needed}
    arguments.methods = methods
    if arguments.steps < 0 or arguments.warmup < 0 or arguments.budget <= 0:
        parser.error("--budget has to be above 0, --steps and --warmup not below")
    if arguments.plot and not arguments.steps:
        parser.error("--plot shows times: it needs --steps")
    return arguments


def share_parameters(model: nn.Module) -> nn.Module:
    """A copy of the network that trains the same parameters."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def loss_of(forward: Callable[[Tensor], Tensor], x: Tensor, precision: str) -> Callable[[], Tensor]:
    """A function that runs forward and returns the loss."""

    def loss() -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return forward(x).float().square().mean()

    return loss


def measure(
    case: Case, methods: dict[str, Method], arguments: argparse.Namespace
) -> dict[str, dict]:
    """Return each method's bytes and, where steps are timed, its seconds and gradient errors."""
    torch.manual_seed(0)
    device = arguments.device
    original = build(case.model, case.depth, case.size, case.frames).to(device)
    parameters = list(original.parameters())
    x = make_input(case.batch, case.size, case.frames, device)
    double_batch = torch.cat([x, x])
    forwards = {name: make(share_parameters(original)) for name, make in methods.items()}
    losses = {name: loss_of(forward, x, case.precision) for name, forward in forwards.items()}
    timed: dict[str, dict] = {name: {} for name in methods}
    if arguments.steps:
        seconds = time_in_turns(losses, parameters, device, arguments.warmup, arguments.steps)
        dtype = torch.bfloat16 if case.precision == "bfloat16" else torch.float32
        errors = gradient_errors(original, x, losses, parameters)
        for name, here in timed.items():
            here["seconds"], here["errors"] = seconds[name], errors[name]
            here["streams"] = (
                seconds_of_streams(forwards[name], losses[name], dtype, device)
                if name in STORED
                else None
            )
    fixed = 2 * sum(parameter.nbytes for parameter in parameters)
    found = {}
    for name, forward in forwards.items():
        bytes_here = peak_bytes(losses[name], parameters, device)
        larger = loss_of(forward, double_batch, case.precision)
        two = {
            case.batch: bytes_here["peak"],
            2 * case.batch: peak_bytes(larger, parameters, device)["peak"],
        }
        found[name] = {
            "bytes": bytes_here,
            "process": None if device.startswith("cuda") else process_peak(losses[name]),
            "largest batch": largest_batch(int(arguments.budget * 2**30), fixed, two),
            **timed[name],
        }
    return found


def time_in_turns(
    losses: dict[str, Callable[[], Tensor]],
    parameters: list[Tensor],
    device: str,
    warmup: int,
    steps: int,
) -> dict[str, list[float]]:
    """Seconds of each timed step of each method."""
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for turn in range(warmup + steps):
        for name, loss in losses.items():
            for parameter in parameters:
                parameter.grad = None
            taken = seconds_of_step(loss, device)
            if turn >= warmup:
                seconds[name].append(taken)
    return seconds


def gradient_errors(
    original: nn.Module,
    x: Tensor,
    losses: dict[str, Callable[[], Tensor]],
    parameters: list[Tensor],
) -> dict[str, dict[str, float]]:
    """Of each method: against float64 and, where it recomputes, against stored activations.

    The reference in float64 computes what the method does: the network, or the equations of a
    Dr²Net at its (α, β), with activations stored.
    """
    errors: dict[str, dict[str, float]] = {}
    for pair in dict.fromkeys(COEFFICIENTS.get(name, (1, 0)) for name in losses):
        reference = copy.deepcopy(original).double()
        if pair != (1, 0):
            reference = reversible(reference, *pair, arithmetic="float", stored=True)
        exact = gradients_of(
            loss_of(reference, x.double(), "float64"), list(reference.parameters())
        )
        stored: dict[str, list[Tensor]] = {}
        mine = [name for name in losses if COEFFICIENTS.get(name, (1, 0)) == pair]
        # What others are compared with comes before them.
        for name in sorted(mine, key=lambda name: name in STORED):
            found = gradients_of(losses[name], parameters)
            errors[name] = {"float64": relative_difference(found, exact)}
            against = STORED.get(name, CONVENTIONAL if pair == (1, 0) else name)
            if name == against:
                stored[name] = found
            else:
                errors[name]["stored"] = relative_difference(found, stored[against])
        del exact, stored
        gc.collect()
    return errors


def rows_of(case: Case, found: dict[str, dict], budget: float) -> Iterator[dict[str, str]]:
    """The rows of a case in the table."""
    for name, here in found.items():
        row = {
            "method": name,
            "kept (MB)": f"{here['bytes']['kept'] / 1e6:,.1f}",
            "peak (MB)": f"{here['bytes']['peak'] / 1e6:,.1f}",
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

    def ratio(reference: str | None) -> str:
        if reference not in found or reference == name:
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
        "time / stored": ratio(STORED.get(name)),
        "streams / step": "" if here["streams"] is None else f"{here['streams'] / median:.1%}",
        "error, float64": f"{error['float64']:.2g}",
        "error, stored": f"{error['stored']:.2g}" if "stored" in error else "",
    }


NOTES = (
    "Kept: bytes of the device when forward has returned; peak: at most, at any moment of the "
    "step; both beyond weights and gradients of the parameters, exact, from PyTorch's allocator, "
    "1 MB = 10^6 bytes. Process: by how much the step raised the memory of the process. Largest "
    "batch: of weights, their gradients and the peak, by the line through the peaks of this batch "
    "and of twice as many.{times} Offloading has no row where there is no GPU to offload from."
)
TIMES = (
    " Time: median (quartiles) of {steps} steps, the methods taking turns after {warmup} to warm "
    "up; ratios are of steps of the same turn. Streams: the arithmetic of the streams, run alone, "
    "as a share of the step. Errors: relative L2 difference of the gradients of all parameters, "
    "from float64 and from the same equations with activations stored (by MLPs that run whole)."
)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    # The float inverse at (1, 0.1) is there to be measured, untrustworthy as it is.
    warnings.filterwarnings("ignore", message=".*gradients cannot be trusted")
    names = ("models", "depths", "sizes", "frames", "batches", "precisions")
    cases = [Case(*values) for values in product(*(getattr(arguments, name) for name in names))]
    times = TIMES.format(steps=arguments.steps, warmup=arguments.warmup) if arguments.steps else ""
    timed_on = arguments.device if arguments.steps else None
    rows, measured = [], []
    for case in cases:
        found = measure(case, arguments.methods, arguments)
        mine = list(rows_of(case, found, arguments.budget))
        print(f"{case}\n\n{markdown_table(list(mine[0]), mine)}\n", flush=True)
        rows += [{"case": str(case), **row} if len(cases) > 1 else row for row in mine]
        measured.append({"case": asdict(case), "methods": found})
        result = {
            "title": str(cases[0]) if len(cases) == 1 else "Ways to train with less memory.",
            **origin("tools/benchmark.py", ["timm"], timed_on),
            "columns": list(rows[0]),
            "rows": rows,
            "notes": NOTES.format(times=times),
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
