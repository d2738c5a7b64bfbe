import json
import os
import signal
import subprocess
import sys
import time

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import dr2net
from dr2net.openmmlab.checkpoint import open_checkpoint
from tools import demo_video, motion_clips
from tools.demo_video import ROOT, WAYS
from tools.training_runs import last_checkpoint


def build(path):
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    return MODELS.build(config.model)


def test_ways_start_from_their_coefficients_and_take_all_pretrained_weights():
    pretrained = build(demo_video.PRETRAINING).backbone.state_dict()
    assert not any("coefficients" in name for name in pretrained)
    found = {}
    for name, path in WAYS.items():
        backbone = build(path).backbone
        backbone.load_state_dict(pretrained)
        found[name] = dr2net.get_coefficients(backbone)
    assert found["conventional"] == (1, 0)
    assert found["previous reversible"] == (0, 1)
    assert found["Dr²Net"] == pytest.approx((1, 0.1), abs=2**-16)


def test_ways_differ_in_their_backbone_and_hook_alone():
    configs = [Config.fromfile(path).to_dict() for path in WAYS.values()]
    for config in configs:
        for key in ("alpha", "beta", "arithmetic"):
            config["model"]["backbone"].pop(key, None)
        config["default_hooks"].pop("coefficients", None)
    assert configs[0] == configs[1] == configs[2]


def test_schedule_ends_before_the_training():
    config = Config.fromfile(WAYS["Dr²Net"])
    clips = 8 * motion_clips.CLIPS_PER_CLASS["finetune"]["train"]
    iterations = config.train_cfg.max_epochs * (clips // config.train_dataloader.batch_size)
    assert config.default_hooks.coefficients.end <= iterations / 2


def test_runs_of_other_code_are_discarded(tmp_path, monkeypatch):
    runs, written = tmp_path / "runs", tmp_path / "fingerprint"
    demo_video._discard_outdated(written, runs, 1)
    runs.mkdir()
    demo_video._discard_outdated(written, runs, 1)
    assert runs.exists()
    demo_video._discard_outdated(written, runs, 2)
    assert not runs.exists()


def demo_command(folder):
    options = {"--work-dir": folder / "work", "--data": folder / "data/motion", "--shrink": 10}
    words = [str(word) for option in options.items() for word in option]
    return [sys.executable, str(ROOT / "tools/demo_video.py"), *words, "--seeds", "1"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_demo_that_is_killed_goes_on_and_ends_with_table_picture_and_result(tmp_path):
    command = demo_command(tmp_path)
    runs = tmp_path / "work/runs"
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
    result = json.loads((tmp_path / "work/demo_video.json").read_text())
    assert [row["finetuning"] for row in result["rows"]] == list(WAYS)
    assert result["measured"]["Dr²Net (1, 0.1)"]["gradient_error"] == 0
    assert (tmp_path / "work/demo_video.png").read_bytes().startswith(b"\x89PNG")
    assert (runs / "pretrain/curves.json").stat().st_mtime_ns == pretrained
    found = {}
    for name, config in WAYS.items():
        checkpoint = open_checkpoint(last_checkpoint(runs / f"{config.stem}_seed0"))
        model = build(config)
        model.load_state_dict(checkpoint["state_dict"])
        found[name] = dr2net.get_coefficients(model)
    assert found["conventional"] == (1, 0)
    assert found["previous reversible"] == (0, 1)
    assert found["Dr²Net"][0] < 1
