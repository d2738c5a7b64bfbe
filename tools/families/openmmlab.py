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


def swin(depth: int, chance: float) -> nn.Module:
    from mmdet.models.backbones.swin import SwinTransformer

    torch.manual_seed(0)
    model = SwinTransformer(
        embed_dims=8,
        window_size=4,
        mlp_ratio=2,
        depths=(2, depth),
        num_heads=(2, 4),
        strides=(4, 2),
        out_indices=(0, 1),
        drop_rate=chance,
        attn_drop_rate=chance,
        drop_path_rate=chance,
    )
    model.init_weights()
    return model


def video_swin(depth: int, chance: float) -> nn.Module:
    from mmaction.models.backbones.swin import SwinTransformer3D

    torch.manual_seed(0)
    model = SwinTransformer3D(
        {"embed_dims": 8, "depths": [2, depth], "num_heads": [2, 4]},
        pretrained2d=False,
        window_size=(2, 4, 4),
        mlp_ratio=2,
        out_indices=(0, 1),
        drop_rate=chance,
        attn_drop_rate=chance,
        drop_path_rate=chance,
    )
    model.init_weights()
    return model


def mvit(depth: int, chance: float) -> nn.Module:
    from mmaction.models.backbones.mvit import MViT

    torch.manual_seed(0)
    # Of the last scale, the first block pools, and the rest makes the last stretch of couplings.
    model = MViT(
        {
            "embed_dims": 8,
            "num_layers": depth + 3,
            "num_heads": 1,
            "downscale_indices": [2],
        },
        spatial_size=32,
        temporal_size=4,
        out_scales=[0, 1],
        drop_path_rate=chance,
        adaptive_kv_stride=(1, 4, 4),
        mlp_ratio=2,
    )
    model.init_weights()
    return model


EXAMPLES = {
    "mmaction2 ViT": Example("mmaction2", vit, (2, 3, 4, 32, 32)),
    "mmaction2 Video Swin": Example("mmaction2", video_swin, (2, 3, 4, 32, 32), chains=2),
    "mmaction2 MViT": Example("mmaction2", mvit, (2, 3, 4, 32, 32)),
    "mmdet Swin": Example("mmdet", swin, (2, 3, 32, 32), chains=2),
}
