import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

pytest.importorskip("mmcv")
import tools.train
from dr2net.openmmlab.checkpoint import open_checkpoint
from tests.video_clips import write_kinetics

# The process ends as half of the second checkpoint is written.
KILLED_WHILE_SAVING = """
import io, os, signal, sys
from pathlib import Path
from tools.train import main

open_file, opened = Path.open, []

class Torn(io.FileIO):
    def write(self, data):
        super().write(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

def open_then_tear(path, mode="r", *args, **kwargs):
    if mode == "wb" and path.name.startswith("epoch_2.pth"):
        return Torn(path, "w")
    return open_file(path, mode, *args, **kwargs)

Path.open = open_then_tear
main([sys.argv[1], "--work-dir", sys.argv[2], "--no-validate"])
"""


def weights(checkpoint):
    return open_checkpoint(checkpoint)["state_dict"]


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


class TestTraining:
    def test_losses_and_coefficients_are_logged(self, trained, logged):
        _, run = trained
        assert len(logged(run, "loss")) == len(logged(run, "alpha")) == 4
        assert logged(run, "beta")[0] == pytest.approx(0.1, abs=2**-16)
        assert list(run.glob("*/vis_data/events.out.tfevents.*"))

    def test_the_progress_line_tells_the_remaining_time(self, trained):
        (log,) = trained[1].glob("*/*.log")
        assert re.search(
            r"Epoch\(train\) +\[2\]\[1/2\].* eta: 0:00:\d\d .* loss: ", log.read_text()
        )

    def test_validation_chooses_the_best_checkpoint(self, trained, logged):
        _, run = trained
        assert len(logged(run, "acc/top1")) == 2
        assert list(run.glob("best_acc_top1_epoch_*.pth"))

    def test_options_of_the_command_line_reach_the_runner(self, make_config, train, tmp_path):
        options = ["--no-validate", "--auto-scale-lr", "--seed", "7", "--amp"]
        runner = train(
            make_config(), tmp_path / "run", *options, settings=["train_cfg.max_epochs=1"]
        )
        assert runner.seed == 7
        assert runner.auto_scale_lr["enable"]
        assert runner.val_loop is None
        assert runner.max_epochs == 1

    def test_a_config_that_says_nothing_of_randomness_trains(self, make_config, train, tmp_path):
        config = make_config(extra="randomness = None\ntrain_cfg = dict(max_epochs=1)")
        runner = train(config, tmp_path / "run", "--no-validate")
        assert runner.seed is not None  # drawn

    def test_runs_from_any_folder(self, run_command, tmp_path):
        script = Path(__file__).parents[2] / "tools/train.py"
        assert "--cfg-options" in run_command(sys.executable, script, "--help", cwd=tmp_path).stdout

    def test_weight_averages_are_kept_and_resumed(self, make_config, train, tmp_path):
        config = make_config(extra='custom_hooks = [dict(type="EMAHook", momentum=0.1)]\n')
        train(config, tmp_path / "unbroken", "--no-validate")
        checkpoint = tmp_path / "unbroken/epoch_1.pth"
        assert "ema_state_dict" in open_checkpoint(checkpoint)
        train(config, tmp_path / "resumed", "--no-validate", "--resume", str(checkpoint))
        assert_same_weights(tmp_path / "unbroken/epoch_2.pth", tmp_path / "resumed/epoch_2.pth")


