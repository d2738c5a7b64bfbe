"""A plain vision transformer on point clouds, with tokens from progressive point-patch embedding.

Qian et al., "Pix4Point: Image Pretrained Standard Transformers for 3D Point Cloud Understanding",
https://arxiv.org/abs/2208.12259; with its defaults, ``PointViT`` is the Pix4Point-S of the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .checkpointing import run_cloud_by_cloud
from .grouping import GROUPS, REDUCTION, STAGES, group_points
from .neighbours import gather_points

__all__ = ["PointViT"]


class PositionedBlocks(nn.ModuleList):
    """Transformer blocks before each of which the position embedding is added once more."""

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Takes and returns (clouds, tokens, width); ``position`` broadcasts with it."""
        for block in self:
            x = block(x + position)
        return x


class GroupEmbedding(nn.Module):
    """Features of centres from those of their neighbours: one stage of the embedding.

    An MLP on what each neighbour differs by from its centre, the maximum over the neighbours given
    back to each of them, a second MLP, and the maximum again.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.difference = nn.Sequential(
            nn.Linear(3 + in_channels, channels),
            nn.LayerNorm(channels, eps=1e-6),
            nn.GELU(),
            nn.Linear(channels, channels),
        )
        # Together a linear layer on a neighbour and the maximum of its group.
        self.neighbour = nn.Linear(channels, 2 * channels, bias=False)
        self.group = nn.Linear(channels, 2 * channels)
        self.output = nn.Sequential(
            nn.LayerNorm(2 * channels, eps=1e-6),
            nn.GELU(),
            nn.Linear(2 * channels, channels),
        )

    def forward(self, coord: Tensor, feat: Tensor, centres: Tensor, neighbours: Tensor) -> Tensor:
        """Returns (clouds, centres, channels).

        Args:
            coord: (clouds, points, 3), metres.
            feat: (clouds, points, in_channels).
            centres: (clouds, centres), indices of points.
            neighbours: (clouds, centres, neighbours), indices of points.
        """
        # In float32 under autocast, so that small differences of large coordinates are not lost.
        values = torch.cat([coord.float(), feat.float()], dim=2)
        around, centre = gather_points(values, neighbours), gather_points(values, centres)
        x = self.difference(around - centre[:, :, None])
        x = self.neighbour(x) + self.group(x.amax(dim=2, keepdim=True))
        return self.output(x).amax(dim=2)


@MODELS.register_module()
class PointViT(BaseModule):
    """Vision transformer on point clouds.

    Two stages of farthest-point sampling, each to a quarter of the points, and grouping of nearest
    neighbours make tokens of the points; a class token goes first. The blocks are timm's, with its
    parameter names, so that blocks pretrained on images load into them (``image_weights``). An MLP
    of the tokens' coordinates is the position embedding, added before every block.

    ``dr2net.convert`` makes ``blocks`` a reversible chain (``point_vit_adapter``). Nothing here
    needs dr2net: a published network has this file as it is.

    Args:
        in_channels: channels of the features beside the coordinates: colour and height make 4.
        embed_dims: width of the tokens; the first stage of the embedding has half of it.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of a block's MLP by ``embed_dims``.
        drop_path_rate: stochastic depth of the last block, which grows linearly from the first.
        group_size: neighbours of a centre.
        checkpoint_embedding: compute the embedding again in backward, cloud by cloud, instead of
            keeping it. With 32 neighbours it takes several times the memory of the blocks.
        init_cfg: as in mmengine.

    Raises:
        ValueError: on a call, for clouds with too few points, other channels than ``in_channels``,
            coordinates that are not finite, or groups of another size.
    """

    def __init__(
        self,
        in_channels: int = 4,
        embed_dims: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.1,
        group_size: int = 32,
        checkpoint_embedding: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_channels = in_channels
        self.group_size = group_size
        self.checkpoint_embedding = checkpoint_embedding
        self.patch_embed = nn.ModuleList(
            [
                GroupEmbedding(in_channels, embed_dims // 2),
                GroupEmbedding(embed_dims // 2, embed_dims),
            ]
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dims))
        self.cls_pos = nn.Parameter(torch.empty(1, 1, embed_dims))
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, embed_dims))
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = PositionedBlocks(
            Block(
                embed_dims,
                num_heads,
                mlp_ratio,
                qkv_bias=True,
                drop_path=rate,
                norm_layer=norm,
            )
            for rate in torch.linspace(0, drop_path_rate, depth).tolist()
        )
        self.norm = norm(embed_dims)
        self.apply(_initialise)
        for token in (self.cls_token, self.cls_pos):
            nn.init.trunc_normal_(token, std=0.02)

    def forward(
        self, coord: Tensor, feat: Tensor, groups: Mapping[str, Tensor] | None = None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        """Returns what a decoder starts from.

        Args:
            coord: (clouds, points, 3), metres.
            feat: (clouds, points, in_channels).
            groups: what ``group_points`` finds of ``coord``, where that is known already.

        Returns:
            Coordinates (clouds, n, 3) and features (clouds, n, channels) of the points, of the
            first stage of the embedding and of the tokens; and the class token, (clouds, 1,
            embed_dims). The features of the points are their coordinates and ``feat``.
        """
        coords, features = self.embed(coord, feat, groups)
        tokens = features[-1]
        heads = [token.expand(len(tokens), -1, -1) for token in (self.cls_token, self.cls_pos)]
        x = torch.cat([heads[0], tokens], dim=1)
        position = torch.cat([heads[1], self.pos_embed(coords[-1])], dim=1)
        x = self.norm(self.blocks(x, position))
        points = torch.cat([coord, feat], dim=2)
        return coords, (points, *features[1:-1], x[:, 1:]), x[:, :1]

    def embed(
        self, coord: Tensor, feat: Tensor, groups: Mapping[str, Tensor] | None = None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Returns coordinates and features of the points and of both stages of the embedding.

        The arguments are those of ``forward``.
        """
        points = coord.shape[1]
        fewest = self.group_size * REDUCTION ** (STAGES - 1)
        if points < fewest:
            raise ValueError(
                f"{type(self).__name__} with groups of {self.group_size} takes clouds of at least "
                f"{fewest} points, got {points}: repeat points (as the crops of training do), or "
                "lower group_size."
            )
        if feat.shape != (*coord.shape[:2], self.in_channels):
            raise ValueError(
                f"{type(self).__name__} has in_channels={self.in_channels}, which asks for "
                f"features of shape {(*coord.shape[:2], self.in_channels)}, got "
                f"{tuple(feat.shape)}."
            )
        if groups is None:
            groups = group_points(coord, self.group_size)
        if missing := [name for name in GROUPS if name not in groups]:
            raise ValueError(
                f"groups have no {', '.join(missing)}: give all that GroupPoints finds, or None."
            )
        coords, features = (coord,), (feat,)
        for number, stage in enumerate(self.patch_embed, start=1):
            centres, neighbours = groups[f"centres_{number}"], groups[f"neighbours_{number}"]
            expected = (len(coord), coords[-1].shape[1] // REDUCTION, self.group_size)
            if neighbours.shape != expected:
                raise ValueError(
                    f"{type(self).__name__} with groups of {self.group_size} takes neighbours of "
                    f"shape {expected} in stage {number}, got {tuple(neighbours.shape)}: give "
                    "GroupPoints the group_size of the backbone, and put it last in the pipeline."
                )
            centre = gather_points(coords[-1], centres)
            inputs = (coords[-1], features[-1], centres, neighbours)
            if self.checkpoint_embedding and torch.is_grad_enabled():
                embedded = run_cloud_by_cloud(stage, *inputs)
            else:
                embedded = stage(*inputs)
            coords, features = (*coords, centre), (*features, embedded)
        return coords, features


def _initialise(module: nn.Module) -> None:
    """As the original, which does not follow timm."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
