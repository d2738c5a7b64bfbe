import json

import pytest

pytest.importorskip("mmengine")
from tools.benchmarks.bytes_kept import RESULT, measure
from tools.pages.families import EXAMPLES

WRITTEN = json.loads(RESULT.read_text(encoding="utf-8"))["bytes"]


def test_every_family_is_written_down():
    assert list(WRITTEN) == list(EXAMPLES)


@pytest.mark.parametrize("family", EXAMPLES)
def test_no_family_keeps_more_than_is_written_down(family):
    assert measure(EXAMPLES[family]) == WRITTEN[family], (
        f"{family} keeps other bytes than {RESULT.name} says; if that is meant, run "
        "python tools/benchmarks/bytes_kept.py"
    )
