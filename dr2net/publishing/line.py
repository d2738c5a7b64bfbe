"""From which (α, β) a network leaves for the plain one."""

from __future__ import annotations

from ..coefficients import is_on_the_line

__all__ = ["PLAIN_BETA", "refuse_no_plain_network"]

PLAIN_BETA = 0.5
"""Finetuned at (1/2, 1/2), DINOv2's ViT-S lost 2 points of top-1 as the plain network; at (0, 1),
which is on the line as well, it lost 54 of 68."""


def refuse_no_plain_network(alpha: float, beta: float) -> None:
    """Raises ValueError where the weights serve no plain network."""
    if is_on_the_line(alpha, beta) and beta <= PLAIN_BETA:
        return
    raise ValueError(
        f"At (alpha, beta) = {(alpha, beta)} the plain network with the same weights is another "
        f"function than this Dr²Net. It is near on the line alpha = 1 - beta, up to beta = "
        f"{PLAIN_BETA}: finetune there, or publish the Dr²Net (reversible=True; of OpenMMLab, its "
        "config and checkpoint as they are)."
    )
