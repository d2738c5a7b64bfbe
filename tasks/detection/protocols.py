"""What the evaluation of each set measures, with the source of its numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

ANY = 1e5**2
# As pycocotools has them, to the bit.
COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10))


@dataclass(frozen=True)
class Protocol:
    """What a set's evaluation measures.

    Attributes:
        areas: Ranges of an object's area in square pixels, both ends included. Objects outside of
            a range, and unmatched detections outside of it, are ignored.
        limits: How many detections of an image and class are taken, those of the highest scores.
        report: The figures: ``AP`` or ``AR``, then, with ``_`` between and in any order, an IoU in
            hundredths for AP (all of ``ious`` otherwise) or one of ``limits`` for AR (the last
            otherwise), and one of ``areas`` (the first otherwise). ``AP_50``, ``AP_S``, ``AR_10``.
        ious: Thresholds of the intersection over union at which a detection matches.
        ignored_regions: Categories of regions that were not annotated. Objects and detections of
            which at least half lies in them are taken out of the evaluation, whatever their class.
        image_limit: How many detections of an image are taken over all classes.
    """

    areas: Mapping[str, tuple[float, float]]
    limits: tuple[int, ...]
    report: tuple[str, ...]
    ious: tuple[float, ...] = COCO_IOUS
    ignored_regions: tuple[str, ...] = ()
    image_limit: int | None = None


PROTOCOLS = {
    # pycocotools.cocoeval.Params and COCOeval.summarize.
    "coco": Protocol(
        areas={"all": (0, ANY), "S": (0, 32**2), "M": (32**2, 96**2), "L": (96**2, ANY)},
        limits=(1, 10, 100),
        report=(
            *("AP", "AP_50", "AP_75", "AP_S", "AP_M", "AP_L"),
            *("AR_1", "AR_10", "AR_100", "AR_S", "AR_M", "AR_L"),
        ),
    ),
    # Cheng et al., https://arxiv.org/abs/2207.14096: AP is that of small objects, up to 32², and
    # what is larger than 40 × 50 px is not evaluated. The ranges are those of the official
    # evaluator (SODAAParams in SODA-mmrotate; the paper has one division for SODA-D and SODA-A),
    # the limits those that SODADDataset.evaluate gives it.
    "soda-d": Protocol(
        areas={
            "small": (0, 32**2),
            "eS": (0, 12**2),
            "rS": (12**2, 20**2),
            "gS": (20**2, 32**2),
            "N": (32**2, 40 * 50),
        },
        limits=(100, 300, 1000),
        report=("AP", "AP_50", "AP_75", "AP_eS", "AP_rS", "AP_gS", "AP_N", "AR_1000"),
    ),
    # cocoapi-aitod (aitodpycocotools), with the limits that AITODDataset.evaluate gives it.
    "ai-tod": Protocol(
        areas={
            "all": (0, ANY),
            "vt": (0, 8**2),
            "t": (8**2, 16**2),
            "s": (16**2, 32**2),
            "m": (32**2, ANY),
        },
        limits=(100, 300, 1500),
        report=("AP", "AP_50", "AP_75", "AP_vt", "AP_t", "AP_s", "AP_m", "AR_1500"),
    ),
    # VisDrone2018-DET-toolkit: dropObjectsInIgr.m (regions), calcAccuracy.m (500 detections over
    # all classes). AP is pycocotools' mean over 101 recalls, the toolkit's the area under the
    # curve (VOCap.m), and the toolkit counts ignored objects into the recall's denominator.
    "visdrone": Protocol(
        areas={"all": (0, ANY), "S": (0, 32**2), "M": (32**2, 96**2), "L": (96**2, ANY)},
        limits=(500,),
        report=("AP", "AP_50", "AP_75", "AP_S", "AP_M", "AP_L", "AR_500"),
        ignored_regions=("ignored regions",),
        image_limit=500,
    ),
    # TinyBenchmark, Params with EVAL_STRANDARD = 'tiny'; uncertain objects are ignored and ignored
    # ones match by the part of the detection they cover, as tools/prepare_detection.py marks them.
    "tinyperson": Protocol(
        areas={
            "tiny": (1, 20**2),
            "tiny1": (1, 8**2),
            "tiny2": (8**2, 12**2),
            "tiny3": (12**2, 20**2),
            "small": (20**2, 32**2),
            "all": (1, ANY),
        },
        limits=(200,),
        report=(
            *("AP_50", "AP_50_tiny1", "AP_50_tiny2", "AP_50_tiny3", "AP_50_small"),
            *("AP_25", "AP_75", "AR_200"),
        ),
        ious=(0.25, 0.5, 0.75),
    ),
}
