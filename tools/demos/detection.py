"""Finetune a tiny pretrained detector on small objects three ways: "make demo-detection".

    python tools/demos/detection.py                      # writes to work_dirs/demo_detection
    python tools/demos/detection.py --results results    # as committed

Writes images of small objects (small_object_images.py), pretrains conventionally on one part of
them and finetunes on the other: conventionally, as earlier reversible networks do ((0, 1) from the
first step) and as a Dr²Net, each with several seeds, by tools/train.py and configs/detection/demo.
A run that was cut short is resumed and a finished one is kept, until code, settings or versions
change.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tasks.detection  # noqa: F401  # isort: skip - mends mmcv, which mmdet imports

from tools.demos import detection_picture, three_ways
from tools.demos.small_object_images import write_data_set
from tools.demos.training_runs import last_checkpoint

CONFIGS = ROOT / "configs/detection/demo"


def data_settings(folder: Path) -> dict[str, str]:
    """Return what is changed of a config for the images in ``folder``."""
    return {
        "train_dataloader.dataset.dataset.data_root": str(folder),
        "val_dataloader.dataset.data_root": str(folder),
        "val_evaluator.ann_file": str(folder / "val.json"),
    }


def draw(path: Path, curves: three_ways.Curves, runs: Path, data: Path) -> None:
    """Write the picture of loss, AP, coefficients, and what the first Dr²Net finds."""
    config = DEMO.ways["Dr²Net"]
    checkpoint = last_checkpoint(runs / f"{config.stem}_seed0")
    settings = data_settings(data / "finetune")
    detection_picture.draw(path, curves, config, settings, checkpoint)


DEMO = three_ways.Demo(
    name="detection",
    data=Path("data/small_objects"),
    title="A tiny Swin detector, pretrained on shapes and finetuned on others, three ways.",
    notes=(
        "AP (COCO's, and of objects up to 32² px) is the mean over seeds (lowest to highest) on "
        "whole images of 1024 × 1024 px that were not trained on, after the last epoch. Memory is "
        "what autograd keeps from forward to backward of one training step of 4 tiles of 256 × 256 "
        "px: by the whole model, by its backbone, and by the backbone's blocks alone per element "
        "of their streams. The gradient error is the relative L2 difference from the gradients of "
        "the same equations with activations stored. Seconds are medians of steps in which the "
        "networks took turns. Where α and β move, figures are given at both ends."
    ),
    packages=("torch", "onedl-mmengine", "onedl-mmdetection", "pycocotools"),
    write_data=write_data_set,
    settings=data_settings,
    pretraining=CONFIGS / "pretrain_retinanet_small_objects.py",
    ways={
        "conventional": CONFIGS / "conventional_retinanet_small_objects.py",
        "previous reversible": CONFIGS / "previous_reversible_retinanet_small_objects.py",
        "Dr²Net": CONFIGS / "dr2net_retinanet_small_objects.py",
    },
    figures={"AP (%)": "AP", "AP_S (%)": "AP_S"},
    columns=(
        "kept, model (MB)",
        "kept, backbone (MB)",
        "kept, blocks (bytes per element)",
        "seconds per step",
        "gradient error",
    ),
    draw=draw,
    steps=10,
    # Everything but the layer that says which class it is.
    transferred=(
        "backbone.",
        "neck.",
        "bbox_head.cls_convs.",
        "bbox_head.reg_convs.",
        "bbox_head.retina_reg.",
    ),
)

if __name__ == "__main__":
    three_ways.main(DEMO)
