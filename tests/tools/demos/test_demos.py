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
from tools.demos import measurements, picture, ways
from tools.demos.table import paired_difference
from tools.demos.training_runs import TrainingError, last_checkpoint

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
        checkpointed = {chain.checkpoints for chain in dr2net.chains(model)}
        assert checkpointed == {name == ways.CHECKPOINTED}
    assert found == {
        ways.SCRATCH: (1, 0),
        ways.CONVENTIONAL: (1, 0),
        ways.CHECKPOINTED: (1, 0),
        ways.PREVIOUS: (0, 1),
        ways.SCHEDULED: pytest.approx((1, 0.1), abs=2**-16),
        ways.HELD: (7 / 8, 1 / 8),
    }


def test_networks_have_twelve_blocks_at_least(demo):
    assert sum(len(chain) for chain in dr2net.chains(build(demo.ways[ways.HELD]))) >= 12


def test_ways_from_pretrained_weights_differ_in_their_backbone_and_hook_alone(demo):
    configs = {name: Config.fromfile(path).to_dict() for name, path in demo.ways.items()}
    del configs[ways.SCRATCH]
    for config in configs.values():
        model = config["model"]
        model = model.get("detector") or model.get("segmentor") or model
        for key in ("alpha", "beta", "arithmetic", "checkpointed"):
            model["backbone"].pop(key, None)
        config["default_hooks"].pop("coefficients", None)
    assert all(config == configs[ways.CONVENTIONAL] for config in configs.values())


def test_from_scratch_no_weights_are_loaded_and_data_and_epochs_are_the_same(demo):
    scratch, conventional = (
        Config.fromfile(demo.ways[name]).to_dict() for name in (ways.SCRATCH, ways.CONVENTIONAL)
    )
    assert scratch["load_from"] is None
    for key in ("train_dataloader", "val_dataloader", "train_cfg", "model", "param_scheduler"):
        assert scratch[key] == conventional[key]


def test_result_and_data_lie_where_the_configs_look_for_them(demo):
    for name, path in demo.ways.items():
        config = Config.fromfile(path)
        if name != ways.SCRATCH:
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
    assert found["model_bytes"] < found["peak_bytes"]
    assert found["point"] == (0, 1)
    assert all(parameter.grad is None for parameter in model.parameters())
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


def result_of(epochs):
    """A result of two seeds, checkpointed with one, and the plain network without curves."""
    curve = {"iter": [5, 10], "loss": [2.0, 1.0], "epoch": epochs, "mIoU": [0.3] * len(epochs)}
    reached = {"mIoU": [0.3, 0.4]}
    measured = [{"peak_bytes": 2e6}, {"peak_bytes": 1e6}]
    names = ["conventional", "checkpointed", "Dr²Net", "plain"]
    return {
        "figures": dict.fromkeys(names, reached),
        "measured": dict.fromkeys(names, measured),
        "curves": {"conventional": [curve] * 2, "checkpointed": [curve], "Dr²Net": [curve] * 2},
    }


