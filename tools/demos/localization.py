"""Train a tiny localizer in several ways, and compare: "make demo-localization".

    python tools/demos/localization.py                      # writes to work_dirs/demo_localization
    python tools/demos/localization.py --results results --seeds 5    # as committed

Writes clips and videos (motion_videos.py), pretrains a ViT conventionally on the clips and trains
ActionFormer over it on the videos in the ways of ways.py, by tools/train.py and
configs/video/localization/demo: end to end, and on frozen features, as people do where activations
do not fit.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.demos import localization_picture, ways
from tools.demos.motion_videos import write_data_set

CONFIGS = ROOT / "configs/video/localization/demo"
FROZEN = "frozen features"
# What the config files of the ways are called before the network's name.
PREFIXES = {
    ways.CONVENTIONAL: "conventional",
    ways.CHECKPOINTED: "checkpointed",
    FROZEN: "frozen_features",
    ways.PREVIOUS: "previous_reversible",
    ways.HELD: "dr2net",
}


def data_settings(folder: Path) -> dict[str, str]:
    """Return what is changed of a config for the clips or videos in ``folder``."""
    loaders = ("train", "val", "test")
    settings = {f"{part}_dataloader.dataset.data_root": str(folder) for part in loaders}
    if folder.name == "finetune":  # whose measure reads the annotations as well
        annotations = str(folder / "annotations.json")
        settings |= {f"{part}_evaluator.ann_file": annotations for part in ("val", "test")}
    return settings


def draw(path: Path, result: dict, runs: Path, data: Path) -> None:
    """Write the picture of memory, loss and mAP, and of a test video's timeline."""
    held = ways.work_folder(runs, DEMO.ways[ways.HELD], 0)
    checkpoints = {
        name: ways.last_checkpoint(ways.work_folder(runs, config, 0))
        for name, config in DEMO.ways.items()
        if name != ways.CHECKPOINTED
    }
    networks = {name: (DEMO.ways[name], file) for name, file in checkpoints.items()}
    networks[ways.PLAIN] = DEMO.ways[ways.CONVENTIONAL], ways.plain_weights(held)
    localization_picture.draw(path, result, networks, data_settings(data / "finetune"))


DEMO = ways.Demo(
    name="localization",
    data=Path("data/motion_videos"),
    title="A tiny ActionFormer over a ViT pretrained on clips, trained on videos of a minute.",
    notes=(
        "Average mAP, over overlaps of 0.3 to 0.7, is the mean over seeds (lowest to highest) on "
        "videos not trained on, after the last epoch. A training step is of a window of 256 "
        "frames, a whole video. Frozen features: the pretrained backbone stays as it is."
    ),
    packages=("torch", "onedl-mmengine", "mmaction2", "decord"),
    write_data=write_data_set,
    settings=data_settings,
    pretraining=CONFIGS / "pretrain_vit_tiny_motion.py",
    ways={name: CONFIGS / f"{prefix}_vit_tiny_motion.py" for name, prefix in PREFIXES.items()},
    figures={"average mAP (%)": "mAP"},
    columns=(
        "peak of a step (MB)",
        "kept, model (MB)",
        "seconds per step",
        "gradient error",
    ),
    draw=draw,
    # All of the backbone but the norm after pooling, which features have no use for.
    transferred=("backbone.pos_embed", "backbone.patch_embed.", "backbone.blocks."),
)

if __name__ == "__main__":
    ways.main(DEMO)
