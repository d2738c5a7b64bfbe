"""The classes of the sets that tasks/detection knows, in the order of their labels.

``ignored_classes`` are categories whose boxes are no objects: regions that were not annotated, and
objects of no class. They are kept as regions that neither reward nor punish a detection.

- SODA-D: Cheng et al., "Towards Large-Scale Small Object Detection: Survey and Benchmarks",
  https://arxiv.org/abs/2207.14096
- VisDrone-DET: Zhu et al., "Detection and Tracking Meet Drones Challenge",
  https://arxiv.org/abs/2001.06303; names and numbers as in README.txt of VisDrone2018-DET-toolkit
- AI-TOD-v2: Xu et al., "Detecting tiny objects in aerial images: A normalized Wasserstein distance
  and a new benchmark", https://arxiv.org/abs/2206.13996
- TinyPerson: Yu et al., "Scale Match for Tiny Person Detection", https://arxiv.org/abs/1912.10664
- COCO: Lin et al., https://arxiv.org/abs/1405.0312
"""

from mmdet.datasets import CocoDataset

METAINFO: dict[str, dict[str, tuple[str, ...]]] = {
    "soda-d": {
        "classes": (
            "people",
            "rider",
            "bicycle",
            "motor",
            "vehicle",
            "traffic-sign",
            "traffic-light",
            "traffic-camera",
            "warning-cone",
        ),
        "ignored_classes": ("ignore",),
    },
    "visdrone": {
        "classes": (
            "pedestrian",
            "people",
            "bicycle",
            "car",
            "van",
            "truck",
            "tricycle",
            "awning-tricycle",
            "bus",
            "motor",
        ),
        "ignored_classes": ("ignored regions", "others"),
    },
    "ai-tod": {
        "classes": (
            "airplane",
            "bridge",
            "storage-tank",
            "ship",
            "swimming-pool",
            "vehicle",
            "person",
            "wind-mill",
        ),
        "ignored_classes": (),
    },
    "tinyperson": {"classes": ("sea_person", "earth_person"), "ignored_classes": ()},
    "coco": {"classes": tuple(CocoDataset.METAINFO["classes"]), "ignored_classes": ()},
}
