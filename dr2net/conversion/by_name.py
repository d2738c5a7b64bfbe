"""Any network: its lists of blocks, by name, become chains; the loops over them stay its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..branches import stream_of
from ..loop import LoopedChain

__all__ = [
    "as_call",
    "candidates",
    "describe_lists",
    "in_eval_mode",
    "lists_seen",
    "require_calls",
    "split_lists",
]


def as_call(example: Any) -> tuple[tuple, dict[str, Any]]:
    """(args, kwargs) of a call: an example is one tensor, a tuple, or a dict of named inputs."""
    if isinstance(example, dict):
        return (), example
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def split_lists(model: nn.Module, names: str | Collection[str]) -> None:
    """Puts a ``LoopedChain`` where each of the named lists of blocks stands.

    Args:
        names: of ``nn.ModuleList``s and ``nn.Sequential``s of blocks, or patterns
            (``"layers.*.blocks"``).

    Raises:
        ValueError: a name fits no list of blocks.
    """
    patterns = [names] if isinstance(names, str) else list(names)
    found = dict.fromkeys(name for pattern in patterns for name in _matching(model, pattern))
    for name in found:
        parent, _, key = name.rpartition(".")
        model.get_submodule(parent)._modules[key] = LoopedChain(model.get_submodule(name))


def require_calls(model: nn.Module, example: Any) -> None:
    """Runs a converted network on an example, with gradients on.

    Raises:
        ValueError: no block of a list was called, or none keeps the shape of its stream.
    """
    args, kwargs = as_call(example)
    with in_eval_mode(model), torch.enable_grad():
        model(*args, **kwargs)
    for chain in model.modules():
        if isinstance(chain, LoopedChain) and not chain.was_called:
            raise ValueError(
                f"blocks={chain.name!r}: none of its blocks was called with a stream on the "
                "example."
            )


def describe_lists(model: nn.Module, example: Any = None) -> str:
    """What to write to convert the lists of blocks that the network has; empty if it has none.

    With an example input: those whose blocks hand the stream to one another, in one shape.
    """
    names = lists_seen(model, example) if example is not None else list(candidates(model))
    if not names:
        return ""
    shown = repr(names[0]) if len(names) == 1 else repr(names)
    return f"dr2net.convert(model, blocks={shown})"


def _matching(model: nn.Module, pattern: str) -> list[str]:
    fitting = [name for name, _ in model.named_modules() if name and fnmatchcase(name, pattern)]
    lists = [name for name in fitting if _is_list(model.get_submodule(name))]
    if lists:
        return lists
    if not fitting:
        raise ValueError(f"blocks={pattern!r} names nothing in this network.{_suggest(model)}")
    module = model.get_submodule(fitting[0])
    own = isinstance(module, nn.Sequential) and type(module).forward is not nn.Sequential.forward
    raise ValueError(
        f"blocks={pattern!r} names a {type(module).__name__}"
        f"{' with a forward of its own' if own else ''}, not an nn.ModuleList or nn.Sequential of "
        f"blocks.{_suggest(model)}"
    )


def _suggest(model: nn.Module, example: Any = None) -> str:
    call = describe_lists(model, example)
    return f" What may be meant: {call}" if call else ""


def _is_list(module: nn.Module) -> bool:
    """Whether this is a container of blocks that its parent calls, as a whole or one by one."""
    is_plain = type(module).forward is nn.Sequential.forward
    kind = isinstance(module, nn.ModuleList) or (isinstance(module, nn.Sequential) and is_plain)
    return kind and bool(module._modules) and None not in module._modules.values()


def candidates(model: nn.Module) -> Iterator[str]:
    """Names of lists of two or more blocks of one class with parameters, outermost first."""
    for name, module in model.named_modules():
        if name and _is_list(module):
            kinds = [type(block) for block in module.children()]
            most = max(map(kinds.count, kinds))
            block: Any = module[kinds.index(max(kinds, key=kinds.count))]
            is_leaf = not list(block.children())
            if most > 1 and not is_leaf and any(True for _ in block.parameters()):
                yield name


@dataclass
class Run:
    """What a block was called with, and what it returned."""

    entered: Tensor | None = None
    left: Tensor | None = None

    @property
    def keeps_the_shape(self) -> bool:
        """Whether it returned a stream of the shape of the one it was given."""
        return (
            self.entered is not None
            and self.left is not None
            and self.entered.shape == self.left.shape
            and self.left.is_floating_point()
        )


def watched(
    model: nn.Module, example: Any, lists: dict[str, nn.Module]
) -> dict[str, dict[str, Run]]:
    """Runs the network on an example and returns, for each list, what its blocks did."""
    runs = {name: {key: Run() for key in blocks._modules} for name, blocks in lists.items()}
    args, kwargs = as_call(example)
    with _hooks(lists, runs), in_eval_mode(model), torch.no_grad():
        model(*args, **kwargs)
    return runs


@contextmanager
def _hooks(lists: dict[str, nn.Module], runs: dict[str, dict[str, Run]]) -> Iterator[None]:
    handles = []
    for name, blocks in lists.items():
        for key, block in blocks._modules.items():

            def note(
                _: Any, args: tuple, kwargs: dict, output: Any, run: Run = runs[name][key]
            ) -> None:
                given = [*args, *kwargs.values()][:1]
                stream = stream_of(output)
                run.entered = given[0] if given and isinstance(given[0], Tensor) else None
                run.left = stream if isinstance(stream, Tensor) else None

            assert block is not None
            handles.append(block.register_forward_hook(note, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """The network in eval mode; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def lists_seen(model: nn.Module, example: Any) -> list[str]:
    """Names of the outermost lists whose blocks hand the stream on, two couplings at least."""
    lists = {name: model.get_submodule(name) for name in candidates(model)}
    found: list[str] = []
    for name, seen in watched(model, example, lists).items():
        runs = [run for run in seen.values() if run.keeps_the_shape]
        hands_on = any(before.left is after.entered for before, after in pairwise(runs))
        inside = any(name.startswith(f"{other}.") for other in found)
        if hands_on and not inside:
            found.append(name)
    return found
