"""The benchmarks of whole training steps: each way is the network that it says, in small."""

import json
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("mmdet")
import tasks.detection  # isort: skip
import tasks.pointcloud  # noqa: F401  # isort: skip

import torch
from mmengine.registry import DefaultScope, init_default_scope
from torch import nn

from tests.detectors import small_model
from tools.benchmarks import detection, pointcloud
from tools.benchmarks.steps import Step, cells, measure_steps

SEGMENTOR = {
    "type": "PointCloudSegmentor",
    "backbone": {"type": "PointViT", "embed_dims": 32, "depth": 6, "num_heads": 2, "group_size": 8},
    "decode_head": {
        "type": "FeaturePropagationHead",
        "in_channels": (7, 16, 32),
        "num_classes": 5,
    },
}


@pytest.fixture(scope="module")
def detectors():
    init_default_scope("mmdet")
    settings = small_model("conventional_dino5scale_swint_coco")
    return detection.measure_case(settings, (96, 128, 20), 1, 1, "cpu", "float32")


@pytest.fixture(scope="module")
def segmentors():
    with DefaultScope.overwrite_default_scope("mmengine"):
        return pointcloud.measure_case(SEGMENTOR, 256, 2, 1, "cpu", "float32")


@pytest.mark.parametrize(
    ("measured", "module"), [("detectors", detection), ("segmentors", pointcloud)]
)
def test_every_way_is_measured(measured, module, request):
    steps = request.getfixturevalue(measured)
    assert tuple(steps) == module.WAYS
    for step in steps.values():
        assert 0 < step.kept <= step.peak
        assert len(step.seconds) == 1


@pytest.mark.parametrize(
    ("measured", "module"), [("detectors", detection), ("segmentors", pointcloud)]
)
def test_checkpointing_is_the_conventional_network_and_a_dr2net_another(measured, module, request):
    values = {way: step.value for way, step in request.getfixturevalue(measured).items()}
    conventional = values[module.CONVENTIONAL]
    for way, value in values.items():
        assert (value == conventional) != way.startswith(module.DR2NET), way


@pytest.mark.parametrize(
    ("measured", "module"), [("detectors", detection), ("segmentors", pointcloud)]
)
def test_all_of_a_network_checkpointed_or_reversible_keeps_a_third(measured, module, request):
    steps = request.getfixturevalue(measured)
    for way in (module.CHECKPOINTED, module.WAYS[-1]):
        assert steps[way].kept < steps[module.CONVENTIONAL].kept / 3


def test_shares_and_ratios_are_those_of_the_same_turn():
    first, second = (
        Step(nn.Linear(1, 1), lambda: torch.zeros(()), kept=kept, peak=10 * kept, seconds=seconds)
        for kept, seconds in ((10**6, [1.0, 3.0]), (2 * 10**6, [2.0, 3.0]))
    )
    table = cells({"a": first, "b": second}, "a", "b")
    assert table["b"]["peak / a"] == "2.00"
    assert table["a"]["peak / b"] == "0.50"
    assert table["a"]["time / b"].startswith("0.75")
    assert table["a"]["peak MB"] == "10"


def test_a_step_is_measured_beyond_weights_and_gradients():
    network = nn.Linear(256, 256, bias=False)
    x = torch.randn(1000, 256)
    step = Step(network, lambda: network(x).sum())
    measure_steps({"only": step}, 0, "cpu")
    output = 1000 * 256 * 4
    assert output <= step.peak < 3.5 * output
    assert step.seconds == []


@pytest.mark.parametrize("case", ["64x64", "64x64xfew", "64x64x-1", "64x64x1x1"])
def test_a_case_that_is_none_is_refused(case, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["detection.py", f"--case={case}"])
    with pytest.raises(SystemExit):
        detection.main()
    assert "whole number above 0" in (said := capsys.readouterr().err) or "HEIGHTx" in said


def test_the_command_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    out = tmp_path / "steps.json"
    monkeypatch.setattr(detection, "WAYS", (detection.CONVENTIONAL, detection.CHECKPOINTED))
    small = small_model("conventional_dino4scale_swint_coco")
    cases = ["--case", "64x64x3", "--case", "64x96x2"]
    monkeypatch.setattr(sys, "argv", ["detection.py", *cases, "--rounds", "1", "--out", str(out)])
    monkeypatch.setattr(detection.Config, "fromfile", lambda _: SimpleNamespace(model=small))
    detection.main()
    result = json.loads(out.read_text())
    assert [row["image"] for row in result["rows"]] == ["64 × 64"] * 2 + ["64 × 96"] * 2
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    for row in result["rows"]:
        assert row["peak MB"] in printed
    assert set(result["bytes and seconds"]["64x96x2, checkpointed"]) == {
        "value",
        "kept",
        "peak",
        "seconds",
    }
