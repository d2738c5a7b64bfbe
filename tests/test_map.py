"""The core's map, ``dr2net/README.md``, is true: its files, their order, and their size."""

import ast
import re
from pathlib import Path

CORE = Path(__file__).parents[1] / "dr2net"
MAP = (CORE / "README.md").read_text(encoding="utf-8")
SIX = re.findall(r"^\| \d \| `(\w+)\.py`", MAP, re.MULTILINE)


def imported(name):
    """The modules beside ``name`` that it imports."""
    nodes = ast.walk(ast.parse((CORE / f"{name}.py").read_text(encoding="utf-8")))
    return {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1}


def test_every_file_of_the_core_is_on_the_map():
    missing = [path.name for path in CORE.glob("*.py") if f"`{path.name}`" not in MAP]
    assert missing == ["__init__.py"]


def test_imports_point_down():
    assert len(SIX) == 6
    for place, name in enumerate(SIX):
        assert imported(name).isdisjoint(SIX[:place])


def test_a_step_can_be_read_in_an_evening():
    lines = [len((CORE / f"{name}.py").read_text(encoding="utf-8").splitlines()) for name in SIX]
    assert sum(lines) <= 1200
