"""What converting has brought: chains, what they keep, and where they do not pay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .block_hooks import refuse_sharded
from .conversion import chains, get_coefficients, set_reversible
from .diagnostics import bytes_kept
from .planning import measure_blocks, step_seconds
from .selection import describe, trained_channels
from .verification import undisturbed

__all__ = ["ChainSummary", "Summary", "summary"]

MB = 10**6


@dataclass(frozen=True)
class ChainSummary:
    """What one chain keeps of a step, in bytes: of all its rows of couplings together.

    Attributes:
        name: of the chain.
        blocks: how many are couplings; blocks that change the shape are not.
        couplings: modules that run again one by one.
        stored: activations of its blocks that autograd keeps without Dr²Net.
        kept: streams and remainders.
        module: activations of the largest module, which live while it is recomputed.
        checkpointed: what checkpointing each block would keep.
        block: activations of the largest block, which live while that is recomputed.
    """

    name: str
    blocks: int
    couplings: int
    stored: int
    kept: int
    module: int
    checkpointed: int
    block: int

    @property
    def pays(self) -> bool:
        """Whether it takes less memory than checkpointing each block."""
        return self.kept + self.module < self.checkpointed + self.block


@dataclass(frozen=True)
class Summary:
    """What a converted network keeps and what that costs; ``print`` shows a table.

    Attributes:
        alpha, beta: the coefficients.
        chains: in the order in which the network holds them.
        kept, stored: bytes that autograd keeps of the whole network, rebuilt and stored.
        seconds, seconds_stored: of a training step without the optimizer, rebuilt and stored.
        channels: what ``select_channels`` has train of the weights, in words; empty for all.
    """

    alpha: float
    beta: float
    chains: tuple[ChainSummary, ...]
    kept: int
    stored: int
    seconds: float
    seconds_stored: float
    channels: str = ""

    def __str__(self) -> str:
        width = max(len("chain"), *(len(chain.name) for chain in self.chains))
        lines = [
            f"Dr²Net at (alpha, beta) = ({self.alpha:g}, {self.beta:g}), in MB:",
            f"{'chain':{width}}  blocks  couplings     stored  checkpointed + a block  "
            "kept + a module",
        ]
        for chain in self.chains:
            sizes = (chain.stored, chain.checkpointed, chain.block, chain.kept, chain.module)
            stored, checkpointed, block, kept, module = (size / MB for size in sizes)
            lines.append(
                f"{chain.name:{width}}  {chain.blocks:6}  {chain.couplings:9}  {stored:9.1f}  "
                f"{checkpointed:12.1f} + {block:7.1f}  {kept:6.1f} + {module:6.1f}"
            )
        without = [chain.name for chain in self.chains if not chain.pays]
        if without:
            lines.append(
                f"Checkpointing would take less in {', '.join(without)}: too few blocks, or "
                "modules that take more than all the rest."
            )
        lines.append(
            f"The whole network keeps {self.kept / MB:.1f} MB instead of {self.stored / MB:.1f} "
            f"({self.kept / max(self.stored, 1):.2f}); a step takes {self.seconds:.3g} s instead "
            f"of {self.seconds_stored:.3g} ({self.seconds / self.seconds_stored:.2f})."
        )
        if self.channels:
            lines.append(f"Of the weights, {self.channels}.")
        return "\n".join(lines)


def summary(model: nn.Module, *inputs: Any, **named_inputs: Any) -> Summary:
    """Measures what a converted network keeps of a training step, and what that costs.

    Runs a few steps in the mode that the network is in, on the inputs; leaves the network, its
    gradients, buffers and random streams as they were. Bytes are of activations alone: weights,
    gradients and the optimizer's state come on top.

    Args:
        model: a converted network at β > 0.
        inputs, named_inputs: what it is called with.

    Raises:
        ValueError: the network has no chains, or rebuilds nothing, at β = 0.
    """
    refuse_sharded(model.modules(), "measure the network before it is sharded.")
    alpha, beta = get_coefficients(model)
    if beta == 0:
        raise ValueError("At beta=0 nothing is rebuilt: set a beta from 2^-8 to 1 first.")
    found = chains(model)
    settings = [(chain.reversible, chain.keep) for chain in found]

    def forward() -> Any:
        with undisturbed(model):
            return model(*inputs, **named_inputs)

    try:
        set_reversible(model, True, keep=())
        kept, blocks = measure_blocks(model, found, forward)
        seconds = min(step_seconds(model, forward) for _ in range(3))
        set_reversible(model, False)
        stored = bytes_kept(forward)
        seconds_stored = min(step_seconds(model, forward) for _ in range(3))
    finally:
        for chain, (reversible, keep) in zip(found, settings, strict=True):
            chain.reversible, chain.keep = reversible, keep
    rows = []
    for chain in found:
        of_chain = [blocks[chain, key] for key in chain.coupled_keys()]
        ends = [blocks[chain, keys[-1]].streams for keys in chain.stretches()]
        rows.append(
            ChainSummary(
                name=chain.name,
                blocks=len(of_chain),
                couplings=len(of_chain) * len(chain.branches),
                stored=sum(block.stored for block in of_chain),
                kept=sum(ends) + sum(block.remainders for block in of_chain),
                module=max((block.largest for block in of_chain), default=0),
                checkpointed=sum(block.entered for block in of_chain),
                block=max((block.stored for block in of_chain), default=0),
            )
        )
    channels = describe(list(trained_channels(model)))
    return Summary(alpha, beta, tuple(rows), kept, stored, seconds, seconds_stored, channels)
