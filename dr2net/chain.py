"""A chain of couplings: what stands in a network where its residual blocks stood.

    x_i = G_i(x_{i-1}; α) + y_{i-1}        y_i = β · x_{i-1}        x_0 = x, y_0 = β · x

(Zhao et al., arXiv 2401.04105, section 3). ``README.md`` in this folder says which file does what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from copy import copy
from itertools import groupby, product
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .block_hooks import (
    after_couplings,
    before_couplings,
    is_observed,
    is_sharded,
    refuse_bearing_container,
    refuse_direct_call,
    refuse_sharded,
    several_processes,
)
from .branches import Branch, Slices
from .call import Arguments, Call
from .coefficients import (
    check_coefficients,
    error_growth,
    from_state,
    predicted_inverse_error,
    round_coefficient,
    to_state,
)
from .coupling import Pass, run_couplings
from .guard import (
    Guard,
    Problem,
    is_immediate,
    not_finite,
    skip_steps_that_are_not_finite,
)
from .kernels.arithmetic import Arithmetic, check_arithmetic, make_arithmetic
from .replay import Inventory, Snapshot, compute_dtype, fix_settings, undo
from .stored import run_without_gradients

__all__ = ["ReversibleChain"]

# Predicted relative error from which the float inverse is called untrustworthy: above it the
# gradients of a 12-block ViT were measured to be off by more than a hundredth.
UNTRUSTED_ERROR = 1e-2
# Streams rebuilt in floating point may be off by so many times the predicted error.
FLOAT_TOLERANCE = 32.0

# What libraries call the flag that has blocks checkpointed, on what runs them or on themselves.
CHECKPOINT_FLAGS = ("grad_checkpointing", "gradient_checkpointing", "with_cp", "use_checkpoint")


class ReversibleChain(nn.Module):
    """Stands where ``blocks`` stood and runs their branches as couplings of a Dr²Net.

    Args:
        blocks: the container (``nn.Sequential``, ``nn.ModuleList``) that the chain replaces. Its
            blocks become children of the chain under their old names, so that parameter names do
            not change; the chain is indexed, sliced and iterated like the container.
        branches: for each block in turn, the functions that apply its modules, for example one for
            attention and one for the MLP. They must be functions of a module's top level, and
            reach tensors only through their arguments, so that a chain can be copied and pickled.
        ordinary: names in ``blocks`` of those that are no couplings, because they change the shape
            of the stream: they run as they are, called like the chain. The streams end before such
            a block and start anew after it.

    A call ``chain(x, *args, **kwargs)`` hands the further arguments to every branch; tensors among
    them (masks, position embeddings), in containers too, get their gradients. Where β is not 0,
    lists and dicts among them are copies, so that what a branch puts there is lost.

    A chain rebuilds activations wherever gradients are on and β > 0. Under no_grad and with
    ``reversible = False`` it runs the same equations and leaves storing to autograd; the attribute
    ``keep`` names single blocks whose activations are stored. Exact arithmetic checks, each time
    backward has come to the chain's beginning, that it found the streams that forward started from
    (a backward that stops halfway is not checked); ``float`` does within its error. A parameter
    that serves in several couplings gets its gradients summed coupling by coupling.
    """

    coefficients: Tensor

    # The buffer, its version, and what it held when it was last read or written: α, β, range bits.
    _known: tuple[Tensor, int, tuple[float, float, int]]

    def __init__(
        self, blocks: nn.Module, branches: Sequence[Branch], ordinary: Collection[str] = ()
    ):
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
        self.name = "chain"
        # Classes whose forward the branches stand for; by the block, as blocks may be added.
        self._classes = {key: type(self.get_submodule(key)) for key in self.coupled_keys()}
        is_observed(self.name, self._named(self.coupled_keys()), self._classes, allowed=False)
        for block in self.reversible_blocks():
            if not block._forward_pre_hooks:
                block.register_forward_pre_hook(refuse_direct_call)
        self.branches = tuple(branches)
        self.keep: frozenset[str] = frozenset()
        # Of (block, branch, x), slices of tokens to run over: see slice_mlps.
        self.slicer: Callable[..., Slices | None] | None = None
        # For revert, and the module that held the container. In tuples, or they would be children.
        self.container = (_emptied(blocks),)
        self.owner: tuple[nn.Module, ...] = ()
        # Whether blocks whose activations are stored are checkpointed, besides CHECKPOINT_FLAGS.
        self.checkpoints = False
        self.arithmetic = "exact"
        self.reversible = True
        self.training = blocks.training
        self.guard = Guard()
        self._inventories: dict[nn.Module, Inventory] = {}
        self._whole: tuple[ReversibleChain, ...] = ()  # of a slice
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
        if not torch.compiler.is_exporting():
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
            or torch.compiler.is_exporting()
            or buffer is not self.coefficients
            or buffer.is_inference()
        ):
            return self.get_coefficients()
        if buffer._version != version:
            # DistributedDataParallel writes what is there already, in each forward.
            if is_immediate(buffer.device) or not several_processes():
                return self.get_coefficients()
            self.guard.expect(buffer, state[:2], self.name)
            self._remember(state)
        return state[:2]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._inventories = {}
        if not self.coefficients.is_meta:
            self._read()  # of a copy, whose buffer has another version

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_inventories": {}}

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
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
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *args)
        self.guard.has_measured = False  # other weights, other activations
        # A pretrained file knows no coefficients: those set stay, and nothing is missing.
        if prefix + "coefficients" in missing:
            missing.remove(prefix + "coefficients")
        elif not self.coefficients.is_meta:
            with suppress(ValueError):  # coefficients out of range are reported when they are used
                self._read()

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.guard.look(wait=True, wait_for_all=True)  # what is saved was trained right
        super()._save_to_state_dict(*args, **kwargs)

    # Forward

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns x_N, of the shape and dtype of ``x`` (at β = 0: what the blocks return).

        A value beyond the range of the streams' words has the forward run again with more range,
        where the values are known at once (on a CPU, and in the first forward); elsewhere it makes
        the output NaN, and optimizers skip the step. So do NaN and infinity where several
        processes train together, which have to skip alike.

        Raises:
            ValueError: a module changes the shape.
            FloatingPointError: NaN or infinity in a stream.
        """
        if len(self) == 0:
            return x
        return self.features(x, *args, blocks=[len(self) - 1], **kwargs)[0]

    # A torch.compile around the chain would compile its modules in forward but not when backward
    # recomputes them, which then returns other bits. Modules compiled by themselves are compiled
    # both times.
    @torch.compiler.disable(
        reason="reversible chains run uncompiled: compile their modules, export by strict=False"
    )
    def features(
        self,
        x: Tensor,
        *args: Any,
        blocks: Sequence[int],
        apply: Callable[[Tensor], Any] = lambda feature: feature,
        **kwargs: Any,
    ) -> list[Any]:
        """Returns ``apply(x_i)`` after each of the ``blocks`` (indices), in their order.

        Runs no further than the last of them. Each one keeps a pair of streams of its own.
        ``apply`` runs as soon as the stream is there, like a norm in a network's loop over blocks:
        gradients are summed in the order in which operations ran.
        """
        if not blocks or min(blocks) < 0 or max(blocks) >= len(self):
            raise ValueError(f"blocks={list(blocks)}: {self.name} has blocks 0 to {len(self) - 1}.")
        keys = list(self._modules)
        wanted = {keys[block] for block in blocks}
        found: dict[str, Any] = {}

        def take(key: str, x: Tensor) -> None:
            if key in wanted:
                found[key] = apply(x)

        for is_ordinary, group in groupby(keys[: max(blocks) + 1], self.ordinary.__contains__):
            stretch = list(group)
            if not is_ordinary:
                x = self._run_coupled(stretch, wanted, x, args, kwargs, take)
                continue
            for key in stretch:
                x = self.get_submodule(key)(x, *args, **kwargs)
                take(key, x)
        return [found[keys[block]] for block in blocks]

    def _run_coupled(
        self,
        keys: list[str],
        wanted: set[str],
        x: Tensor,
        args: tuple,
        kwargs: dict[str, Any],
        take: Callable[[str, Tensor], None],
    ) -> Tensor:
        """Returns x after the blocks ``keys``; gives it to ``take`` after each of them."""
        alpha, beta = self.coefficients_in_use()
        with_gradients = torch.is_grad_enabled()
        rebuilds = self.reversible and with_gradients and beta > 0
        observed = is_observed(
            self.name, self._named(keys), self._classes, allowed=not (rebuilds and self.training)
        )
        checkpointed = self._is_checkpointed(keys) and with_gradients
        if beta == 0:
            return self._run_plain(keys, alpha, x, args, kwargs, take, checkpointed)
        if rebuilds and checkpointed and not set(keys) <= self.keep:
            self.guard.say_once(
                "checkpointing",
                f"Checkpointing was switched on for {self.name}, which rebuilds activations and "
                "needs none: it takes effect where activations are stored.",
            )
        self._refuse_modes(x, rebuilds)
        if torch.compiler.is_exporting():
            this_pass = self.make_pass(keys, alpha, beta, x, args, kwargs)
            return self._run_pass(this_pass, keys, wanted, x, [], False, False, take)
        rebuilt = [rebuilds and not observed and k not in self.keep for k in keys]
        guard = self.guard
        guard.look()
        waits = is_immediate(x.device) or not guard.has_measured
        several = several_processes()
        together = several and with_gradients
        if together:
            skip_steps_that_are_not_finite()
        # A forward again could wait for other processes, which do not run theirs again.
        repeats = not several or not (with_gradients or is_sharded(self._named(keys)))
        inventories = {k: self._inventory(self.get_submodule(k)) for k in keys} if waits else {}
        snapshot = Snapshot(list(inventories.values()), self.branches, x.device)
        range_bits, problem = guard.range_bits, None
        poisons = not (repeats and waits)
        while True:
            this_pass = self.make_pass(keys, alpha, beta, x, args, kwargs, range_bits)
            result = self._run_pass(
                this_pass, keys, wanted, x, rebuilt, poisons, checkpointed, take
            )
            if not waits:
                guard.watch(this_pass.streams, this_pass.place, with_gradients)
                break
            limit = this_pass.arithmetic.limit
            try:
                top = guard.measure(this_pass.streams)
            except Problem as found:
                place = this_pass.place(found.number)
                if not math.isfinite(found.size):
                    if not together:
                        raise FloatingPointError(not_finite(place)) from None
                    guard.say_once("not finite", f"{not_finite(place)} Its gradients are skipped.")
                    break
                if not repeats:
                    guard.widen(place, found.size, limit)
                    break
                # What came after the first value beyond the range is not known: a wide guess.
                bits = math.ceil(math.log2(found.size))
                range_bits = bits + 32 if problem else max(30, bits + 1)
                problem = problem or (place, found.size, limit)
            else:
                snapshot.learn()
                if problem is None:
                    break
                place, size, limit = problem
                guard.widen(place, max(size, top), limit)
                range_bits, problem = guard.range_bits, None
                again = self.make_arithmetic(beta, x, range_bits)
                if again == this_pass.arithmetic:
                    break
            snapshot.restore()
        owner = self._whole[0] if self._whole else self
        if guard.range_bits > owner._known[2][2]:
            owner._write(alpha, beta)
        return result

    def _run_pass(
        self,
        this_pass: Pass,
        keys: list[str],
        wanted: set[str],
        x: Tensor,
        rebuilt: list[bool],
        poisons: bool,
        checkpointed: bool,
        take: Callable[[str, Tensor], None],
    ) -> Tensor:
        branches = len(self.branches)
        result = x

        def after(index: int, x: Tensor) -> None:
            nonlocal result
            if (index + 1) % branches:
                return
            key = keys[index // branches]
            is_last = index == len(this_pass.calls) - 1
            if poisons and (is_last or key in wanted):
                x = self.guard.poisoned(x, this_pass.streams)
            if is_last:
                result = x
            undo(changed)
            take(key, x)
            changed[:] = fix_settings()

        changed = fix_settings()
        try:
            if torch.is_grad_enabled() and not torch.compiler.is_exporting():
                outputs = {(i + 1) * branches - 1 for i, key in enumerate(keys) if key in wanted}
                each = [flag for flag in rebuilt for _ in range(branches)]
                run_couplings(
                    this_pass,
                    x,
                    lambda call: self._inventory(call.block),
                    each,
                    outputs,
                    checkpointed,
                    after,
                )
            else:
                run_without_gradients(this_pass, x, after)
        finally:
            undo(changed)
        return result

    def _run_plain(
        self,
        keys: list[str],
        alpha: float,
        x: Tensor,
        args: tuple,
        kwargs: dict[str, Any],
        take: Callable[[str, Tensor], None],
        checkpointed: bool,
    ) -> Tensor:
        """At β = 0: block by block, as autograd has it."""

        def run(block: nn.Module, x: Tensor) -> Tensor:
            for branch in self.branches:
                x = branch(block, x, alpha, *args, **kwargs)
            return x

        for key in keys:
            block = self.get_submodule(key)
            (entered,) = before_couplings(block, x)
            if checkpointed:
                x = checkpoint(run, block, entered, use_reentrant=False)
            else:
                x = run(block, entered)
            (x,) = after_couplings(block, entered, x)
            take(key, x)
        return x

    def make_pass(
        self,
        keys: list[str],
        alpha: float,
        beta: float,
        x: Tensor,
        args: tuple,
        kwargs: dict[str, Any],
        range_bits: int | None = None,
    ) -> Pass:
        """A pass through the couplings of the blocks ``keys``, on inputs like ``x``."""
        arguments = Arguments(alpha, args, kwargs)
        # Not by gradients alone: a reentrant checkpoint runs forward without.
        slices = self.training or torch.is_grad_enabled()
        slicer = self.slicer if slices and not torch.compiler.is_exporting() else None
        calls = [
            Call((number, self.name, key), block, branch, arguments, slicer)
            for number, key, block, branch in self._numbered(keys)
        ]
        arithmetic = self.make_arithmetic(beta, x, range_bits)
        tolerance = 0.0
        if not arithmetic.invertible:
            tolerance = self._float_tolerance(alpha, beta, len(calls), x)
        return Pass(self.name, calls, arguments, arithmetic, self.guard, tolerance)

    def make_arithmetic(self, beta: float, x: Tensor, range_bits: int | None = None) -> Arithmetic:
        """The arithmetic for inputs like ``x``."""
        check_arithmetic(self.arithmetic)
        precision = compute_dtype(x.device, x.dtype)
        bits = range_bits or self.guard.range_bits
        return make_arithmetic(self.arithmetic, beta, x.dtype, precision, bits)

    def _inventory(self, block: nn.Module) -> Inventory:
        inventory = self._inventories.get(block)
        if inventory is None or not inventory.is_current():
            # Hooks inside a block would run again in the recomputation, where FSDP2 would lose the
            # gradients.
            key = next(key for key, other in self._modules.items() if other is block)
            refuse_sharded(
                (part for part in block.modules() if part is not block),
                f"it stands in block {key!r} of a chain, so shard the block instead.",
            )
            inventory = self._inventories[block] = Inventory(block)
        return inventory

    def _float_tolerance(self, alpha: float, beta: float, couplings: int, x: Tensor) -> float:
        """By how much rebuilt streams may differ; warns where that is too much to train with."""
        dtype = compute_dtype(x.device, x.dtype)
        error = predicted_inverse_error(alpha, beta, couplings, dtype)
        if error <= UNTRUSTED_ERROR:
            return FLOAT_TOLERANCE * couplings * error
        if self.reversible and torch.is_grad_enabled() and not torch.compiler.is_exporting():
            self.guard.say_once(
                f"float at {alpha}, {beta} in {dtype}",
                f"{self.name}: at (alpha, beta) = ({alpha:g}, {beta:g}) the inverse in floating "
                f"point multiplies its error by {error_growth(alpha, beta):.3g} at each of "
                f"{couplings} couplings: in {dtype} a relative error of {error:.0e} is predicted, "
                "and gradients cannot be trusted. Use arithmetic='exact'.",
            )
        return math.inf

    def _refuse_modes(self, x: Tensor, rebuilds: bool) -> None:
        if not x.is_floating_point():
            raise ValueError(f"{self.name} got an input of {x.dtype}: it takes floating point.")
        if torch.jit.is_tracing():
            raise RuntimeError(
                f"{self.name} cannot be traced at beta > 0: export with torch.export, or "
                "torch.onnx.export(..., dynamo=True)."
            )
        if rebuilds and getattr(self, "_is_replica", False):
            raise RuntimeError(
                f"{self.name} cannot rebuild activations in a replica of nn.DataParallel, whose "
                "weights are no parameters: use DistributedDataParallel, one process for each GPU."
            )
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                f"{self.name} does not run inside torch.func's grad, vmap, jvp or their like (at "
                "beta=0 it does): use torch.autograd.grad, with is_grads_batched=True for several "
                "gradients at once."
            )
        if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{self.name} cannot be captured by torch.cuda.graph at beta > 0: it looks at "
                "random states and at numbers that arrive from the device. Run it eagerly, or "
                "capture at beta=0."
            )

    def rebuilds(self) -> bool:
        """Whether a step rebuilds activations here, where gradients are on: at β > 0."""
        return self.get_coefficients()[1] > 0

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

    def _named(self, keys: list[str]) -> list[tuple[str, nn.Module]]:
        modules: Any = self._modules
        return [(key, modules[key]) for key in keys]

    def couplings(self) -> list[tuple[nn.Module, Branch]]:
        """The (block, branch) pairs, in order."""
        keys = self.coupled_keys()
        return [(block, branch) for _, _, block, branch in self._numbered(keys)]

    def _numbered(self, keys: list[str]) -> Iterator[tuple[int, str, nn.Module, Branch]]:
        """(number, name of the block, block, branch) of the couplings of the blocks ``keys``."""
        first = self.coupled_keys().index(keys[0]) if keys else 0
        pairs = product(self._named(keys), self.branches)
        for number, ((key, block), branch) in enumerate(pairs, first * len(self.branches)):
            yield number, key, block, branch

    def _is_checkpointed(self, keys: list[str]) -> bool:
        """Whether a library's way to checkpoint blocks was switched on."""
        first: Any = self._modules[keys[0]]
        holders = [module.__dict__ for module in (*self.owner, first)]
        flags = (held.get(flag) for held in holders for flag in CHECKPOINT_FLAGS)
        return self.checkpoints or any(flags)

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
