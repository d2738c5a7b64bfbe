"""What a training step costs the host, on tensors so small that nothing else counts.

    python tools/benchmarks/host.py
    python tools/benchmarks/host.py --out results/benchmark_host.json

A ViT of 12 blocks, width 48 and 4 tokens. On a GPU a step takes the longer of the time that its
kernels take and the time that the host takes to launch them, and this is the second. A CPU runs a
move of the streams in many small operations where a GPU runs one kernel: "as one operation a move"
counts each move as one. All ways take turns, step by step, after a warm-up; ratios are of steps of
the same turn. Needs torch and timm.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import timm
import torch
from torch import Tensor, nn

import dr2net
from dr2net.conversion.timm_vit import attention, mlp
from dr2net.kernels.arithmetic import FloatArithmetic
from tools.arguments import positive
from tools.benchmarks.checkpointing import checkpointed
from tools.benchmarks.measurements import quartiles, seconds_of_step
from tools.benchmarks.methods import reversible
from tools.result_files import markdown_table, origin, write_json

DEPTH, WIDTH, TOKENS = 12, 48, 4
CHECKPOINT = "checkpoint, every block"
BARE = "one autograd node a coupling, no checks"
ONE_OPERATION = "Dr²Net (0, 1), as one operation a move"


class OneOperation(FloatArithmetic):
    """Moves of one operation each: what kernels make of them on a GPU."""

    def encode(self, x: Tensor) -> Tensor:
        return x.detach()

    def decode(self, stream: Tensor) -> Tensor:
        return stream.detach()

    def scale(self, x: Tensor, keep_remainder: bool = True) -> tuple[Tensor, None]:
        return x, None

    def unscale(self, y: Tensor, remainder: Tensor | None) -> Tensor:
        return y


@contextmanager
def one_operation_a_move() -> Iterator[None]:
    """Has chains of (0, 1) compute so, with peaks that cost nothing, as in a kernel."""
    arithmetic, zeros = OneOperation(1.0, torch.float32), (torch.zeros(()),) * 2

    def make_arithmetic(*_: object) -> OneOperation:
        return arithmetic

    def peak(_: Tensor) -> tuple[Tensor, Tensor]:
        return zeros

    # Functions and not mocks, whose calls take their time.
    with (
        mock.patch("dr2net.chain.make_arithmetic", make_arithmetic),
        mock.patch("dr2net.streams.peak", peak),
    ):
        yield


class Bare(nn.Module):
    """The least that a reversible network can do: a node a coupling, nothing checked.

    Args:
        slices: that each MLP runs over, one after the other.
    """

    def __init__(self, blocks: nn.Sequential, slices: int = 1):
        super().__init__()
        self.blocks = blocks
        self.parts = [
            (block, branch, [p for n in names for p in block.get_submodule(n).parameters()], count)
            for block in blocks
            for branch, names, count in (
                (attention, ("norm1", "attn"), 1),
                (mlp, ("norm2", "mlp"), slices),
            )
        ]

    def forward(self, x: Tensor, **_: object) -> Tensor:
        pair = [x.detach(), x.detach()]
        y = x
        for block, branch, parameters, slices in self.parts:
            with torch.enable_grad():
                outputs = [branch(block, part, 0.0).detach() for part in _cut(x, slices)]
            output = _joined(outputs)
            x, y = _BareNode.apply(pair, partial(branch, block), slices, output, x, y, *parameters)
        return x


class _BareNode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pair, module, slices, output, x, y, *parameters):
        ctx.pair, ctx.module, ctx.slices, ctx.parameters = pair, module, slices, parameters
        pair[0], pair[1] = pair[1] + output, pair[0]
        return pair[0].detach(), pair[1].detach()

    @staticmethod
    def backward(ctx, grad_x, grad_y):
        pair = ctx.pair
        outputs, of_x, sums = [], [], []
        for part, grad in zip(_cut(pair[1], ctx.slices), _cut(grad_x, ctx.slices), strict=True):
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                output = ctx.module(part, 0.0)
            outputs.append(output.detach())
            found, *grads = torch.autograd.grad(output, (part, *ctx.parameters), grad)
            of_x.append(found)
            sums = [a.add_(b) for a, b in zip(sums, grads, strict=True)] if sums else grads
        pair[0], pair[1] = pair[1], pair[0] - _joined(outputs)
        return None, None, None, None, _joined(of_x) + grad_y, grad_x, *sums


def _cut(x: Tensor, slices: int) -> Sequence[Tensor]:
    return [x] if slices == 1 else x.chunk(slices, dim=1)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def bare(model: nn.Module, slices: int = 1) -> nn.Module:
    """``model`` with its blocks run by ``Bare``."""
    model.blocks = Bare(model.blocks, slices)
    return model


def in_two_slices(model: nn.Module) -> nn.Module:
    """A Dr²Net whose MLPs run over two slices of tokens."""
    dr2net.slice_mlps(reversible(model, 0.875, 0.125), TOKENS // 2)
    return model


METHODS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "conventional": lambda model: model,
    CHECKPOINT: checkpointed,
    BARE: bare,
    f"{BARE}, MLPs in 2 slices": partial(bare, slices=2),
    ONE_OPERATION: partial(reversible, alpha=0, beta=1),
    "Dr²Net (0, 1)": partial(reversible, alpha=0, beta=1),
    "Dr²Net (7/8, 1/8)": partial(reversible, alpha=0.875, beta=0.125),
    "Dr²Net (0.9, 0.1)": partial(reversible, alpha=0.9, beta=0.1),
    "Dr²Net (7/8, 1/8), MLPs in 2 slices": in_two_slices,
}


def measure(steps: int, warmup: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of each method's steps, which take turns."""
    networks = {}
    for name, method in METHODS.items():
        torch.manual_seed(0)
        network = timm.models.VisionTransformer(
            img_size=16, patch_size=8, embed_dim=WIDTH, num_heads=3, depth=DEPTH, num_classes=5,
            class_token=False, global_pool="avg",
        )  # fmt: skip
        networks[name] = method(network.to(device).train())
    x = torch.randn(1, 3, 16, 16, device=device)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for step in range(warmup + steps):
        for name, network in networks.items():
            network.zero_grad()
            context = one_operation_a_move() if name == ONE_OPERATION else nullcontext()
            with context:
                taken = seconds_of_step(lambda network=network: network(x).sum(), device)
            if step >= warmup:
                seconds[name].append(taken)
    return seconds


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=positive, default=100, help="timed steps of each")
    parser.add_argument("--warmup", type=int, default=10, help="untimed steps of each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="result file (JSON) to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seconds = measure(arguments.steps, arguments.warmup, arguments.device)
    reference = seconds[CHECKPOINT]
    rows = []
    for name, values in seconds.items():
        ratios = [value / other for value, other in zip(values, reference, strict=True)]
        rows.append(
            {
                "method": name,
                "ms/step": quartiles([1e3 * value for value in values], 1),
                "time / checkpoint": "" if name == CHECKPOINT else quartiles(ratios),
                "µs/coupling": f"{1e6 * statistics.median(values) / (2 * DEPTH):.0f}",
            }
        )
    columns = list(rows[0])
    print(markdown_table(columns, rows))
    if arguments.out:
        result = {
            "title": f"The host's part of a step: a ViT of {DEPTH} blocks, width {WIDTH}, "
            f"{TOKENS} tokens, float32.",
            **origin("tools/benchmarks/host.py", ["timm"], arguments.device),
            "columns": columns,
            "rows": rows,
            "notes": "Median (quartiles) of steps, the methods taking turns; ratios are of steps "
            "of the same turn. A CPU runs a move of the streams in many small operations, a GPU in "
            "one kernel.",
            "seconds": seconds,
        }
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
