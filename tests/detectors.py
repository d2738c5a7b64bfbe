"""The detectors of configs/detection, small enough for a test."""

import sys
from pathlib import Path

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from dr2net.openmmlab import compatibility

COMPILED = not isinstance(sys.modules["mmcv._ext"], compatibility._StandIn)
without_compiled = pytest.mark.skipif(COMPILED, reason="mmcv has its compiled operators")
with_compiled = pytest.mark.skipif(not COMPILED, reason="mmcv has no compiled operators")

CONFIGS = Path(__file__).parents[1] / "configs/detection"
SWIN = {
    "embed_dims": 8,
    "depths": (2, 2, 2, 2),
    "num_heads": (1, 2, 4, 8),
    "window_size": 4,
    "mlp_ratio": 2,
    "init_cfg": None,
}
CHANNELS = [8, 16, 32, 64]
VIT = {"pretrained": False, "depth": 4, "embed_dim": 32, "num_heads": 2}


def small_model(name, **backbone):
    """The detector of a config as a config, with few channels, queries and layers.

    Args:
        name: the config's, without ``.py``.
        backbone: further settings of the outermost backbone.
    """
    model = Config.fromfile(CONFIGS / f"{name}.py").model
    model = model.get("detector", model)
    model.backbone.update(backbone)
    inner = model.backbone.get("backbone", model.backbone)
    if inner.type == "TimmViT":
        inner.update(VIT)
        model.neck.in_channels = VIT["embed_dim"]
    else:
        inner.update(SWIN)
        model.neck.in_channels = CHANNELS[-len(model.neck.in_channels) :]
    model.neck.out_channels = 32
    if model.type == "BoundedDINO":
        if "norm_cfg" in model.neck:
            model.neck.norm_cfg.num_groups = 8
        model.num_queries = model.test_cfg.max_per_img = 20
        model.positional_encoding.num_feats = 16
        model.dn_cfg.group_cfg.num_dn_queries = 8
        model.bbox_head.embed_dims = 32
        for part in (model.encoder, model.decoder):
            part.num_layers = 2
            for layer in part.layer_cfg.values():
                layer.embed_dims = 32
            part.layer_cfg.ffn_cfg.feedforward_channels = 32
    else:
        model.bbox_head.update(in_channels=32, feat_channels=32, stacked_convs=1)
    return model


def build(model):
    """Build a detector from its config, in training mode, with the weights it starts from."""
    init_default_scope("mmdet")
    detector = MODELS.build(model)
    detector.init_weights()
    return detector.train()
