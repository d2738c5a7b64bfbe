import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
import tasks.video.localization  # noqa: F401  # isort: skip

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

import dr2net
from tools.demos import localization_picture, measurements, ways
from tools.demos.localization import DEMO, FROZEN, ROOT, data_settings
from tools.demos.motion_videos import write_data_set
from tools.demos.table import paired_difference


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small set, which tests must not change."""
    folder = tmp_path_factory.mktemp("data") / "motion_videos"
    write_data_set(folder, shrink=100)
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A file of what is transferred, from random weights."""
    weights = build(DEMO.pretraining).state_dict()
    kept = {name: value for name, value in weights.items() if name.startswith(DEMO.transferred)}
    file = tmp_path_factory.mktemp("weights") / "pretrained.pth"
    torch.save({"state_dict": kept}, file)
    return file


def build(path):
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    return MODELS.build(config.model)


def test_ways_start_from_their_coefficients_and_take_all_pretrained_weights(pretrained):
    kept = torch.load(pretrained)["state_dict"]
    found = {}
    for name, path in DEMO.ways.items():
        model = build(path)
        assert not model.load_state_dict(kept, strict=False).unexpected_keys
        missing = set(dict(model.backbone.named_parameters(prefix="backbone"))) - set(kept)
        assert not missing
        found[name] = dr2net.get_coefficients(model)
        chains = dr2net.chains(model)
        assert sum(map(len, chains)) == 12
        assert {chain.checkpoints for chain in chains} == {name == ways.CHECKPOINTED}
    assert found == {
        ways.CONVENTIONAL: (1, 0),
        ways.CHECKPOINTED: (1, 0),
        FROZEN: (1, 0),
        ways.PREVIOUS: (0, 1),
        ways.HELD: (7 / 8, 1 / 8),
    }


def test_ways_differ_in_their_backbone_and_hook_alone():
    configs = {name: Config.fromfile(path).to_dict() for name, path in DEMO.ways.items()}
    assert configs[FROZEN]["model"].pop("frozen_backbone") is True
    for config in configs.values():
        for key in ("alpha", "beta", "arithmetic", "checkpointed"):
            config["model"]["backbone"].pop(key, None)
        config["default_hooks"].pop("coefficients", None)
    assert all(config == configs[ways.CONVENTIONAL] for config in configs.values())


def test_result_and_data_lie_where_the_configs_look_for_them():
    for path in DEMO.ways.values():
        config = Config.fromfile(path)
        assert config.load_from == f"work_dirs/demo_{DEMO.name}/runs/pretrained.pth"
        config.merge_from_dict(DEMO.settings(DEMO.data / "finetune"))
        assert config.to_dict() == Config.fromfile(path).to_dict()
    pretraining = Config.fromfile(DEMO.pretraining)
    pretraining.merge_from_dict(DEMO.settings(DEMO.data / "pretrain"))
    assert pretraining.to_dict() == Config.fromfile(DEMO.pretraining).to_dict()


def test_a_step_trains_all_but_a_frozen_backbone_and_keeps_less_the_more_is_rebuilt(
    data, pretrained
):
    settings = data_settings(data / "finetune") | {"load_from": str(pretrained)}
    found = measurements.measure(DEMO.ways, settings, steps=1)
    peaks = {name: ends[0]["peak_bytes"] for name, ends in found.items()}
    assert peaks[FROZEN] < peaks[ways.PREVIOUS] <= peaks[ways.HELD] < peaks[ways.CHECKPOINTED]
    assert peaks[ways.CHECKPOINTED] < peaks[ways.CONVENTIONAL]
    assert found[FROZEN][0]["backbone_bytes"] == 0
    assert found[ways.HELD][0]["gradient_error"] == 0


def test_a_frozen_backbone_is_left_as_it_is():
    model = build(DEMO.ways[FROZEN]).train()
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert not any(module.training for module in model.backbone.modules())
    assert model.pyramid.training
    assert all(parameter.requires_grad for parameter in model.head.parameters())


def test_the_picture_shows_truth_and_what_each_network_finds(data, tmp_path):
    torch.manual_seed(0)
    networks = {}
    for name in (ways.CONVENTIONAL, ways.HELD):
        file = tmp_path / f"{len(networks)}.pth"
        torch.save({"state_dict": build(DEMO.ways[name]).state_dict()}, file)
        networks[name] = DEMO.ways[name], file
    settings = data_settings(data / "finetune")
    lanes, seconds = localization_picture.find_in_first_video(networks, settings)
    assert list(lanes) == ["truth", ways.CONVENTIONAL, ways.HELD]
    database = json.loads((data / "finetune/annotations.json").read_text())["database"]
    assert lanes["truth"] == database["validation_0000"]["annotations"]
    assert seconds == database["validation_0000"]["duration"]
    assert all(len(found) <= len(lanes["truth"]) for found in lanes.values())
    curve = {"iter": [1, 2], "loss": [2.0, 1.0], "epoch": [1, 2], "mAP": [0.1, 0.2]}
    result = {
        "figures": {name: {"mAP": [0.2]} for name in networks},
        "measured": {name: [{"peak_bytes": 1e6}] for name in networks},
        "curves": {name: [curve] for name in networks},
    }
    localization_picture.draw(tmp_path / "picture.png", result, networks, settings)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.height > 500


def test_committed_result_separates_frozen_features_and_not_the_held_network():
    path = Path(ROOT, f"results/demo_{DEMO.name}.json")
    reached = {
        name: figures["mAP"]
        for name, figures in json.loads(path.read_text(encoding="utf-8"))["figures"].items()
    }
    assert list(reached) == [*DEMO.ways, ways.PLAIN]
    assert {len(values) for values in reached.values()} == {5}
    mean, half = paired_difference(reached[ways.CONVENTIONAL], reached[FROZEN])
    assert 100 * (mean - half) > 10
    for name in (ways.HELD, ways.PLAIN):
        mean, half = paired_difference(reached[ways.CONVENTIONAL], reached[name])
        assert 100 * mean < 1  # by the means: docs/localization.md has the intervals


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_ends_with_table_picture_and_result(tmp_path):
    work = tmp_path / "work"
    command = [sys.executable, Path(ROOT, "tools/demos/localization.py"), "--work-dir", work]
    command += ["--data", tmp_path / "data/motion_videos", "--shrink", "10", "--seeds", "1"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^pretraining: top1 \(%\) \d+\.\d$", printed, re.MULTILINE)
    assert f"| {ways.PLAIN}" in printed
    result = json.loads((work / "demo_localization.json").read_text())
    assert [row["finetuning"] for row in result["rows"]] == [*DEMO.ways, ways.PLAIN]
    assert (work / "demo_localization.png").read_bytes().startswith(b"\x89PNG")
