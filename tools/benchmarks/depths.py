"""Where a Dr²Net takes less memory than the best of the others does with as much work, by depth.

    python tools/benchmarks/depths.py  # writes results/depths.json and .png, in some minutes

Peaks of whole steps from PyTorch's allocator, which are the same whatever else a machine does; work
is counted, in products of matrices and attention. The network is a ViT-L in small, on 16 clips of
1,568 tokens: 16 times narrower on 16 times fewer tokens, so that weights, activations and slices of
MLPs are to each other as there. Needs torch, timm and matplotlib.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from dataclasses import replace
from math import log2
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from tools.arguments import positive
from tools.benchmarks.candidates import loss_of, make_candidate, trained
from tools.benchmarks.checkpointing import SLICE_TOKENS
from tools.benchmarks.measurements import peak_bytes, take_step
from tools.benchmarks.methods import CONVENTIONAL, IN_SLICES, LINE, METHODS
from tools.benchmarks.pictures import draw_depths
from tools.result_files import markdown_table, origin, write_json

WIDTH, HEADS, PIXELS, PATCH, BATCH = 64, 1, 112, 4, 2
PRECISION = "bfloat16"  # by autocast, as such networks are trained

# But selective checkpointing, which keeps more than any of these.
OTHERS = (
    CONVENTIONAL,
    *(
        name
        for name, method in METHODS.items()
        if name.startswith("checkpoint") and not method.needs
    ),
)
HELD = {
    f"Dr²Net, exact ({text}){kind}": int(-log2(beta))
    for text, beta in LINE.items()
    for kind in ("", f", {IN_SLICES}", ", whole blocks")
    if beta > 2**-4
}
# Of counted work that is the same: what the arithmetic of the streams takes, by the benchmark.
TOLERANCE = 0.02

aten = torch.ops.aten


def count_attention(*shapes: object, **_: object) -> int:
    """Operations of attention, from the shapes of query, key and value, which come first."""
    return sdpa_flop_count(*shapes[:3])


def count_attention_backward(*shapes: object, **_: object) -> int:
    """Those of its backward, from the shapes of its gradient, query, key and value."""
    return sdpa_backward_flop_count(*shapes[:4])


# Of a CPU's attention, which PyTorch's counter does not know.
COUNTS = {
    aten._scaled_dot_product_flash_attention_for_cpu: count_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: count_attention_backward,
}


def build(depth: int) -> nn.Module:
    """The network, in training mode."""
    return timm.models.VisionTransformer(
        img_size=PIXELS, patch_size=PATCH, embed_dim=WIDTH, depth=depth, num_heads=HEADS,
        num_classes=10, class_token=False, global_pool="avg",
    ).train()  # fmt: skip


def count_work(loss: Callable[[], Tensor]) -> int:
    """Operations in products and attention of a step."""
    with FlopCounterMode(display=False, custom_mapping=COUNTS) as counter:
        take_step(loss)
    return counter.get_total_flops()


def works() -> dict[str, int]:
    """What one block of each method's network takes, and the stem and the head."""
    torch.manual_seed(0)
    original, images = build(1), torch.randn(BATCH, 3, PIXELS, PIXELS)
    found = {}
    for name in (*OTHERS, *HELD):
        # How many blocks are recomputed at once makes no difference.
        method = replace(METHODS[name], settings=METHODS[name].settings[:1])
        candidate = make_candidate(method, original, images, PRECISION, "cpu")
        found[name] = count_work(loss_of(candidate.forward, images, PRECISION))
    return found


def measure(depth: int) -> dict[str, dict]:
    """Return ``peak`` of each method, in bytes, and ``setting`` where there was a choice."""
    torch.manual_seed(0)
    original, images = build(depth), torch.randn(BATCH, 3, PIXELS, PIXELS)
    found = {}
    for name in (*OTHERS, *HELD):
        candidate = make_candidate(METHODS[name], original, images, PRECISION, "cpu")
        if candidate.peaks:
            peak = candidate.peaks[candidate.setting]
            found[name] = {"peak": peak, "setting": candidate.setting}
        else:
            loss = loss_of(candidate.forward, images, PRECISION)
            found[name] = {"peak": peak_bytes(loss, trained(candidate.network), "cpu")["peak"]}
        print(f"{depth} blocks, {name}: {found[name]['peak'] / 1e6:.2f} MB", flush=True)
        del candidate
        gc.collect()
    return found


def best_of_others(found: dict[str, dict], work: dict[str, int], name: str, bfloat16: bool) -> str:
    """Of the other methods that work no more than ``name``, that with the lowest peak.

    Args:
        bfloat16: whether those that round the stream are allowed too.
    """
    allowed = [
        other
        for other in OTHERS
        if work[other] <= work[name] * (1 + TOLERANCE) and (bfloat16 or "bfloat16" not in other)
    ]
    return min(allowed, key=lambda other: found[other]["peak"])


def rows_of(by_depth: dict[int, dict[str, dict]], work: dict[str, int]) -> list[dict[str, str]]:
    """The table: peaks by depth, and of a Dr²Net's the shares of those of the best others."""
    rows = []
    for name in (*OTHERS, *HELD):
        row = {
            "method": name,
            "bits": str(HELD.get(name, "")),
            "work": f"{work[name] / work[CONVENTIONAL]:.2f}",
        }
        for depth, found in by_depth.items():
            setting = f" ({found[name]['setting']:g})" if "setting" in found[name] else ""
            row[f"{depth} blocks (MB)"] = f"{found[name]['peak'] / 1e6:.2f}{setting}"
        for bfloat16, column in ((False, "/ best"), (True, "/ best, or in bfloat16")):
            shares = [
                found[name]["peak"] / found[best_of_others(found, work, name, bfloat16)]["peak"]
                for found in by_depth.values()
            ]
            row[column] = " · ".join(f"{share:.2f}" for share in shares) if name in HELD else ""
        rows.append(row)
    return rows


NOTES = (
    "ViT of width {width} on {tokens:,} tokens, in bfloat16 by autocast: a ViT-L on 16 clips of "
    "1,568 tokens, 16 times narrower on 16 times fewer tokens. By blocks: the peak of a step "
    "beyond weights and gradients of the parameters, exact, from PyTorch's allocator on a CPU, 1 "
    "MB = 10^6 bytes; in brackets how many blocks recomputed at once had the lowest, 0.5 for "
    "attention and MLP apart. Work: operations in products and attention of a step, counted, as a"
    " share of conventional's. / best: by depth, the peak as a share of the lowest of others that"
    " work no more; first without, then with those that round the stream to bfloat16. Bits: that "
    "a Dr²Net keeps of an element and module. Slices: of {slice_tokens} tokens."
)


def main() -> None:
    """Measure, and write the result file and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", nargs="+", type=positive, default=[12, 24, 40])
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder to write to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # more would not be faster at this size
    work = works()
    measured = {depth: measure(depth) for depth in arguments.depths}
    rows = rows_of(measured, work)
    print(f"\n{markdown_table(list(rows[0]), rows)}\n")
    result = {
        "title": "Peak of a step by depth, beside the best of the others with as much work.",
        **origin("tools/benchmarks/depths.py", ["timm"]),
        "columns": list(rows[0]),
        "rows": rows,
        "notes": NOTES.format(
            width=WIDTH, tokens=BATCH * (PIXELS // PATCH) ** 2, slice_tokens=SLICE_TOKENS["cpu"]
        ),
        "work": work,
        "measured": measured,
    }
    path = arguments.results / "depths.json"
    write_json(path, result)
    draw_depths(path.with_suffix(".png"), result)


if __name__ == "__main__":
    main()
