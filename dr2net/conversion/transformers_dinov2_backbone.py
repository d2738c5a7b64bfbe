"""transformers' ``Dinov2Backbone``, which returns feature maps of chosen layers.

Oquab et al., "DINOv2", https://arxiv.org/abs/2304.07193
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BackboneOutput
from transformers.models.dinov2.modeling_dinov2 import Dinov2Backbone
from transformers.utils.generic import can_return_tuple

from . import register_adapter
from .subclass import replace_methods
from .transformers_dinov2 import split as split_encoder


@register_adapter(Dinov2Backbone)
def split(model: Any) -> None:
    """Splits the layers of the encoder, as of a ``Dinov2Model``."""
    split_encoder(model)
    replace_methods(model, Dinov2Backbone, forward)


@can_return_tuple
def forward(
    self: Any, pixel_values: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> BackboneOutput:
    """As transformers', but hidden states that no one asked for do not leave the chain.

    transformers has its encoder return all of them, each of which would keep a pair of streams.
    """
    if kwargs.get("output_hidden_states", self.config.output_hidden_states):
        return Dinov2Backbone.forward(self, pixel_values, attention_mask, **kwargs)
    names = list(enumerate(self.stage_names))
    kwargs["output_hidden_states"] = [i for i, name in names if name in self.out_features]
    outputs = inspect.unwrap(Dinov2Backbone.forward)(self, pixel_values, attention_mask, **kwargs)
    return BackboneOutput(feature_maps=outputs.feature_maps, attentions=outputs.attentions)
