"""Average precision of small objects, over pycocotools.

What pycocotools' matching and accumulation are asked for differs between the sets; ``protocols``
has it for each.
"""

import contextlib
import io
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from terminaltables import AsciiTable

from tasks.files import write_text

from .annotations import category_ids, check_mode, clean, read_coco, settle, size_of
from .class_names import METAINFO
from .error_types import count_errors, error_table
from .protocols import PROTOCOLS, Protocol


@METRICS.register_module()
class SmallObjectMetric(BaseMetric):
    """Average precision by object size, of predictions in the coordinates of the original image.

    The figures are those of ``Protocol.report``, between 0 and 1, and -1 where the ground truth
    has no object of the range, as in pycocotools. Every image is to be predicted once; images of
    the annotation file that were not are left out, with a warning.

    Args:
        ann_file: The COCO file of the ground truth.
        protocol: One of ``PROTOCOLS``; the arguments that bear names of its fields replace those.
        areas: See ``Protocol``; ``report``, if not given, then becomes AP, AP_50 and AP_75 of the
            first range, AP of the others.
        limits: See ``Protocol``.
        report: See ``Protocol``.
        ious: See ``Protocol``.
        ignored_regions: See ``Protocol``.
        image_limit: See ``Protocol``.
        bad_input: What to do about bad annotations, as in ``SmallObjectDataset``.
        classwise: Log the first figure for every class too.
        errors_above: Log what kinds of errors the detections of at least this score make
            (``count_errors``).
        outfile_prefix: Write the detections to ``<outfile_prefix>.bbox.json``, as ``CocoMetric``;
            of the protocol ``visdrone`` also to ``<outfile_prefix>/<image>.txt``, as the VisDrone
            toolkit takes them: ``left,top,width,height,score,category,-1,-1`` a line.
        format_only: Only write that. The annotation file then needs no ``annotations``, as that of
            COCO's test-dev.
        backend_args: As in ``CocoMetric``.
        collect_device: As in ``BaseMetric``.
        prefix: As in ``BaseMetric``.

    Raises:
        ValueError: ``report`` names a figure that the other settings do not give; when the figures
            are computed, an image was predicted twice or is not in the annotation file.
        BadInputError: When the figures are computed: as in ``SmallObjectDataset``.
    """

    default_prefix = "detection"

    def __init__(
        self,
        ann_file: str,
        protocol: str = "coco",
        areas: Mapping[str, tuple[float, float]] | None = None,
        limits: Sequence[int] | None = None,
        report: Sequence[str] | None = None,
        ious: Sequence[float] | None = None,
        ignored_regions: Sequence[str] | None = None,
        image_limit: int | None = None,
        bad_input: str = "strict",
        classwise: bool = False,
        errors_above: float | None = None,
        outfile_prefix: str | None = None,
        format_only: bool = False,
        backend_args: dict | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol has to be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
        if areas is not None and report is None:
            report = ["AP", "AP_50", "AP_75", *(f"AP_{area}" for area in list(areas)[1:])]
        lists = {
            "limits": limits,
            "report": report,
            "ious": ious,
            "ignored_regions": ignored_regions,
        }
        given: dict[str, Any] = {k: tuple(v) for k, v in lists.items() if v is not None}
        given |= {} if areas is None else {"areas": {k: tuple(v) for k, v in areas.items()}}
        given |= {} if image_limit is None else {"image_limit": image_limit}
        self.protocol = replace(PROTOCOLS[protocol], **given)
        for name in self.protocol.report:
            _parse(name, self.protocol)
        check_mode(bad_input)
        self.ann_file = ann_file
        self.bad_input = bad_input
        self.classwise = classwise
        self.errors_above = errors_above
        if format_only and outfile_prefix is None:
            raise ValueError("format_only=True needs outfile_prefix: where the files are written")
        self.outfile_prefix = outfile_prefix
        self.format_only = format_only
        self.protocol_name = protocol
        self.backend_args = backend_args

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep what was predicted in a batch."""
        for sample in data_samples:
            found = sample["pred_instances"]
            if not (found["bboxes"].isfinite().all() and found["scores"].isfinite().all()):
                raise ValueError(
                    f"image {sample['img_id']}: boxes or scores are NaN or infinite, so there is "
                    "nothing to evaluate. Look for NaN in the checkpoint and in the training's loss"
                )
            self.results.append(
                (
                    sample["img_id"],
                    *(found[key].detach().cpu().numpy() for key in ("bboxes", "scores", "labels")),
                )
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the figures over all that was predicted."""
        path = Path(self.ann_file)
        with get_local_path(self.ann_file, backend_args=self.backend_args) as local:
            coco = read_coco(Path(local), annotated=not self.format_only)
        classes = category_ids(coco, self.dataset_meta["classes"], path)
        coco, findings = clean(coco)
        settle(findings, self.bad_input, path, size_of(coco))
        predicted = self._check_images(coco, [result[0] for result in results])
        coco["images"] = [image for image in coco["images"] if image["id"] in predicted]
        detections = [
            {
                "image_id": image,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "score": score,
                "category_id": classes[label],
            }
            for image, boxes, scores, labels in results
            for box, score, label in zip(
                boxes.tolist(), scores.tolist(), labels.tolist(), strict=True
            )
        ]
        if self.outfile_prefix is not None:
            write_text(f"{self.outfile_prefix}.bbox.json", json.dumps(detections))
            if self.protocol_name == "visdrone":
                write_visdrone(Path(self.outfile_prefix), coco, detections, self.protocol)
        if self.format_only:
            print_log(f"detections written to {self.outfile_prefix}*", logger="current")
            return {}

        evaluated, kept = take_out(coco, detections, self.protocol)
        figures = average_precision(evaluated, kept, self.protocol, classes)
        _log_table([["figure", "value"], *([k, _text(v)] for k, v in figures.items())])
        if self.classwise:
            name = self.protocol.report[0]
            rows = [
                [
                    label,
                    _text(average_precision(evaluated, kept, self.protocol, [category])[name]),
                ]
                for label, category in zip(self.dataset_meta["classes"], classes, strict=True)
            ]
            _log_table([["class", name], *rows])
        if self.errors_above is not None:
            counts = count_errors(evaluated, kept, classes, self.errors_above)
            print_log(f"\n{error_table(counts)}", logger="current")
        return figures

    def _check_images(self, coco: dict[str, Any], predicted: list) -> set:
        """Return the ids of the predicted images, each of which has to be predicted once."""
        twice = [image for image, count in Counter(predicted).items() if count > 1]
        if twice:
            raise ValueError(
                f"image {twice[0]} was predicted more than once (as {len(twice)} images were): "
                "merge the tiles of an image before they are evaluated"
            )
        listed = {image["id"] for image in coco["images"]}
        unknown = [image for image in predicted if image not in listed]
        if unknown:
            raise ValueError(
                f"image {unknown[0]} was predicted (as {len(unknown)} such images were), but "
                f"{self.ann_file} has none of this id; the metric needs the dataset's own ann_file"
            )
        if len(predicted) < len(listed):
            print_log(
                f"{len(listed) - len(predicted)} of the {len(listed)} images of {self.ann_file} "
                "were not predicted; the figures are those of the others",
                logger="current",
                level=logging.WARNING,
            )
        odd = [a["id"] for a in coco["annotations"] if a.get("ignore") and not a["iscrowd"]]
        if odd:
            print_log(
                f"{len(odd)} annotations of {self.ann_file} have ignore but not iscrowd and count "
                f"as objects, as in pycocotools, first id {odd[0]}; tools/prepare_detection.py "
                "writes files that say iscrowd",
                logger="current",
                level=logging.WARNING,
            )
        return set(predicted)


def write_visdrone(
    folder: Path, coco: dict[str, Any], detections: list[dict], protocol: Protocol
) -> None:
    """Write a text file for each image, from the highest score down, as VisDrone's toolkit reads.

    Categories are the set's own numbers, 1 (pedestrian) to 10 (motor), whatever the ids of the
    annotation file. At most ``protocol.image_limit`` detections of an image are written.

    Raises:
        ValueError: A class is none of VisDrone's.
    """
    order = METAINFO["visdrone"]["classes"]
    names = {category["id"]: category["name"] for category in coco["categories"]}
    lines = defaultdict(list)
    for found in sorted(detections, key=lambda detection: -detection["score"]):
        name = names[found["category_id"]]
        if name not in order:
            raise ValueError(f"{name} is no class of VisDrone: they are {', '.join(order)}")
        numbers = [*(f"{value:.2f}" for value in found["bbox"]), f"{found['score']:.5f}"]
        lines[found["image_id"]].append(",".join([*numbers, str(order.index(name) + 1), "-1,-1"]))
    for image in coco["images"]:
        file = folder / Path(image["file_name"]).with_suffix(".txt").name
        kept = lines[image["id"]][: protocol.image_limit]
        write_text(file, "".join(f"{line}\n" for line in kept))


def take_out(
    coco: dict[str, Any], detections: list[dict], protocol: Protocol
) -> tuple[dict[str, Any], list[dict]]:
    """Leave out what the protocol takes out of the evaluation before anything is matched.

    Args:
        coco: Ground truth, as ``annotations.clean`` returns it.
        detections: As in ``average_precision``.
        protocol: Its ``ignored_regions`` and ``image_limit`` are followed.

    Returns:
        Ground truth and detections that are left.
    """
    names = set(protocol.ignored_regions)
    regions = {c["id"] for c in coco["categories"] if c["name"] in names}
    covered, entries = defaultdict(list), defaultdict(list)
    for annotation in coco["annotations"]:
        kind = covered if annotation["category_id"] in regions else entries
        kind[annotation["image_id"]].append(annotation)
    for detection in detections:
        entries[detection["image_id"]].append(detection)
    inside = set()
    for image in coco["images"]:
        if image["id"] in covered:
            boxes = [annotation["bbox"] for annotation in covered[image["id"]]]
            is_outside = _OutsideRegions(boxes, image["width"], image["height"])
            inside |= {id(e) for e in entries[image["id"]] if not is_outside(e["bbox"])}

    annotations = [
        a for a in coco["annotations"] if a["category_id"] not in regions and id(a) not in inside
    ]
    detections = [detection for detection in detections if id(detection) not in inside]
    if protocol.image_limit is not None:
        ranked = sorted(detections, key=lambda detection: -detection["score"])
        taken: Counter = Counter()
        detections = []
        for detection in ranked:
            taken[detection["image_id"]] += 1
            if taken[detection["image_id"]] <= protocol.image_limit:
                detections.append(detection)
    return coco | {"annotations": annotations}, detections


class _OutsideRegions:
    """Tells of a box whether less than half of it lies in the union of regions of an image."""

    def __init__(self, regions: list[list[float]], width: int, height: int) -> None:
        covered = np.zeros((height + 1, width + 1), np.int32)
        for region in regions:
            left, top, right, bottom = self._pixels(region, width, height)
            covered[top + 1 : bottom + 1, left + 1 : right + 1] = 1
        self._sums = covered.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
        self._size = width, height

    def __call__(self, box: list[float]) -> bool:
        left, top, right, bottom = self._pixels(box, *self._size)
        sums = self._sums
        inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        # The whole box, with what lies outside the image, as in the toolkit.
        return bool(inside < 0.5 * max(1, round(box[2])) * max(1, round(box[3])))

    @staticmethod
    def _pixels(box: list[float], width: int, height: int) -> tuple[int, int, int, int]:
        left, top = round(box[0]), round(box[1])
        right, bottom = left + max(1, round(box[2])), top + max(1, round(box[3]))
        return (
            min(max(left, 0), width),
            min(max(top, 0), height),
            min(max(right, 0), width),
            min(max(bottom, 0), height),
        )


def average_precision(
    coco: dict[str, Any], detections: list[dict], protocol: Protocol, categories: Sequence[int]
) -> dict[str, float]:
    """Compute the figures of a protocol with pycocotools.

    Annotations are numbered anew: pycocotools takes a match with the annotation of id 0 for none.

    Args:
        coco: Ground truth, as ``annotations.clean`` returns it; its images are those evaluated.
        detections: COCO results: ``image_id``, ``bbox`` (x, y, width, height), ``score`` and
            ``category_id`` each.
        protocol: What to measure; ``take_out`` does the part of it that comes before matching.
        categories: The category ids of the classes.

    Returns:
        The figures of ``protocol.report``; -1 where there is no object.
    """
    images = {image["id"] for image in coco["images"]}
    truth = [
        {**annotation, "id": number}
        for number, annotation in enumerate(
            (a for a in coco["annotations"] if a["image_id"] in images), start=1
        )
    ]
    found = [
        {**d, "id": number, "iscrowd": 0, "area": d["bbox"][2] * d["bbox"][3]}
        for number, d in enumerate(detections, start=1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(_index(coco, truth), _index(coco, found), "bbox")
        evaluation.params.catIds = list(categories)
        evaluation.params.areaRng = [list(area) for area in protocol.areas.values()]
        evaluation.params.areaRngLbl = list(protocol.areas)
        evaluation.params.maxDets = list(protocol.limits)
        evaluation.params.iouThrs = np.array(protocol.ious)
        evaluation.evaluate()
        evaluation.accumulate()
    values = {}
    for name in protocol.report:
        kind, ious, area, limit = _parse(name, protocol)
        # precision: IoU, recall, category, area, limit; recall the same without recall
        numbers = evaluation.eval["precision" if kind == "AP" else "recall"][ious]
        numbers = numbers[..., area, limit]
        numbers = numbers[numbers > -1]
        values[name] = float(np.mean(numbers)) if numbers.size else -1.0
    return values


def _index(coco: dict[str, Any], annotations: list[dict]) -> COCO:
    indexed = COCO()
    indexed.dataset = {
        "images": coco["images"],
        "categories": coco["categories"],
        "annotations": annotations,
    }
    indexed.createIndex()
    return indexed


def _parse(name: str, protocol: Protocol) -> tuple[str, list[int], int, int]:
    """Return AP or AR and the indices of IoUs, area and limit that a figure's name means."""
    kind, *words = name.split("_")
    areas, limits = list(protocol.areas), sorted(protocol.limits)
    ious, area, limit = list(range(len(protocol.ious))), 0, len(limits) - 1
    hundredths = [round(100 * iou) for iou in protocol.ious]
    for word in words:
        if word in areas:
            area = areas.index(word)
        elif kind == "AP" and word.isdigit() and int(word) in hundredths:
            ious = [hundredths.index(int(word))]
        elif kind == "AR" and word.isdigit() and int(word) in limits:
            limit = limits.index(int(word))
        else:
            kind = ""
    if kind not in ("AP", "AR"):
        raise ValueError(
            f"report names {name}, which is not AP or AR with areas of {areas} and IoUs of "
            f"{hundredths} hundredths (AP) or limits of {limits} (AR)"
        )
    return kind, ious, area, limit


def _text(value: float) -> str:
    return "no object" if value == -1 else f"{value:.4f}"


def _log_table(rows: list[list[str]]) -> None:
    print_log("\n" + AsciiTable(rows).table, logger="current")
