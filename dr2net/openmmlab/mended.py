"""OpenMMLab with what our tools and tasks change in it: import this before mmaction2 or mmdet.

The versions of requirements/constraints.txt then import and work together (``compatibility``), and
mmengine opens checkpoints without running code from them (``checkpoint``). ``import
dr2net.openmmlab`` does none of this.
"""

from . import compatibility

compatibility.install()

from . import checkpoint  # noqa: E402

checkpoint.install()
