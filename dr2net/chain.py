"""A chain of couplings: what stands in a network where its residual blocks stood.

    x_i = G_i(x_{i-1}; α) + y_{i-1}        y_i = β · x_{i-1}        x_0 = x, y_0 = β · x

(Zhao et al., arXiv 2401.04105, section 3). ``README.md`` in this folder says which file does what.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from .block_hooks import is_observed, is_sharded, several_processes
from .branches import Branch
from .call import Arguments, Call
from .container import Container
from .coupling import Pass, Row
from .growth import float_tolerance
from .kernels.arithmetic import Arithmetic, check_arithmetic, make_arithmetic
from .messages import refuse_modes
from .optimizers import skip_steps_that_are_not_finite
from .pytorch_versions import is_exporting, uncompiled
from .ranges import run_in_range
from .replay import Inventories, Snapshot, compute_dtype, fix_settings, undo
from .reports import is_immediate
from .sliced_call import SlicedCall
from .stored import run_plain

__all__ = ["ReversibleChain"]

class ReversibleChain(Container):
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

    def __init__(
        self, blocks: nn.Module, branches: Sequence[Branch], ordinary: Collection[str] = ()
    ):
        super().__init__(blocks, branches, ordinary)
        # Classes whose forward the branches stand for; by the block, as blocks may be added.
        self._classes = {key: type(block) for key, block in self.named(self.coupled_keys())}
        is_observed(self.name, self.named(self.coupled_keys()), self._classes, allowed=False)
        self.guard_blocks()
        self.inventories = Inventories()

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
    @uncompiled("reversible chains run uncompiled: compile their modules, export by strict=False")
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
        (alpha, beta), with_gradients = self.coefficients_in_use(), torch.is_grad_enabled()
        rebuilds = self.reversible and with_gradients and beta > 0
        observed = is_observed(
            self.name, self.named(keys), self._classes, allowed=not (rebuilds and self.training)
        )
        checkpointed = self.is_checkpointed(keys) and with_gradients
        if beta == 0:
            return run_plain(
                self.named(keys), self.branches, alpha, x, args, kwargs, checkpointed, take
            )
        if rebuilds and checkpointed and not set(keys) <= self.keep:
            self.say_needless()
        refuse_modes(self, self.name, x, rebuilds)
        rebuilt = [rebuilds and not observed and key not in self.keep for key in keys]
        make = partial(self.make_pass, keys, alpha, beta, x, args, kwargs)

        def run(this_pass: Pass, poisons: bool) -> Tensor:
            row, count, changed = Row(this_pass), len(self.branches), fix_settings()
            try:
                after = left = row.start(x)
                for number, (key, rebuild) in enumerate(zip(keys, rebuilt, strict=True)):
                    calls = this_pass.calls[number * count : (number + 1) * count]
                    leaves = key in wanted or number == len(keys) - 1
                    calls[0].is_exposed = number > 0 and keys[number - 1] in wanted
                    ends = leaves or rebuild > rebuilt[number + 1]
                    left = after = row.run(calls, after, rebuild, ends, checkpointed)
                    if leaves and poisons:
                        left = self.guard.poisoned(after, this_pass.streams)
                    if key in wanted:
                        undo(changed)
                        take(key, left)
                        changed = fix_settings()
            finally:
                undo(changed)
            this_pass.end()
            return left

        return self._run_in_range(keys, x, make, run)

    def _run_in_range(
        self,
        keys: list[str],
        x: Tensor,
        make: Callable[[int], Pass],
        run: Callable[[Pass, bool], Tensor],
    ) -> Tensor:
        guard, with_gradients = self.guard, torch.is_grad_enabled()
        if is_exporting():
            return run(make(guard.range_bits), False)
        guard.look()
        several = several_processes()
        if several and with_gradients:
            skip_steps_that_are_not_finite()
        if guard.has_measured and not is_immediate(x.device):
            this_pass = make(guard.range_bits)
            result = run(this_pass, True)
            guard.watch(this_pass.streams, this_pass.place, with_gradients)
        else:
            # A forward again could wait for other processes, which do not run theirs again.
            repeats = not several or not (with_gradients or is_sharded(self.named(keys)))
            inventories = [self.inventories.of(key, block) for key, block in self.named(keys)]
            snapshot = Snapshot(inventories, self.branches, x.device)
            result = run_in_range(guard, snapshot, repeats, make, run)
        self.remember_range()
        return result

    def make_pass(
        self,
        keys: list[str],
        alpha: float,
        beta: float,
        x: Tensor,
        args: tuple,
        kwargs: dict[str, Any],
        range_bits: int | None = None,
        kind: Callable[..., Any] = Pass,
    ) -> Any:
        """A pass through the couplings of the blocks ``keys``, on inputs like ``x``."""
        arguments = Arguments(alpha, args, kwargs)
        make_call: Callable[..., Call] = Call
        # Not by gradients alone: a reentrant checkpoint runs forward without.
        trains = self.training or torch.is_grad_enabled()
        if self.slicer is not None and trains and not is_exporting():
            make_call = partial(SlicedCall, slicer=self.slicer)
        calls = [
            make_call((number, self.name, key), block, branch, arguments)
            for number, key, block, branch in self.numbered(keys)
        ]
        arithmetic = self.make_arithmetic(beta, x, range_bits)
        this_pass = kind(self.name, calls, arithmetic, self.guard, self.inventories)
        if not arithmetic.invertible:
            precision = compute_dtype(x.device, x.dtype)
            this_pass.tolerance, reason = float_tolerance(alpha, beta, len(calls), precision)
            if reason and self.reversible and torch.is_grad_enabled():
                key = f"float at {alpha}, {beta} in {precision}"
                self.guard.say_once(key, f"{self.name}: {reason}")
        return this_pass

    def make_arithmetic(self, beta: float, x: Tensor, range_bits: int | None = None) -> Arithmetic:
        """The arithmetic for inputs like ``x``."""
        check_arithmetic(self.arithmetic)
        precision = compute_dtype(x.device, x.dtype)
        bits = range_bits or self.guard.range_bits
        return make_arithmetic(self.arithmetic, beta, x.dtype, precision, bits)
