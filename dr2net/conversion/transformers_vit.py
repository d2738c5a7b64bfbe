"""transformers' ``ViTModel``.

Dosovitskiy et al., "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.vit.modeling_vit import ViTLayer, ViTModel
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
    attended, _ = block.attention(block.layernorm_before(x), attention_mask, **options)
    return block.dropout(attended)


@partial(residual, shortcut_first=False, tokenwise=("layernorm_after", "mlp", "dropout"))
def mlp(block: Any, x: Tensor) -> Tensor:
    return block.dropout(block.mlp(block.layernorm_after(x)))


@register_adapter(ViTModel)
def split(model: Any) -> None:
    """Splits layers into attention and MLP; gradient checkpointing has no further effect."""
    require_layers(model, model.layers, ViTLayer)
    forget_recording(model)
    model.layers = ReversibleChain(model.layers, (attention, mlp))
    replace_methods(model, ViTModel, forward)


@merge_with_config_defaults
@can_return_tuple
def forward(
    self: Any,
    pixel_values: Tensor,
    bool_masked_pos: Tensor | None = None,
    interpolate_pos_encoding: bool | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> BaseModelOutputWithPooling:
    """As transformers', with its loop over the layers replaced by the chain."""
    embedded = self.embeddings(
        pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype),
        bool_masked_pos=bool_masked_pos,
        interpolate_pos_encoding=interpolate_pos_encoding,
    )
    mask = create_bidirectional_mask(
        config=self.config, inputs_embeds=embedded, attention_mask=attention_mask
    )
    outputs = run_layers(self, self.layers, embedded, mask, norm=self.layernorm, **kwargs)
    pooled = None if self.pooler is None else self.pooler(outputs.last_hidden_state)
    return BaseModelOutputWithPooling(pooler_output=pooled, **outputs)
