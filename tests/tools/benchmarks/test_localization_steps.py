import json

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
pytest.importorskip("decord")

from tools.benchmarks import localization_steps
from tools.benchmarks.localization import CHECKPOINTED, CONVENTIONAL, DR2NET, Case


def found(**by_way):
    return {
        way: {"fits": True, "whole": gigabytes * 10**9, "kept": 0, "seconds": seconds}
        for way, (gigabytes, seconds) in by_way.items()
    }


def test_cells_say_memory_and_time_and_their_shares_of_checkpointing():
    ways = found(checkpointed=(4, [0.2, 0.1, 0.3]), dr2net=(3, [0.1, 0.1, 0.9]))
    assert localization_steps.cell(ways, CHECKPOINTED) == "4.0 GB, 0.20 s"
    assert localization_steps.cell(ways, DR2NET) == "3.0 GB, 0.10 s (0.75, 0.50)"
    ways[CONVENTIONAL] = {"fits": False}
    assert localization_steps.cell(ways, CONVENTIONAL) == "does not fit"


def test_a_step_s_whole_memory_is_counted(monkeypatch):
    monkeypatch.setattr(localization_steps, "WARMUP", 0)
    few, many = (
        localization_steps.measure(Case("vits", frames, 32), DR2NET, rounds=1, device="cpu")
        for frames in (32, 64)
    )
    assert len(few["seconds"]) == 1
    assert 0 < few["kept"] < few["whole"]
    assert few["kept"] < many["kept"]


def test_the_table_has_every_case():
    path = localization_steps.ROOT / "results/localization_steps.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    measured = [(case["backbone"], case["frames"]) for case in result["measured"]]
    assert measured == [(case.backbone, case.frames) for case in localization_steps.CASES]
    for row, case in zip(result["rows"], result["measured"], strict=True):
        assert row["Dr²Net"] == localization_steps.cell(case["ways"], DR2NET)
