"""Measure what each part of Pix4Point-S keeps from forward to backward of one crop of S3DIS's size.

    python tools/benchmarks/pointvit_memory.py && python tools/pages/readme_tables.py

Takes a minute and 8 GB of memory.
"""

import argparse
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tasks.pointcloud  # noqa: F401  # isort: skip - registers what the config names

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import dr2net
from dr2net.diagnostics import bytes_kept
from tools.result_files import origin, write_json

CONFIG = "configs/pointcloud/conventional_pix4point_s3dis.py"
PARTS = ("embedding", "blocks", "decoder")
PAIRS = ((1.0, 0.1), (0.5, 0.5), (0.0, 1.0))


def measure(settings: dict, points: int) -> dict:
    """Return the contents of the result file.

    Args:
        settings: the config of a ``PointCloudSegmentor``.
        points: of the crop.
    """
    kept = measure_ways(settings, points)
    totals = {way: sum(by_part) for way, by_part in kept.items()}
    rows = [
        {"part": part} | {way: f"{by_part[index] / 1e6:,.0f}" for way, by_part in kept.items()}
        for index, part in enumerate(PARTS)
    ]
    rows.append({"part": "all"} | {way: f"{total / 1e6:,.0f}" for way, total in totals.items()})
    return {
        "title": f"MB kept from forward to backward by Pix4Point-S, one crop of {points:,} points.",
        **origin("tools/benchmarks/pointvit_memory.py", ["timm"]),
        "columns": list(rows[0]),
        "rows": rows,
        "notes": (
            "What autograd keeps in float32 in training mode, parameters left out, 1 MB = 10^6 "
            "bytes. Embedding and decoder are computed again in backward "
            "(checkpoint_embedding, checkpoint_propagation), but for the first column; while that "
            "is done, one crop takes the memory of the first column for one stage at a time, "
            "however many crops the batch has. The blocks' share includes position embedding and "
            "norm."
        ),
        "bytes": kept,
    }


def measure_ways(settings: dict, points: int) -> dict[str, list[int]]:
    """Return the bytes that each way of training keeps of each of ``PARTS``."""
    torch.manual_seed(0)
    inputs = torch.rand(1, points, 3) * torch.tensor([4.0, 4.0, 3.0]), torch.randn(1, points, 4)
    model = MODELS.build(settings).train()
    backbone, head = model.backbone, model.decode_head
    kept = {}

    def keep(way: str) -> None:
        totals = [
            bytes_kept(lambda: backbone.embed(*inputs)),
            bytes_kept(lambda: backbone(*inputs)),
            bytes_kept(lambda: head(*backbone(*inputs))),
        ]
        kept[way] = [total - before for total, before in zip(totals, [0, *totals], strict=False)]

    backbone.checkpoint_embedding = head.checkpoint_propagation = False
    keep("all kept")
    backbone.checkpoint_embedding = head.checkpoint_propagation = True
    keep("conventional")
    dr2net.convert(backbone)
    for pair in PAIRS:
        dr2net.set_coefficients(backbone, *pair)
        keep("Dr²Net ({:g}, {:g})".format(*pair))
    return kept


def main() -> None:
    """Write results/pointvit_memory.json."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    logging.disable(logging.INFO)
    config = Config.fromfile(ROOT / CONFIG)
    init_default_scope(config.default_scope)
    result = measure(config.model.segmentor, config.model.max_points)
    write_json(ROOT / "results/pointvit_memory.json", result)


if __name__ == "__main__":
    main()
