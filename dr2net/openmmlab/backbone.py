"""``type='Dr2NetBackbone'``: any registered backbone, converted."""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS
from torch import nn

from ..coefficients import DEFAULT_BETA
from ..conversion import chains, convert, set_reversible
from ..conversion.mlps import slice_mlps

__all__ = ["Dr2NetBackbone"]


# A function and not a wrapper class: the backbone keeps its place in the model, so that parameter
# names, and with them checkpoints, layer-wise learning rates and parameter-wise settings, are those
# of the backbone without Dr²Net.
@MODELS.register_module()
def Dr2NetBackbone(  # noqa: N802  (a type name to those who write configs)
    backbone: dict[str, Any],
    alpha: float | None = None,
    beta: float = DEFAULT_BETA,
    arithmetic: str = "exact",
    reversible: bool = True,
    checkpointed: bool = False,
    mlp_tokens: int | None = None,
    **options: Any,
) -> nn.Module:
    """Builds ``backbone`` and converts it.

    Args:
        backbone: config of a registered backbone.
        alpha, beta, arithmetic: as in ``dr2net.convert``: α is 1 − β unless it is given. (1, 0) is
            the backbone itself.
        reversible: False stores activations, with the same equations and gradients.
        checkpointed: blocks whose activations are stored (β = 0, ``reversible=False``) are
            checkpointed, by ``torch.utils.checkpoint``: in backbones without ``with_cp`` as well.
        mlp_tokens: MLPs train over slices of so many tokens, of all samples together:
            ``dr2net.slice_mlps``.
        options: ``keep``, ``on_mismatch``, ``blocks`` (for a backbone without an adapter) and
            ``couplings``, as in ``dr2net.convert``, and options of the family's adapter, such as
            ``fused_attention=True``.
    """
    model = convert(MODELS.build(backbone), alpha, beta, arithmetic, **options)
    set_reversible(model, reversible)
    for chain in chains(model):
        chain.checkpoints |= checkpointed
    slice_mlps(model, mlp_tokens)
    return model
