"""Configs of configs/video/localization/, in small on real clips, through the training command."""

import json
import uuid

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
import tasks.video.localization  # noqa: F401  # isort: skip

import torch

import dr2net
from tests.localization import CONFIGS, small_config
from tools.test import main as run_test
from tools.train import main

SHARED = CONFIGS.parents[3] / "shared/data/real/video"
# File and seconds.
CLIPS = {
    "first": (SHARED / "test.avi", 6.5),
    "second": (SHARED / "test_video_structuralize.mp4", 10.0),
}


@pytest.fixture
def clips():
    if not SHARED.is_dir():
        pytest.skip(f"no real clips in {SHARED}")
    return CLIPS


def train(name, folder, clips, work_dir, *arguments):
    folder.mkdir(exist_ok=True)
    config = small_config(name, folder, clips, work_dir)
    config.dump(folder / f"{name}.py")
    return main([str(folder / f"{name}.py"), "--work-dir", str(work_dir), *arguments])


def losses(work_dir):
    newest = sorted(work_dir.rglob("scalars.json"))[-1]  # of a run that was resumed, the second
    lines = map(json.loads, newest.read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("data", ["thumos14", "activitynet13"])
@pytest.mark.parametrize("way", ["conventional", "checkpointed", "dr2net"])
def test_a_config_trains_validates_and_saves(way, data, clips, tmp_path):
    runner = train(f"{way}_vitb_{data}", tmp_path / "data", clips, tmp_path / "run")
    assert len(dr2net.chains(runner.model)) == (way == "dr2net")
    assert 0 <= runner.message_hub.get_scalar("val/localization/mAP").current() <= 1
    assert (tmp_path / "run/epoch_2.pth").is_file()


@pytest.mark.parametrize("data", ["thumos14", "activitynet13"])
def test_a_file_for_the_leaderboard_is_written(data, clips, tmp_path):
    name = f"dr2net_vits_{data}"
    train(name, tmp_path / "data", clips, tmp_path / "run")
    command = [str(tmp_path / f"data/{name}.py"), str(tmp_path / "run/epoch_2.pth")]
    command += ["--work-dir", str(tmp_path / "test"), "--format-only", str(tmp_path / "out")]
    assert run_test([*command, "--cfg-options", f"experiment_name={uuid.uuid4().hex}"]) == {}
    written = json.loads((tmp_path / "out/actions.json").read_text())
    assert written.keys() == {"version", "results", "external_data"}
    assert written["results"].keys() == {"first_val", "second_val"}
    actions = [action for found in written["results"].values() for action in found]
    assert {action["label"] for action in actions} <= {"jump", "run"}
    assert all(begin <= end for begin, end in (action["segment"] for action in actions))
    assert all(0 <= action["score"] <= 1 for action in actions)
    assert actions


def test_an_interrupted_training_resumes_with_the_same_losses(clips, tmp_path):
    name = "dr2net_vits_thumos14"
    one_at_a_time = ["--cfg-options", "default_hooks.logger.interval=1"]
    train(name, tmp_path / "data", clips, tmp_path / "unbroken", *one_at_a_time)
    train(name, tmp_path / "data", clips, tmp_path / "broken", *one_at_a_time)
    unbroken = torch.load(tmp_path / "unbroken/epoch_2.pth", weights_only=False)
    for left in ("epoch_2.pth", "last_checkpoint"):
        (tmp_path / "broken" / left).unlink()
    runner = train(name, tmp_path / "data", clips, tmp_path / "broken", "--resume", *one_at_a_time)
    resumed = torch.load(tmp_path / "broken/epoch_2.pth", weights_only=False)
    assert runner.epoch == 2
    for key in ("state_dict", "ema_state_dict"):
        assert unbroken[key].keys() == resumed[key].keys()
        for entry, value in unbroken[key].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, resumed[key][entry]), entry
    assert len(losses(tmp_path / "unbroken")) == 2
    assert losses(tmp_path / "broken") == losses(tmp_path / "unbroken")[1:]
