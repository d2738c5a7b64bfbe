"""dr2net in OpenMMLab: import this module (``custom_imports``) and its types are registered."""

from . import compatibility

compatibility.install()

from .backbone import Dr2NetBackbone  # noqa: E402
from .hook import CoefficientScheduleHook  # noqa: E402

__all__ = ["CoefficientScheduleHook", "Dr2NetBackbone"]
