"""How memory and time grow with depth, tokens, size of the network, frames and pixels.

    python tools/benchmarks/scaling.py depth      # writes results/scaling_depth.json and .png
    python tools/benchmarks/scaling.py tokens models frames pixels

Needs torch, timm and matplotlib. A Dr²Net's memory is to be flat in depth, and
its time 4/3 of conventional's: forward once more. What is kept from forward to backward, and the
peak of a step, are exact; times are of the methods taking turns. Larger sizes are not stepped
through, only their forward is measured, and what would not fit in this machine's memory is left
empty.
"""

import argparse
import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import truediv
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch

from tools.arguments import positive
from tools.benchmark import Case
from tools.benchmarks.candidates import loss_of, share_weights, time_in_turns, trained
from tools.benchmarks.measurements import growth_exponent, kept_bytes, peak_bytes
from tools.benchmarks.methods import CHECKPOINT, CONVENTIONAL, METHODS
from tools.benchmarks.networks import build, make_input
from tools.benchmarks.pictures import draw_scaling
from tools.result_files import markdown_table, origin, write_json

CHOSEN = (CONVENTIONAL, CHECKPOINT, "Dr²Net, exact (1, 0.1)", "Dr²Net, exact (0, 1)")
# Of the machine's memory that a method may be expected to take.
SHARE = 0.7


@dataclass(frozen=True)
class Sweep:
    """Cases that differ in one thing.

    Args:
        title: What is measured, of what.
        label: What differs, with its unit.
        cases: By its value.
        steps: How many values, the first ones, are stepped through and timed.
        power: The power of the value by which conventional memory grows, to foresee what fits.
    """

    title: str
    label: str
    cases: dict[int, Case]
    steps: int
    power: int = 1


