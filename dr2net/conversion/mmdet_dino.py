"""mmdetection's DINO and Deformable DETR: their encoder and their decoders.

Zhu et al., "Deformable DETR", https://arxiv.org/abs/2010.04159; Zhang et al., "DINO",
https://arxiv.org/abs/2203.03605. Their layers normalise behind the shortcut.
"""

from __future__ import annotations

from typing import Any

from mmcv.cnn.bricks.transformer import FFN
from mmdet.models.layers.transformer.deformable_detr_layers import (
    DeformableDetrTransformerDecoder,
    DeformableDetrTransformerEncoder,
    DeformableDetrTransformerEncoderLayer,
)
from torch import Tensor

from ..branches import post_norm
from . import register_adapter
from .by_name import split_lists
from .openmmlab_chain import OpenMMLabChain
from .subclass import replace_methods


@post_norm
def attention(layer: Any, x: Tensor, query_pos: Tensor, **kwargs: Any) -> Tensor:
    attended = layer.self_attn(
        query=x, key=x, value=x, query_pos=query_pos, key_pos=query_pos, **kwargs
    )
    return layer.norms[0](attended)


@post_norm(tokenwise=("ffn", "norms.1"))
def mlp(layer: Any, x: Tensor) -> Tensor:
    return layer.norms[1](layer.ffn(x))


@register_adapter(DeformableDetrTransformerEncoder)
def split_encoder(encoder: Any) -> None:
    """Splits each layer into attention and MLP; ``num_cp`` has to be left out.

    Encoders with a loop of their own, as Mask2Former's and Grounding DINO's, keep it: their layers
    are a coupling each.
    """
    if encoder.num_cp > 0:
        raise ValueError(
            f"This {type(encoder).__name__} checkpoints {encoder.num_cp} of its layers, which a "
            "chain computes again anyway: leave out num_cp."
        )
    if type(encoder).forward is not DeformableDetrTransformerEncoder.forward:
        split_lists(encoder, "layers")
        return
    for layer in encoder.layers:
        if type(layer) is not DeformableDetrTransformerEncoderLayer or type(layer.ffn) is not FFN:
            raise ValueError(
                f"mmdetection's {type(encoder).__name__} with a {type(layer).__name__} has no "
                "adapter: layers must be DeformableDetrTransformerEncoderLayer with mmcv's FFN."
            )
    encoder.layers = OpenMMLabChain(encoder.layers, (attention, mlp))
    replace_methods(encoder, DeformableDetrTransformerEncoder, forward)


def forward(
    self: Any,
    query: Tensor,
    query_pos: Tensor,
    key_padding_mask: Tensor | None,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    valid_ratios: Tensor,
    **kwargs: Any,
) -> Tensor:
    """As mmdetection's, with its loop over the layers replaced by the chain."""
    reference_points = self.get_encoder_reference_points(
        spatial_shapes, valid_ratios, device=query.device
    )
    return self.layers(
        query,
        query_pos=query_pos,
        key_padding_mask=key_padding_mask,
        spatial_shapes=spatial_shapes,
        level_start_index=level_start_index,
        valid_ratios=valid_ratios,
        reference_points=reference_points,
        **kwargs,
    )


@register_adapter(DeformableDetrTransformerDecoder)
def split_decoder(decoder: Any) -> None:
    """Makes each layer one coupling: it has few tokens, and arguments of its own."""
    split_lists(decoder, "layers")