class TestResuming:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_continues_as_the_unbroken_run(self, workers, trained, train, logged, tmp_path):
        config, unbroken = trained
        shutil.copy(unbroken / "epoch_1.pth", tmp_path)
        loader = [
            f"train_dataloader.num_workers={workers}",
            f"train_dataloader.persistent_workers={workers > 0}",
        ]
        train(config, tmp_path, "--resume", "--no-validate", settings=loader)
        assert logged(tmp_path) == logged(unbroken)[2:]
        assert_same_weights(unbroken / "epoch_2.pth", tmp_path / "epoch_2.pth")

    def test_continues_within_an_epoch(self, make_config, train, logged, tmp_path):
        by_iteration = """
train_dataloader["sampler"] = dict(type="SeededInfiniteSampler")
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=6, val_interval=100)
log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(by_epoch=False, interval=1, max_keep_ckpts=-1),
    coefficients=dict(by_epoch=False, end=6),
)
"""
        config = make_config(extra=by_iteration)
        train(config, tmp_path / "unbroken", "--no-validate")
        checkpoint = tmp_path / "unbroken/iter_3.pth"
        train(config, tmp_path / "resumed", "--no-validate", "--resume", str(checkpoint))
        assert logged(tmp_path / "resumed") == logged(tmp_path / "unbroken")[3:]
        assert_same_weights(tmp_path / "unbroken/iter_6.pth", tmp_path / "resumed/iter_6.pth")

    def test_on_another_number_of_processes_rates_are_those_of_that_number(
        self, make_config, train, run_command, logged, tmp_path
    ):
        config = make_config(
            extra="""
train_dataloader["batch_size"] = 1
auto_scale_lr = dict(enable=True, base_batch_size=4)
param_scheduler = [dict(type="LinearLR", start_factor=0.1, end=2, convert_to_iter_based=True)]
"""
        )
        train(config, tmp_path / "unbroken", "--no-validate")
        run_command(
            "env", "OMP_NUM_THREADS=1", "tools/dist_train.sh", config, 2,
            "--work-dir", tmp_path / "two", "--no-validate",
            "--cfg-options", "train_cfg.max_epochs=1",
        )  # fmt: skip
        checkpoint = str(tmp_path / "two/epoch_1.pth")
        train(config, tmp_path / "one", "--no-validate", "--resume", checkpoint)
        rates = logged(tmp_path / "unbroken", "lr")
        assert len(rates) == 8
        assert logged(tmp_path / "one", "lr") == rates[4:]

    @pytest.mark.parametrize("epoch", [1, 2])
    def test_a_validation_that_a_kill_took_is_made_up_for(
        self, epoch, trained, train, logged, tmp_path
    ):
        config, unbroken = trained
        checkpoint = torch.load(unbroken / f"epoch_{epoch}.pth", weights_only=False)
        # mmengine writes it once more after a validation that found the best so far.
        for name in ("best_score", "best_ckpt"):
            checkpoint["message_hub"]["runtime_info"].pop(name, None)
        torch.save(checkpoint, tmp_path / f"epoch_{epoch}.pth")
        train(config, tmp_path, "--resume")
        assert logged(tmp_path, "acc/top1") == logged(unbroken, "acc/top1")[epoch - 1 :]
        assert logged(tmp_path, "acc/mean1") == logged(unbroken, "acc/mean1")[epoch - 1 :]
        assert list(tmp_path.glob("best_acc_top1_epoch_*.pth"))
        assert_same_weights(unbroken / "epoch_2.pth", tmp_path / "epoch_2.pth")

    @pytest.mark.parametrize(("iteration", "validated"), [(2, 3), (3, 2)])
    def test_what_was_not_due_is_not_validated(
        self, iteration, validated, make_config, train, logged, tmp_path
    ):
        by_iteration = """
train_dataloader["sampler"] = dict(type="SeededInfiniteSampler")
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=5, val_interval=2)
log_processor = dict(by_epoch=False)
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=1, max_keep_ckpts=-1),
    coefficients=dict(by_epoch=False, end=5),
)
"""
        config = make_config(extra=by_iteration)
        train(config, tmp_path / "unbroken", "--no-validate")
        checkpoint = tmp_path / f"unbroken/iter_{iteration}.pth"
        train(config, tmp_path / "resumed", "--resume", str(checkpoint))
        assert len(logged(tmp_path / "resumed", "acc/top1")) == validated
        assert_same_weights(tmp_path / "unbroken/iter_5.pth", tmp_path / "resumed/iter_5.pth")

    def test_last_checkpoint_that_is_gone_is_passed_over(self, trained, train, tmp_path):
        config, unbroken = trained
        shutil.copy(unbroken / "epoch_1.pth", tmp_path)
        (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_2.pth"))
        train(config, tmp_path, "--no-validate", "--resume")
        assert_same_weights(unbroken / "epoch_2.pth", tmp_path / "epoch_2.pth")

    def test_new_folder_starts_from_the_pretrained_file(self, trained, train, tmp_path):
        config, pretrained = trained[0], trained[1] / "epoch_2.pth"
        settings = [f"load_from={pretrained}", "optim_wrapper.optimizer.lr=0"]
        train(config, tmp_path, "--no-validate", "--resume", settings=settings)
        start = {k: v for k, v in weights(pretrained).items() if "coefficients" not in k}
        end = weights(tmp_path / "epoch_2.pth")
        assert all(torch.equal(value, end[name]) for name, value in start.items())

    def test_a_killed_run_is_continued(self, trained, train, run_command, tmp_path):
        config, unbroken = trained
        with pytest.raises(subprocess.CalledProcessError) as killed:
            run_command(sys.executable, "-c", KILLED_WHILE_SAVING, config, tmp_path)
        assert killed.value.returncode == -signal.SIGKILL
        assert (tmp_path / "epoch_2.pth.partial").exists()
        train(config, tmp_path, "--no-validate", "--resume")
        assert_same_weights(unbroken / "epoch_2.pth", tmp_path / "epoch_2.pth")


class TestMistakes:
    def test_another_run_in_the_work_folder_is_named(
        self, make_config, train, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(tools.train, "PATIENCE", 0.1)
        (tmp_path / "run").mkdir()
        with (
            FileLock(tmp_path / "run/lock"),
            pytest.raises(BlockingIOError, match=r"another training is at work in .*run: .*--work"),
        ):
            train(make_config(), tmp_path / "run", "--no-validate")
        train(make_config(), tmp_path / "run", "--no-validate")

    def test_missing_pretrained_file_says_what_to_do(self, make_config, train, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"gone\.pth.*docs/ says.*load_from=None"):
            train(make_config(), tmp_path / "run", settings=["load_from=gone.pth"])

    def test_missing_data_says_what_is_expected(self, make_config, train, tmp_path):
        config = make_config(data=tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match=r"nowhere/kinetics400_train.*docs/video\.md"):
            train(config, tmp_path / "run")

    def test_unreadable_video_is_named_and_replaced_in_training(
        self, make_config, train, logged, tmp_path
    ):
        data = write_kinetics(tmp_path / "data")
        (data / "videos_train/class 1/clip_1.mp4").write_bytes(b"")
        train(make_config(data=data), tmp_path / "run", "--no-validate")
        (log,) = (tmp_path / "run").glob("*/*.log")
        assert log.read_text().count("replaced in training") == 1
        assert "clip_1.mp4" in log.read_text()
        assert logged(tmp_path / "run", "unreadable_videos")[-1] >= 1

    def test_missing_videos_of_all_lists_are_named_before_the_first_iteration(
        self, make_config, train, logged, tmp_path
    ):
        data = write_kinetics(tmp_path / "data")
        for name in ("train/class 1/clip_1", "val/class 0/clip_0", "val/class 1/clip_3"):
            (data / f"videos_{name}.mp4").unlink()
        with pytest.raises(FileNotFoundError) as error:
            train(make_config(data=data), tmp_path / "run")
        assert "3 videos do not exist" in str(error.value)
        for named in ("train/class 1/clip_1.mp4", "val/class 0/clip_0.mp4", "_videos.txt, line 4)"):
            assert named in str(error.value)
        assert not list((tmp_path / "run").glob("*.pth"))
        train(make_config(data=data), tmp_path / "no validation", "--no-validate")
        (log,) = (tmp_path / "no validation").glob("*/*.log")
        assert "1 videos do not exist" in log.read_text()

    def test_unreadable_video_stops_validation(self, make_config, train, tmp_path):
        data = write_kinetics(tmp_path / "data")
        (data / "videos_val/class 1/clip_1.mp4").write_bytes(b"")
        with pytest.raises(RuntimeError, match=r"clip_1\.mp4 .*val_list_videos\.txt, line 2\)"):
            train(make_config(data=data), tmp_path / "run")

    @pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
    def test_a_file_system_without_locks_is_trained_on(self, number, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(FileLock, "acquire", refuse)
        said = []
        monkeypatch.setattr(tools.train, "print_log", said.append)
        with tools.train.the_only_run_in(tmp_path):
            pass
        assert "no locks in the file system" in said[0]

    def test_a_run_shorter_than_its_warm_up_leaves_out_what_would_follow(
        self, make_config, train, logged, tmp_path
    ):
        schedules = """
param_scheduler = [
    dict(type="LinearLR", start_factor=0.5, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5),
]
"""
        settings = ["train_cfg.max_epochs=1"]
        config = make_config(extra=schedules)
        runner = train(config, tmp_path / "run", "--no-validate", settings=settings)
        assert [type(schedule).__name__ for schedule in runner.param_schedulers] == ["LinearLR"]
        first, second = logged(tmp_path / "run", "lr")
        assert first < second


@pytest.mark.parametrize("base", ["conventional_vitb_k400", "dr2net_paper_vitb_k400"])
def test_two_processes_train_as_one_on_the_joined_batch(
    base, make_config, train, run_command, tmp_path
):
    # Without chance in the network, which differs from process to process, and by plain SGD, whose
    # step is linear in the gradient.
    plain = """
model["backbone"].get("backbone", model["backbone"])["drop_path_rate"] = 0.0
model["data_preprocessor"] = dict(blending=None)
optim_wrapper = dict(
    _delete_=True, type="OptimWrapper", optimizer=dict(type="SGD", lr=0.05), clip_grad=None
)
train_dataloader["batch_size"] = {batch}
"""
    one = train(make_config(base, extra=plain.format(batch=2)), tmp_path / "one", "--no-validate")
    accumulated = make_config(
        base, extra=plain.format(batch=1) + 'optim_wrapper["accumulative_counts"] = 2\n'
    )
    torch.set_num_threads(1)  # as torchrun gives its processes
    train(accumulated, tmp_path / "accumulated", "--no-validate")
    config = make_config(base, extra=plain.format(batch=1))
    run_command(
        "env", "OMP_NUM_THREADS=1", "tools/dist_train.sh", config, 2,
        "--work-dir", tmp_path / "two", "--no-validate",
    )  # fmt: skip
    assert one.iter == 4
    two = weights(tmp_path / "two/epoch_2.pth")
    # One process that takes the joined batch sample by sample sums the same terms: no bit differs.
    for name, value in weights(tmp_path / "accumulated/epoch_2.pth").items():
        assert torch.equal(two[name], value), name
    expected = weights(tmp_path / "one/epoch_2.pth")
    for name, value in two.items():
        if not value.is_floating_point():
            assert torch.equal(value, expected[name])
            continue
        # Taken at once, the mean over a batch is summed in another order, and kernels for two
        # samples round differently. Biases start from 0, so that they hold but four gradients,
        # which mostly cancel: 5 to 12 units of 2^-24 of the largest were seen on one processor
        # with several sets of kernels, and more must be expected of others. Gradients that were
        # not shared, or not averaged, differ by about 1.
        torch.testing.assert_close(
            value, expected[name], rtol=0, atol=2**-14 * float(value.abs().max())
        )
