"""Temporal action localization in untrimmed videos, registered with OpenMMLab on import."""

import tasks.video  # noqa: F401 - mends mmaction2, which the modules below import

from .annotations import BadAnnotationError
from .average_precision import mean_average_precision
from .backbone import ChunkViT
from .dataset import LocalizationDataset
from .head import ActionFormerHead
from .localizer import ActionLocalizer
from .metric import LocalizationMetric
from .postprocessing import merge_windows
from .pyramid import ActionFormerPyramid
from .transforms import PackWindow, SampleWholeVideo, SampleWindow

__all__ = [
    "ActionFormerHead",
    "ActionFormerPyramid",
    "ActionLocalizer",
    "BadAnnotationError",
    "ChunkViT",
    "LocalizationDataset",
    "LocalizationMetric",
    "PackWindow",
    "SampleWholeVideo",
    "SampleWindow",
    "mean_average_precision",
    "merge_windows",
]
