"""Small networks of Hugging Face's transformers."""

import torch
from torch import nn

from tools.pages.families.example import Example


def options(depth: int, chance: float) -> dict[str, object]:
    return {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": depth,
        "intermediate_size": 64,
        "hidden_dropout_prob": chance,
        "attention_probs_dropout_prob": chance,
    }


def vit(depth: int, chance: float) -> nn.Module:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    return ViTModel(ViTConfig(**options(depth, chance)))


def videomae(depth: int, chance: float) -> nn.Module:
    from transformers import VideoMAEConfig, VideoMAEModel

    torch.manual_seed(0)
    return VideoMAEModel(VideoMAEConfig(num_frames=4, **options(depth, chance)))


def dinov2(depth: int, chance: float) -> nn.Module:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = options(depth, chance)
    return Dinov2Model(Dinov2Config(mlp_ratio=2, drop_path_rate=chance, **sizes))


def dinov2_backbone(depth: int, chance: float) -> nn.Module:
    from transformers import Dinov2Backbone, Dinov2Config

    torch.manual_seed(0)
    sizes = options(depth, chance)
    return Dinov2Backbone(Dinov2Config(mlp_ratio=2, drop_path_rate=chance, **sizes))


EXAMPLES = {
    "transformers ViT": Example("transformers", vit, (2, 3, 32, 32)),
    "transformers VideoMAE": Example("transformers", videomae, (2, 4, 3, 32, 32)),
    "transformers Dinov2": Example("transformers", dinov2, (2, 3, 32, 32)),
    "transformers Dinov2 backbone": Example("transformers", dinov2_backbone, (2, 3, 32, 32)),
}
