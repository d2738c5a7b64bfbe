"""Small networks of mmaction2 and mmdetection."""

import torch
from torch import nn

import dr2net.openmmlab  # noqa: F401  (makes them importable)
from tools.families.example import Example


def vit(depth: int, chance: float) -> nn.Module:
    from mmaction.models.backbones.vit_mae import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dims=32,
        num_heads=2,
        depth=depth,
        num_frames=4,
        norm_cfg={"type": "LN", "eps": 1e-6},
        init_values=0.5,
        drop_path_rate=chance,
        drop_rate=chance,
        attn_drop_rate=chance,
    )
    model.init_weights()
    return model


EXAMPLES = {
    "mmaction2 ViT": Example("mmaction2", vit, (2, 3, 4, 32, 32)),
}
