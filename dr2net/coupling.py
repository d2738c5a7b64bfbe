"""Couplings as autograd nodes, with activations rebuilt in backward or stored.

Each coupling is one node, so that the gradients of its parameters leave as soon as they are known
(to the hooks of DDP, for example). The nodes of one pass through a chain share a ``Pass``, which
holds the pair of streams while it travels up in forward and down again in backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_flatten, tree_unflatten

from .arithmetic import Arithmetic, combine_gradients
from .replay import AutocastState, run_recorded, run_replayed

__all__ = [
    "Branch",
    "Pass",
    "ShapeError",
    "check_shape",
    "leaf_like",
    "reversible_values",
    "stored_values",
]

Branch = Callable[..., Tensor]
"""``branch(block, x, alpha, *args, **kwargs) -> Tensor``: one module G(x; α) of a block."""


class ShapeError(ValueError):
    """A module of a chain returned something else than a tensor of its input's shape."""


def check_shape(output: Any, x: Tensor) -> None:
    """Raises ShapeError unless ``output`` is a tensor of the shape of ``x``."""
    if isinstance(output, Tensor) and output.shape == x.shape:
        return
    given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise ShapeError(
        f"from a stream of shape {tuple(x.shape)} the module made {given}, but modules of a chain "
        "must keep the shape. End the chain before this one."
    )


_SIDE_INPUT = object()  # stands for a tensor among the arguments of a call


