"""What holds for the demo of every task."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("mmengine")

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import dr2net
from dr2net.openmmlab.checkpoint import open_checkpoint
from tools.demos import measurements, picture
from tools.demos.training_runs import last_checkpoint

ROOT = Path(__file__).parents[3]

# By the module of tools/demos/: the package that its configs need.
NEEDS = {"video": "mmaction", "detection": "mmdet", "pointcloud": "timm"}


@pytest.fixture(params=NEEDS)
def demo(request):
    import dr2net.openmmlab.mended  # noqa: F401 - mends what the packages import

    pytest.importorskip(NEEDS[request.param])
    return import_module(f"tools.demos.{request.param}").DEMO


def build(path):
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    return MODELS.build(config.model)


def test_ways_start_from_their_coefficients_and_take_all_pretrained_weights(demo):
    pretrained = build(demo.pretraining).state_dict()
    kept = {name: value for name, value in pretrained.items() if name.startswith(demo.transferred)}
    assert not any("coefficients" in name for name in kept)
    found = {}
    for name, path in demo.ways.items():
        model = build(path)
        assert not model.load_state_dict(kept, strict=False).unexpected_keys
        missing = set(dict(model.named_parameters())) - set(kept)
        assert not any(name.startswith(demo.transferred) for name in missing)
        found[name] = dr2net.get_coefficients(model)
    assert found["conventional"] == (1, 0)
    assert found["previous reversible"] == (0, 1)
    assert found["Dr²Net"] == pytest.approx((1, 0.1), abs=2**-16)


def test_ways_differ_in_their_backbone_and_hook_alone(demo):
    configs = [Config.fromfile(path).to_dict() for path in demo.ways.values()]
    for config in configs:
        model = config["model"]
        model = model.get("detector") or model.get("segmentor") or model
        for key in ("alpha", "beta", "arithmetic"):
            model["backbone"].pop(key, None)
        config["default_hooks"].pop("coefficients", None)
    assert configs[0] == configs[1] == configs[2]


def test_result_and_data_lie_where_the_configs_look_for_them(demo):
    for path in demo.ways.values():
        config = Config.fromfile(path)
        assert config.load_from == f"work_dirs/demo_{demo.name}/runs/pretrained.pth"
        config.merge_from_dict(demo.settings(demo.data / "finetune"))
        assert config.to_dict() == Config.fromfile(path).to_dict()


class Network(nn.Module):
    """A model of mmengine's kind whose backbone holds two chains."""

    def __init__(self):
        super().__init__()
        blocks = [nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(3)) for _ in range(2)]
        self.backbone = nn.Sequential(
            *(dr2net.ReversibleChain(container, (linear,)) for container in blocks)
        )
        self.head = nn.Linear(8, 1)

    def data_preprocessor(self, data, training):
        return data

    def forward(self, inputs, mode):
        return {"loss": self.head(self.backbone(inputs)).square().mean()}

    def parse_losses(self, losses):
        return losses["loss"], losses


@dr2net.residual
def linear(block, x):
    return torch.tanh(block[0](x))


def test_kept_bytes_are_those_of_model_backbone_and_all_chains():
    model = Network().train()
    dr2net.set_coefficients(model, 0.0, 1.0)
    inputs = torch.randn(16, 8)
    found = measurements._memory_and_error(model, {"inputs": inputs})
    # Two streams of 4 bytes an element.
    assert found["bytes_per_element"] == 8
    assert found["chain_bytes"] == 2 * 8 * inputs.numel()
    assert found["chain_bytes"] <= found["backbone_bytes"] < found["model_bytes"]
    assert found["gradient_error"] == 0 < found["float_gradient_error"]
    assert [chain.arithmetic for chain in dr2net.chains(model)] == ["exact"] * 2


def test_conventional_network_has_no_gradient_error():
    found = measurements._memory_and_error(Network().train(), {"inputs": torch.randn(4, 8)})
    assert "gradient_error" not in found
    assert measurements.describe([found], ["gradient error"]) == {"gradient error": "0"}


def test_table_shows_both_ends_where_they_differ():
    ends = [{"model_bytes": 2e6, "seconds": [1, 2, 9]}, {"model_bytes": 1e6, "seconds": [2, 2, 2]}]
    assert measurements.describe(ends, ["kept, model (MB)", "seconds per step"]) == {
        "kept, model (MB)": "2.0 → 1.0",
        "seconds per step": "2.000",
    }


@pytest.mark.parametrize("validated", [{1: 0.2, 2: 0.4}, {2: 0.4}], ids=["twice", "once"])
def test_picture_is_drawn_from_any_figure(tmp_path, validated):
    plain = {"iter": [5, 10], "loss": [2.0, 1.0]}
    plain |= {"epoch": list(validated), "mIoU": list(validated.values())}
    moving = plain | {"alpha": [1.0, 0.0], "beta": [0.1, 1.0]}
    labels = {"title": "Segmentation", "label": "mIoU (%)", "loss_label": "cross-entropy"}
    curves = {"conventional": [plain, plain], "Dr²Net": [moving, moving]}
    picture.draw(tmp_path / "new/picture.png", curves, "mIoU", **labels)
    assert (tmp_path / "new/picture.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_committed_result_is_of_three_seeds_at_the_end_of_the_schedule(demo):
    path = ROOT / f"results/demo_{demo.name}.json"
    if not path.is_file():
        pytest.skip(f"no {path.name} yet")
    result = json.loads(path.read_text(encoding="utf-8"))
    assert list(result["curves"]) == list(demo.ways)
    assert all(len(seeds) >= 3 for seeds in result["curves"].values())
    for curves in result["curves"]["Dr²Net"]:
        second_half = curves["beta"][len(curves["beta"]) // 2 :]
        assert set(second_half) == {1}
    for label, found in result["measured"].items():
        assert label.startswith(tuple(demo.ways))
        assert found.get("gradient_error", 0) == 0 or label.startswith("previous")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_demo_that_is_killed_goes_on_and_ends_with_table_picture_and_result(demo, tmp_path):
    work, data = tmp_path / "work", tmp_path / "data" / demo.data.name
    command = [sys.executable, ROOT / f"tools/demos/{demo.name}.py", "--work-dir", work]
    command += ["--data", data, "--shrink", "10", "--seeds", "1"]
    runs = work / "runs"
    first = subprocess.Popen(command, start_new_session=True)
    while not list(runs.glob("*_seed0/epoch_*.pth")):
        assert first.poll() is None
        time.sleep(0.1)
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 1
    assert "is in use by another run" in second.stderr
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    pretrained = (runs / "pretrain/curves.json").stat().st_mtime_ns

    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| Dr²Net" in printed
    result = json.loads((work / f"demo_{demo.name}.json").read_text())
    assert [row["finetuning"] for row in result["rows"]] == list(demo.ways)
    assert result["measured"]["Dr²Net (1, 0.1)"]["gradient_error"] == 0
    assert (work / f"demo_{demo.name}.png").read_bytes().startswith(b"\x89PNG")
    assert (runs / "pretrain/curves.json").stat().st_mtime_ns == pretrained
    found = {}
    for name, config in demo.ways.items():
        checkpoint = open_checkpoint(last_checkpoint(runs / f"{config.stem}_seed0"))
        model = build(config)
        model.load_state_dict(checkpoint["state_dict"])
        found[name] = dr2net.get_coefficients(model)
    assert found["conventional"] == (1, 0)
    assert found["previous reversible"] == (0, 1)
    assert found["Dr²Net"][0] < 1
