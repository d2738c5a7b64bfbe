"""Which activations to keep under a memory budget, and what that saves in time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .block_hooks import refuse_sharded
from .branches import Branch
from .chain import ReversibleChain
from .conversion import chains, set_reversible
from .diagnostics import bytes_kept
from .selection import describe, trained_channels
from .verification import observed, projection, undisturbed

__all__ = ["Plan", "plan"]

GB = 10**9


@dataclass(frozen=True)
class Plan:
    """What of a network's activations fits into a budget.

    Attributes:
        keep: names of the blocks to keep: ``dr2net.set_reversible(model, True, keep=plan.keep)``.
        budget: in bytes.
        kept: bytes that autograd keeps from forward to backward, measured under this plan.
        transient: bytes that the recomputation of one module takes besides, at most.
        kept_if_rebuilt, kept_if_stored: ``kept`` with nothing and with everything stored; the
            second is predicted.
        seconds: of a training step without the optimizer, predicted from the measured times of the
            step with nothing stored and of the modules.
        seconds_if_rebuilt, seconds_if_stored: of the step with nothing and with everything stored.
        blocks: how many blocks the chains have.
        channels: what ``select_channels`` has train of the weights, in words; empty for all.
    """

    keep: tuple[str, ...]
    budget: int
    kept: int
    transient: int
    kept_if_rebuilt: int
    kept_if_stored: int
    seconds: float
    seconds_if_rebuilt: float
    seconds_if_stored: float
    blocks: int
    channels: str = ""

    @property
    def fits(self) -> bool:
        """Whether the step stays within the budget."""
        return self.kept + self.transient <= self.budget

    def __str__(self) -> str:
        verdict = "fits" if self.fits else "does not fit, even with nothing stored"
        lines = [
            f"{(self.kept + self.transient) / GB:.3f} GB of {self.budget / GB:.3f} GB: {verdict}.",
            f"Stored: {len(self.keep)} of {self.blocks} blocks"
            + (f" ({', '.join(self.keep)})." if self.keep else "."),
            "                 kept (GB)  one module (GB)  step (s)",
        ]
        for name, kept, seconds in (
            ("nothing stored", self.kept_if_rebuilt, self.seconds_if_rebuilt),
            ("this plan", self.kept, self.seconds),
            ("all stored", self.kept_if_stored, self.seconds_if_stored),
        ):
            transient = 0 if name == "all stored" else self.transient
            lines.append(f"{name:15} {kept / GB:10.3f} {transient / GB:16.3f} {seconds:9.3f}")
        if self.channels:
            lines.append(f"Of the weights, {self.channels}.")
        return "\n".join(lines)


@dataclass
class _Block:
    """A block of a chain: what storing it costs and saves."""

    name: str
    stored: int = 0  # bytes that its modules store
    largest: int = 0  # bytes that the largest of them stores
    remainders: int = 0  # bytes kept of it where it is rebuilt
    streams: int = 0  # bytes of a pair of streams
    entered: int = 0  # bytes of the x that enters it
    seconds: float = 0.0  # of its forward


def plan(model: nn.Module, *inputs: Any, budget_gb: float, **named_inputs: Any) -> Plan:
    """Finds blocks whose activations fit into a budget, so that they need no recomputation.

    Of each chain the last blocks are kept, as their activations are held for the shortest time;
    among chains those first whose recomputation takes longest for the bytes. Parameters, their
    gradients and the optimizer's state are not part of the budget. Runs a few training steps with
    nothing stored and a forward under the plan; leaves the network, its gradients, buffers and
    random streams as they were.

    Args:
        model: a converted network at β > 0.
        inputs, named_inputs: what it is called with: a batch of the size to plan for.
        budget_gb: memory for activations, in 10^9 bytes.

    Raises:
        ValueError: the network has no chains, or is not at β > 0, or the budget is not positive.
    """
    refuse_sharded(model.modules(), "plan before it is sharded.")
    found = [chain for chain in chains(model) if chain.rebuilds()]
    if not found:
        raise ValueError("Nothing to plan: convert the network and set a beta above 0.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("Nothing to plan: every parameter is frozen.")
    if not budget_gb > 0:
        raise ValueError(f"budget_gb={budget_gb}: give a positive number of 10^9 bytes.")
    budget = int(budget_gb * GB)
    settings = [(chain.reversible, chain.keep) for chain in found]
    try:
        set_reversible(model, True, keep=())

        def forward() -> Any:
            with undisturbed(model):
                return model(*inputs, **named_inputs)

        rebuilt, blocks = measure_blocks(model, found, forward)
        _time_modules(blocks, forward)
        seconds = min(step_seconds(model, forward) for _ in range(3))
        rows = [[blocks[c, key] for key in keys] for c in found for keys in c.stretches()]
        keep, kept = _choose(model, rows, forward, rebuilt, budget)
    finally:
        for chain, (reversible, before) in zip(found, settings, strict=True):
            chain.reversible, chain.keep = reversible, before
    every = list(blocks.values())
    of_streams = sum(row[-1].streams for row in rows)
    return Plan(
        keep=keep,
        budget=budget,
        kept=kept,
        transient=max((block.largest for block in every if block.name not in keep), default=0),
        kept_if_rebuilt=rebuilt,
        kept_if_stored=rebuilt - of_streams + sum(b.stored - b.remainders for b in every),
        seconds=seconds - sum(block.seconds for block in every if block.name in keep),
        seconds_if_rebuilt=seconds,
        seconds_if_stored=seconds - sum(block.seconds for block in every),
        blocks=len(every),
        channels=describe(list(trained_channels(model))),
    )


def measure_blocks(
    model: nn.Module, found: list[ReversibleChain], forward: Callable[[], Any]
) -> tuple[int, dict[tuple[ReversibleChain, str], _Block]]:
    """Bytes that ``forward`` keeps, and what each block of the chains ``found`` has a part in."""
    paths = {chain: name for name, chain in model.named_modules() if chain in found}
    keys = [(chain, key) for chain in found for key in chain.coupled_keys()]
    blocks = {(chain, key): _Block(f"{paths[chain]}.{key}".lstrip(".")) for chain, key in keys}
    kept = bytes_kept(forward)
    _measure(blocks, forward, _count_bytes)
    return kept, blocks


def _choose(
    model: nn.Module,
    rows: list[list[_Block]],
    forward: Callable[[], Any],
    rebuilt: int,
    budget: int,
) -> tuple[tuple[str, ...], int]:
    """The names of the blocks to keep and the bytes that are then kept, measured."""
    chosen: list[_Block] = []
    waiting = [list(row) for row in rows if row]
    predicted = rebuilt
    while waiting:
        row = max(waiting, key=lambda row: row[-1].seconds / max(row[-1].stored, 1))
        block = row.pop()
        left = [other.largest for others in (*waiting, row) for other in others]
        more = block.stored - block.remainders - (0 if row else block.streams)
        if predicted + more + max(left, default=0) > budget:
            waiting.remove(row)  # one that does not fit ends its chain's
            continue
        predicted += more
        chosen.append(block)
        waiting = [others for others in waiting if others]
    while True:
        keep = tuple(block.name for row in rows for block in row if block in chosen)
        set_reversible(model, True, keep)
        kept = bytes_kept(forward)
        left = [b.largest for row in rows for b in row if b not in chosen]
        if not chosen or kept + max(left, default=0) <= budget:
            return keep, kept
        chosen.pop()  # what the prediction missed, such as storages that modules share


def _measure(
    blocks: dict[tuple[ReversibleChain, str], _Block],
    forward: Callable[[], Any],
    observe: Callable[[ReversibleChain, _Block, Branch], Branch],
) -> None:
    """Runs ``forward`` with every module observed on behalf of its block."""
    found = list(dict.fromkeys(chain for chain, _ in blocks))
    with observed(found, lambda chain, key, branch: observe(chain, blocks[chain, key], branch)):
        forward()


def _count_bytes(chain: ReversibleChain, block: _Block, branch: Branch) -> Branch:
    def run(module: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        outputs: list[Tensor] = []
        call = partial(branch, module, x, *args, **kwargs)
        side = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        stored = bytes_kept(lambda: outputs.append(call()), besides=side)
        arithmetic = chain.make_arithmetic(chain.get_coefficients()[1], x)
        stream = arithmetic.encode(x)
        _, remainder = arithmetic.scale(stream)
        block.stored += stored
        block.largest = max(block.largest, stored)
        block.remainders += 0 if remainder is None else remainder.nbytes
        block.streams = 2 * stream.nbytes
        block.entered = block.entered or x.nbytes
        return outputs[0]

    return run


def _time_modules(
    blocks: dict[tuple[ReversibleChain, str], _Block], forward: Callable[[], Any]
) -> None:
    """The shortest of three times: whatever else the machine does makes them longer."""
    shortest = dict.fromkeys(blocks, math.inf)
    for _ in range(3):
        for block in blocks.values():
            block.seconds = 0.0
        _measure(blocks, forward, _take_time)
        shortest = {place: min(shortest[place], blocks[place].seconds) for place in blocks}
    for place, seconds in shortest.items():
        blocks[place].seconds = seconds


def _take_time(chain: ReversibleChain, block: _Block, branch: Branch) -> Branch:
    def run(module: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        start = _now(x.device)
        output = branch(module, x, *args, **kwargs)
        block.seconds += _now(x.device) - start
        return output

    return run


def step_seconds(model: nn.Module, forward: Callable[[], Any]) -> float:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = parameters[0].device
    start = _now(device)
    torch.autograd.grad(projection(forward()), parameters, allow_unused=True)
    return _now(device) - start


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
    return time.perf_counter()
