"""How far gradients are off where activations are rebuilt, over the plane of (α, β).

    python tools/benchmarks/gradient_error.py  # writes results/gradient_error.json and .png

Needs torch, timm and matplotlib. Exact arithmetic gives the gradients of stored
activations everywhere; the inverse in floating point, which earlier reversible networks use, is
good near (0, 1) only.
"""

import argparse
import copy
import math
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch

import dr2net
from dr2net.diagnostics import gradient_error
from tools.arguments import positive
from tools.benchmarks.candidates import loss_of
from tools.benchmarks.networks import build, make_input
from tools.benchmarks.pictures import draw_error_plane
from tools.result_files import markdown_table, origin, write_json

ALPHAS = (0.0, 0.4, 0.6, 1.0)
BETAS = (0.1, 0.4, 0.6, 1.0)
# From the start of the schedule to its end, for the table.
PAIRS = ((1.0, 0.1), (0.6, 0.4), (0.4, 0.6), (0.0, 1.0))
ARITHMETICS = {"previous reversible, float": "float", "Dr²Net, exact": "exact"}


def measure(depth: int, size: int, precision: str) -> dict[str, list[list[float | str]]]:
    """Relative gradient errors against stored activations, by arithmetic, β (rows) and α (columns).

    "NaN" stands for gradients that are not numbers, "beyond range" for streams that are refused.

    Args:
        depth: Blocks of a ViT of width 192.
        size: Pixels of a side of two images.
        precision: ``float32`` or ``bfloat16``, by autocast.
    """
    torch.manual_seed(0)
    network = build("vit_tiny", depth, size, 0)
    x = make_input(2, size, 0, "cpu")
    found = {}
    for name, arithmetic in ARITHMETICS.items():
        model = dr2net.convert(copy.deepcopy(network), 1, 0.1, arithmetic)
        loss = loss_of(model, x, precision)
        found[name] = []
        for beta in BETAS:
            row = []
            for alpha in ALPHAS:
                dr2net.set_coefficients(model, alpha, beta)
                try:
                    error = gradient_error(model, loss)
                except OverflowError:  # far from the schedule, streams grow beyond 64 bits
                    row.append("beyond range")
                else:
                    row.append(error if math.isfinite(error) else "NaN")
            found[name].append(row)
            print(f"{name}, beta {beta:g}:", *map(as_text, row), flush=True)
    return found


def as_text(error: float | str) -> str:
    """An error in two digits."""
    return error if isinstance(error, str) else f"{error:.2g}"


def main() -> None:
    """Measure, and write the result file and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=positive, default=24, help="blocks")
    parser.add_argument("--size", type=positive, default=112, help="pixels of a side")
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder to write to")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    # The float inverse is there to be measured, untrustworthy as it is.
    warnings.filterwarnings("ignore", message=".*gradients cannot be trusted")
    errors = measure(arguments.depth, arguments.size, arguments.precision)
    rows = [
        {"arithmetic": name}
        | {
            f"({alpha:g}, {beta:g})": as_text(errors[name][BETAS.index(beta)][ALPHAS.index(alpha)])
            for alpha, beta in PAIRS
        }
        for name in errors
    ]
    print(f"\n{markdown_table(list(rows[0]), rows)}\n")
    tokens = (arguments.size // 16) ** 2
    result = {
        "title": (
            f"Gradient error against stored activations, ViT of width 192 with {arguments.depth} "
            f"blocks, {tokens} tokens, {arguments.precision}."
        ),
        **origin("tools/benchmarks/gradient_error.py", ["timm"], "cpu"),
        "columns": list(rows[0]),
        "rows": rows,
        "notes": (
            "Relative L2 difference of the gradients of all parameters from those of the same "
            "equations with activations stored: where the schedule starts and ends, and at two "
            "(α, β) near its way. NaN: not numbers."
        ),
        "alphas": ALPHAS,
        "betas": BETAS,
        "errors": errors,
    }
    path = arguments.results / "gradient_error.json"
    write_json(path, result)
    draw_error_plane(path.with_suffix(".png"), result)


if __name__ == "__main__":
    main()
