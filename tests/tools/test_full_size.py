"""dr2net_vitb_k400.py itself, at full size, on real clips."""

import shutil

import pytest

pytest.importorskip("mmengine")
from dr2net.openmmlab.checkpoint import open_checkpoint
from tests.tools.conftest import ROOT, run_train
from tests.video_clips import write_annotation

CONFIG = ROOT / "configs/video/dr2net_vitb_k400.py"


@pytest.fixture
def real_kinetics(tmp_path):
    clips = ROOT.parent / "shared/data/real/video"
    if not clips.is_dir():
        pytest.skip(f"no real clips in {clips}")
    root = tmp_path / "kinetics400"
    names = sorted(path.name for path in clips.iterdir())
    for split in ("train", "val"):
        shutil.copytree(clips, root / f"videos_{split}")
        write_annotation(
            root / f"kinetics400_{split}_list_videos.txt",
            [f"{name} {label}" for label, name in enumerate(names)],
        )
    return root


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_trains_saves_resumes_and_tests(real_kinetics, logged, tmp_path):
    from tools.test import main as run_test

    settings = [
        "load_from=None",
        "train_dataloader.batch_size=1",
        "train_dataloader.num_workers=1",
        "test_dataloader.num_workers=1",
        *(f"{part}_dataloader.dataset.data_root={real_kinetics}" for part in ("train", "test")),
        "train_cfg.max_epochs=2",
        "param_scheduler.0.end=1",
        "param_scheduler.1.begin=1",
        "default_hooks.logger.interval=1",
    ]
    run_train(CONFIG, tmp_path / "unbroken", "--no-validate", settings=settings)
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "unbroken/epoch_1.pth", tmp_path / "resumed")
    run_train(CONFIG, tmp_path / "resumed", "--no-validate", "--resume", settings=settings)
    assert logged(tmp_path / "resumed") == logged(tmp_path / "unbroken")[3:]

    checkpoint = tmp_path / "resumed/epoch_2.pth"
    assert open_checkpoint(checkpoint)["meta"]["epoch"] == 2
    metrics = run_test(
        [
            str(CONFIG),
            str(checkpoint),
            "--work-dir",
            str(tmp_path / "test"),
            "--cfg-options",
            *settings,
        ]
    )
    assert 0 <= metrics["acc/top1"] <= 1
