"""A config of configs/detection, with a small network on one photograph, through mmengine's run."""

from pathlib import Path

import pytest

pytest.importorskip("mmdet")
import tasks.detection  # noqa: F401  # isort: skip

from mmengine.config import Config
from mmengine.runner import Runner

import dr2net
from tests.detectors import CONFIGS, small_model

FOLDER = Path(__file__).parents[4] / "shared/data/real/detection"


def on_one_photograph(name, work_dir):
    """The config with every size small and the photograph in COCO's place."""
    config = Config.fromfile(CONFIGS / f"{name}.py")
    config.model = small_model(name)
    config.model.bbox_head.num_classes = 1
    if "score_thr" in config.model.test_cfg:
        config.model.test_cfg.score_thr = 0.0  # else nothing is found by random weights
    config.work_dir, config.experiment_name = str(work_dir), work_dir.name
    config.train_cfg.max_epochs = 2
    annotations = str(FOLDER / "terrain1_coco.json")
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(
            data_root=None,
            ann_file=annotations,
            data_prefix={"img": str(FOLDER)},
            metainfo={"classes": ("human",)},
        )
        shrink(loader.dataset.pipeline)
    config.val_evaluator.ann_file = config.test_evaluator.ann_file = annotations
    return config


def shrink(pipeline):
    """Make the sizes of a pipeline a tenth."""
    for step in pipeline:
        if step.type == "RandomChoice":
            for branch in step.transforms:
                shrink(branch)
        elif step.type == "Resize":
            step.scale = tuple(side // 10 for side in step.scale)
        elif step.type == "RandomChoiceResize":
            step.scales = [tuple(side // 10 for side in scale) for scale in step.scales]
        elif step.type == "RandomCrop":
            step.crop_size = tuple(side // 10 for side in step.crop_size)


@pytest.mark.parametrize(
    ("name", "chains"),
    [
        ("dr2net_paper_dino4scale_swint_coco", 4),
        ("dr2net_whole_dino5scale_swint_coco", 6),
        ("dr2net_retinanet_swint_coco", 4),
        ("dr2net_dino4scale_vitb_dinov2_coco", 1),
        ("dr2net_retinanet_vitb_dinov3_coco", 1),
    ],
)
def test_a_config_trains_validates_and_saves(name, chains, tmp_path):
    if not FOLDER.is_dir():
        pytest.skip(f"no real photographs in {FOLDER}")
    runner = Runner.from_cfg(on_one_photograph(name, tmp_path))
    before = {key: value.clone() for key, value in runner.model.backbone.named_parameters()}
    runner.train()
    assert len(dr2net.chains(runner.model)) == chains
    after = dict(runner.model.backbone.named_parameters())
    assert any(not before[key].equal(value) for key, value in after.items())
    assert "val/detection/AP" in runner.message_hub.log_scalars
    assert (tmp_path / "epoch_2.pth").is_file()
