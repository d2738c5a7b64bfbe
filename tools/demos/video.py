"""Finetune a tiny pretrained ViT on videos in several ways, and compare: "make demo".

    python tools/demos/video.py                      # writes to work_dirs/demo_video
    python tools/demos/video.py --results results --seeds 5    # as committed

Writes the motion clips (motion_clips.py), pretrains conventionally on those of dark ground and
finetunes on a few of brighter ground in the ways of ways.py, by tools/train.py and
configs/video/demo.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.demos import picture, ways
from tools.demos.motion_clips import class_names, write_data_set

CONFIGS = ROOT / "configs/video/demo"


def data_settings(folder: Path) -> dict[str, str]:
    """Return what is changed of a config for the clips in ``folder``."""
    loaders = ("train", "val", "test")
    return {f"{part}_dataloader.dataset.data_root": str(folder) for part in loaders}


def draw(path: Path, result: dict, runs: Path, data: Path) -> None:
    """Write the picture of memory, loss and top-1."""
    picture.draw(
        path,
        result,
        "top1",
        1 / len(class_names()),
        title="Clips not trained on",
        label="top-1 (%)",
        loss_label="cross-entropy (nats)",
    )


DEMO = ways.Demo(
    name="video",
    data=Path("data/motion"),
    title="A tiny ViT, pretrained on clips of dark ground and finetuned on brighter ones.",
    notes=(
        "Top-1 is the mean over seeds (lowest to highest) on clips not trained on, after the last "
        "epoch. A training step is of 16 clips."
    ),
    packages=("torch", "onedl-mmengine", "mmaction2", "decord"),
    write_data=write_data_set,
    settings=data_settings,
    pretraining=CONFIGS / "pretrain_vit_tiny_motion.py",
    ways=ways.config_files(CONFIGS, "vit_tiny_motion"),
    figures={"top-1 (%)": "top1"},
    columns=(
        "peak of a step (MB)",
        "kept, model (MB)",
        "seconds per step",
        "gradient error",
    ),
    draw=draw,
    # The classes are the same.
    transferred=("backbone.", "cls_head."),
)

if __name__ == "__main__":
    ways.main(DEMO)
