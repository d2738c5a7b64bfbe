"""dr2net in OpenMMLab: import this module (``custom_imports``) and its types are registered.

It changes nothing else. What our tools mend of an OpenMMLab installation is a second import:
``dr2net.openmmlab.mended``.
"""

from . import checkpoint, random_state
from .backbone import Dr2NetBackbone
from .hook import CoefficientScheduleHook, Dr2NetHook, VerificationHook, convert_by_config
from .resuming import OtherBatchSizeHook, ValidateResumedHook
from .selection_hook import ChannelSelectionHook

__all__ = [
    "ChannelSelectionHook",
    "CoefficientScheduleHook",
    "Dr2NetBackbone",
    "Dr2NetHook",
    "OtherBatchSizeHook",
    "ValidateResumedHook",
    "VerificationHook",
    "checkpoint",
    "convert_by_config",
    "random_state",
]