class Pass:
    """One pass through a chain: what its couplings share from forward to the end of backward."""

    def __init__(
        self,
        name: str,
        coupling_names: list[str],
        couplings: list[tuple[nn.Module, Branch]],
        alpha: float,
        arithmetic: Arithmetic,
        device: torch.device,
        args: tuple,
        kwargs: dict[str, Any],
    ):
        self.name = name
        self.coupling_names = coupling_names
        self.couplings = couplings
        self.alpha = alpha
        self.arithmetic = arithmetic
        self.device = device
        self.autocast = AutocastState(device.type)
        # The side inputs' tensors go to autograd to be saved; the rest of the arguments stays here.
        leaves, self.spec = tree_flatten((args, kwargs))
        self.side = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.leaves = [_SIDE_INPUT if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.x: Tensor | None = None
        self.y: Tensor | None = None
        # Index of the coupling whose output the pair (x, y) is; of the first one in backward.
        self.position = -1
        self.first: int | None = None
        self.first_fingerprint: Tensor | None = None
        # Largest |x| of the streams x_0, x_1, … and of the modules' outputs, as 0-d tensors.
        self.stream_peaks: list[Tensor] = []
        self.output_peaks: list[Tensor] = []
        self.rebuilt_peaks: dict[int, Tensor] = {}

    def start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Makes the first pair of streams of x; returns x_0 and a stand-in for y_0."""
        # The input's own peak: what lies beyond the range may encode to anything.
        self.output_peaks.append(_peak(x))
        self.x = self.arithmetic.encode(x)
        self.y, _ = self.arithmetic.scale(self.x, keep_remainder=False)
        return self._decoded()

    def call(self, index: int, x: Tensor, side: Sequence[Tensor]) -> Tensor:
        """Returns G(x; α) of coupling ``index``, computed under the pass's autocast state."""
        tensors = iter(side)
        leaves = [next(tensors) if leaf is _SIDE_INPUT else leaf for leaf in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.spec)
        block, branch = self.couplings[index]
        try:
            with self.autocast.replayed():
                output = branch(block, x, self.alpha, *args, **kwargs)
            check_shape(output, x)
        except ShapeError as error:
            raise ShapeError(f"{self.coupling_names[index]}: {error}") from None
        return output

    def advance(self, output: Tensor, keep_remainder: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Moves the streams through a coupling; returns x, a stand-in for y, and the remainder."""
        assert self.x is not None
        assert self.y is not None
        self.output_peaks.append(_peak(output))
        y, remainder = self.arithmetic.scale(self.x, keep_remainder)
        self.x, self.y = self.arithmetic.add(self.y, output), y
        return *self._decoded(), remainder

    def _decoded(self) -> tuple[Tensor, Tensor]:
        """The stream x as modules see it, and a tensor of its shape that carries y's gradient."""
        assert self.x is not None
        x = self.arithmetic.decode(self.x)
        self.stream_peaks.append(_peak(x))
        return x, x.new_zeros(()).expand_as(x)

    def take_fingerprint(self, first: int) -> None:
        """Remembers what the streams before coupling ``first``, where backward ends, look like."""
        self.first = first
        self.first_fingerprint = self._fingerprint()

    def _fingerprint(self) -> Tensor | None:
        """Sums over the streams, weighted so that moving values changes them."""
        assert self.x is not None
        assert self.y is not None
        if not self.arithmetic.invertible or self.x.numel() == 0:
            return None
        sums = []
        for stream in (self.x, self.y):
            rows = stream.reshape(-1, stream.shape[-1] if stream.ndim else 1)
            for total in (rows.sum(0), rows.sum(1)):
                sums.append((total * torch.arange(1, len(total) + 1, device=self.device)).sum())
        return torch.stack(sums)

    def finish_forward(self) -> None:
        """Drops the streams and checks their peaks: once per pass, as a GPU has to wait for it."""
        self.x = self.y = None
        self.side = []
        peaks = [torch.stack(self.output_peaks), torch.stack(self.stream_peaks)]
        outputs, streams = torch.stack(peaks).tolist()
        for index, pair in enumerate(zip(outputs, streams, strict=True)):
            for peak in pair:
                if not peak <= self.arithmetic.limit or math.isinf(peak):
                    self._raise_out_of_range(index - 1, peak)

    def _raise_out_of_range(self, index: int, peak: float) -> None:
        place = self.coupling_names[index] if index >= 0 else f"the input of {self.name}"
        if not math.isfinite(peak):
            raise FloatingPointError(
                f"NaN or infinity at {place}. Look for it in the input and the parameters, lower "
                "the learning rate, or autocast to bfloat16 instead of float16."
            )
        raise OverflowError(
            f"A stream reached {peak:.4g} at {place}; words of {self.arithmetic} hold values up to "
            f"{self.arithmetic.limit:.4g}. Use arithmetic='exact64', or coefficients under which "
            f"streams grow less than at (alpha, beta) = ({self.alpha:g}, {self.arithmetic.beta:g})."
        )

    def restart_backward(self, index: int, x: Tensor, y: Tensor, *side: Tensor) -> None:
        """Takes up the streams that coupling ``index`` kept; those rebuilt so far must agree."""
        rebuilt = (self.x, self.y) if self.position == index else (None, None)
        for before, now in zip(rebuilt, (x, y), strict=True):
            if before is not None and self.arithmetic.invertible and not torch.equal(before, now):
                self._raise_not_replayed(index + 1)
        self.x, self.y, self.side = x, y, list(side)

    def retreat(self, index: int, stream: Tensor, output: Tensor) -> None:
        """Moves the streams back through coupling ``index``, given its input and output."""
        assert self.x is not None
        self.x, self.y = stream, self.arithmetic.subtract(self.x, output)
        self.position = index - 1
        if index == self.first:
            before, now = self.first_fingerprint, self._fingerprint()
            self.x = self.y = None
            self.side = []
            if before is not None and now is not None and not torch.equal(before, now):
                self._raise_not_replayed(index)

    def _raise_not_replayed(self, first: int) -> None:
        """Raises because backward did not come back to streams that forward had.

        A module that returned other bits than in forward leaves a mark on every stream rebuilt
        after it. Its place is told by the first rebuilt peak that differs.
        """
        culprit = first
        for index in sorted(self.rebuilt_peaks, reverse=True):
            if index >= first and self.rebuilt_peaks[index] != self.stream_peaks[index]:
                # x_index was rebuilt from y_{index+1} = x_{index+2} − G_{index+2}(x_{index+1}),
                # whose coupling, counted from 0, is index + 1.
                culprit = min(index + 1, len(self.couplings) - 1)
                break
        raise RuntimeError(
            f"{self.coupling_names[culprit]}, or one near it, returned other values when it "
            "was recomputed in backward, so the gradients would be wrong. A module of a chain must "
            "be deterministic given its input, PyTorch's random state and autocast: no own random "
            "generator, no counters, no state that forward changes. "
            "dr2net.check_replay(model, *inputs) finds the module; dr2net.set_reversible(model, "
            "False) trains with activations stored."
        )


class _Start(torch.autograd.Function):
    """x → (x_0, y_0)."""

    @staticmethod
    def forward(ctx: Any, this_pass: Pass, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.beta = this_pass.arithmetic.beta
        return this_pass.start(x)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, grad_y: Tensor | None) -> tuple:
        return None, combine_gradients(grad_x, grad_y, ctx.beta)


def stored_values(this_pass: Pass, x: Tensor) -> Iterator[Tensor]:
    """The couplings with activations kept by autograd: the reference for ``reversible_values``."""
    x, y = _Start.apply(this_pass, x)
    for index in range(len(this_pass.couplings)):
        for_module, for_y = _Split.apply(this_pass.arithmetic.beta, x)
        # Views, so that gradients of side inputs are summed coupling by coupling.
        side = [tensor.view_as(tensor) for tensor in this_pass.side]
        output = this_pass.call(index, for_module, side)
        x, y = _StoredCoupling.apply(this_pass, output, for_y, y)
        yield x


class _Split(torch.autograd.Function):
    """The input of a stored coupling, once for its module and once for the stream y."""

    @staticmethod
    def forward(ctx: Any, beta: float, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.beta = beta
        return x.view_as(x), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad_module: Tensor | None, grad_y: Tensor | None) -> tuple:
        return None, combine_gradients(grad_module, grad_y, ctx.beta)


class _StoredCoupling(torch.autograd.Function):
    """(module output, x, y) → (x', y'), the straight-through derivative of the arithmetic."""

    @staticmethod
    def forward(ctx: Any, this_pass: Pass, output: Tensor, x: Tensor, y: Tensor) -> tuple:
        ctx.set_materialize_grads(False)
        ctx.output_dtype = output.dtype
        return this_pass.advance(output, keep_remainder=False)[:2]

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, grad_y: Tensor | None) -> tuple:
        grad_output = None if grad_x is None else grad_x.to(ctx.output_dtype)
        return None, grad_output, grad_y, grad_x  # _Split multiplies grad_y by β


def reversible_values(this_pass: Pass, x: Tensor, outputs: dict[int, int]) -> Iterator[Tensor]:
    """The couplings with activations rebuilt in backward."""
    side = this_pass.side
    needs_gradient = x.requires_grad or any(tensor.requires_grad for tensor in side)
    x, y = _Start.apply(this_pass, x)
    for index, (block, _) in enumerate(this_pass.couplings):
        parameters = list(block.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if not needs_gradient and not trained:
            # Before the first coupling that needs a gradient there is nothing to rebuild.
            with torch.no_grad():
                x, y, _ = this_pass.advance(this_pass.call(index, x, side), keep_remainder=False)
        else:
            needs_gradient = True
            if this_pass.first is None:
                this_pass.take_fingerprint(index)
            x, y = _ReversibleCoupling.apply(
                this_pass, index, index in outputs, parameters, x, y, *side, *trained
            )
        yield x


class _ReversibleCoupling(torch.autograd.Function):
    """(x, y, side inputs, trained parameters) → (x', y'), keeping no more than the remainder.

    A coupling whose x' leaves the chain also keeps the pair of streams that backward starts from.
    """

    @staticmethod
    def forward(
        ctx: Any,
        this_pass: Pass,
        index: int,
        keeps_streams: bool,
        parameters: list[nn.Parameter],
        x: Tensor,
        y: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.this_pass, ctx.index, ctx.keeps_streams = this_pass, index, keeps_streams
        ctx.side_count = len(this_pass.side)
        ctx.parameters = parameters
        ctx.versions = [parameter._version for parameter in parameters]
        ctx.trained = tensors[ctx.side_count :]
        # With gradients on and the same inputs requiring them as in backward, so that PyTorch
        # chooses the same kernels. The graph made here is dropped at once: what it saves is not
        # for the hooks that the user may have set (to offload, to count).
        with torch.enable_grad(), saved_tensors_hooks(_identity, _identity):
            x, *side = map(leaf_like, (x, *this_pass.side))
            output, ctx.random_state = run_recorded(
                partial(this_pass.call, index, x, side), this_pass.device
            )
        x, y, remainder = this_pass.advance(output, keep_remainder=True)
        streams = (this_pass.x, this_pass.y, *this_pass.side) if keeps_streams else ()
        ctx.save_for_backward(remainder, *streams)
        return x, y

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, grad_y: Tensor | None) -> tuple:
        this_pass, index = ctx.this_pass, ctx.index
        arithmetic = this_pass.arithmetic
        _refuse_double_backward(this_pass)
        _refuse_changed_parameters(ctx)
        remainder, *streams = ctx.saved_tensors
        if ctx.keeps_streams:
            this_pass.restart_backward(index, *streams)
        stream = arithmetic.unscale(this_pass.y, remainder)
        _, _, _, _, needs_x, _, *needs_tensors = ctx.needs_input_grad
        x = arithmetic.decode(stream).requires_grad_(needs_x)
        this_pass.rebuilt_peaks[index] = _peak(x)
        side = list(map(leaf_like, this_pass.side, needs_tensors))
        with torch.enable_grad():
            output = run_replayed(
                partial(this_pass.call, index, x, side), this_pass.device, ctx.random_state
            )
        this_pass.retreat(index, stream, output)
        tensors = (x, *side, *ctx.trained)
        grads: list[Tensor | None] = [None] * len(tensors)
        if grad_x is not None and output.requires_grad:
            wanted = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
            found = torch.autograd.grad(
                output, [tensors[i] for i in wanted], grad_x.to(output.dtype), allow_unused=True
            )
            for i, grad in zip(wanted, found, strict=True):
                grads[i] = grad
        grad_in = combine_gradients(grads[0], grad_y, arithmetic.beta) if needs_x else None
        return None, None, None, None, grad_in, grad_x, *grads[1:]


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def leaf_like(tensor: Tensor, needs_gradient: bool | None = None) -> Tensor:
    """A leaf with the values of ``tensor`` that requires a gradient if ``tensor`` does."""
    if needs_gradient is None:
        needs_gradient = tensor.requires_grad
    return tensor.detach().requires_grad_(needs_gradient)


def _peak(tensor: Tensor) -> Tensor:
    """Largest absolute value as a 0-d float64 tensor: NaN if there is one, 0 of nothing."""
    tensor = tensor.detach()
    if tensor.numel() == 0:
        return tensor.new_zeros((), dtype=torch.float64)
    low, high = torch.aminmax(tensor)
    return torch.maximum(high, -low).double()


def _refuse_double_backward(this_pass: Pass) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{this_pass.name} is reversible and has no second derivative "
            "(create_graph=True): call dr2net.set_reversible(model, False) for it."
        )


def _refuse_changed_parameters(ctx: Any) -> None:
    """As autograd does for the tensors it keeps: a recomputation with other weights is wrong."""
    block, _ = ctx.this_pass.couplings[ctx.index]
    now = list(block.parameters())
    same = len(now) == len(ctx.parameters) and all(
        parameter is before and parameter._version == version
        for parameter, before, version in zip(now, ctx.parameters, ctx.versions, strict=True)
    )
    if not same:
        raise RuntimeError(
            f"The parameters of {ctx.this_pass.coupling_names[ctx.index]} were changed or "
            "replaced between forward and backward: run backward before the optimizer's step, or "
            "call dr2net.set_reversible(model, False)."
        )
