"""docs/timm_blocks.md lists what of timm converts by its lists of blocks."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("timm")
from tools.pages import timm_blocks

TEXT = timm_blocks.PAGE.read_text(encoding="utf-8")


def test_the_page_counts_what_it_lists():
    registered, family, blocks, none = map(
        int,
        re.search(
            r"Of (\d+) models.*?, (\d+) convert by an ada.*?and (\d+) more.*?rest, (\d+), have",
            TEXT,
            re.DOTALL,
        ).groups(),
    )
    rows = re.findall(r"^\| `[\w.]+` *\| (\d+) *\| (\d+) ", TEXT, re.MULTILINE)
    assert sum(int(converted) for _, converted in rows) == blocks >= 600
    assert registered == family + blocks + none
    listed = re.findall(r"^- `[\w.]+`: (.*)$", TEXT, re.MULTILINE)
    assert sum(line.count("`") // 2 for line in listed) == none


@pytest.mark.parametrize(
    ("name", "lists"),
    [("test_vit", None), ("mixer_s32_224", ["blocks"]), ("legacy_seresnet18", ["layer1"])],
)
def test_a_model_is_looked_at_without_weights(name, lists):
    path, parameters, found, couplings = timm_blocks.look_at(name)
    assert found == lists
    assert parameters > 0
    assert (couplings > 0) == (lists is not None)
    assert not path.startswith("timm.")


def test_a_model_is_compared_and_drawn():
    found = {"legacy_seresnet18": timm_blocks.look_at("legacy_seresnet18")}
    assert timm_blocks.is_exact("legacy_seresnet18", ["layer1"])
    page = timm_blocks.draw_page(found, {"senet.SENet"})
    assert re.search(r"`senet.SENet` *\| 1 *\| 1 *\| `layer1` *\| 2 to 2 *\| yes", page)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.filterwarnings("ignore")
def test_the_page_is_what_the_tool_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["timm_blocks.py"])
    monkeypatch.setattr(timm_blocks, "PAGE", tmp_path / "page.md")
    with pytest.raises(SystemExit):  # names the few that are not compared
        timm_blocks.main()
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == TEXT
