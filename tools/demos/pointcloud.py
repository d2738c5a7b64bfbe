"""Finetune a tiny pretrained PointViT on rooms in several ways: "make demo-pointcloud".

    python tools/demos/pointcloud.py                      # writes to work_dirs/demo_pointcloud
    python tools/demos/pointcloud.py --results results --seeds 5    # as committed

Writes furnished rooms in S3DIS's raw layout (tools/demos/furnished_rooms.py), converts them
(tools/prepare_pointcloud.py), pretrains conventionally on homes and finetunes on offices in the
ways of ways.py, by tools/train.py and configs/pointcloud/demo. Areas 1, 2, 3, 4 and 6 of the homes
and Area 1 of the offices are for training, Area 5 is for tests at full resolution.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools import prepare_pointcloud
from tools.demos import pointcloud_picture, ways
from tools.demos.furnished_rooms import write_rooms
from tools.demos.training_runs import last_checkpoint

CONFIGS = ROOT / "configs/pointcloud/demo"
LOOKS = {"pretrain": "home", "finetune": "office"}
ROOMS, POINTS = 8, 12_000  # of an area, of a room


def write_data(folder: Path, shrink: int) -> None:
    """Write the raw rooms of both parts into ``folder`` and convert them to ``PART/rooms``."""
    for part, look in LOOKS.items():
        # A set of other rooms takes the place of the whole folder, converted rooms included.
        raw = write_rooms(folder / part, look, -(-ROOMS // shrink), POINTS // shrink)
        prepare_pointcloud.main([str(raw), str(folder / part / "rooms"), "--workers", "2"])


def data_settings(folder: Path) -> dict[str, str]:
    """Return what is changed of a config for the rooms in ``folder``."""
    loaders = ("train", "val", "test")
    return {f"{part}_dataloader.dataset.data_root": str(folder / "rooms") for part in loaders}


def draw(path: Path, result: dict, runs: Path, data: Path) -> None:
    """Write the picture of memory, loss, mIoU, and a room as the first held Dr²Net sees it."""
    config = DEMO.ways[ways.HELD]
    checkpoint = last_checkpoint(ways.work_folder(runs, config, 0))
    settings = data_settings(data / "finetune")
    pointcloud_picture.draw(path, result, config, settings, checkpoint)


DEMO = ways.Demo(
    name="pointcloud",
    data=Path("data/rooms"),
    title="A tiny PointViT, pretrained on homes and finetuned on offices.",
    notes=(
        "mIoU, mAcc and OA of the 13 classes are means over seeds (lowest to highest) of a test "
        "after the last epoch on Area 5, which was not trained on, at full resolution: every "
        "original point is predicted, by voting. A training step is of 8 crops of 1,024 "
        "points."
    ),
    packages=("torch", "onedl-mmengine", "timm", "open3d"),
    write_data=write_data,
    settings=data_settings,
    pretraining=CONFIGS / "pretrain_point_vit_tiny_rooms.py",
    ways=ways.config_files(CONFIGS, "point_vit_tiny_rooms"),
    figures={"mIoU (%)": "mIoU", "mAcc (%)": "mAcc", "OA (%)": "OA"},
    columns=(
        "peak of a step (MB)",
        "kept, model (MB)",
        "kept, backbone (MB)",
        "seconds per step",
        "gradient error",
    ),
    draw=draw,
    # The classes are the same.
    transferred=("backbone.", "decode_head."),
)

if __name__ == "__main__":
    ways.main(DEMO)
