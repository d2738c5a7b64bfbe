"""Action recognition on videos, registered with OpenMMLab on import."""

import dr2net.openmmlab.mended  # noqa: F401 - mends mmaction2, which the modules below import

from .dataset import UnreadableVideoError, VideoListDataset
from .submission import TopClassesFile
from .transforms import ClipRandAugment, DecordOpen
from .unreadable_videos import UnreadableVideosHook
from .videomae_checkpoint import convert_videomae_checkpoint

__all__ = [
    "ClipRandAugment",
    "DecordOpen",
    "TopClassesFile",
    "UnreadableVideoError",
    "UnreadableVideosHook",
    "VideoListDataset",
    "convert_videomae_checkpoint",
]
