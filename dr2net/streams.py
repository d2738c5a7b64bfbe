"""The pair of streams of a Dr²Net and the four moves on it: start, advance, rebuild, retreat.

    x' = G(x; α) + y      y' = β · x          and back:      x = y' / β      y = x' − G(x; α)

(Zhao et al., "Dr²Net", CVPR 2024, arXiv 2401.04105, section 3.) The recurrence stands here and
nowhere else; ``kernels/arithmetic.py`` says in which numbers.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from .kernels.arithmetic import Arithmetic
from .layout import in_a_memory_format

__all__ = ["Peak", "Streams", "combined", "lowest_and_highest", "peak"]

ROWS_AT_ONCE = 64

Peak = Tensor | tuple[Tensor, Tensor]
"""The largest size of a tensor's values, or the lowest and the highest; NaN if there is one."""


class Streams:
    """The pair (x, y) before a coupling, or behind it.

    Args:
        arithmetic: in which it is held.
        x, y: as autograd has saved them; left out where ``start`` makes them.
    """

    def __init__(self, arithmetic: Arithmetic, x: Tensor | None = None, y: Tensor | None = None):
        self.arithmetic = arithmetic
        self.x, self.y = x, y
        # What autograd has saved of them, which stays as it is.
        self._saved: tuple[Tensor | None, ...] = () if x is None else (x, y)
        # Of the input or the modules' outputs, and of x, in the order of the moves.
        self.output_peaks: list[Peak] = []
        self.stream_peaks: list[Peak] = []
        self._sizes: Tensor | None = None
        self._rows: list[Tensor] = []

    def start(self, value: Tensor) -> Tensor:
        """Makes the first pair of a chain's input; returns x as modules see it."""
        self.output_peaks.append(peak(value))  # what lies beyond the range may encode to anything
        self.x = self.arithmetic.encode(in_a_memory_format(value))
        self.y, _ = self.arithmetic.scale(self.x, keep_remainder=False)
        return self._value()

    def advance(self, output: Tensor, keep_remainder: bool) -> tuple[Tensor, Tensor | None]:
        """Moves through a coupling whose module returned ``output``.

        Returns:
            x' as modules see it, and the packed remainder, for ``rebuild``.
        """
        x, y = self._pair()
        fused = self.arithmetic.kernels(x, output.dtype) if has_kernels(x) else None
        if fused is not None:
            into = (y if self._is_own(y) else None, x if self._is_own(x) else None)
            peaks = self._row(fused)
            x, y, remainder, value = fused.advance(
                self.arithmetic, x, y, output, keep_remainder, peaks, into
            )
            self._move(x, y)
            of_output, of_stream = peaks.view(torch.float32).unbind()
            self.output_peaks.append(of_output)
            self.stream_peaks.append(of_stream)
            return value, remainder
        self.output_peaks.append(peak(output))
        scaled, remainder = self.arithmetic.scale(x, keep_remainder)
        self._move(self.arithmetic.add(y, output, in_place=self._is_own(y)), scaled)
        return self._value(), remainder

    def rebuild(self, remainder: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the stream x before the coupling, and x as its module saw it.

        The stream y' is dropped; the two are a pair again after ``retreat``.
        """
        x, y = self._pair()
        fused = self.arithmetic.kernels(x, self.arithmetic.dtype) if has_kernels(x) else None
        if fused is not None:
            before, value = fused.rebuild(
                self.arithmetic, y, remainder, y if self._is_own(y) else None
            )
        else:
            before = self.arithmetic.unscale(y, remainder)
            value = self.arithmetic.decode(before)
        self._move(x, before)
        return before, value

    def retreat(self, before: Tensor, output: Tensor) -> None:
        """Moves back through a coupling, given the stream x before it and its module's output."""
        x, _ = self._pair()
        fused = self.arithmetic.kernels(x, output.dtype) if has_kernels(x) else None
        if fused is not None:
            peaks = self._row(fused)
            y = fused.subtract(
                self.arithmetic, x, output, peaks, x if self._is_own(x) else None
            )
            self.output_peaks.append(peaks.view(torch.float32)[0])
        else:
            self.output_peaks.append(peak(output))
            y = self.arithmetic.subtract(x, output, in_place=self._is_own(x))
        self._move(before, y)

    def sizes(self) -> Tensor:
        """The largest |value| of input and outputs, and of the stream x: (2, couplings + 1)."""
        if self._sizes is None or self._sizes.shape[1] != len(self.stream_peaks):
            peaks = [*self.output_peaks, *self.stream_peaks]
            ends = torch.stack([end for peak in peaks for end in lowest_and_highest(peak)]).abs()
            self._sizes = ends.view(2, -1, 2).amax(2)
        return self._sizes

    def save(self) -> tuple[Tensor, Tensor]:
        """The pair, for autograd to save: it stays as it is."""
        self._saved = self._pair()
        return self._saved

    def drop(self) -> None:
        """Frees the pair."""
        self._move(None, None)

    def _row(self, fused: ModuleType) -> Tensor:
        """A row for a fused move's peaks; memory is made ready for many at a time."""
        if not self._rows:
            assert self.x is not None
            self._rows = list(fused.new_peaks(ROWS_AT_ONCE, self.x.device).unbind())
        return self._rows.pop()

    def _pair(self) -> tuple[Tensor, Tensor]:
        assert self.x is not None
        assert self.y is not None
        return self.x, self.y

    def _value(self) -> Tensor:
        assert self.x is not None
        value = self.arithmetic.decode(self.x)
        self.stream_peaks.append(peak(value))
        return value

    def _move(self, x: Tensor | None, y: Tensor | None) -> None:
        self.x, self.y = x, y
        if self._saved:  # not held longer than they are needed
            self._saved = tuple(stream for stream in self._saved if stream is x or stream is y)

    def _is_own(self, stream: Tensor) -> bool:
        """Whether a stream about to be dropped may be written over: fresh memory costs more."""
        # At β = 1 the pair can be one tensor.
        if self.x is self.y:
            return False
        return not self._saved or all(stream is not saved for saved in self._saved)


def combined(grad_module: Tensor | None, grad_y: Tensor | None, beta: float) -> Tensor | None:
    """Gradient of a coupling's input x, which feeds the module and, scaled by β, the stream y'.

    Rebuilt and stored couplings both call this one, so that they round alike.
    """
    if grad_module is None:
        return None if grad_y is None else grad_y * beta
    return grad_module if grad_y is None else torch.add(grad_module, grad_y, alpha=beta)


def has_kernels(stream: Tensor) -> bool:
    """Whether moves on ``stream`` may be fused."""
    return stream.is_cuda


def peak(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value, both NaN if there is one, both 0 of nothing."""
    if tensor.numel() == 0:
        zero = tensor.new_zeros(())
        return zero, zero
    return torch.aminmax(tensor.detach() if tensor.requires_grad else tensor)


def lowest_and_highest(peak: Peak) -> tuple[Tensor, Tensor]:
    """The two ends of a peak, the same one twice where only the size is known."""
    return peak if isinstance(peak, tuple) else (peak, peak)
