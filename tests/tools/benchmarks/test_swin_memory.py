import json

import pytest

pytest.importorskip("mmdet")
import tasks.detection  # noqa: F401  # isort: skip

import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

import dr2net
from dr2net.diagnostics import bytes_kept
from tests.detectors import SWIN
from tools.benchmarks.swin_memory import PAIRS, ROOT, bytes_by_part, measure_ways

RESULT = json.loads((ROOT / "results/swin_memory.json").read_text(encoding="utf-8"))
DR2NET = [f"Dr²Net ({alpha:g}, {beta:g})" for alpha, beta in PAIRS]
SMALL = {**SWIN, "type": "SwinTransformer", "depths": (2, 2, 6, 2)}
IMAGE = torch.rand(1, 3, 64, 96)


@pytest.mark.parametrize("way", ["conventional", "with_cp", "Dr²Net"])
def test_parts_together_are_what_the_whole_backbone_keeps(way):
    init_default_scope("mmdet")
    backbone = MODELS.build({**SMALL, "with_cp": way == "with_cp"})
    if way == "Dr²Net":
        dr2net.convert(backbone, 0.5, 0.5)
    backbone.train()
    assert sum(bytes_by_part(backbone, IMAGE)) == bytes_kept(lambda: backbone(IMAGE))


def test_checkpointed_blocks_keep_their_inputs():
    kept = measure_ways(SMALL, IMAGE)["with_cp"]
    inputs = 6 * (64 // 16) * (96 // 16) * 32 * 4  # of the third stage
    assert kept[3] > inputs


def test_dr2net_keeps_at_most_a_tenth_of_conventional_and_less_than_checkpointing():
    totals = {way: sum(kept) for way, kept in RESULT["bytes"].items()}
    assert list(totals) == ["conventional", "with_cp", *DR2NET]
    for way in DR2NET:
        assert totals[way] < totals["conventional"] / 10
        assert totals[way] < totals["with_cp"]


def test_the_stage_of_eighteen_blocks_gains_most():
    checkpointed = RESULT["bytes"]["with_cp"]
    for way in DR2NET:
        shares = [a / b for a, b in zip(RESULT["bytes"][way], checkpointed, strict=True)]
        assert min(shares) == shares[3]


def test_the_table_says_what_was_measured():
    for row, index in zip(RESULT["rows"], [0, 1, 2, 3, 4, slice(None)], strict=True):
        for way, kept in RESULT["bytes"].items():
            total = sum(kept[index]) if isinstance(index, slice) else kept[index]
            assert row[way].split()[0] == f"{total / 1e6:,.0f}"
