import gc
import json

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
import tasks.video.localization  # noqa: F401  # isort: skip

import torch
from mmengine.config import ConfigDict

from tests.localization import HEAD, VIT, build_localizer
from tools.benchmarks.localization import (
    CASES,
    CHECKPOINTED,
    CORNERS,
    DR2NET,
    RESULT,
    WAYS,
    loss_of,
    of_backbone,
    of_each_block,
    of_window,
    whole,
)
from tools.benchmarks.measurements import kept_bytes

BACKBONES = {
    "conventional": VIT,
    "checkpointed": {**VIT, "with_cp": True},
    "dr2net": {"type": "Dr2NetBackbone", "backbone": VIT},
}


def settings_of(way, blocks):
    """Backbone and localizer of windows of 32 frames."""
    vit = {**VIT, "depth": blocks, "embed_dims": 48, "num_frames": 16}
    wrapper = BACKBONES[way]
    backbone = {**wrapper, "backbone": vit} if "backbone" in wrapper else {**wrapper, **vit}
    pyramid = {"type": "ActionFormerPyramid", "in_channels": 48, "channels": 64, "levels": 4}
    head = {**HEAD, "channels": 64}
    return ConfigDict(backbone=backbone, pyramid={**pyramid, "heads": 2}, head=head)


def frames(chunks):
    return torch.rand(1, chunks, 3, 16, 32, 32)


@pytest.mark.parametrize("way", WAYS)
def test_few_chunks_and_blocks_and_the_rest_tell_the_whole(way):
    small = settings_of(way, 1)
    corners = [of_backbone(small.backbone, 32, *corner) for corner in CORNERS]
    each_block = of_each_block(settings_of(way, 1).backbone)
    for chunks, blocks in ((2, 2), (6, 4)):
        settings = settings_of(way, blocks)
        expected = whole(corners, chunks, blocks, each_block) + of_window(
            {"type": "ActionLocalizer", **settings}, 16 * chunks
        )
        model = build_localizer(**{**settings, "positions": 16 * chunks})
        gc.collect()
        found = kept_bytes(loss_of(model, frames(chunks)))
        # Pooled features count on both sides.
        assert expected == pytest.approx(found, rel=0.01)


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
