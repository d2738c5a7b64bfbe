"""Measure what each stage of DINO's Swin-L keeps from forward to backward of one image.

    python tools/benchmarks/swin_memory.py && python tools/pages/readme_tables.py

Takes some minutes and 8 GB of memory.
"""

import argparse
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tasks.detection  # noqa: F401  # isort: skip - mends mmcv, which mmdet imports

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

import dr2net
from dr2net.diagnostics import bytes_kept
from tools.result_files import origin, write_json

CONFIG = "configs/detection/conventional_dino5scale_swinl_coco.py"
IMAGE = (1, 3, 800, 1333)
PAIRS = ((1.0, 0.1), (0.5, 0.5), (0.0, 1.0))


def measure() -> dict:
    """Return the contents of the result file."""
    settings = Config.fromfile(ROOT / CONFIG).model.backbone
    settings.init_cfg = None
    kept = measure_ways(settings, torch.rand(IMAGE))
    blocks = ["", *map(str, settings.depths)]
    places = ["patch embedding", *(f"stage {i}" for i in range(1, len(blocks)))]
    rows = [
        {"part": place, "blocks": count, **_cells(kept, [index])}
        for index, (place, count) in enumerate(zip(places, blocks, strict=True))
    ]
    whole = _cells(kept, range(len(places)))
    rows.append({"part": "all", "blocks": str(sum(settings.depths)), **whole})
    return {
        "title": "MB kept from forward to backward by DINO's Swin-L, one image of 1333 × 800 px.",
        **origin("tools/benchmarks/swin_memory.py", ["onedl-mmdetection"]),
        "columns": list(rows[0]),
        "rows": rows,
        "notes": (
            "What autograd keeps in float32 in training mode, parameters left out, 1 MB = 10^6 "
            "bytes; in brackets the share of conventional. A stage is its blocks, the norm of its "
            "output and the merging of patches after it. with_cp is mmdetection's activation "
            "checkpointing, which keeps one input a block; a Dr²Net keeps two streams a stage, and "
            "the bits that the inverse needs for β below 1. So a stage of two blocks gains little "
            "over with_cp, and the stage of eighteen gains most."
        ),
        "bytes": kept,
    }


def measure_ways(settings: dict, image: Tensor) -> dict[str, list[int]]:
    """Return what each way of training keeps of each part of a Swin.

    Args:
        settings: the config of a ``SwinTransformer``.
        image: (images, 3, height, width).
    """
    init_default_scope("mmdet")
    kept = {}
    for way, with_cp in (("conventional", False), ("with_cp", True)):
        backbone = MODELS.build({**settings, "with_cp": with_cp})
        kept[way] = bytes_by_part(backbone, image)
    backbone = dr2net.convert(MODELS.build({**settings, "with_cp": False}))
    for alpha, beta in PAIRS:
        dr2net.set_coefficients(backbone, alpha, beta)
        kept[f"Dr²Net ({alpha:g}, {beta:g})"] = bytes_by_part(backbone, image)
    return kept


def bytes_by_part(backbone: nn.Module, image: Tensor) -> list[int]:
    """Return the bytes kept of the patch embedding and of each stage of mmdetection's Swin.

    One part after the other, so that the memory of only one is needed at a time. Together they are
    what is kept of the whole, because each part keeps its own input and not its output.
    """
    backbone.train()
    x, size = image, None
    kept = []

    def embed() -> Tensor:
        nonlocal x, size
        x, size = backbone.patch_embed(image)
        x = backbone.drop_after_pos(x)
        return x

    def run(index: int) -> tuple[Tensor, Tensor]:
        nonlocal x, size
        x, size, feature, _ = backbone.stages[index](x, size)
        return x, getattr(backbone, f"norm{index}")(feature)

    kept.append(bytes_kept(embed))
    for index in range(len(backbone.stages)):
        x = x.detach().requires_grad_()
        kept.append(bytes_kept(lambda index=index: run(index)))
    return kept


def _cells(kept: dict[str, list[int]], parts: list[int] | range) -> dict[str, str]:
    totals = {way: sum(found[part] for part in parts) for way, found in kept.items()}
    conventional = totals["conventional"]
    return {
        way: f"{total / 1e6:,.0f}" + f" ({total / conventional:.1%})" * (way != "conventional")
        for way, total in totals.items()
    }


def main() -> None:
    """Write results/swin_memory.json."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    logging.disable(logging.INFO)
    write_json(ROOT / "results/swin_memory.json", measure())


if __name__ == "__main__":
    main()
