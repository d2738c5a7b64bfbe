"""How streams grow with (α, β), and what an inverse in floating point does to its error."""

from __future__ import annotations

import math

import torch

__all__ = ["error_growth", "float_tolerance", "predicted_inverse_error", "stream_growth"]

# Predicted relative error from which the float inverse is called untrustworthy: above it the
# gradients of a 12-block ViT were measured to be off by more than a hundredth.
UNTRUSTED_ERROR = 1e-2
# Streams rebuilt in floating point may be off by so many times the predicted error.
FLOAT_TOLERANCE = 32.0


def stream_growth(alpha: float, beta: float) -> float:
    """λ: the factor by which streams grow at each coupling before the modules add anything."""
    return (alpha + math.sqrt(alpha * alpha + 4 * beta)) / 2


def error_growth(alpha: float, beta: float) -> float:
    """g: the factor by which the inverse in floating point multiplies its error, each coupling."""
    return 2 / (math.sqrt(alpha * alpha + 4 * beta) - alpha) if beta else math.inf


def predicted_inverse_error(alpha: float, beta: float, couplings: int, dtype: torch.dtype) -> float:
    """Relative error of the first activation of a chain when it is inverted in floating point.

    The rounding error of the last coupling, in the ``dtype`` that the modules compute in, grown by
    ``error_growth`` at each coupling on the way back. Above about 0.01 gradients are unusable.
    """
    if not beta:
        return math.inf
    log2_error = couplings * math.log2(error_growth(alpha, beta))
    return 2.0 ** min(log2_error, 1000.0) * torch.finfo(dtype).eps


def float_tolerance(
    alpha: float, beta: float, couplings: int, dtype: torch.dtype
) -> tuple[float, str | None]:
    """By how much streams rebuilt in floating point may differ, relative to their norm.

    Returns:
        The tolerance, and what to warn of where nothing can be told: it is infinite then.
    """
    error = predicted_inverse_error(alpha, beta, couplings, dtype)
    if error <= UNTRUSTED_ERROR:
        return FLOAT_TOLERANCE * couplings * error, None
    return math.inf, (
        f"at (alpha, beta) = ({alpha:g}, {beta:g}) the inverse in floating point multiplies its "
        f"error by {error_growth(alpha, beta):.3g} at each of {couplings} couplings: in {dtype} a "
        f"relative error of {error:.0e} is predicted, and gradients cannot be trusted. Use "
        "arithmetic='exact'."
    )
