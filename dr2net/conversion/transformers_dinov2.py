"""transformers' ``Dinov2Model``.

Oquab et al., "DINOv2", https://arxiv.org/abs/2304.07193
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.dinov2.modeling_dinov2 import Dinov2Encoder, Dinov2Layer, Dinov2Model
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from ..branches import residual
from ..chain import ReversibleChain
from . import register_adapter
from .subclass import replace_methods
from .transformers_layers import forget_recording, require_layers, run_layers


@partial(residual, shortcut_first=False)
def attention(
    block: Any, x: Tensor, attention_mask: Tensor | None = None, **options: Any
) -> Tensor:
    attended, _ = block.attention(block.norm1(x), attention_mask=attention_mask, **options)
    return block.drop_path(block.layer_scale1(attended))


@partial(
    residual,
    shortcut_first=False,
    tokenwise=("norm2", "mlp", "layer_scale2"),
    drop_path="drop_path",
)
def mlp(block: Any, x: Tensor) -> Tensor:
    return block.layer_scale2(block.mlp(block.norm2(x)))


@register_adapter(Dinov2Model)
def split(model: Any) -> None:
    """Splits layers into attention and MLP; gradient checkpointing has no further effect."""
    encoder = model.encoder
    require_layers(encoder, encoder.layer, Dinov2Layer)
    forget_recording(encoder)
    encoder.layer = ReversibleChain(encoder.layer, (attention, mlp))
    replace_methods(encoder, Dinov2Encoder, forward)


@merge_with_config_defaults
@can_return_tuple
def forward(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> BaseModelOutput:
    """The encoder as transformers', with its loop over the layers replaced by the chain."""
    return run_layers(self, self.layer, hidden_states, attention_mask, **kwargs)
