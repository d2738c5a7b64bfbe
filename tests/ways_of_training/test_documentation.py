"""docs/training.md does what it says."""

import re
from pathlib import Path

import pytest
import torch

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


def test_snippets_run():
    pytest.importorskip("peft")
    torch._dynamo.reset()
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert len(blocks) == TEXT.count("```") // 2
    for block in blocks:
        exec(compile(block, "docs/training.md", "exec"), names)
    torch._dynamo.reset()


def test_messages_are_those_of_the_code():
    # Of dr2net's own; those of PyTorch are in the tests of this folder.
    package = Path(__file__).parents[2] / "dr2net"
    sources = "".join(path.read_text(encoding="utf-8") for path in package.glob("*.py"))
    code = re.sub(r'["\s]+f?"', "", sources).replace("\n", " ")
    for message in (
        "reversible chains run uncompiled",
        "returned other values",
        "NaN or infinity at",
        "cannot run backward under torch.inference_mode",
        "does not run inside torch.func's",
        "has no second derivative",
        "recomputed in backward",
        "changed between forward and backward",
        "used its parameter",
        "has a forward of its own",
        "has become a",
        "has hooks",
        "can observe, not change",
        "cannot be captured by torch.cuda.graph",
    ):
        assert message in " ".join(TEXT.split()), message
        assert message in code, message
