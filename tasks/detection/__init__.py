"""Detection of small objects, registered with OpenMMLab on import."""

import dr2net.openmmlab.mended  # noqa: F401 - mends mmcv, which the modules below import

from . import operators
from .dataset import SmallObjectDataset
from .many_boxes import BoundedDINO, BoundedDINOHead, CostInParts, OverlapsInParts
from .metric import SmallObjectMetric
from .simple_pyramid import SimpleFeaturePyramid
from .tiled_detector import TiledDetector
from .transforms import CropAroundObject, LoadTile, TiledDataset
from .vit import TimmViT

operators.install()

__all__ = [
    "BoundedDINO",
    "BoundedDINOHead",
    "CostInParts",
    "CropAroundObject",
    "LoadTile",
    "OverlapsInParts",
    "SimpleFeaturePyramid",
    "SmallObjectDataset",
    "SmallObjectMetric",
    "TiledDataset",
    "TiledDetector",
    "TimmViT",
]
