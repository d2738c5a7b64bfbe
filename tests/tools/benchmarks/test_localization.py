import json

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
import tasks.video.localization  # noqa: F401  # isort: skip

import torch

from tests.localization import VIT, build_localizer
from tools.benchmarks.localization import CASES, CHECKPOINTED, DR2NET, RESULT, WAYS, loss_of, whole
from tools.benchmarks.measurements import kept_bytes, peak_bytes

BACKBONES = {
    "conventional": VIT,
    "checkpointed": {**VIT, "with_cp": True},
    "dr2net_held": {"type": "Dr2NetBackbone", "backbone": VIT},
}


def build(way, blocks, **options):
    backbone = BACKBONES[way]
    vit = {**VIT, "depth": blocks, "embed_dims": 48}
    backbone = {**backbone, "backbone": vit} if "backbone" in backbone else {**backbone, **vit}
    pyramid = {"type": "ActionFormerPyramid", "in_channels": 48, "channels": 16, "levels": 4}
    return build_localizer(backbone, pyramid={**pyramid, "heads": 2}, **options)


def frames(chunks):
    return torch.rand(1, chunks, 3, 4, 32, 32)


def count(way, chunks, blocks):
    return kept_bytes(loss_of(build(way, blocks), frames(chunks)))


@pytest.mark.parametrize("way", WAYS)
def test_one_and_two_chunks_and_blocks_tell_the_whole(way):
    corners = [count(way, n, d) for n, d in ((1, 1), (2, 1), (1, 2))]
    for chunks, blocks in ((2, 2), (5, 3), (8, 6)):
        found = count(way, chunks, blocks)
        # Some bytes a block and chunk: masks of stochastic depth, ranges of values.
        assert whole(corners, chunks, blocks) == pytest.approx(found, rel=0.01)


def test_in_groups_a_longer_window_costs_its_streams_alone():
    model = build("dr2net_held", 6, chunks_at_once=1)
    parameters = list(model.parameters())
    small, large = (
        peak_bytes(loss_of(model, frames(chunks)), parameters, "cpu") for chunks in (8, 64)
    )
    assert large["peak"] - small["peak"] <= 1.05 * (large["kept"] - small["kept"])


@pytest.fixture(scope="module")
def result():
    return json.loads(RESULT.read_text(encoding="utf-8"))


def test_a_window_of_768_frames_keeps_what_was_asked_for(result):
    (kept,) = (
        case
        for case in result["bytes"]
        if (case["backbone"], case["frames"], case["pixels"]) == ("vitb", 768, 160)
    )
    assert kept[DR2NET] <= 0.08 * kept["conventional"]
    assert kept[DR2NET] <= 0.5 * kept[CHECKPOINTED]


def test_every_case_is_in_the_table(result):
    assert len(result["rows"]) == len(result["bytes"]) == len(CASES)
    for row, kept in zip(result["rows"], result["bytes"], strict=True):
        assert row["frames"] == f"{kept['frames']:,}"
        assert row["Dr²Net"].split()[0] == f"{kept[DR2NET] / 1e9:.2f}"
