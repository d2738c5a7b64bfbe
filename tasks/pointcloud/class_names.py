"""The classes of S3DIS, and the two orders in which public files number them.

The set (Armeni et al., "3D Semantic Parsing of Large-Scale Indoor Spaces", CVPR 2016) names its
classes and does not number them. Code and files follow one of two habits, which differ in the
labels 7 to 10; a label alone does not tell which is meant.
"""

from collections.abc import Sequence

_TABLE_FIRST = (
    "ceiling",
    "floor",
    "wall",
    "beam",
    "column",
    "window",
    "door",
    "table",
    "chair",
    "sofa",
    "bookcase",
    "board",
    "clutter",
)
_CHAIR_FIRST = (*_TABLE_FIRST[:7], "chair", "table", "bookcase", "sofa", "board", "clutter")

# Whose files and code have which order.
CLASS_ORDERS: dict[str, tuple[str, ...]] = {
    "pointnet": _TABLE_FIRST,  # sem_seg/meta/class_names.txt
    "mmdetection3d": _TABLE_FIRST,  # mmdet3d/datasets/s3dis_dataset.py
    "pointcept": _TABLE_FIRST,  # pointcept/datasets/preprocessing/s3dis/preprocess_s3dis.py
    "openpoints": _CHAIR_FIRST,  # openpoints/dataset/s3dis/s3dis.py: Pix4Point, PointNeXt
    "kpconv": _CHAIR_FIRST,  # datasets/S3DIS.py
}

# The order of everything that is written here.
CLASSES = _TABLE_FIRST

# Colours that most figures of S3DIS have, PointNet's (RGB, 0 to 255).
COLORS: dict[str, tuple[int, int, int]] = {
    "ceiling": (0, 255, 0),
    "floor": (0, 0, 255),
    "wall": (0, 255, 255),
    "beam": (255, 255, 0),
    "column": (255, 0, 255),
    "window": (100, 100, 255),
    "door": (200, 200, 100),
    "table": (170, 120, 200),
    "chair": (255, 0, 0),
    "sofa": (200, 100, 100),
    "bookcase": (10, 200, 100),
    "board": (200, 200, 200),
    "clutter": (50, 50, 50),
}


def named_order(classes: Sequence[str]) -> str:
    """Say whose order ``classes`` is, for messages: "mmdetection3d's", or the names themselves."""
    owners = [name for name, order in CLASS_ORDERS.items() if order == tuple(classes)]
    return f"the order of {' and '.join(owners)}" if owners else f"the order {', '.join(classes)}"
