"""Draw what training sees: python tools/browse_dataset.py CONFIG --out DIR.

    python tools/browse_dataset.py configs/video/dr2net_vitb_k400.py --out pictures
    python tools/browse_dataset.py CONFIG --out pictures --split val --number 50

Items come out of the config's data and pipeline as a network gets them, augmented, with their
labels: the frames of a clip, the boxes in an image or a tile, the classes of a crop's points.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import set_random_seed
from mmengine.utils import track_iter_progress

from tools.arguments import positive
from tools.classes import class_names
from tools.command_line import add_config_options, read_config
from tools.predict import task_of


def main(arguments: list[str] | None = None) -> list[Path]:
    """Draw as the command line says; return the pictures."""
    parser = argparse.ArgumentParser(description="Draw what training sees.")
    parser.add_argument("config", help="config file")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="takes pictures")
    parser.add_argument("--split", choices=["train", "val", "test"], default="train")
    parser.add_argument(
        "--number", type=positive, default=20, help="items, evenly over the whole set (20)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the augmentation (0)")
    add_config_options(parser)
    args = parser.parse_args(arguments)

    config = read_config(args)
    task = task_of(config)
    loader = config.get(f"{args.split}_dataloader")
    if loader is None:
        parser.error(f"{args.config} has no {args.split}_dataloader: choose another --split")
    init_default_scope(config.default_scope)
    set_random_seed(args.seed)
    dataset = DATASETS.build(loader.dataset)
    if hasattr(dataset, "full_init"):
        dataset.full_init()
    classes = (dataset.metainfo or {}).get("classes") or class_names(config, {})
    args.out.mkdir(parents=True, exist_ok=True)
    count = min(args.number, len(dataset))
    chosen = np.unique(np.linspace(0, len(dataset) - 1, count).astype(int)).tolist()
    pictures = []
    for index in track_iter_progress(chosen):
        target = args.out / f"{args.split}_{index:06d}"
        task.draw_item(dataset[index], classes, target)
        pictures.append(target.with_name(f"{target.name}.png"))
    print(f"{len(pictures)} of {len(dataset)} items of the {args.split} set drawn into {args.out}")
    return pictures


if __name__ == "__main__":
    main()
