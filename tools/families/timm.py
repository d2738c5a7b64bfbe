"""Small networks of timm."""

import timm.models
from torch import nn

from tools.families.example import Example


def vit(depth: int, chance: float) -> nn.Module:
    return timm.models.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=32,
        num_heads=2,
        depth=depth,
        num_classes=5,
        init_values=0.5,
        drop_path_rate=chance,
        proj_drop_rate=chance,
        attn_drop_rate=chance,
        pos_drop_rate=chance,
    )


EXAMPLES = {
    "timm ViT": Example("timm", vit, (2, 3, 32, 32)),
}