@pytest.mark.parametrize("epochs", [[1, 2], [2]], ids=["twice", "once"])
def test_picture_is_drawn_from_any_figure(tmp_path, epochs):
    labels = {"title": "Segmentation", "label": "mIoU (%)", "loss_label": "cross-entropy"}
    picture.draw(tmp_path / "new/picture.png", result_of(epochs), "mIoU", **labels)
    assert (tmp_path / "new/picture.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_picture_has_a_dot_a_way_at_its_largest_peak_and_lines_of_ways_with_all_seeds():
    figure = picture.plt.figure()
    panels = figure.subplots(1, picture.count_panels(result_of([1, 2])))
    labels = {"title": "Segmentation", "label": "mIoU (%)", "loss_label": "cross-entropy"}
    picture.draw_panels(panels, result_of([1, 2]), "mIoU", **labels)
    memory, loss, over_epochs = panels
    dots = [container[0].get_xydata()[0].tolist() for container in memory.containers]
    assert dots == [pytest.approx([2, 35])] * 4
    assert len(loss.lines) == len(over_epochs.lines) == 2
    picture.plt.close(figure)


@pytest.fixture
def two_runs(tmp_path):
    """Curves, configs and work folders of equal conventional and checkpointed trainings."""
    configs = {name: Path(f"{name}.py") for name in (ways.CONVENTIONAL, ways.CHECKPOINTED)}
    for config in configs.values():
        folder = ways.work_folder(tmp_path, config, 0)
        folder.mkdir()
        torch.save({"state_dict": {"weight": torch.ones(3)}}, folder / "epoch_1.pth")
        (folder / "last_checkpoint").write_text(str(folder / "epoch_1.pth"))
    return {name: [{"loss": [2.0, 1.0]}] for name in configs}, configs, tmp_path


def test_equal_trainings_pass(two_runs):
    ways.check_same_training(*two_runs)


def test_checkpointed_training_of_other_losses_is_an_error(two_runs):
    two_runs[0][ways.CHECKPOINTED] = [{"loss": [2.0, 1.0 + 2**-50]}]
    with pytest.raises(TrainingError, match="losses and figures, 0 of 1 weights"):
        ways.check_same_training(*two_runs)


def test_checkpointed_training_of_other_weights_is_an_error(two_runs):
    folder = ways.work_folder(two_runs[2], two_runs[1][ways.CHECKPOINTED], 0)
    torch.save({"state_dict": {"weight": torch.ones(3) + 2**-23}}, folder / "epoch_1.pth")
    with pytest.raises(TrainingError, match=r"differ.*: 1 of 1 weights"):
        ways.check_same_training(*two_runs)


def test_committed_result_is_of_five_seeds_at_the_end_of_the_schedule(demo):
    path = ROOT / f"results/demo_{demo.name}.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    assert list(result["figures"]) == [*demo.ways, ways.PLAIN]
    assert all(len(v) >= 5 for reached in result["figures"].values() for v in reached.values())
    for curves in result["curves"][ways.SCHEDULED]:
        assert (curves["alpha"][-1], curves["beta"][-1]) == (0, 1)
    for name, ends in result["measured"].items():
        errors = [found.get("gradient_error", 0) for found in ends]
        assert set(errors) == {0} or name == ways.PREVIOUS


def test_committed_results_separate_the_ways_and_not_the_held_network(demo):
    result = json.loads((ROOT / f"results/demo_{demo.name}.json").read_text(encoding="utf-8"))
    key = next(iter(demo.figures.values()))
    reached = {name: figures[key] for name, figures in result["figures"].items()}

    def below(name):
        return paired_difference(reached[ways.CONVENTIONAL], reached[name])

    for name, points in ((ways.SCRATCH, 10), (ways.PREVIOUS, 3)):
        mean, half = below(name)
        assert 100 * mean > points
        assert mean > half
    # By the means: docs/demos.md has the intervals.
    for name in (ways.HELD, ways.PLAIN):
        assert 100 * below(name)[0] < 1


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
    assert f"| {ways.PLAIN}" in printed
    result = json.loads((work / f"demo_{demo.name}.json").read_text())
    assert [row["finetuning"] for row in result["rows"]] == [*demo.ways, ways.PLAIN]
    assert [found["gradient_error"] for found in result["measured"][ways.SCHEDULED]] == [0, 0]
    assert (work / f"demo_{demo.name}.png").read_bytes().startswith(b"\x89PNG")
    assert (runs / "pretrain/curves.json").stat().st_mtime_ns == pretrained
    found = {}
    for name, config in demo.ways.items():
        checkpoint = open_checkpoint(last_checkpoint(runs / f"{config.stem}_seed0"))
        model = build(config)
        model.load_state_dict(checkpoint["state_dict"])
        found[name] = dr2net.get_coefficients(model)
    assert found[ways.CONVENTIONAL] == (1, 0)
    assert found[ways.PREVIOUS] == (0, 1)
    assert found[ways.HELD] == (7 / 8, 1 / 8)
    assert found[ways.SCHEDULED][0] < 1
