"""What a chain is as a module: blocks under their old names, settings, and (α, β) as state."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from copy import copy
from functools import partial
from itertools import groupby, product
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .adapters import put_coefficients
from .block_hooks import refuse_bearing_container, refuse_direct_call, several_processes
from .branches import Branch, Slices
from .coefficients import check_coefficients, from_state, round_coefficient, to_state
from .guard import Guard
from .pytorch_versions import is_exporting
from .reports import is_immediate

__all__ = ["Container"]


# What libraries call the flag that has blocks checkpointed, on what runs them or on themselves.
CHECKPOINT_FLAGS = ("grad_checkpointing", "gradient_checkpointing", "with_cp", "use_checkpoint")


class Container(nn.Module):
    """Holds the blocks that stood in ``blocks``, and the coefficients of their couplings.

    ``ReversibleChain`` documents the arguments.
    """

    coefficients: Tensor

    # The buffer, its version, and what it held when it was last read or written: α, β, range bits.
    _known: tuple[Tensor, int, tuple[float, float, int]]

    def __init__(self, blocks: nn.Module, branches: Sequence[Branch], ordinary: Collection[str]):
        super().__init__()
        unknown = set(ordinary) - set(blocks._modules)
        if unknown:
            raise ValueError(
                f"ordinary={sorted(unknown)}: no such blocks among {list(blocks._modules)}."
            )
        refuse_bearing_container(blocks)
        # _modules and not children(), which would pass over a block that stands there twice.
        for key, block in blocks._modules.items():
            self.add_module(key, block)
        self.ordinary = frozenset(ordinary)
        self.branches = tuple(branches)
        self.name = "chain"
        self.training = blocks.training
        # For revert, and the module that held the container. In tuples, or they would be children.
        self.container = (_emptied(blocks),)
        self.owner: tuple[nn.Module, ...] = ()
        self.keep: frozenset[str] = frozenset()
        # Of (block, branch, x), slices of tokens to run over: see slice_mlps.
        self.slicer: Callable[..., Slices | None] | None = None
        self.arithmetic = "exact"
        self.reversible = True
        # Whether blocks whose activations are stored are checkpointed, besides CHECKPOINT_FLAGS.
        self.checkpoints = False
        self.guard = Guard()
        self._whole: tuple[Container, ...] = ()  # of a slice
        # A buffer, so that it is saved, copied to averaged models and sent to other processes. Of
        # integers, which model.half() does not change and most averages over models copy, and small
        # enough for OpenMMLab's SyncBuffersHook, which sums buffers over processes (up to 512).
        device = next((p.device for p in blocks.parameters() if not p.is_meta), "cpu")
        with torch.inference_mode(False):  # training could not change what that mode makes
            self.register_buffer("coefficients", to_state(1.0, 0.0, 0).to(device))
        self.set_coefficients(1.0, 0.0)

    # Coefficients

    def set_coefficients(self, alpha: float, beta: float) -> None:
        """Sets (α, β), both rounded to a multiple of 2^-16. Does not wait for the device.

        Raises:
            ValueError: α is not in [0, 1], or β neither 0 nor in [2^-8, 1]; or this is a slice of
                a chain, whose coefficients are the chain's.
        """
        if self._whole:
            raise ValueError(
                f"This is a slice of {self.name}, whose coefficients all its blocks share: set "
                "them on the chain."
            )
        check_coefficients(alpha, beta)
        self._write(round_coefficient(alpha), round_coefficient(beta))

    def _write(self, alpha: float, beta: float) -> None:
        state = alpha, beta, self.guard.range_bits
        buffer = self.coefficients
        # In the mode of the buffer: inference mode would not count this as a change.
        with torch.inference_mode(buffer.is_inference()):
            buffer.copy_(to_state(*state), non_blocking=True)
        self._remember(state)

    def _remember(self, state: tuple[float, float, int]) -> None:
        buffer = self.coefficients
        self._known = buffer, 0 if buffer.is_inference() else buffer._version, state

    def get_coefficients(self) -> tuple[float, float]:
        """Returns (α, β) as they are used."""
        # Read each time, since others write the buffer too (averages over models, by .data).
        if not is_exporting():
            return self._read()
        # An export has put a symbol in the buffer's place.
        buffer, version, (alpha, beta, _) = self._known
        if buffer._version != version:
            raise RuntimeError(
                f"The coefficients of {self.name} were written by something else than dr2net: call "
                "dr2net.get_coefficients(model) before the export."
            )
        return alpha, beta

    def _read(self) -> tuple[float, float]:
        if self._whole:
            return self._whole[0]._read()
        alpha, beta, range_bits = from_state(self.coefficients.tolist())
        self.guard.range_bits = max(self.guard.range_bits, range_bits)
        self._remember((alpha, beta, range_bits))
        return alpha, beta

    def coefficients_in_use(self) -> tuple[float, float]:
        """(α, β), in training without waiting for the device unless others wrote the buffer."""
        if self._whole:
            return self._whole[0].coefficients_in_use()
        buffer, version, state = self._known
        if (
            not torch.is_grad_enabled()
            or is_exporting()
            or buffer is not self.coefficients
            or buffer.is_inference()
        ):
            return self.get_coefficients()
        if buffer._version != version:
            # DistributedDataParallel writes what is there already, in each forward.
            if is_immediate(buffer.device) or not several_processes():
                return self.get_coefficients()
            self.guard.send(buffer, partial(self._expect, state[:2]))
            self._remember(state)
        return state[:2]

    def _expect(self, pair: tuple[float, float], values: list[int]) -> None:
        if from_state(values)[:2] != pair:
            raise RuntimeError(
                f"The coefficients of {self.name} were written by something else than dr2net, and "
                "a step was trained with the former ones: call dr2net.get_coefficients(model) "
                "after they are written."
            )

    def rebuilds(self) -> bool:
        """Whether a step rebuilds activations here, where gradients are on: at β > 0."""
        return self.get_coefficients()[1] > 0

    def remember_range(self) -> None:
        """Writes the range that the guard has found into the state, if it has grown."""
        whole = self._whole[0] if self._whole else self
        alpha, beta, range_bits = whole._known[2]
        if self.guard.range_bits > range_bits:
            whole._write(alpha, beta)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not self.coefficients.is_meta:
            self._read()  # of a copy, whose buffer has another version

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        _, _, (alpha, beta, _) = self._known
        if not self.coefficients.is_meta:
            alpha, beta = self._read()
        super()._apply(function, recurse)
        if not self.coefficients.is_meta:
            # Not always a copy: to_empty() leaves anything.
            self._write(alpha, beta)
        return self

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, metadata: dict, strict: bool, missing: list, *args: Any
    ) -> None:
        # PEFT saves adapters without the chain around them: it takes the (α, β) that they bring.
        own = prefix + "coefficients"
        for name in put_coefficients(self, self.coefficients):
            if prefix + name in state_dict:
                state_dict.setdefault(own, state_dict[prefix + name][0])
            else:  # a file from before they did
                state_dict[prefix + name] = state_dict.get(own, self.coefficients)[None]
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *args)
        self.guard.has_measured = False  # other weights, other activations
        # A pretrained file knows no coefficients: those set stay, and nothing is missing.
        if own in missing:
            missing.remove(own)
        elif not self.coefficients.is_meta:
            with suppress(ValueError):  # coefficients out of range are reported when they are used
                self._read()

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.guard.look(wait=True, wait_for_all=True)  # what is saved was trained right
        put_coefficients(self, self.coefficients)
        super()._save_to_state_dict(*args, **kwargs)

    # Blocks

    def stretches(self) -> list[list[str]]:
        """Names of the blocks that are couplings, split where an ordinary block stands."""
        grouped = groupby(self._modules, self.ordinary.__contains__)
        return [list(group) for is_ordinary, group in grouped if not is_ordinary]

    def coupled_keys(self) -> list[str]:
        """Names of the blocks that are couplings."""
        return [key for key in self._modules if key not in self.ordinary]

    def reversible_blocks(self) -> list[nn.Module]:
        """The blocks that are couplings."""
        return [self.get_submodule(key) for key in self.coupled_keys()]

    def named(self, keys: list[str]) -> list[tuple[str, nn.Module]]:
        modules: Any = self._modules
        return [(key, modules[key]) for key in keys]

    def couplings(self) -> list[tuple[nn.Module, Branch]]:
        """The (block, branch) pairs, in order."""
        keys = self.coupled_keys()
        return [(block, branch) for _, _, block, branch in self.numbered(keys)]

    def numbered(self, keys: list[str]) -> Iterator[tuple[int, str, nn.Module, Branch]]:
        """(number, name of the block, block, branch) of the couplings of the blocks ``keys``."""
        first = self.coupled_keys().index(keys[0]) if keys else 0
        pairs = product(self.named(keys), self.branches)
        for number, ((key, block), branch) in enumerate(pairs, first * len(self.branches)):
            yield number, key, block, branch

    def is_checkpointed(self, keys: list[str]) -> bool:
        """Whether a library's way to checkpoint blocks was switched on."""
        first: Any = self._modules[keys[0]]
        holders = [module.__dict__ for module in (*self.owner, first)]
        flags = (held.get(flag) for held in holders for flag in CHECKPOINT_FLAGS)
        return self.checkpoints or any(flags)

    def say_needless(self) -> None:
        """Says once that checkpointing has no effect here."""
        self.guard.say_once(
            "checkpointing",
            f"Checkpointing was switched on for {self.name}, which rebuilds activations and needs "
            "none: it takes effect where activations are stored.",
        )

    def guard_blocks(self) -> None:
        """Has blocks refuse to be called by themselves."""
        for block in self.reversible_blocks():
            if not block._forward_pre_hooks:
                block.register_forward_pre_hook(refuse_direct_call)

    def restore_container(self) -> nn.Module:
        """Returns the container of blocks that the chain was made of, and frees its blocks."""
        (container,) = self.container
        container._modules = dict(self._modules)
        container.training = self.training
        for block in self:
            for number, hook in list(block._forward_pre_hooks.items()):
                if hook is refuse_direct_call:
                    del block._forward_pre_hooks[number]
        return container

    def __prepare_scriptable__(self) -> NoReturn:  # torch.jit.script calls it first
        raise RuntimeError(
            f"torch.jit.script cannot compile {self.name}: ship the network by torch.export or "
            "torch.onnx.export, or as the plain one, by dr2net.revert."
        )

    def extra_repr(self) -> str:
        if self.coefficients.is_meta:
            return "coefficients on the meta device"
        alpha, beta = self.get_coefficients()
        names = ", ".join(getattr(branch, "__name__", str(branch)) for branch in self.branches)
        text = (
            f"branches=({names}), alpha={alpha:g}, beta={beta:g}, arithmetic={self.arithmetic!r}, "
            f"reversible={self.reversible}"
        )
        for name, keys in (("ordinary", self.ordinary), ("keep", self.keep)):
            text += f", {name}=({', '.join(sorted(keys))})" if keys else ""
        return text + (f", {self.slicer}" if self.slicer is not None else "")

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        blocks: list[Any] = list(self._modules.values())
        return iter(blocks)

    def __getitem__(self, index: int | slice) -> nn.Module:
        if not isinstance(index, slice):
            return list(self)[index]
        # Not by copy(), which FSDP2 makes call __init__ where it has sharded the chain.
        part: Any = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part._modules = dict(list(self._modules.items())[index])
        part.ordinary = self.ordinary & set(part._modules)
        part._whole = self._whole or (self,)
        return part


def _emptied(container: nn.Module) -> nn.Module:
    """A copy of a container of blocks without the blocks."""
    empty = copy(container)
    empty._modules = {}
    return empty
