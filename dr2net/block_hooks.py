"""Hooks on the blocks of a chain, which runs a block's branches and never its forward.

``torch.distributed.fsdp.fully_shard(block)`` hangs hooks on the block: parameters are gathered
before its forward and before its backward, and after its backward gradients are reduced. They are
called before the block's first coupling and after its last, outside of the couplings' autograd
nodes, so that the recomputation in backward finds the parameters gathered, and hands their
gradients to FSDP2 like any other node. Hooks that observe are called there, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, distributed, nn

__all__ = [
    "after_couplings",
    "before_couplings",
    "has_own_hooks",
    "is_sharding_hook",
    "refuse_direct_call",
    "refuse_sharded",
    "several_processes",
]


def is_sharding_hook(hook: Callable[..., Any]) -> bool:
    """Whether ``fully_shard`` has put this hook on a module."""
    return getattr(hook, "__module__", "").startswith("torch.distributed.fsdp.")


def refuse_sharded(modules: Iterable[nn.Module], remedy: str) -> None:
    """Raises ValueError, ending in ``remedy``, if ``fully_shard`` was called on one of them."""
    for module in modules:
        if any(map(is_sharding_hook, module._forward_pre_hooks.values())):
            raise ValueError(f"fully_shard was called on a {_original_name(module)}: {remedy}")


def refuse_direct_call(block: nn.Module, inputs: tuple) -> None:
    """Hook on each block of a chain."""
    raise RuntimeError(
        f"This {type(block).__name__} is part of a reversible chain, and alone it would ignore α "
        "and β: call the chain, or chain.features(x, blocks=[...]) for the output of a block."
    )


def has_own_hooks(block: nn.Module) -> bool:
    """Whether a block has other hooks than those of a chain and of ``fully_shard``."""
    if len(block._forward_pre_hooks) <= 1 and not (
        block._forward_hooks or block._backward_hooks or block._backward_pre_hooks
    ):
        return any(hook is not refuse_direct_call for hook in block._forward_pre_hooks.values())
    hooks = [
        *block._forward_hooks.values(),
        *block._forward_pre_hooks.values(),
        *block._backward_hooks.values(),
        *block._backward_pre_hooks.values(),
    ]
    return not all(hook is refuse_direct_call or is_sharding_hook(hook) for hook in hooks)


def before_couplings(block: nn.Module, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Gathers the block's parameters if they are sharded; returns the tensors to go on with.

    Raises:
        TypeError: a mixed-precision policy would cast the tensors.
    """
    if len(block._forward_pre_hooks) == 1:  # refuse_direct_call
        return tensors
    given = tensors
    for number, hook in block._forward_pre_hooks.items():
        if is_sharding_hook(hook):
            # None where another block of a group of blocks has gathered them.
            tensors, _ = hook(block, tensors, {}) or (tensors, {})
        elif hook is not refuse_direct_call:
            extra = ({},) if number in block._forward_pre_hooks_with_kwargs else ()
            _refuse_change(block, hook(block, given[:1], *extra))
    _refuse_cast(block, given, tensors)
    return tensors


def after_couplings(block: nn.Module, entered: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Frees what ``before_couplings`` gathered, until the backward of ``tensors``.

    Args:
        entered: the stream before the block, for hooks that observe.

    Raises:
        TypeError: a mixed-precision policy would cast the tensors.
    """
    if not block._forward_hooks:
        return tensors
    given = tensors
    for number, hook in block._forward_hooks.items():
        if is_sharding_hook(hook):
            tensors = hook(block, (), tensors) or tensors
        else:
            extra = ({},) if number in block._forward_hooks_with_kwargs else ()
            _refuse_change(block, hook(block, (entered,), *extra, given[0]))
    _refuse_cast(block, given, tensors)
    return tensors


def _refuse_change(block: nn.Module, returned: Any) -> None:
    if returned is not None:
        raise ValueError(
            f"A hook on a {_original_name(block)} of a reversible chain returned something: hooks "
            "on its blocks can observe, not change. Put it on the block's submodules."
        )


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


def several_processes() -> bool:
    """Whether this process trains together with others."""
    return distributed.is_available() and distributed.is_initialized() and (
        distributed.get_world_size() > 1
    )