TINY = Case("vit_tiny", None, 224, 0, 8, "float32")
SWEEPS = {
    "depth": Sweep(
        "ViT of width 192 on 196 tokens, batch 8, float32, by depth.",
        "blocks",
        {depth: replace(TINY, depth=depth) for depth in (12, 24, 48, 96)},
        steps=4,
    ),
    "tokens": Sweep(
        "ViT of width 192 with 4 blocks, batch 1, float32, by tokens.",
        "tokens",
        {
            (size // 16) ** 2: replace(TINY, depth=4, size=size, batch=1)
            for size in (224, 448, 896, 1792, 3584)
        },
        steps=4,
    ),
    "models": Sweep(
        "ViT-B, ViT-L and ViT-g on 196 tokens, batch 1, float32, by width.",
        "channels",
        {
            width: Case(name, None, 224, 0, 1, "float32")
            for width, name in ((768, "vit_base"), (1024, "vit_large"), (1408, "vit_giant"))
        },
        steps=3,
        power=2,
    ),
    "frames": Sweep(
        "Video ViT-S at 224 × 224 px, tubelets of 2 × 16 × 16, batch 1, float32, by frames.",
        "frames",
        {
            frames: Case("vit_small", None, 224, frames, 1, "float32")
            for frames in (16, 32, 64, 128)
        },
        steps=0,
    ),
    "pixels": Sweep(
        "Swin-L, batch 1, float32, by pixels of a side.",
        "pixels",
        {size: Case("swin_large", None, size, 0, 1, "float32") for size in (800, 1216, 1600, 2400)},
        steps=0,
        power=2,
    ),
}


def measure(sweep: Sweep, turns: int) -> dict[str, dict[int, dict]]:
    """Return, for each method and value, ``kept``, and where it is stepped through ``peak`` and
    ``seconds``.

    A value whose memory is foreseen not to fit is left out.
    """
    found: dict[str, dict[int, dict]] = {name: {} for name in CHOSEN}
    for place, (value, case) in enumerate(sweep.cases.items()):
        torch.manual_seed(0)
        original = build(case.model, case.depth, case.size, case.frames)
        x = make_input(case.batch, case.size, case.frames, "cpu")
        networks, losses = {}, {}
        for name in CHOSEN:
            if fits(found[name], value, sweep.power):
                networks[name] = share_weights(original)
                forward = METHODS[name].make(networks[name])
                losses[name] = loss_of(forward, x, case.precision)
        stepped = place < sweep.steps
        seconds = time_in_turns(losses, networks, "cpu", 1, turns) if stepped else {}
        for name, loss in losses.items():
            if stepped:
                peaks = peak_bytes(loss, trained(networks[name]), "cpu")
                networks[name].zero_grad()
                here = {**peaks, "seconds": seconds[name]}
            else:
                here = {"kept": kept_bytes(loss)}
            found[name][value] = here
            print(f"{sweep.label} {value}, {name}: {here['kept'] / 1e6:,.1f} MB", flush=True)
        del original, networks, losses, loss, forward
        gc.collect()
    return found


def fits(before: dict[int, dict], value: int, power: int) -> bool:
    """Whether what a method took at a smaller value says that this one fits in the memory."""
    if not before:
        return True
    last = max(before)
    foreseen = before[last]["kept"] * (value / last) ** power
    return foreseen < SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def rows_of(sweep: Sweep, found: dict[str, dict[int, dict]]) -> list[dict[str, str]]:
    """The table: for each quantity and method a row, for each value a column."""
    quantities: dict[str, tuple[str, Callable[[dict, dict], float], str]] = {
        "kept (MB)": ("kept", lambda here, _: here["kept"] / 1e6, ",.1f"),
        "peak (MB)": ("peak", lambda here, _: here["peak"] / 1e6, ",.1f"),
        "s/step": ("seconds", lambda here, _: median(here["seconds"]), ".2f"),
        "time / conventional": (
            "seconds",
            lambda here, other: median(map(truediv, here["seconds"], other["seconds"])),
            ".2f",
        ),
    }
    rows = []
    for quantity, (key, number, text) in quantities.items():
        for name, by_value in found.items():
            if not any(key in here for here in by_value.values()):
                continue
            others = found[CONVENTIONAL]
            numbers = {
                value: number(here, others.get(value, {}))
                for value, here in by_value.items()
                if key in here
            }
            rows.append(
                {
                    "quantity": quantity,
                    "method": name,
                    **{
                        f"{value:,}": format(numbers[value], text) if value in numbers else ""
                        for value in sweep.cases
                    },
                    **(_growth(numbers) if "/ conventional" not in quantity else NO_GROWTH),
                }
            )
    return rows


NO_GROWTH = {"last / first": "", "power": ""}


def _growth(numbers: dict[int, float]) -> dict[str, str]:
    first, last = min(numbers), max(numbers)
    if first == last:
        return NO_GROWTH
    return {
        "last / first": f"{numbers[last] / numbers[first]:.2f}",
        "power": f"{growth_exponent(list(numbers), list(numbers.values())):.2f}",
    }


NOTES = (
    "Kept: bytes when forward has returned; peak: at most at any moment of a step; both beyond "
    "weights and gradients of the parameters, exact, from PyTorch's allocator, 1 MB = 10^6 bytes. "
    "{times}Power: the slope of the logarithm over that of {label}: 0 is flat, 1 proportional. "
    "What is empty was not stepped through, or would not fit in the memory of the machine."
)
TIMES = (
    "Time: median of {turns} steps after one to warm up, the methods taking turns; its ratio is "
    "of steps of the same turn, and 4/3 is one forward more. "
)


def main() -> None:
    """Measure the sweeps that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweeps", nargs="+", choices=SWEEPS)
    parser.add_argument("--turns", type=positive, default=5, help="timed steps of each method")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder to write to")
    arguments = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    for name in arguments.sweeps:
        sweep = SWEEPS[name]
        found = measure(sweep, arguments.turns)
        rows = rows_of(sweep, found)
        print(f"\n{sweep.title}\n\n{markdown_table(list(rows[0]), rows)}\n", flush=True)
        times = TIMES.format(turns=arguments.turns) if sweep.steps else ""
        result = {
            "title": sweep.title,
            **origin("tools/benchmarks/scaling.py", ["timm"], "cpu" if sweep.steps else None),
            "columns": list(rows[0]),
            "rows": rows,
            "notes": NOTES.format(times=times, label=sweep.label),
            "label": sweep.label,
            "measured": found,
        }
        path = arguments.results / f"scaling_{name}.json"
        write_json(path, result)
        draw_scaling(path.with_suffix(".png"), result)


if __name__ == "__main__":
    main()
