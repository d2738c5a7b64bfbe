import json

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("timm")
import tasks.pointcloud  # noqa: F401  # isort: skip

from mmengine.registry import DefaultScope

from tools.benchmarks.pointvit_memory import PAIRS, PARTS, ROOT, measure

RESULT = json.loads((ROOT / "results/pointvit_memory.json").read_text(encoding="utf-8"))
DR2NET = [f"Dr²Net ({alpha:g}, {beta:g})" for alpha, beta in PAIRS]
SMALL = {
    "type": "PointCloudSegmentor",
    "backbone": {"type": "PointViT", "embed_dims": 32, "depth": 6, "num_heads": 2, "group_size": 8},
    "decode_head": {"type": "FeaturePropagationHead", "in_channels": (7, 16, 32)},
}


@pytest.fixture(scope="module")
def small():
    with DefaultScope.overwrite_default_scope("mmengine"):
        return measure(SMALL, 256)


def test_every_way_is_measured_of_every_part(small):
    assert list(small["bytes"]) == ["all kept", "conventional", *DR2NET]
    assert [row["part"] for row in small["rows"]] == [*PARTS, "all"]


@pytest.mark.parametrize("result", ["small", "committed"])
def test_each_measure_saves_where_it_should(result, small):
    kept = (small if result == "small" else RESULT)["bytes"]
    everything, conventional, *reversible = (kept[way] for way in kept)
    assert conventional[0] < everything[0]  # the embedding
    assert conventional[2] < everything[2]  # the decoder
    for by_part in reversible:
        assert by_part[0] == conventional[0]
        assert by_part[1] < conventional[1] / 4
        assert by_part[2] == conventional[2]


def test_the_table_says_what_was_measured():
    for row, index in zip(RESULT["rows"], [0, 1, 2, None], strict=True):
        for way, kept in RESULT["bytes"].items():
            total = sum(kept) if index is None else kept[index]
            assert row[way] == f"{total / 1e6:,.0f}"


def test_blocks_of_pix4point_s_keep_a_twentieth_at_most():
    for way in DR2NET:
        assert RESULT["bytes"][way][1] < RESULT["bytes"]["conventional"][1] / 20
