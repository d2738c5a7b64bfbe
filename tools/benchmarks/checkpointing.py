"""Checkpointing of a network's blocks: how many at a time, in slices, in bfloat16, by whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import dr2net
from dr2net.branches import Slices
from dr2net.conversion.mlps import can_be_sliced

Part = Callable[[Tensor], Tensor]

# Tokens of a slice of an MLP, by device: a GPU needs more of them to be filled.
SLICE_TOKENS = {"cpu": 512, "cuda": 8192}

aten = torch.ops.aten
# What selective checkpointing keeps: the products, whose recomputation takes most of the time.
PRODUCTS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def run_checkpoint(part: Part, x: Tensor, **options: Any) -> Tensor:
    """``torch.utils.checkpoint`` as PyTorch recommends it."""
    return checkpoint(part, x, use_reentrant=False, **options)


class Checkpointed(nn.Module):
    """Blocks that are recomputed in backward part by part, each from its stored input.

    Args:
        blocks: those that stood here.
        parts: functions that compute what the blocks do, one after the other.
        bfloat16: whether what lies between them is.
    """

    def __init__(self, blocks: nn.Sequential, parts: Iterable[Part], bfloat16: bool):
        super().__init__()
        self.blocks, self.parts, self.bfloat16 = blocks, list(parts), bfloat16

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x.bfloat16() if self.bfloat16 else x
        for part in self.parts:
            x = part(x)
        return x.to(dtype)


class Sliced(nn.Module):
    """An MLP that runs over slices of tokens, each recomputed when its gradient is asked for."""

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        return _run_slices(run_checkpoint, self.mlp, x)


def checkpointed(
    model: nn.Module,
    every: float = 1,
    *,
    run: Callable[[Part, Tensor], Tensor] = run_checkpoint,
    sliced: bool = False,
    bfloat16: bool = False,
) -> nn.Module:
    """Checkpointing in every container of blocks: a ViT's, or those of a Swin's stages.

    Args:
        every: how many blocks are recomputed from one stored input; ½: attention and MLP apart.
        run: what checkpoints.
        sliced: whether MLPs run over slices of ``SLICE_TOKENS``. Apart from attention a slice is
            recomputed once, as all else is; within a block, MLPs are recomputed twice.
        bfloat16: whether what is stored is, whatever the blocks compute in.
    """
    owners = [
        part for part in model.modules() if isinstance(getattr(part, "blocks", None), nn.Sequential)
    ]
    halves = _halves(model, owners) if every < 1 else []
    for place, owner in enumerate(owners):
        blocks = owner.blocks
        if every < 1:
            parts = [
                (partial(_half, *pair), sliced and can_be_sliced(*pair)) for pair in halves[place]
            ]
        else:
            starts = range(0, len(blocks), int(every))
            parts = [(blocks[start : start + int(every)], False) for start in starts]
            for block in blocks if sliced else ():
                block.mlp = Sliced(block.mlp)
        if bfloat16:
            parts = [(partial(_in_bfloat16, part), in_slices) for part, in_slices in parts]
        recomputed = [
            partial(_run_slices, run, part) if in_slices else partial(run, part)
            for part, in_slices in parts
        ]
        owner.blocks = Checkpointed(blocks, recomputed, bfloat16)
    return model


def _halves(model: nn.Module, owners: list[nn.Module]) -> list[list[tuple[nn.Module, Callable]]]:
    """Of each owner's blocks, in order, (block, function of its attention or of its MLP)."""
    dr2net.convert(model, 1, 0)  # whose modules are those of the pretrained network
    found = [owner.blocks.couplings() for owner in owners]
    dr2net.revert(model)
    return found


def _half(block: nn.Module, branch: Callable[..., Tensor], x: Tensor) -> Tensor:
    return branch(block, x, 1.0)


def _run_slices(run: Callable[[Part, Tensor], Tensor], part: Part, x: Tensor) -> Tensor:
    slices = Slices(x, SLICE_TOKENS[x.device.type])
    return slices.join([run(part, tokens) for tokens in slices.cut(x)])


def _in_bfloat16(part: Part, x: Tensor) -> Tensor:
    # Autocast casts where it has to; without it weights are float32, and so must their input be.
    given = x if torch.is_autocast_enabled(x.device.type) else x.float()
    return part(given).bfloat16()


def checkpoint_selectively(part: Part, x: Tensor) -> Tensor:
    """The same with the results of matrix products and attention kept."""
    contexts = partial(create_selective_checkpoint_contexts, keep_products)
    return run_checkpoint(part, x, context_fn=contexts)


def keep_products(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Policy of selective checkpointing."""
    kept = operation in PRODUCTS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def remat(model: nn.Module, keep_attention: bool = False) -> nn.Module:
    """``torch_remat``'s checkpoint around every block; it can keep what a part of it computed."""
    import torch_remat

    def run(part: Part, x: Tensor) -> Tensor:
        return torch_remat.checkpoint()(part)(x)

    for module in model.modules() if keep_attention else ():
        if hasattr(module, "attn"):
            module.attn.forward = partial(_attend, module.attn.forward)
    return checkpointed(model, run=run)


def _attend(attention: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    import torch_remat

    output = torch_remat.region(attention, "attention", recompute=False)(*args, **kwargs)
    torch_remat.recompute_needs_tensor(output)
    return output
