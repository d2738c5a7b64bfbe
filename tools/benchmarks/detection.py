"""Measure a whole training step of DINO by way of training, image size and number of boxes.

    python tools/benchmarks/detection.py --out results/detection_step_cpu.json

    # on a GPU, under three minutes
    python tools/benchmarks/detection.py --device cuda --precision bfloat16 \\
        --network dino5scale_swinl --images 2 --case 800x1333x100 \\
        --out results/detection_step_gpu.json
"""

import argparse
import copy
import gc
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tasks.detection  # noqa: F401  # isort: skip - mends mmcv, which mmdet imports

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dr2net
from tools.arguments import positive
from tools.benchmarks.measurements import in_precision
from tools.benchmarks.pictures import draw_peaks
from tools.benchmarks.steps import Step, cells, measure_steps, notes
from tools.result_files import markdown_table, origin, write_json

CONVENTIONAL, CHECKPOINTED = "conventional", "checkpointed"
DR2NET = "Dr²Net (7/8, 1/8)"
WAYS = (
    CONVENTIONAL,
    f"{CHECKPOINTED}, backbone alone",
    CHECKPOINTED,
    f"{CHECKPOINTED}, MLPs in slices",
    f"{DR2NET}, backbone alone",
    DR2NET,
    f"{DR2NET}, MLPs in slices",
)
CASES = ((400, 667, 100), (400, 667, 2700), (200, 333, 100))
SLICE_TOKENS = 2048


def build(way: str, settings: dict) -> nn.Module:
    """Return a detector in one of the ``WAYS``, with the same weights in each of them."""
    torch.manual_seed(0)
    settings = copy.deepcopy(settings)  # building changes it
    settings.backbone.init_cfg = None
    settings.backbone.with_cp = way.startswith(CHECKPOINTED)
    detector = MODELS.build(settings)
    detector.init_weights()
    if way.startswith(CHECKPOINTED) and not way.endswith("alone"):
        # mmdetection's encoder.num_cp does so for the encoder alone, by fairscale.
        for layer in (*detector.encoder.layers, *detector.decoder.layers):
            if way.endswith("slices"):
                layer.ffn.forward = partial(checkpointed_slices, layer.ffn.forward)
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    if way.startswith(DR2NET):
        dr2net.convert(detector.backbone if way.endswith("alone") else detector, beta=0.125)
        dr2net.slice_mlps(detector, SLICE_TOKENS if way.endswith("slices") else None)
    return detector.train()


def checkpointed_slices(mlp: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run an MLP on slices of tokens of (batch, tokens, channels), each computed again alone."""
    parts = x.split(SLICE_TOKENS, dim=1)
    return torch.cat([checkpoint(mlp, part, use_reentrant=False) for part in parts], dim=1)


def make_batch(images: int, height: int, width: int, boxes: int) -> tuple[Tensor, list]:
    """Return images of noise and as many small boxes at random places in each."""
    torch.manual_seed(0)
    shape = (height, width)
    samples = []
    for _ in range(images):
        corner = torch.rand(boxes, 2) * torch.tensor([width - 40.0, height - 40.0])
        ends = corner + 6 + torch.rand(boxes, 2) * 26
        sample = DetDataSample(metainfo={"img_shape": shape, "batch_input_shape": shape})
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, ends], 1), labels=torch.randint(0, 80, (boxes,))
        )
        samples.append(sample)
    return torch.randn(images, 3, height, width), samples


def loss_of(detector: nn.Module, batch: tuple[Tensor, list], precision: str) -> Tensor:
    """Return the loss of a step, at the same random numbers each time."""
    torch.manual_seed(1)
    images, samples = batch
    with in_precision(precision, images.device.type):
        return detector.parse_losses(detector(images, samples, mode="loss"))[0]


def measure_case(
    settings: dict,
    case: tuple[int, int, int],
    images: int,
    rounds: int,
    device: str,
    precision: str,
) -> dict[str, Step]:
    """Measure each way of training on images of (height, width, boxes)."""
    batch, samples = make_batch(images, *case)
    batch, samples = batch.to(device), [sample.to(device) for sample in samples]
    steps = {}
    for way in WAYS:
        detector = build(way, settings).to(device)
        steps[way] = Step(detector, partial(loss_of, detector, (batch, samples), precision))
    measure_steps(steps, rounds, device)
    return steps


def sizes(text: str) -> tuple[int, int, int]:
    """For ``argparse``: height, width and number of boxes."""
    try:
        height, width, boxes = map(positive, text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTHxBOXES") from None
    return height, width, boxes


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="dino5scale_swint", help="of configs/detection")
    parser.add_argument(
        "--case", type=sizes, action="append", help="HEIGHTxWIDTHxBOXES; several may be given"
    )
    parser.add_argument("--images", type=positive, default=1, help="of a batch")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each way")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, help="result file (JSON) to write")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    init_default_scope("mmdet")
    config = ROOT / f"configs/detection/conventional_{arguments.network}_coco.py"
    settings = Config.fromfile(config).model
    cases = arguments.case or CASES
    rows, data, peaks = [], {}, {}
    for case in cases:
        steps = measure_case(
            settings,
            case,
            arguments.images,
            arguments.rounds,
            arguments.device,
            arguments.precision,
        )
        height, width, boxes = case
        for way, columns in cells(steps, CONVENTIONAL, CHECKPOINTED).items():
            rows.append({"image": f"{height} × {width}", "boxes": f"{boxes:,}", **columns})
            data[f"{height}x{width}x{boxes}, {way}"] = steps[way].numbers()
        # The picture is of the first case.
        peaks = peaks or {way: (step.kept, step.peak) for way, step in steps.items()}
        del steps
        gc.collect()
    print(markdown_table(list(rows[0]), rows))
    if arguments.out:
        height, width, boxes = cases[0]
        size = f"{arguments.images} image(s) of {height} × {width}, {boxes:,} boxes"
        draw_peaks(
            arguments.out.with_suffix(".png"), f"A step of {arguments.network}, {size}", peaks
        )
        write_json(
            arguments.out,
            {
                "title": f"A training step of {arguments.network}, {arguments.images} image(s) a "
                f"batch, {arguments.precision}: all of the detector.",
                **origin("tools/benchmarks/detection.py", ["onedl-mmdetection"], arguments.device),
                "columns": list(rows[0]),
                "rows": rows,
                "notes": notes(
                    arguments.rounds,
                    "Checkpointed are all blocks of the backbone and all layers of encoder and "
                    "decoder; where MLPs run in slices, the encoder's and decoder's slices are "
                    "checkpointed once more.",
                ),
                "bytes and seconds": data,
            },
        )


if __name__ == "__main__":
    main()
