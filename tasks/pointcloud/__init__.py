"""Segmentation of point clouds, registered with OpenMMLab on import."""

import dr2net.openmmlab.mended  # noqa: F401 - makes OpenMMLab's versions work together

from . import point_vit_adapter  # noqa: F401 - registers it
from .data_preprocessor import PointCloudDataPreprocessor
from .dataset import RoomDataset
from .decoder import FeaturePropagationHead
from .full_resolution import FullResolutionSegmentor
from .image_weights import convert_image_checkpoint
from .metric import PointSegmentationMetric
from .point_vit import PointViT
from .segmentor import PointCloudSegmentor
from .structures import IGNORE, PointCloudSample
from .transforms import (
    AddHeight,
    BlockCrop,
    CenterOnFloor,
    ContrastColors,
    DropColors,
    GroupPoints,
    JitterColors,
    JitterPoints,
    PackPoints,
    PackRoom,
    RotatePoints,
    ScalePoints,
    SphereCrop,
    VoxelSubsample,
)

__all__ = [
    "IGNORE",
    "AddHeight",
    "BlockCrop",
    "CenterOnFloor",
    "ContrastColors",
    "DropColors",
    "FeaturePropagationHead",
    "FullResolutionSegmentor",
    "GroupPoints",
    "JitterColors",
    "JitterPoints",
    "PackPoints",
    "PackRoom",
    "PointCloudDataPreprocessor",
    "PointCloudSample",
    "PointCloudSegmentor",
    "PointSegmentationMetric",
    "PointViT",
    "RoomDataset",
    "RotatePoints",
    "ScalePoints",
    "SphereCrop",
    "VoxelSubsample",
    "convert_image_checkpoint",
]
