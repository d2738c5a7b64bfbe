"""Blocks whose parameters FSDP2 shards: gathered around their couplings.

``torch.distributed.fsdp.fully_shard(block)`` hangs hooks on the block: parameters are gathered
before its forward and before its backward, and after its backward gradients are reduced. A chain
runs a block's branches and never its forward, so it calls these hooks itself, before the block's
first coupling and after its last. They stand outside of the couplings' autograd nodes, so that the
recomputation in backward finds the parameters gathered, and hands their gradients to FSDP2 like
any other node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

__all__ = ["after_couplings", "before_couplings", "is_sharding_hook", "refuse_sharded"]


def is_sharding_hook(hook: Callable[..., Any]) -> bool:
    """Whether ``fully_shard`` has put this hook on a module."""
    return getattr(hook, "__module__", "").startswith("torch.distributed.fsdp.")


def refuse_sharded(modules: Iterable[nn.Module], remedy: str) -> None:
    """Raises ValueError, ending in ``remedy``, if ``fully_shard`` was called on one of them."""
    for module in modules:
        if any(map(is_sharding_hook, module._forward_pre_hooks.values())):
            raise ValueError(f"fully_shard was called on a {_original_name(module)}: {remedy}")


def before_couplings(block: nn.Module, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Gathers the block's parameters if they are sharded; returns the tensors to go on with.

    Raises:
        TypeError: a mixed-precision policy would cast the tensors.
    """
    given = tensors
    for hook in block._forward_pre_hooks.values():
        if is_sharding_hook(hook):
            # None where another block of a group of blocks has gathered them.
            tensors, _ = hook(block, tensors, {}) or (tensors, {})
    _refuse_cast(block, given, tensors)
    return tensors


def after_couplings(block: nn.Module, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Frees what ``before_couplings`` gathered, until the backward of ``tensors``.

    Raises:
        TypeError: a mixed-precision policy would cast the tensors.
    """
    given = tensors
    for hook in block._forward_hooks.values():
        if is_sharding_hook(hook):
            tensors = hook(block, (), tensors) or tensors
    _refuse_cast(block, given, tensors)
    return tensors


def _refuse_cast(block: nn.Module, given: tuple[Tensor, ...], cast: tuple[Tensor, ...]) -> None:
    for before, now in zip(given, cast, strict=True):
        if before.dtype != now.dtype:
            raise TypeError(
                f"The mixed-precision policy of a {_original_name(block)} casts the stream of its "
                f"chain from {before.dtype} to {now.dtype}: give fully_shard the same policy for "
                f"the whole model, so that the chain's input is {now.dtype} already, or leave the "
                "policy out and use torch.autocast."
            )


def _original_name(module: nn.Module) -> str:
    """The name of a module's class, which ``fully_shard`` prefixes."""
    return type(module).__name__.removeprefix("FSDP")
