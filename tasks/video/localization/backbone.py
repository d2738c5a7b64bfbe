"""VideoMAE's ViT over the chunks of a window, as it trains conventionally and checkpointed."""

from functools import partial
from typing import Any

from mmaction.models.backbones.vit_mae import VisionTransformer
from mmengine.registry import MODELS
from torch.utils.checkpoint import checkpoint

from dr2net.conversion.mmaction_vit import scaled_dot_product


# A function and not a class: the network is mmaction2's, which ``dr2net.convert`` knows.
@MODELS.register_module()
def ChunkViT(with_cp: bool = False, **settings: Any) -> VisionTransformer:  # noqa: N802
    """Build mmaction2's ``VisionTransformer`` for features of (chunks, width, time, y, x).

    Attention goes through PyTorch's ``scaled_dot_product_attention``, which does not keep the
    weights (AdaTAD's does the same); the norm after pooling, which features have no use for, is
    left out.

    Args:
        with_cp: Compute each block again in backward instead of keeping its activations.
        **settings: Those of ``VisionTransformer``.
    """
    vit = VisionTransformer(**settings, return_feat_map=True)
    vit.fc_norm = None
    for block in vit.blocks:
        block.attn.forward = partial(scaled_dot_product, block.attn)
        if with_cp:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return vit
