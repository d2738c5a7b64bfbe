"""One pass through a chain: the pair of streams on its way up in forward and down in backward.

Also the checks of what passes: shapes, values beyond the range, and, in backward, streams that are
not those of forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .arithmetic import Arithmetic
from .kernels import kernels_for
from .replay import AutocastState, without_benchmark
from .tokenwise import Slices, can_be_sliced, draw_mask

__all__ = ["Branch", "Pass", "ShapeError", "check_shape", "peak"]

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
        slice_tokens: int | None = None,
    ):
        self.name = name
        self.coupling_names = coupling_names
        self.couplings = couplings
        self.alpha = alpha
        self.arithmetic = arithmetic
        self.device = device
        self.autocast = AutocastState(device.type)
        self.slice_tokens = slice_tokens
        # The side inputs' tensors go to autograd to be saved; the rest of the arguments stays here.
        leaves, self.spec = tree_flatten((args, kwargs))
        self.side = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.side_strides = [
            tensor.stride() if tensor.layout == torch.strided else None for tensor in self.side
        ]
        self.leaves = [_SIDE_INPUT if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.x: Tensor | None = None
        self.y: Tensor | None = None
        self.strides: tuple[int, ...] = ()
        # What autograd has saved of the streams.
        self.kept: tuple[Tensor | None, ...] = ()
        # Index of the coupling whose output the pair (x, y) is.
        self.position = -1
        # Of the streams before each coupling at which a row of rebuilt ones begins.
        self.fingerprints: dict[int, Tensor | None] = {}
        # Largest |x| of the streams x_0, x_1, … and of the modules' outputs, as 0-d tensors.
        self.stream_peaks: list[Tensor] = []
        self.output_peaks: list[Tensor] = []
        self.rebuilt_peaks: dict[int, Tensor] = {}

    def start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Makes the first pair of streams of x; returns x_0 and a stand-in for y_0."""
        # The input's own peak: what lies beyond the range may encode to anything.
        self.output_peaks.append(peak(x))
        self.x = self.arithmetic.encode(_in_a_memory_format(x))
        self.strides = self.x.stride()
        self.y, _ = self.arithmetic.scale(self.x, keep_remainder=False)
        return self._decoded()

    def exported_values(self, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Iterator[Tensor]:
        """The stream x after each coupling, without gradients and checks, for ``torch.export``."""
        stream_x = self.arithmetic.encode(_in_a_memory_format(x))
        stream_y, _ = self.arithmetic.scale(stream_x, keep_remainder=False)
        for block, branch in self.couplings:
            output = branch(block, self.arithmetic.decode(stream_x), self.alpha, *args, **kwargs)
            scaled, _ = self.arithmetic.scale(stream_x, keep_remainder=False)
            stream_x, stream_y = self.arithmetic.add(stream_y, output), scaled
            yield self.arithmetic.decode(stream_x)

    def slices(self, index: int, x: Tensor) -> Slices | None:
        """How coupling ``index`` runs over slices of its input's tokens; None: it runs whole."""
        tokens = self.slice_tokens
        if tokens is None or x.shape[:-1].numel() <= tokens:
            return None
        block, branch = self.couplings[index]
        if not can_be_sliced(block, branch):
            return None
        return Slices(x, tokens, draw_mask(block, branch, x))

    def call(
        self, index: int, x: Tensor, side: Sequence[Tensor], drop_mask: Tensor | None = None
    ) -> Tensor:
        """Returns G(x; α) of coupling ``index``, computed under the pass's autocast state.

        Args:
            x: the coupling's input, or a slice of it, with its ``drop_mask`` if there is one.
        """
        tensors = iter(side)
        leaves = [next(tensors) if leaf is _SIDE_INPUT else leaf for leaf in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.spec)
        if drop_mask is not None:
            kwargs["_drop_mask"] = drop_mask
        block, branch = self.couplings[index]
        try:
            with self.autocast.replayed(), without_benchmark(self.device):
                output = branch(block, x, self.alpha, *args, **kwargs)
            check_shape(output, x)
        except ShapeError as error:
            raise ShapeError(f"{self.coupling_names[index]}: {error}") from None
        return output

    def advance(self, output: Tensor, keep_remainder: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Moves the streams through a coupling; returns x, a stand-in for y, and the remainder."""
        assert self.x is not None
        assert self.y is not None
        fused = kernels_for(self.arithmetic, self.x, output)
        if fused is not None:
            stream_x, stream_y, remainder, x, output_peak, stream_peak = fused.advance(
                self.arithmetic, self.x, self.y, output, keep_remainder
            )
            self._move(stream_x, stream_y)
            self.output_peaks.append(output_peak)
            self.stream_peaks.append(stream_peak)
            return x, _stand_in(x), remainder
        self.output_peaks.append(peak(output))
        y, remainder = self.arithmetic.scale(self.x, keep_remainder)
        in_place = self._is_own(self.y)
        self._move(self.arithmetic.add(self.y, output, in_place), y)
        return *self._decoded(), remainder

    def rebuild(self, index: int, remainder: Tensor | None) -> tuple[Tensor, Tensor]:
        """The stream before coupling ``index``, and x as its module saw it."""
        assert self.y is not None
        fused = kernels_for(self.arithmetic, self.y)
        if fused is not None:
            stream, x = fused.rebuild(self.arithmetic, self.y, remainder)
        else:
            stream = self.arithmetic.unscale(self.y, remainder)
            x = self.arithmetic.decode(stream)
        self.rebuilt_peaks[index] = peak(x)
        assert self.x is not None
        self._move(self.x, stream)  # y is no longer needed
        self.position = -1  # the two are no pair until ``retreat``
        return stream, x

    def keep_streams(self) -> tuple[Tensor | None, ...]:
        """The streams for autograd to save, with the side inputs; they stay as they are."""
        self.kept = (self.x, self.y)
        return *self.kept, *self.side

    def _move(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        # Not held longer than they are needed.
        self.kept = tuple(stream for stream in self.kept if stream is x or stream is y)

    def _drop_streams(self) -> None:
        self.x = self.y = None
        self.kept = ()
        self.side = []

    def _is_own(self, stream: Tensor) -> bool:
        """Whether a stream about to be dropped may be written over: fresh memory costs more."""
        # At β = 1 the pair can be one tensor.
        return self.x is not self.y and all(stream is not kept for kept in self.kept)

    def _decoded(self) -> tuple[Tensor, Tensor]:
        """The stream x as modules see it, and a tensor of its shape that carries y's gradient."""
        assert self.x is not None
        x = self.arithmetic.decode(self.x)
        self.stream_peaks.append(peak(x))
        return x, _stand_in(x)

    def take_fingerprint(self, first: int) -> None:
        """Remembers the streams before coupling ``first``, to which rebuilding has to lead."""
        self.fingerprints[first] = self._fingerprint()

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
        self._drop_streams()
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
        is_narrow = getattr(self.arithmetic, "word", None) == torch.int32
        wider = "arithmetic='exact64', or " if is_narrow else ""
        raise OverflowError(
            f"A stream reached {peak:.4g} at {place}; words of {self.arithmetic} hold values up to "
            f"{self.arithmetic.limit:.4g}. Use {wider}coefficients under which streams grow less "
            f"than at (alpha, beta) = ({self.alpha:g}, {self.arithmetic.beta:g})."
        )

    def restart_backward(self, index: int, x: Tensor, y: Tensor, *side: Tensor) -> None:
        """Takes up the streams that coupling ``index`` kept; those rebuilt so far must agree."""
        rebuilt = (self.x, self.y) if self.position == index else (None, None)
        for before, now in zip(rebuilt, (x, y), strict=True):
            if before is not None and self.arithmetic.invertible and not torch.equal(before, now):
                self._raise_not_replayed(index + 1)
        # Hooks on saved tensors (save_on_cpu) return them contiguous.
        self.x, self.y = (_with_strides(tensor, self.strides) for tensor in (x, y))
        self.kept = (self.x, self.y)
        self.side = list(map(_with_strides, side, self.side_strides))

    def retreat(self, index: int, stream: Tensor, output: Tensor) -> None:
        """Moves the streams back through coupling ``index``, given its input and output."""
        assert self.x is not None
        fused = kernels_for(self.arithmetic, self.x, output)
        if fused is None:
            y = self.arithmetic.subtract(self.x, output, in_place=self._is_own(self.x))
        else:
            y = fused.subtract(self.arithmetic, self.x, output)
        self._move(stream, y)
        self.position = index - 1
        if index in self.fingerprints:
            before, now = self.fingerprints[index], self._fingerprint()
            self._drop_streams()
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
            f"{self.coupling_names[culprit]}, or one near it, returned other values when it was "
            "recomputed in backward: discard this backward's gradients. A module of a chain must "
            "be deterministic given its input, PyTorch's random state and autocast: no own random "
            "generator, no counters, no state that forward changes, no other global settings "
            "(sdpa_kernel) than in forward. "
            "dr2net.verify(model, *inputs) finds the module; dr2net.set_reversible(model, "
            "False) trains with activations stored."
        )


def _stand_in(x: Tensor) -> Tensor:
    """A tensor of the shape of ``x`` that takes no memory, to carry a gradient."""
    return x.new_zeros(()).expand_as(x)


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _in_a_memory_format(x: Tensor) -> Tensor:
    """``x`` contiguous, unless it is channels last: streams keep their first one's layout.

    A permuted one, such as a patch embedding's, would have every operation of the chain run across
    the lines of memory.
    """
    last = _CHANNELS_LAST.get(x.ndim)
    return x if last and x.is_contiguous(memory_format=last) else x.contiguous()


def _with_strides(tensor: Tensor, strides: tuple[int, ...] | None) -> Tensor:
    """``tensor`` with the strides it had, by which kernels are chosen, if they leave no gaps."""
    if strides is None or tensor.stride() == strides:
        return tensor
    wanted = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
    # 0: all elements lie apart, without gaps.
    dense = torch._debug_has_internal_overlap(wanted) == 0
    return wanted.copy_(tensor) if dense else tensor


def peak(tensor: Tensor) -> Tensor:
    """Largest absolute value as a 0-d float64 tensor: NaN if there is one, 0 of nothing."""
    tensor = tensor.detach()
    if tensor.numel() == 0:
        return tensor.new_zeros((), dtype=torch.float64)
    low, high = torch.aminmax(tensor)
    return torch.maximum(high, -low).double()
