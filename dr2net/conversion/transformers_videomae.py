"""transformers' ``VideoMAEModel``.

Tong et al., "VideoMAE", https://arxiv.org/abs/2203.12602
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.videomae.modeling_videomae import VideoMAELayer, VideoMAEModel
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from ..branches import residual
from ..chain import ReversibleChain
from . import register_adapter
from .subclass import replace_methods
from .transformers_layers import forget_recording, require_layers, run_layers


@partial(residual, shortcut_first=False)
def attention(block: Any, x: Tensor, **options: Any) -> Tensor:
    return block.attention(block.layernorm_before(x))


@partial(
    residual,
    shortcut_first=False,
    tokenwise=("layernorm_after", "intermediate", "output.dense", "output.dropout"),
)
def mlp(block: Any, x: Tensor) -> Tensor:
    # block.output called as a whole would add its shortcut.
    output = block.output.dense(block.intermediate(block.layernorm_after(x)))
    return block.output.dropout(output)


@register_adapter(VideoMAEModel)
def split(model: Any) -> None:
    """Splits layers into attention and MLP; gradient checkpointing has no further effect."""
    require_layers(model, model.encoder.layer, VideoMAELayer)
    forget_recording(model)
    model.encoder.layer = ReversibleChain(model.encoder.layer, (attention, mlp))
    replace_methods(model, VideoMAEModel, forward)


@merge_with_config_defaults
@can_return_tuple
def forward(
    self: Any, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, **kwargs: Any
) -> BaseModelOutput:
    """As transformers', with its encoder's loop over the layers replaced by the chain."""
    embedded = self.embeddings(pixel_values, bool_masked_pos)
    return run_layers(self, self.encoder.layer, embedded, norm=self.layernorm, **kwargs)
