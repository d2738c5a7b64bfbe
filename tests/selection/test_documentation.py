"""docs/selection.md does what it says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/selection.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:This VisionTransformer left")
def test_snippets_run():
    pytest.importorskip("timm")
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE):
        exec(compile(block, "docs/selection.md", "exec"), names)
    assert list(names["resumed"].state_dict()) == list(names["checkpoint"]["model"])
    assert names["selection_too"].epoch == 2
    assert not any("trained_channels" in name for name, _ in names["plain"].named_parameters())


def test_messages_are_those_of_the_code():
    sources = "".join(p.read_text("utf-8") for p in (ROOT / "dr2net/selection").glob("*.py"))
    for message in ("FSDP2 cannot train a part of a weight", "exchanged for another tensor"):
        assert message in TEXT
        assert message in sources
