"""Decode every video of a config's lists: python tools/check_videos.py CONFIG [options]."""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.command_line import add_config_options, read_config  # isort: skip - mends mmaction2

from mmengine.registry import DATASETS, init_default_scope
from mmengine.utils import track_iter_progress

from tasks.video.dataset import UNREADABLE, VideoListDataset
from tasks.video.transforms import DecordOpen
from tools.arguments import positive

FRAMES = 32  # decoded at once


def main(arguments: list[str] | None = None) -> int:
    """Name the videos that cannot be decoded from the first to the last frame; return how many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file of a video task")
    parser.add_argument(
        "--lists",
        nargs="+",
        choices=["train", "val", "test"],
        default=["train", "val", "test"],
        help="whose videos to decode; all, if nothing is said",
    )
    parser.add_argument(
        "--processes", type=positive, default=os.cpu_count(), help="how many decode"
    )
    add_config_options(parser)
    args = parser.parse_args(arguments)
    config = read_config(args)
    init_default_scope(config.get("default_scope", "mmaction"))

    listed: dict[str, str] = {}
    for name in args.lists:
        loader = config.get(f"{name}_dataloader")
        if loader is None:
            parser.error(f"{args.config} has no {name}_dataloader: leave {name} out of --lists")
        dataset = DATASETS.build(loader.dataset)
        if not isinstance(dataset, VideoListDataset):
            parser.error(f"{args.config}: {name} has a {type(dataset).__name__}, no list of videos")
        dataset.full_init()
        for index in range(len(dataset)):
            item = dataset.get_data_info(index)
            listed.setdefault(item["filename"], f"{dataset.ann_file}, line {item['line']}")

    with ProcessPoolExecutor(args.processes) as pool:
        reasons = pool.map(what_is_wrong, listed, chunksize=8)
        found = zip(listed, track_iter_progress((reasons, len(listed))), strict=True)
        bad = {path: reason for path, reason in found if reason is not None}
    for path, reason in bad.items():
        print(f"{path} ({listed[path]}): {reason}")
    print(f"{len(bad)} of {len(listed)} videos cannot be decoded")
    return len(bad)


def what_is_wrong(path: str) -> str | None:
    """Decode a video from its first to its last frame; return why that fails, or None."""
    try:
        reader = DecordOpen()._get_video_reader(path)
        for start in range(0, len(reader), FRAMES):
            reader.get_batch(range(start, min(start + FRAMES, len(reader))))
    except UNREADABLE as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return None


if __name__ == "__main__":
    sys.exit(main() > 0)
