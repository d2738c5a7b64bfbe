"""Count what localizers keep from forward to backward, by window length, frame size and backbone.

    python tools/benchmarks/localization.py  # writes results/localization_memory.json
    python tools/pages/readme_tables.py

The models are those of configs/video/localization/. What the backbone keeps grows by the same bytes
with each chunk of a window, and in each chunk by the same bytes with each block (a test counts
that), so that one and two of them are run; the pyramid and the head are run as they are. Takes a
minute or two where nothing else runs.
"""

import argparse
import gc
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tasks.video.localization  # noqa: F401  # isort: skip - registers the models

import torch
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from tools.benchmarks.measurements import Loss, kept_bytes
from tools.result_files import origin, write_json

CONVENTIONAL, CHECKPOINTED, DR2NET = WAYS = ("conventional", "checkpointed", "dr2net")
BACKBONES = {"vits": "VideoMAE-S", "vitb": "VideoMAE-B", "vitl": "VideoMAE-L"}
CHUNK, TUBELET = 16, 2  # frames
NO_BACKBONE = {
    "type": "ChunkViT",
    "img_size": 16,
    "embed_dims": 8,
    "depth": 1,
    "num_heads": 1,
    "num_frames": 2,
}
CORNERS = ((1, 1), (2, 1), (1, 2))  # chunks and blocks
RESULT = ROOT / "results/localization_memory.json"


@dataclass(frozen=True)
class Case:
    """A backbone, frames of a window, pixels of a side of a frame."""

    backbone: str
    frames: int
    pixels: int


CASES = (
    *(Case("vitb", frames, 160) for frames in (192, 384, 768, 1536, 2304)),
    Case("vitb", 768, 224),
    Case("vits", 768, 160),
    Case("vitl", 768, 160),
)


def model_of(way: str, backbone: str) -> dict:
    """Return the model of a config."""
    path = ROOT / f"configs/video/localization/{way}_{backbone}_thumos14.py"
    init_default_scope("mmaction")
    return Config.fromfile(path).model


def of_backbone(settings: dict, pixels: int, chunks: int, blocks: int) -> int:
    """Bytes kept by a backbone of ``blocks`` that sees ``chunks``, its output among them."""
    settings.get("backbone", settings).depth = blocks
    backbone = MODELS.build(settings).train()
    frames = torch.rand(chunks, 3, CHUNK, pixels, pixels)
    gc.collect()
    return kept_bytes(lambda: backbone(frames).mean((-2, -1)))


def of_window(settings: dict, frames: int) -> int:
    """Bytes kept by all behind the backbone, for a window of so many frames and positions."""
    model = MODELS.build({**settings, "backbone": NO_BACKBONE, "positions": frames})
    channels = settings["pyramid"].in_channels
    model.backbone = nn.Identity()
    features = torch.rand(1, frames // CHUNK, channels, CHUNK // TUBELET, 1, 1)
    gc.collect()
    return kept_bytes(loss_of(model, features.requires_grad_()))


def loss_of(model: nn.Module, frames: torch.Tensor) -> Loss:
    """What runs a training step of a window, (1, chunks, 3, frames, height, width)."""
    length = model.positions
    sample = ActionDataSample(
        metainfo={
            "start": 0.0,
            "frame_seconds": 1.0,
            "valid_frames": length,
            "num_frames": length,
        }
    )
    sample.gt_instances = InstanceData(
        segments=torch.tensor([[0.2 * length, 0.6 * length]]), labels=torch.tensor([0])
    )
    model.train()
    return lambda: sum(model(frames, [sample], mode="loss").values())


def whole(corners: Sequence[int], chunks: int, blocks: int, each_block: int) -> int:
    """Bytes of ``chunks`` and ``blocks``, given those of ``CORNERS``.

    kept(n, d) = rest + n · chunk + d · each_block + n · d · block, ``each_block`` being what a
    block keeps however many chunks there are (``of_each_block``).
    """
    first, second_chunk, second_block = corners
    block = second_block - first - each_block
    return (
        first
        + (chunks - 1) * (second_chunk - first)
        + (blocks - 1) * (second_block - first)
        + (chunks - 1) * (blocks - 1) * block
    )


def of_each_block(settings: dict) -> int:
    """Bytes that a block keeps whatever its chunks and its width: states of random numbers."""
    settings.get("backbone", settings).update(embed_dims=12, num_heads=1)
    one, _, second_block = (of_backbone(settings, 32, *corner) for corner in CORNERS)
    two_chunks = [of_backbone(settings, 32, 2, blocks) for blocks in (1, 2)]
    return 2 * (second_block - one) - (two_chunks[1] - two_chunks[0])


def measure() -> dict:
    """Return the contents of the result file."""
    lengths = sorted({case.frames for case in CASES})
    windows = {frames: of_window(model_of(CONVENTIONAL, "vitb"), frames) for frames in lengths}
    each_block = {way: of_each_block(model_of(way, "vitb").backbone) for way in WAYS}
    corners = {}
    kept: dict[Case, dict[str, int]] = {}
    for case in CASES:
        kept[case] = {}
        for way in WAYS:
            settings = model_of(way, case.backbone).backbone
            blocks = settings.get("backbone", settings).depth
            key = way, case.backbone, case.pixels
            if key not in corners:
                corners[key] = [of_backbone(settings, case.pixels, *size) for size in CORNERS]
            of_frames = whole(corners[key], case.frames // CHUNK, blocks, each_block[way])
            kept[case][way] = of_frames + windows[case.frames]
    return result_of(kept)


def result_of(kept: dict[Case, dict[str, int]]) -> dict:
    """The result file of bytes by case and way."""
    rows = [row(case, of_case) for case, of_case in kept.items()]
    return {
        "title": "GB kept from forward to backward of one window by localizers, end to end.",
        **origin("tools/benchmarks/localization.py", ["mmaction2"]),
        "columns": list(rows[0]),
        "rows": rows,
        "notes": (
            "By the allocator, in float32 in training mode, 1 GB = 10^9 bytes: backbone, pyramid, "
            "head and losses; the frames, parameters and their gradients left out. A position a "
            "frame, 20 classes, fused attention everywhere. Checkpointed: each block of the "
            "backbone; Dr²Net: (7/8, 1/8). In brackets the shares of conventional, and of "
            "checkpointed. Counted of one and two chunks and blocks, of which the rest are copies."
        ),
        "bytes": [
            {"backbone": case.backbone, "frames": case.frames, "pixels": case.pixels, **of_case}
            for case, of_case in kept.items()
        ],
    }


def row(case: Case, kept: dict[str, int]) -> dict[str, str]:
    """A line of the table."""
    conventional, checkpointed, ours = (kept[way] for way in WAYS)
    return {
        "backbone": BACKBONES[case.backbone],
        "frames": f"{case.frames:,}",
        "px": str(case.pixels),
        "conventional": f"{conventional / 1e9:.2f}",
        "checkpointed": f"{checkpointed / 1e9:.2f} ({checkpointed / conventional:.1%})",
        "Dr²Net": (f"{ours / 1e9:.2f} ({ours / conventional:.1%}, {ours / checkpointed:.0%})"),
    }


def main() -> None:
    """Write results/localization_memory.json."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    logging.disable(logging.WARNING)
    write_json(RESULT, measure())


if __name__ == "__main__":
    main()
