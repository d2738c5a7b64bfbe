"""Small networks of timm.

Where timm starts a residual branch at zero, or nearly so, it is started at one half here: a branch
that adds nothing tests nothing.
"""

import timm.models
import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from tools.pages.families.example import Example


def _vit_options(depth: int, chance: float) -> dict:
    return {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "num_heads": 2,
        "depth": depth,
        "num_classes": 5,
        "init_values": 0.5,
        "drop_path_rate": chance,
        "proj_drop_rate": chance,
        "attn_drop_rate": chance,
        "pos_drop_rate": chance,
    }


def vit(depth: int, chance: float) -> nn.Module:
    return timm.models.VisionTransformer(
        **_vit_options(depth, chance),
    )


def swin(depth: int, chance: float) -> nn.Module:
    return timm.models.SwinTransformer(**_swin_options(depth, chance))


def swin_v2(depth: int, chance: float) -> nn.Module:
    model = timm.models.SwinTransformerV2(**_swin_options(depth, chance))
    for name, parameter in model.named_parameters():
        if ".norm1.weight" in name or ".norm2.weight" in name:
            nn.init.constant_(parameter, 0.5)
    return model


def _swin_options(depth: int, chance: float) -> dict:
    return {
        "img_size": 32,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": (2, depth),
        "num_heads": (2, 4),
        "window_size": 4,
        "num_classes": 5,
        "drop_path_rate": chance,
        "proj_drop_rate": chance,
        "attn_drop_rate": chance,
        "drop_rate": chance,
    }


def convnext(depth: int, chance: float) -> nn.Module:
    return timm.models.ConvNeXt(
        depths=(1, 2, 1, depth),
        dims=(8, 16, 16, 24),
        kernel_sizes=(7, 5, 3, 3),
        patch_size=2,
        num_classes=5,
        ls_init_value=0.5,
        drop_path_rate=chance,
        drop_rate=chance,
    )


def eva(depth: int, chance: float) -> nn.Module:
    return timm.models.Eva(
        **_vit_options(depth, chance),
        qkv_fused=False,
        mlp_ratio=2,
        swiglu_mlp=True,
        scale_mlp=True,
        use_rot_pos_emb=True,
        patch_drop_rate=chance,
        drop_rate=chance,
    )


def beit(depth: int, chance: float) -> nn.Module:
    model = timm.models.Beit(
        **_vit_options(depth, chance),
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        use_shared_rel_pos_bias=True,
        drop_rate=chance,
    )
    for name, parameter in model.named_parameters():
        if "relative_position_bias_table" in name:
            with torch.no_grad():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    return model


def resnet(depth: int, chance: float) -> nn.Module:
    return ResNet(BasicBlock, layers=(2, 1, 2, depth), **_resnet_options(chance))


def se_resnext(depth: int, chance: float) -> nn.Module:
    return ResNet(
        Bottleneck,
        layers=(2, 1, 2, depth),
        cardinality=4,
        base_width=16,
        output_stride=16,
        avg_down=True,
        block_args={"attn_layer": "se"},
        **_resnet_options(chance),
    )


def _resnet_options(chance: float) -> dict:
    return {
        "stem_type": "deep",
        "stem_width": 8,
        "channels": (16, 16, 24, 32),
        "num_classes": 5,
        "zero_init_last": False,
        "drop_path_rate": chance,
        "drop_block_rate": chance,
        "drop_rate": chance,
    }


IMAGES = (2, 3, 32, 32)

EXAMPLES = {
    "timm ViT": Example("timm", vit, IMAGES),
    "timm Swin": Example("timm", swin, IMAGES, chains=2),
    "timm Swin V2": Example("timm", swin_v2, IMAGES, chains=2),
    "timm ConvNeXt": Example("timm", convnext, IMAGES, chains=4),
    "timm EVA-02": Example("timm", eva, IMAGES),
    "timm BEiT": Example("timm", beit, IMAGES),
    "timm ResNet": Example("timm", resnet, (2, 3, 64, 64), chains=3),
    "timm SE-ResNeXt": Example("timm", se_resnext, (2, 3, 64, 64), chains=3),
}
