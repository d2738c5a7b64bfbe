"""Dr²Net: finetune pretrained networks reversibly, with the gradients of stored activations."""

from . import diagnostics
from .branches import residual
from .chain import ReversibleChain
from .conversion import (
    chains,
    convert,
    get_coefficients,
    is_convertible,
    register_adapter,
    revert,
    set_coefficients,
    set_reversible,
)
from .conversion.mlps import slice_mlps
from .costs import summary
from .planning import plan
from .publishing import from_pretrained, publish
from .schedule import CoefficientSchedule
from .selection import Selection, select_channels
from .verification import verify, verify_step

__version__ = "0.1.0"

__all__ = [
    "CoefficientSchedule",
    "ReversibleChain",
    "Selection",
    "chains",
    "convert",
    "diagnostics",
    "from_pretrained",
    "get_coefficients",
    "is_convertible",
    "plan",
    "publish",
    "register_adapter",
    "residual",
    "revert",
    "select_channels",
    "set_coefficients",
    "set_reversible",
    "slice_mlps",
    "summary",
    "verify",
    "verify_step",
]
