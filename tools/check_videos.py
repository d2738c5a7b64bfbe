"""Decode every video of a config's lists: python tools/check_videos.py CONFIG [options]."""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dr2net.openmmlab.mended  # noqa: F401  # isort: skip - mends mmaction2 before it is imported

from mmengine.config import Config, DictAction
from mmengine.registry import DATASETS, init_default_scope
from mmengine.utils import track_iter_progress

from tasks.video.dataset import UNREADABLE, VideoListDataset
from tasks.video.transforms import DecordOpen

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
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many decode")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args(arguments)
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options or {})
    init_default_scope(config.get("default_scope", "mmaction"))

    listed: dict[str, str] = {}
    for name in args.lists:
        dataset = DATASETS.build(config[f"{name}_dataloader"].dataset)
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
