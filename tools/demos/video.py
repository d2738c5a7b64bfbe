"""Finetune a tiny pretrained ViT on videos three ways, and compare: "make demo".

    python tools/demos/video.py                      # writes to work_dirs/demo_video
    python tools/demos/video.py --results results    # as committed

Writes the motion clips (motion_clips.py), pretrains conventionally on one part of them and
finetunes on the other: conventionally, as earlier reversible networks do ((0, 1) from the first
step) and as a Dr²Net, each with several seeds, by tools/train.py and configs/video/demo. A run that
was cut short is resumed and a finished one is kept, until code, settings or versions change.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.demos import picture, three_ways
from tools.demos.motion_clips import class_names, write_data_set

CONFIGS = ROOT / "configs/video/demo"


def data_settings(folder: Path) -> dict[str, str]:
    """Return what is changed of a config for the clips in ``folder``."""
    return {f"{part}_dataloader.dataset.data_root": str(folder) for part in ("train", "val")}


def draw(path: Path, curves: three_ways.Curves, runs: Path, data: Path) -> None:
    """Write the picture of loss, top-1 and coefficients."""
    picture.draw(
        path,
        curves,
        "top1",
        1 / len(class_names("finetune")),
        title="Accuracy on clips not trained on",
        label="top-1 (%)",
        loss_label="cross-entropy (nats)",
    )


DEMO = three_ways.Demo(
    name="video",
    data=Path("data/motion"),
    title="A tiny ViT, pretrained on motions and finetuned on others, three ways.",
    notes=(
        "Top-1 is the mean over seeds (lowest to highest) on clips not trained on, after the last "
        "epoch. Memory is what autograd keeps from forward to backward of one training step of 16 "
        "clips: by the whole model, and by its blocks alone per element of their stream. The "
        "gradient error is the relative L2 difference from the gradients of the same equations "
        "with activations stored. Seconds are medians of steps in which the networks took turns. "
        "Where α and β move, figures are given at both ends."
    ),
    packages=("torch", "onedl-mmengine", "mmaction2", "decord"),
    write_data=write_data_set,
    settings=data_settings,
    pretraining=CONFIGS / "pretrain_vit_tiny_motion.py",
    ways={
        "conventional": CONFIGS / "conventional_vit_tiny_motion.py",
        "previous reversible": CONFIGS / "previous_reversible_vit_tiny_motion.py",
        "Dr²Net": CONFIGS / "dr2net_vit_tiny_motion.py",
    },
    figures={"top-1 (%)": "top1"},
    columns=(
        "kept, model (MB)",
        "kept, blocks (bytes per element)",
        "seconds per step",
        "gradient error",
    ),
    draw=draw,
)

if __name__ == "__main__":
    three_ways.main(DEMO)
