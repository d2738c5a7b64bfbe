"""Files with the best classes of test videos, as leaderboards take them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS

from tasks.files import write_text

# What Kinetics' files have after the video's id: from when to when it is cut, in seconds.
_CUT = re.compile(r"_\d{6}_\d{6}$")


@METRICS.register_module()
class TopClassesFile(BaseMetric):
    """Writes the best classes of every video and computes no figure; labels are not looked at.

    ``<folder>/kinetics.json`` is as the ActivityNet challenge took Kinetics,
    ``{"results": {"<id>": [{"label": "<class>", "score": 0.9}, …]}}``, written where the names of
    the classes are known. ``<folder>/something_something_v2.csv`` has a line
    ``<id>;<label>;<label>;…`` a video, as 20BN's leaderboard and TSM's script have it.

    A video's id is its file's name without the ending and Kinetics' times.

    Args:
        folder: Where the files go.
        top: How many classes of each video.
        collect_device: As in ``BaseMetric``.

    Raises:
        ValueError: A sample has no ``filename``, as ``VideoListDataset`` gives in tests; two videos
            have one id.
    """

    def __init__(self, folder: str, top: int = 5, collect_device: str = "cpu") -> None:
        super().__init__(collect_device=collect_device)
        self.folder = Path(folder)
        self.top = top

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the best classes of each video."""
        for sample in data_samples:
            if "filename" not in sample:
                raise ValueError(
                    "the test data do not say which file a video is: test on a "
                    "VideoListDataset, or give PackActionInputs of the test pipeline "
                    "meta_keys=('filename',)"
                )
            scores = sample["pred_score"].float()
            best = scores.topk(min(self.top, len(scores)))
            self.results.append((sample["filename"], best.indices.tolist(), best.values.tolist()))

    def compute_metrics(self, results: list) -> dict:
        """Write the files."""
        videos: dict[str, tuple[list[int], list[float]]] = {}
        files: dict[str, str] = {}
        for filename, labels, scores in results:
            identity = _CUT.sub("", Path(filename).stem)
            if files.get(identity, filename) != filename:
                raise ValueError(f"{files[identity]} and {filename} have one id, {identity}")
            files[identity] = filename
            videos[identity] = labels, scores
        lines = [";".join(map(str, [video, *labels])) for video, (labels, _) in videos.items()]
        written = [self.folder / "something_something_v2.csv"]
        write_text(written[0], "\n".join(lines) + "\n")
        classes = (self.dataset_meta or {}).get("classes")
        if classes:
            ranked = {
                video: [
                    {"label": classes[label], "score": score}
                    for label, score in zip(labels, scores, strict=True)
                ]
                for video, (labels, scores) in videos.items()
            }
            content = {
                "version": "KINETICS VERSION 1.0",
                "results": ranked,
                "external_data": {"used": True, "details": "pretraining: see the checkpoint"},
            }
            written.append(self.folder / "kinetics.json")
            write_text(written[1], json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        else:
            print_log(
                "no kinetics.json, which has the names of classes: say them by --cfg-options "
                "classes=FILE, a name a line",
                logger="current",
            )
        print_log(f"{len(videos)} videos in {', '.join(map(str, written))}", logger="current")
        return {}
