"""Finetune a tiny pretrained detector on small objects in several ways: "make demo-detection".

    python tools/demos/detection.py                      # writes to work_dirs/demo_detection
    python tools/demos/detection.py --results results --seeds 5    # as committed

Writes images of small objects (small_object_images.py), pretrains conventionally on one part of
them and finetunes on the other in the ways of ways.py, by tools/train.py and
configs/detection/demo.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tasks.detection  # noqa: F401  # isort: skip - mends mmcv, which mmdet imports

from tools.demos import detection_picture, ways
from tools.demos.small_object_images import write_data_set
from tools.demos.training_runs import last_checkpoint

CONFIGS = ROOT / "configs/detection/demo"


def data_settings(folder: Path) -> dict[str, str]:
    """Return what is changed of a config for the images in ``folder``."""
    return {
        "train_dataloader.dataset.dataset.data_root": str(folder),
        "val_dataloader.dataset.data_root": str(folder),
        "val_evaluator.ann_file": str(folder / "val.json"),
        "test_dataloader.dataset.data_root": str(folder),
        "test_evaluator.ann_file": str(folder / "val.json"),
    }


def draw(path: Path, result: dict, runs: Path, data: Path) -> None:
    """Write the picture of memory, loss, AP, and what the first held Dr²Net finds."""
    config = DEMO.ways[ways.HELD]
    checkpoint = last_checkpoint(ways.work_folder(runs, config, 0))
    settings = data_settings(data / "finetune")
    detection_picture.draw(path, result, config, settings, checkpoint)


DEMO = ways.Demo(
    name="detection",
    data=Path("data/small_objects"),
    title="A tiny Swin detector, pretrained on warm ground and finetuned on cold ground.",
    notes=(
        "AP (COCO's, and of objects up to 32² px) is the mean over seeds (lowest to highest) on "
        "whole images of 1024 × 1024 px that were not trained on, after the last epoch. A "
        "training step is of 2 tiles of 256 × 256 px."
    ),
    packages=("torch", "onedl-mmengine", "onedl-mmdetection", "pycocotools"),
    write_data=write_data_set,
    settings=data_settings,
    pretraining=CONFIGS / "pretrain_retinanet_small_objects.py",
    ways=ways.config_files(CONFIGS, "retinanet_small_objects"),
    figures={"AP (%)": "AP", "AP_S (%)": "AP_S"},
    columns=(
        "peak of a step (MB)",
        "kept, model (MB)",
        "kept, backbone (MB)",
        "seconds per step",
        "gradient error",
    ),
    draw=draw,
    steps=10,
    # The classes are the same.
    transferred=("backbone.", "neck.", "bbox_head."),
)

if __name__ == "__main__":
    ways.main(DEMO)
