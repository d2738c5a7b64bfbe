"""Blocks of a chain, which runs their branches and never their forward: hooks, and what it refuses.

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
    "is_observed",
    "is_sharded",
    "is_sharding_hook",
    "refuse_bearing_container",
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


def is_sharded(blocks: Iterable[tuple[str, nn.Module]]) -> bool:
    """Whether ``fully_shard`` was called on one of the blocks."""
    return any(
        is_sharding_hook(hook) for _, block in blocks for hook in block._forward_pre_hooks.values()
    )


def refuse_direct_call(block: nn.Module, inputs: tuple) -> None:
    """Hook on each block of a chain."""
    raise RuntimeError(
        f"This {type(block).__name__} is part of a reversible chain, and alone it would ignore α "
        "and β: call the chain, or chain.features(x, blocks=[...]) for the output of a block."
    )


def has_own_hooks(block: nn.Module) -> bool:
    """Whether a block has other hooks than those of a chain and of ``fully_shard``."""
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
    given = tensors
    for number, hook in block._forward_pre_hooks.items():
        if is_sharding_hook(hook):
            # None where another block of a group of blocks has gathered them.
            tensors, _ = hook(block, tensors, {}) or (tensors, {})
        elif hook is not refuse_direct_call:
            extra: tuple = ({},) if number in block._forward_pre_hooks_with_kwargs else ()
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
            extra: tuple = ({},) if number in block._forward_hooks_with_kwargs else ()
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


def is_observed(
    chain: str, blocks: Iterable[tuple[str, nn.Module]], classes: dict[str, type], allowed: bool
) -> bool:
    """Whether one of the ``blocks`` of a chain has hooks of others.

    Args:
        chain: its name.
        blocks: by name.
        classes: those whose forward the branches stand for; of new blocks they are added.
        allowed: whether such hooks, of forward, can be called.

    Raises:
        ValueError: they are not ``allowed``, or a block's forward is not the one that the branches
            stand for.
    """
    observed = False
    for key, block in blocks:
        kind: Any = type(block)
        expected: Any = classes.setdefault(key, kind)
        is_same = kind is expected or kind.forward is expected.forward
        own = block.__dict__.get("forward")
        if not is_same or (own is not None and not getattr(own, "is_of_a_chain", False)):
            _refuse_other_forward(chain, key, block, expected)
        if not has_own_hooks(block):
            continue
        observed = True
        if not allowed or block._backward_hooks or block._backward_pre_hooks:
            raise ValueError(
                f"block {key!r} ({kind.__name__}) of {chain} has hooks, which do not run in a "
                "reversible chain: remove them, put them on the block's submodules, or run them in "
                "eval mode, where those that observe forward run."
            )
    return observed


def _refuse_other_forward(chain: str, key: str, block: nn.Module, expected: type) -> None:
    what = (
        "has a forward of its own, put on the instance,"
        if "forward" in block.__dict__
        else f"has become a {type(block).__module__}.{type(block).__qualname__},"
    )
    raise ValueError(
        f"Block {key!r} ({expected.__name__}) of {chain} {what} which a reversible chain would not "
        f"run: it runs the branches that stand for {expected.__name__}.forward. Take it back, or "
        "put the change on the block's submodules."
    )


def refuse_bearing_container(blocks: nn.Module) -> None:
    """Raises ValueError if the container holds more than blocks, which the chain would lose."""
    hooks = any(
        (
            blocks._forward_hooks,
            blocks._forward_pre_hooks,
            blocks._backward_hooks,
            blocks._backward_pre_hooks,
        )
    )
    own = [*blocks._parameters, *blocks._buffers]
    if hooks or own:
        raise ValueError(
            f"The {type(blocks).__name__} of blocks has {'hooks' if hooks else own} of its own, "
            "which a chain does not take over: remove them, or put them on the network or within "
            "the blocks."
        )
