"""Small networks of mmaction2 and mmdetection."""

from typing import Any

import torch
from torch import Tensor, nn

import dr2net.openmmlab.mended  # noqa: F401  (makes them importable)
from tools.pages.families.example import Example


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


class Transformer(nn.Module):
    """An encoder or decoder of deformable attention over two levels of an image's patches."""

    def __init__(self, part: Any, queries: int | None = None):
        super().__init__()
        self.queries = queries  # of a decoder
        self.patches = nn.Conv2d(3, 32, 4, stride=4)
        self.positions = nn.Parameter(torch.randn(1, 80, 32) / 5)
        self.part = part

    def forward(self, images: Tensor) -> Any:
        """Takes (N, 3, 32, 32)."""
        fine = self.patches(images)
        levels = [fine, nn.functional.max_pool2d(fine, 2)]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
        sizes = {
            "spatial_shapes": torch.tensor([[8, 8], [4, 4]], device=images.device),
            "level_start_index": torch.tensor([0, 64], device=images.device),
            "valid_ratios": torch.ones(len(images), 2, 2, device=images.device),
            "key_padding_mask": None,
        }
        positions = self.positions.expand_as(tokens)
        if self.queries is None:
            return self.part(tokens, query_pos=positions, **sizes)
        query = positions[:, : self.queries]
        places = query[..., :4].detach().sigmoid()
        return self.part(query, query_pos=query, value=tokens, reference_points=places, **sizes)


def deformable_layers(kind: str, depth: int, chance: float) -> Any:
    from mmdet.models.layers.transformer import deformable_detr_layers

    import tasks.detection  # noqa: F401  (provides deformable attention)

    torch.manual_seed(0)
    attention = {"embed_dims": 32, "num_heads": 2, "dropout": chance}
    deformable = {**attention, "num_levels": 2}
    feedforward = {"embed_dims": 32, "feedforward_channels": 64, "ffn_drop": chance}
    layer, options = {"self_attn_cfg": deformable, "ffn_cfg": feedforward}, {}
    if kind.endswith("Decoder"):
        layer |= {"self_attn_cfg": attention, "cross_attn_cfg": deformable}
        options = {"return_intermediate": False, "post_norm_cfg": None}
    part = getattr(deformable_detr_layers, kind)(num_layers=depth, layer_cfg=layer, **options)
    for module in part.modules():
        if hasattr(module, "sampling_offsets"):
            module.init_weights()
            # Else every query would weigh its samples alike.
            nn.init.normal_(module.attention_weights.weight, std=0.1)
    return part


def encoder(depth: int, chance: float) -> nn.Module:
    return Transformer(deformable_layers("DeformableDetrTransformerEncoder", depth, chance))


def decoder(depth: int, chance: float) -> nn.Module:
    part = deformable_layers("DeformableDetrTransformerDecoder", depth, chance)
    return Transformer(part, queries=10)


EXAMPLES = {
    "mmaction2 ViT": Example("mmaction2", vit, (2, 3, 4, 32, 32)),
    "mmaction2 Video Swin": Example("mmaction2", video_swin, (2, 3, 4, 32, 32), chains=2),
    "mmaction2 MViT": Example("mmaction2", mvit, (2, 3, 4, 32, 32)),
    "mmdet Swin": Example("mmdet", swin, (2, 3, 32, 32), chains=2),
    "mmdet DINO encoder": Example("mmdet", encoder, (2, 3, 32, 32)),
    "mmdet DINO decoder": Example("mmdet", decoder, (2, 3, 32, 32)),
}
