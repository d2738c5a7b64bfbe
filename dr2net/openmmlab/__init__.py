"""dr2net in OpenMMLab: import this module (``custom_imports``) and its types are registered.

Importing it also makes the versions of setup.cfg work together (``compatibility``) and mmengine
open checkpoints without running code from them (``checkpoint``).
"""

from . import compatibility

compatibility.install()

from . import checkpoint, random_state  # noqa: E402
from .backbone import Dr2NetBackbone  # noqa: E402
from .hook import (  # noqa: E402
    CoefficientScheduleHook,
    Dr2NetHook,
    ValidateResumedHook,
    VerificationHook,
)
from .selection_hook import ChannelSelectionHook  # noqa: E402

checkpoint.install()

__all__ = [
    "ChannelSelectionHook",
    "CoefficientScheduleHook",
    "Dr2NetBackbone",
    "Dr2NetHook",
    "ValidateResumedHook",
    "VerificationHook",
    "checkpoint",
    "random_state",
]
