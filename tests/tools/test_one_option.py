"""A config of mmdetection's own becomes a Dr²Net by one option of the command line."""

from pathlib import Path

import pytest

pytest.importorskip("mmdet")
import tasks.detection  # noqa: F401  # isort: skip - operators that mmcv may lack

import mmdet

import dr2net
from tests.tools.conftest import run_train

CONFIG = Path(mmdet.__file__).parent / ".mim/configs/swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py"
FOLDER = Path(__file__).parents[3] / "shared/data/real/detection"
SMALL = [
    "model.backbone.embed_dims=8",
    "model.backbone.depths=[2,2,2,2]",
    "model.backbone.num_heads=[1,2,4,8]",
    "model.backbone.init_cfg=None",
    "model.neck.in_channels=[16,32,64]",
    "train_dataloader.dataset.pipeline.2.scale=(160,160)",
    "train_dataloader.dataset.data_root=",
    f"train_dataloader.dataset.ann_file={FOLDER / 'terrain1_coco.json'}",
    f"train_dataloader.dataset.data_prefix.img={FOLDER}",
    "train_dataloader.dataset.metainfo.classes=(human,)",
    "train_dataloader.batch_size=1",
    "train_dataloader.num_workers=0",
    "train_dataloader.persistent_workers=False",
    "train_cfg.max_epochs=2",
]


def test_mmdetection_s_retinanet_trains_two_iterations(tmp_path):
    if not FOLDER.is_dir():
        pytest.skip(f"no real photographs in {FOLDER}")
    option = "default_hooks.dr2net.type=Dr2NetHook"
    runner = run_train(CONFIG, tmp_path / "run", "--no-validate", settings=[option, *SMALL])
    assert runner.iter == 2
    assert len(dr2net.chains(runner.model.backbone)) == 4
    assert dr2net.get_coefficients(runner.model) == (0.875, 0.125)
    assert "train/alpha" in runner.message_hub.log_scalars
