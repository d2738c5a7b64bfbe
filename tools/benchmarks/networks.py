"""The networks that are measured: timm's ViT in four sizes, on images or videos, and its Swin-L."""

from typing import Any

import timm
import torch
from torch import Tensor, nn

# Width, blocks, heads. The giant is that of Zhai et al. (2022), as VideoMAE v2 has it.
VITS = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_giant": (1408, 40, 16),
}
NETWORKS = (*VITS, "swin_large")

PATCH = 16  # pixels of a side
TUBELET = 2  # frames


class VideoPatchEmbedding(nn.Module):
    """Makes tokens of 2 frames × 16 × 16 pixels, as VideoMAE does.

    Shapes: (batch, 3, frames, size, size) to (batch, tokens, width).
    """

    def __init__(self, frames: int, img_size: int, embed_dim: int, **_: Any):
        super().__init__()
        self.num_patches = frames // TUBELET * (img_size // PATCH) ** 2
        cube = (TUBELET, PATCH, PATCH)
        self.proj = nn.Conv3d(3, embed_dim, kernel_size=cube, stride=cube)

    def forward(self, videos: Tensor) -> Tensor:
        return self.proj(videos).flatten(2).transpose(1, 2)


def build(network: str, depth: int | None, size: int, frames: int) -> nn.Module:
    """Return a network in training mode, with random weights.

    Args:
        network: One of ``NETWORKS``.
        depth: Blocks of a ViT, or None for as many as it has; of Swin-L, those of the third stage.
        size: Pixels of a side of the image or frame.
        frames: Of a video, or 0 for an image.

    Raises:
        ValueError: The network is unknown, or ``size`` or ``frames`` does not fit it.
    """
    if network not in NETWORKS:
        raise ValueError(f"network {network!r} is unknown: use one of {', '.join(NETWORKS)}")
    if size % PATCH or size < PATCH or frames % TUBELET or frames < 0:
        raise ValueError(
            f"size {size} has to be a positive multiple of {PATCH} pixels, and frames {frames} a "
            f"multiple of {TUBELET} (0 for images)"
        )
    if network == "swin_large":
        if frames:
            raise ValueError("swin_large takes images: leave --frames out")
        return timm.models.SwinTransformer(
            img_size=size,
            patch_size=4,
            embed_dim=192,
            depths=(2, 2, depth or 18, 2),
            num_heads=(6, 12, 24, 48),
            window_size=12,
            num_classes=10,
            drop_path_rate=0.0,
        ).train()
    width, blocks, heads = VITS[network]
    video: dict[str, Any] = {}
    if frames:
        video["embed_layer"] = lambda **options: VideoPatchEmbedding(frames, **options)
    return timm.models.VisionTransformer(
        img_size=size,
        patch_size=PATCH,
        embed_dim=width,
        depth=depth or blocks,
        num_heads=heads,
        num_classes=10,
        class_token=False,
        global_pool="avg",
        **video,
    ).train()


def input_shape(batch: int, size: int, frames: int) -> tuple[int, ...]:
    """Shape of a batch of images, or of videos where there are frames."""
    return (batch, 3, frames, size, size) if frames else (batch, 3, size, size)


def make_input(batch: int, size: int, frames: int, device: str) -> Tensor:
    """A random batch of images, (batch, 3, size, size), or videos, (batch, 3, frames, …)."""
    return torch.randn(input_shape(batch, size, frames), device=device)
