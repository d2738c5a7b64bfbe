"""A chain of couplings: what stands in a network where its residual blocks stood.

    x_i = G_i(x_{i-1}; α) + y_{i-1}        y_i = β · x_{i-1}        x_0 = x, y_0 = β · x

(Zhao et al., arXiv 2401.04105, section 3). ``arithmetic.py`` has these equations for one coupling,
``coupling.py`` the couplings as autograd nodes, ``streams.py`` what they share.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from copy import copy
from functools import wraps
from itertools import groupby, islice
from typing import Any, Self

import torch
from torch import Tensor, nn

from .arithmetic import (
    Arithmetic,
    check_arithmetic,
    check_coefficients,
    error_growth,
    make_arithmetic,
    predicted_inverse_error,
    round_beta,
)
from .coupling import coupling_values
from .distributed import after_couplings, before_couplings, is_sharding_hook, refuse_sharded
from .replay import AutocastState
from .streams import Branch, Pass, check_shape
from .tokenwise import Tokenwise

__all__ = ["ReversibleChain", "residual"]

# Predicted relative error from which the float inverse is called untrustworthy: above it the
# gradients of a 12-block ViT were measured to be off by more than a hundredth.
UNTRUSTED_ERROR = 1e-2

# Coefficients are kept as integer multiples of 2^-54. Of β, a multiple of 2^-16, the low bits are
# free: they take what is left of an α below a quarter, in multiples of 2^-91.
COEFFICIENT_ONE = 1 << 54
REST_ONE = 1 << 91


def residual(
    branch: Callable[..., Tensor],
    shortcut_first: bool = True,
    tokenwise: Sequence[str] = (),
    drop_path: str | None = None,
) -> Branch:
    """Makes G(x; α) = F(x) + α·x of a function ``branch(block, x, *args, **kwargs)`` for F.

    Args:
        shortcut_first: whether the original network computes x + F(x) or F(x) + x. The sum is laid
            out in memory like its first term, and kernels further on choose by that how to sum.
        tokenwise: of a ``branch(block, x)`` that computes each token of x (…, channels) by itself:
            names, within the block, of all modules that it calls. ``slice_mlps`` can run it over
            slices of the tokens.
        drop_path: name of the module that drops whole samples (stochastic depth), if F is what it
            makes of the output of ``branch``. It draws once for all slices.
    """

    @wraps(branch)
    def with_shortcut(
        block: nn.Module,
        x: Tensor,
        alpha: float,
        *args: Any,
        _drop_mask: Tensor | None = None,  # of a slice
        **kwargs: Any,
    ) -> Tensor:
        output = branch(block, x) if tokenwise else branch(block, x, *args, **kwargs)
        if _drop_mask is not None:
            output = output * _drop_mask.to(output.dtype)
        elif drop_path is not None:
            output = block.get_submodule(drop_path)(output)
        check_shape(output, x)  # before broadcasting could hide a wrong one
        if alpha == 0:
            return output
        if alpha != 1:
            return torch.add(output, x, alpha=alpha)
        return x + output if shortcut_first else output + x

    if tokenwise:
        with_shortcut.tokenwise = Tokenwise(tuple(tokenwise), drop_path)  # type: ignore[attr-defined]
    return with_shortcut


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

    A chain is reversible in training, with gradients on and β > 0. In eval mode, under no_grad and
    with ``reversible = False`` it runs the same equations and leaves storing to autograd; the
    attribute ``keep`` names single blocks whose activations are stored. Exact
    arithmetic checks, each time backward has come to the chain's beginning, that it found the
    streams that forward started from; a backward that stops halfway is not checked, and ``float``
    has nothing to check by. A parameter that serves in several couplings gets its gradients summed
    coupling by coupling.
    """

    coefficients: Tensor

    # The buffer, its version and (α, β), as last read.
    _known: tuple[Tensor, int, tuple[float, float]]

    def __init__(
        self, blocks: nn.Module, branches: Sequence[Branch], ordinary: Collection[str] = ()
    ):
        super().__init__()
        unknown = set(ordinary) - set(blocks._modules)
        if unknown:
            raise ValueError(
                f"ordinary={sorted(unknown)}: no such blocks among {list(blocks._modules)}."
            )
        _refuse_bearing_container(blocks)
        # _modules and not children(), which would pass over a block that stands there twice.
        for key, block in blocks._modules.items():
            self.add_module(key, block)
        self.ordinary = frozenset(ordinary)
        self._refuse_block_hooks()
        for block in self.reversible_blocks():
            if not block._forward_pre_hooks:
                block.register_forward_pre_hook(_refuse_direct_call)
        self.branches = tuple(branches)
        self.keep: frozenset[str] = frozenset()
        self.slice_tokens: int | None = None  # see slice_mlps
        # For revert. In a tuple, since a module would become a child.
        self.container = (_emptied(blocks),)
        self.name = "chain"
        self.arithmetic = "exact"
        self.reversible = True
        self.training = blocks.training
        # A buffer, so that it is saved, copied to averaged models and sent to other processes. Of
        # integers, which model.half() does not change and most averages over models copy, and small
        # enough for OpenMMLab's SyncBuffersHook, which sums buffers over processes (up to 512).
        device = next((p.device for p in blocks.parameters() if not p.is_meta), "cpu")
        with torch.inference_mode(False):  # training could not change what that mode makes
            self.register_buffer("coefficients", torch.zeros(2, dtype=torch.int64, device=device))
        self.set_coefficients(1.0, 0.0)

    def set_coefficients(self, alpha: float, beta: float) -> None:
        """Sets (α, β); β is rounded to a multiple of 2^-16.

        Raises:
            ValueError: if α is not in [0, 1], or β neither 0 nor in [2^-8, 1].
        """
        check_coefficients(alpha, beta)
        large = round(float(alpha) * COEFFICIENT_ONE)
        rest = round((float(alpha) - large / COEFFICIENT_ONE) * REST_ONE)
        pair = [large, round(round_beta(beta) * COEFFICIENT_ONE) + rest]
        # In the mode of the buffer: inference mode would not count this as a change. On the CPU,
        # also under torch.device("meta").
        with torch.inference_mode(self.coefficients.is_inference()):
            self.coefficients.copy_(torch.tensor(pair, device="cpu"))
        if not self.coefficients.is_meta:
            self._read_coefficients()

    def get_coefficients(self) -> tuple[float, float]:
        """Returns (α, β) as they are used."""
        # Read each time, since others write the buffer too (averages over models, by .data).
        if not torch.compiler.is_exporting():
            return self._read_coefficients()
        # An export has put a symbol in the buffer's place.
        buffer, version, pair = self._known
        if buffer._version != version:
            raise RuntimeError(
                f"The coefficients of {self.name} were written by something else than dr2net: call "
                "dr2net.get_coefficients(model) before the export."
            )
        return pair

    def _read_coefficients(self) -> tuple[float, float]:
        buffer = self.coefficients
        large, last = buffer.tolist()
        beta = round_beta(last / COEFFICIENT_ONE)
        check_coefficients(large / COEFFICIENT_ONE, beta)
        # An average over models is no multiple of 2^-16; an α of 0 stays 0 there.
        rest = last - round(beta * COEFFICIENT_ONE) if large else 0
        pair = large / COEFFICIENT_ONE + rest / REST_ONE, beta
        self._known = buffer, 0 if buffer.is_inference() else buffer._version, pair
        return pair

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not self.coefficients.is_meta:
            self._read_coefficients()  # of a copy, whose buffer has another version

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        _, _, pair = self._known
        if not self.coefficients.is_meta:
            pair = self._read_coefficients()
        super()._apply(function, recurse)
        if not self.coefficients.is_meta:
            # Not always a copy: to_empty() leaves anything.
            self.set_coefficients(*pair)
        return self

    def restore_container(self) -> nn.Module:
        """Returns the container of blocks that the chain was made of, and frees its blocks."""
        (container,) = self.container
        container._modules = dict(self._modules)
        container.training = self.training
        for block in self:
            for number, hook in list(block._forward_pre_hooks.items()):
                if hook is _refuse_direct_call:
                    del block._forward_pre_hooks[number]
        return container

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns x_N, of the shape and dtype of ``x`` (at β = 0: what the blocks return).

        Raises:
            ValueError: a module changes the shape.
            FloatingPointError: NaN or infinity in a stream.
            OverflowError: a stream leaves the range of its fixed-point word.
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
        self._refuse_block_hooks()
        keys = list(self._modules)
        wanted = {keys[block] for block in blocks}
        found = {}
        for is_ordinary, group in groupby(keys[: max(blocks) + 1], self.ordinary.__contains__):
            stretch = list(group)
            run = self._run_ordinary if is_ordinary else self._run_coupled
            values = run(stretch, wanted, x, args, kwargs)
            for key, x in zip(stretch, values, strict=True):
                if key in wanted:
                    found[key] = apply(x)
        return [found[keys[block]] for block in blocks]

    def _run_ordinary(
        self, keys: list[str], wanted: set[str], x: Tensor, args: tuple, kwargs: dict[str, Any]
    ) -> Iterator[Tensor]:
        for key in keys:
            x = self.get_submodule(key)(x, *args, **kwargs)
            yield x

    def _run_coupled(
        self, keys: list[str], wanted: set[str], x: Tensor, args: tuple, kwargs: dict[str, Any]
    ) -> Iterator[Tensor]:
        """Yields x after each of the blocks ``keys``; it leaves the chain after ``wanted`` ones."""
        alpha, beta = self.get_coefficients()
        branches = len(self.branches)
        if beta == 0:
            for key in keys:
                block = self.get_submodule(key)
                (x,) = before_couplings(block, x)
                for branch in self.branches:
                    x = branch(block, x, alpha, *args, **kwargs)
                (x,) = after_couplings(block, x)
                yield x
            return
        this_pass = self.start_pass(keys, alpha, beta, x, args, kwargs)
        if torch.compiler.is_exporting():
            values = this_pass.exported_values(x, args, kwargs)
            yield from islice(values, branches - 1, None, branches)
            return
        rebuilds = self.reversible and self.training and torch.is_grad_enabled()
        if rebuilds:
            self._warn_if_inverse_is_untrusted(alpha, beta, this_pass)
        owners = [key for key in keys for _ in self.branches]
        rebuilt = [rebuilds and key not in self.keep for key in owners]
        outputs = {(i + 1) * branches - 1 for i, key in enumerate(keys) if key in wanted}
        values = coupling_values(this_pass, x, rebuilt, outputs)
        yield from islice(values, branches - 1, None, branches)
        this_pass.finish_forward()

    def rebuilds(self) -> bool:
        """Whether a training step rebuilds activations here: in training mode, at β > 0."""
        return self.training and self.get_coefficients()[1] > 0

    def start_pass(
        self,
        keys: list[str],
        alpha: float,
        beta: float,
        x: Tensor,
        args: tuple,
        kwargs: dict[str, Any],
    ) -> Pass:
        """A pass through the couplings of the blocks ``keys``."""
        if not x.is_floating_point():
            raise ValueError(f"{self.name} got an input of {x.dtype}: it takes floating point.")
        if torch.jit.is_tracing():
            raise RuntimeError(
                f"{self.name} cannot be traced at beta > 0: export with torch.export, or "
                "torch.onnx.export(..., dynamo=True)."
            )
        if getattr(self, "_is_replica", False) and self.rebuilds():
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
        arithmetic = self.make_arithmetic(alpha, beta, x)
        names, couplings = self.coupling_names(keys), self.couplings(keys)
        # Not by whether there are gradients: a reentrant checkpoint runs forward without.
        tokens = self.slice_tokens if self.training else None
        return Pass(self.name, names, couplings, alpha, arithmetic, x.device, args, kwargs, tokens)

    def make_arithmetic(self, alpha: float, beta: float, x: Tensor) -> Arithmetic:
        """The arithmetic for inputs like ``x``: the same for a part of a stretch as for all."""
        check_arithmetic(self.arithmetic)
        longest = max(map(len, self.stretches())) * len(self.branches)
        precision = AutocastState(x.device.type).compute_dtype(x.device.type, x.dtype)
        return make_arithmetic(self.arithmetic, alpha, beta, longest, x.dtype, precision)

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

    def couplings(self, keys: Sequence[str] | None = None) -> list[tuple[nn.Module, Branch]]:
        """The (block, branch) pairs of the blocks ``keys``, or of all, in order."""
        if keys is None:
            keys = self.coupled_keys()
        return [(self.get_submodule(key), branch) for key in keys for branch in self.branches]

    def coupling_names(self, keys: Sequence[str]) -> list[str]:
        """Names the couplings of the blocks ``keys`` for messages: number, path and branch."""
        all_keys = self.coupled_keys()
        return [
            f"coupling {all_keys.index(key) * len(self.branches) + place} "
            f"({self.name}.{key}, {getattr(branch, '__name__', branch)})"
            for key in keys
            for place, branch in enumerate(self.branches)
        ]

    def _refuse_block_hooks(self) -> None:
        """Raises if a block has hooks, which never run, since its branches run apart.

        Those of FSDP2 on the block itself are called around its couplings; on modules inside it
        they would run again in the recomputation, where FSDP2 would lose the gradients.
        """
        for key in self.coupled_keys():
            block = self.get_submodule(key)
            hooks = [
                *block._forward_hooks.values(),
                *block._forward_pre_hooks.values(),
                *block._backward_hooks.values(),
                *block._backward_pre_hooks.values(),
            ]
            if not all(hook is _refuse_direct_call or is_sharding_hook(hook) for hook in hooks):
                raise ValueError(
                    f"block {key!r} ({type(block).__name__}) of {getattr(self, 'name', 'a chain')} "
                    "has hooks, which do not run in a reversible chain: remove them, or put them "
                    "on the block's submodules."
                )
            refuse_sharded(
                (part for part in block.modules() if part is not block),
                f"it stands in block {key!r} of a chain, so shard the block instead.",
            )

    def _warn_if_inverse_is_untrusted(self, alpha: float, beta: float, this_pass: Pass) -> None:
        if this_pass.arithmetic.invertible:
            return
        dtype = this_pass.autocast.compute_dtype(this_pass.device.type, this_pass.arithmetic.dtype)
        error = predicted_inverse_error(alpha, beta, len(this_pass.couplings), dtype)
        if error > UNTRUSTED_ERROR:
            warnings.warn(
                f"{self.name}: at (alpha, beta) = ({alpha:g}, {beta:g}) the inverse in floating "
                f"point multiplies its error by {error_growth(alpha, beta):.3g} at each of "
                f"{len(this_pass.couplings)} couplings: in {dtype} a relative error of {error:.0e} "
                f"is predicted, and gradients cannot be trusted. Use arithmetic='exact'.",
                stacklevel=9,
            )

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, metadata: dict, strict: bool, missing: list, *args: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *args)
        # A pretrained file knows no coefficients: those set stay, and nothing is missing.
        if prefix + "coefficients" in missing:
            missing.remove(prefix + "coefficients")
        elif not self.coefficients.is_meta:
            with suppress(ValueError):  # coefficients out of range are reported when they are used
                self._read_coefficients()

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
        if self.slice_tokens is not None:
            text += f", slice_tokens={self.slice_tokens}"
        return text

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
        return part


def _refuse_direct_call(block: nn.Module, inputs: tuple) -> None:
    raise RuntimeError(
        f"This {type(block).__name__} is part of a reversible chain, and alone it would ignore α "
        "and β: call the chain, or chain.features(x, blocks=[...]) for the output of a block."
    )


def _refuse_bearing_container(blocks: nn.Module) -> None:
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


def _emptied(container: nn.Module) -> nn.Module:
    """A copy of a container of blocks without the blocks."""
    empty = copy(container)
    empty._modules = {}
    return empty
