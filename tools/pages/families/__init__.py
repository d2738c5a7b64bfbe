"""Small networks of every family that ``dr2net.convert`` knows: for its tests and its table."""

from tools.pages.families import openmmlab, timm, transformers
from tools.pages.families.example import Example

__all__ = ["EXAMPLES", "Example"]

EXAMPLES: dict[str, Example] = {**timm.EXAMPLES, **openmmlab.EXAMPLES, **transformers.EXAMPLES}
