"""Measure a whole training step of Pix4Point-S by way of training and number of points.

    python tools/benchmarks/pointcloud.py --out results/pointcloud_step_cpu.json

    # on a GPU, under three minutes
    python tools/benchmarks/pointcloud.py --device cuda --precision bfloat16 \\
        --clouds 8 --points 24000 --out results/pointcloud_step_gpu.json
"""

import argparse
import copy
import gc
import logging
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tasks.pointcloud  # noqa: F401  # isort: skip - registers what the config names

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dr2net
from tasks.pointcloud.structures import PointCloudSample
from tools.arguments import positive
from tools.benchmarks.measurements import in_precision
from tools.benchmarks.steps import Step, cells, measure_steps, notes
from tools.result_files import markdown_table, origin, write_json

CONFIG = "configs/pointcloud/conventional_pix4point_s3dis.py"
CONVENTIONAL, CHECKPOINTED = "conventional", "checkpointed"
DR2NET = "Dr²Net (7/8, 1/8)"
WAYS = (
    CONVENTIONAL,
    f"{CHECKPOINTED}, embedding and decoder alone",
    CHECKPOINTED,
    f"{DR2NET}, embedding and decoder checkpointed",
    f"{DR2NET}, the same, MLPs in slices",
)
POINTS = (6_000, 24_000)
ROOM = (4.0, 4.0, 3.0)  # metres
SLICE_TOKENS = 512


def build(way: str, settings: dict) -> nn.Module:
    """Return a segmentor in one of the ``WAYS``, with the same weights in each of them."""
    torch.manual_seed(0)
    settings = copy.deepcopy(settings)
    settings["backbone"]["checkpoint_embedding"] = way != CONVENTIONAL
    settings["decode_head"]["checkpoint_propagation"] = way != CONVENTIONAL
    segmentor = MODELS.build(settings)
    if way == CHECKPOINTED:
        for block in segmentor.backbone.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if way.startswith(DR2NET):
        dr2net.convert(segmentor, beta=0.125)
        dr2net.slice_mlps(segmentor, SLICE_TOKENS if way.endswith("slices") else None)
    return segmentor.train()


def loss_of(
    segmentor: nn.Module,
    inputs: dict[str, Tensor],
    samples: list[PointCloudSample],
    precision: str,
) -> Tensor:
    """Return the loss of a step, at the same random numbers each time."""
    torch.manual_seed(1)
    with in_precision(precision, inputs["coord"].device.type):
        return segmentor.parse_losses(segmentor(inputs, samples, mode="loss"))[0]


def make_batch(
    clouds: int, points: int, classes: int, device: str
) -> tuple[dict[str, Tensor], list[PointCloudSample]]:
    """Return points at random places of a room, of random colours and classes."""
    torch.manual_seed(0)
    coord = torch.rand(clouds, points, 3) * torch.tensor(ROOM)
    samples = []
    for _ in range(clouds):
        sample = PointCloudSample()
        sample.gt_segment = torch.randint(0, classes, (points,), device=device)
        samples.append(sample)
    feat = torch.randn(clouds, points, 4)
    return {"coord": coord.to(device), "feat": feat.to(device)}, samples


def measure_case(
    settings: dict, points: int, clouds: int, rounds: int, device: str, precision: str
) -> dict[str, Step]:
    """Measure each way of training on clouds of so many points."""
    batch = make_batch(clouds, points, settings["decode_head"]["num_classes"], device)
    steps = {}
    for way in WAYS:
        segmentor = build(way, settings).to(device)
        steps[way] = Step(segmentor, partial(loss_of, segmentor, *batch, precision))
    measure_steps(steps, rounds, device)
    return steps


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=positive, nargs="+", default=POINTS, help="of a cloud")
    parser.add_argument("--clouds", type=positive, default=1, help="of a batch")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each way")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, help="result file (JSON) to write")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    config = Config.fromfile(ROOT / CONFIG)
    init_default_scope(config.default_scope)
    rows, data = [], {}
    for points in arguments.points:
        steps = measure_case(
            config.model.segmentor,
            points,
            arguments.clouds,
            arguments.rounds,
            arguments.device,
            arguments.precision,
        )
        for way, columns in cells(steps, CONVENTIONAL, CHECKPOINTED).items():
            rows.append({"points": f"{points:,}", **columns})
            data[f"{points}, {way}"] = steps[way].numbers()
        del steps
        gc.collect()
    print(markdown_table(list(rows[0]), rows))
    if arguments.out:
        write_json(
            arguments.out,
            {
                "title": f"A training step of Pix4Point-S, {arguments.clouds} cloud(s) a batch, "
                f"{arguments.precision}: sampling, embedding, blocks, decoder and loss.",
                **origin("tools/benchmarks/pointcloud.py", ["timm"], arguments.device),
                "columns": list(rows[0]),
                "rows": rows,
                "notes": notes(arguments.rounds),
                "bytes and seconds": data,
            },
        )


if __name__ == "__main__":
    main()
