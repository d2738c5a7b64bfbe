"""Networks of the supported families, in pairs: as their library builds them, and converted."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

import dr2net


def timm_vit(depth: int = 3, **options) -> nn.Module:
    return timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, num_heads=2, depth=depth, num_classes=5, **options
    )


def mmaction_vit(depth: int = 3, **options) -> nn.Module:
    pytest.importorskip("mmengine")
    import dr2net.openmmlab.mended  # noqa: F401 - makes mmaction2 importable

    module = pytest.importorskip("mmaction.models.backbones.vit_mae")
    torch.manual_seed(0)
    model = module.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dims=32,
        num_heads=2,
        depth=depth,
        num_frames=4,
        norm_cfg={"type": "LN", "eps": 1e-6},
        **options,
    )
    model.init_weights()
    return model


IMAGES = (2, 3, 32, 32)
CLIPS = (2, 3, 4, 32, 32)

# name: (network, input shape); dropout of every kind is on
STOCHASTIC: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "timm": (
        lambda **options: timm_vit(
            drop_path_rate=0.3,
            proj_drop_rate=0.1,
            attn_drop_rate=0.1,
            pos_drop_rate=0.1,
            init_values=0.5,
            **options,
        ),
        IMAGES,
    ),
    "mmaction": (
        lambda **options: mmaction_vit(
            drop_path_rate=0.3, drop_rate=0.1, attn_drop_rate=0.1, init_values=0.5, **options
        ),
        CLIPS,
    ),
}


def converted(network: nn.Module, alpha: float, beta: float, **options) -> nn.Module:
    return dr2net.convert(copy.deepcopy(network), alpha, beta, **options)
