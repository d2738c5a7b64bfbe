"""Training of some input channels alone: what a reversible chain leaves of memory, it takes away.

With activations rebuilt, a step's memory is weights, their gradients and the optimizer's moments.
TraDy (arXiv 2510.19675) draws anew each epoch, under a budget, the input channels
whose weights train at all. ``measurement.py`` has costs and gradient norms, ``selection.py`` the
draw, ``trained_channels.py`` what a layer does, ``moments.py`` what an optimizer holds.
"""

from .selection import Selection, describe, select_channels
from .trained_channels import trained_channels

__all__ = ["Selection", "describe", "select_channels", "trained_channels"]
