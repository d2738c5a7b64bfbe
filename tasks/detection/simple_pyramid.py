"""Feature levels from the one map of a plain backbone, without a top-down pathway.

Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection" (ViTDet),
https://arxiv.org/abs/2203.16527, section 3; layers as in detectron2's projects/ViTDet.
"""

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from torch import Tensor, nn

__all__ = ["SimpleFeaturePyramid"]


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Levels of several scales, each made of the same map by itself.

    A map is brought to the scale of its level by deconvolutions or max-pooling, then to
    ``out_channels`` by a 1 × 1 and a 3 × 3 convolution, each before a LayerNorm over the channels.
    The stride of a level is that of the map by its scale: of patches of 16 pixels the scales (4, 2,
    1, 0.5) make the strides (4, 8, 16, 32), of patches of 14 (3.5, 7, 14, 28).

    Args:
        in_channels: channels of the map.
        out_channels: channels of every level.
        scales: of the levels, finest first: 4, 2, 1 or 1 / n for a whole n.
        init_cfg: as in mmengine.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        scales: Sequence[float] = (4, 2, 1, 0.5),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.levels = nn.ModuleList()
        for scale in scales:
            scaling, channels = _scaling(scale, in_channels)
            self.levels.append(
                nn.Sequential(
                    *scaling,
                    nn.Conv2d(channels, out_channels, 1, bias=False),
                    LayerNorm2d(out_channels),
                    nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                    LayerNorm2d(out_channels),
                )
            )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Takes the one map (N, in_channels, H, W) of a backbone; returns a map of every level.

        At a scale s below 1 a level has ceil(s · H) rows, as after a convolution of that stride.
        """
        (single,) = maps
        return tuple(level(single) for level in self.levels)


def _scaling(scale: float, channels: int) -> tuple[list[nn.Module], int]:
    """The layers that scale a map, and how many channels it has then."""
    if scale == 4:
        half = channels // 2
        first, second = (nn.ConvTranspose2d(c, c // 2, 2, stride=2) for c in (channels, half))
        return [first, LayerNorm2d(half), nn.GELU(), second], half // 2
    if scale == 2:
        return [nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)], channels // 2
    if scale == 1:
        return [], channels
    if 0 < scale < 1 and (1 / scale).is_integer():
        return [nn.MaxPool2d(int(1 / scale), ceil_mode=True)], channels
    raise ValueError(f"scales={scale} is none of 4, 2, 1, 1/2, 1/3, 1/4 and so on.")
