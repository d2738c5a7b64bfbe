"""Geometry of overlapping tiles: where they lie, what they cut, how their detections are merged.

The defaults are those of SODA-D (Cheng et al., "Towards Large-Scale Small Object Detection: Survey
and Benchmarks", https://arxiv.org/abs/2207.14096): tiles of 800 pixels at a stride of 650, that is
an overlap of 150, each resized to 1,200. The released split files say ``"stepSzH": 150``; their
script moves on by ``patchH - stepSzH``, so this is the overlap, and the paper's stride of 650 is
what it makes (its author says so in https://github.com/shaunyuan22/SODA-mmdetection/issues/10).
Here the setting is called ``overlap``. Two habits of that script are not followed: it ends the
tiles of a training image 5 pixels after its last box, and it blackens ignored regions.

Boxes are (x1, y1, x2, y2) in pixels, where x2 and y2 are the first coordinates outside.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

Window = tuple[int, int, int, int]

TILE_SIZE = 800
OVERLAP = 150
# Tiles of 800 pixels become 1,200.
SCALE_FACTOR = 1.5
# "interAreaIgnThr" of the released split files: a box that shows this part of its area or less is
# to be ignored.
IGNORED_PART = 0.4


def check_tiling(tile_size: int, overlap: int) -> None:
    """Raise a ValueError where tiles of this size and overlap do not cover an image."""
    if tile_size < 1 or not 0 <= overlap < tile_size:
        raise ValueError(
            f"tile_size={tile_size}, overlap={overlap}: expected 0 <= overlap < tile_size, in "
            "pixels; SODA-D's 800 pixel tiles at a stride of 650 overlap by 150"
        )


def tile_windows(
    width: int, height: int, tile_size: int = TILE_SIZE, overlap: int = OVERLAP
) -> list[Window]:
    """Windows (x1, y1, x2, y2) of the tiles of an image, row by row.

    They cover every pixel and lie inside the image: the last of a row or column is moved in to the
    edge, and an image smaller than a tile has one, as small as itself. Any box of at most
    ``overlap`` pixels in width and height lies whole in at least one.
    """
    check_tiling(tile_size, overlap)
    return [
        (x, y, min(x + tile_size, width), min(y + tile_size, height))
        for y in _starts(height, tile_size, overlap)
        for x in _starts(width, tile_size, overlap)
    ]


def _starts(length: int, tile_size: int, overlap: int) -> list[int]:
    last = max(length - tile_size, 0)
    return [*range(0, last, tile_size - overlap), last]


def cut_boxes(
    boxes: np.ndarray, window: Window, ignored_part: float = IGNORED_PART
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a tile shows of the boxes of its image, by SODA-D's published rule.

    A cut box becomes its visible part. It is to be ignored if this is ``ignored_part`` of its own
    area or less. Boxes that the tile does not show are left out.

    Args:
        boxes: (n, 4), in the coordinates of the image.

    Returns:
        The indices (m,) of the boxes that are seen, their visible parts (m, 4) in the coordinates
        of the tile, and whether each is to be ignored (m,) on account of the cut.
    """
    left, top, right, bottom = window
    parts = np.clip(boxes, (left, top, left, top), (right, bottom, right, bottom))
    visible = _area(parts)
    seen = np.flatnonzero(visible > 0)
    ignored = visible[seen] <= ignored_part * _area(boxes[seen])
    return seen, parts[seen] - np.array([left, top, left, top], boxes.dtype), ignored


def merge_detections(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    sources: Tensor,
    windows: Sequence[Window],
    image_size: tuple[int, int],
    iou_threshold: float = 0.5,
    cover_threshold: float = 0.5,
    edge_margin: float = 4.0,
    class_agnostic: bool = False,
) -> Tensor:
    """Choose one detection of each object from those of overlapping tiles.

    First, parts: a detection that comes within ``edge_margin`` pixels of an edge of its tile that
    is not an edge of the image may be only the part of an object that the tile shows. It loses,
    whatever the scores, against any of its class from another tile that covers at least
    ``cover_threshold`` of it and that is itself clear of such edges, or larger. A part of less than
    half an object has too small an IoU with the whole for NMS to find. A detection at an edge that
    no other tile confirms is kept. Second, NMS within each class, which is all that the released
    evaluation of SODA-D does, at an IoU of 0.5.

    Objects wider or higher than the overlap may be whole in no tile; what is left of them then are
    parts, unless one of the windows is the whole image.

    Args:
        boxes: (n, 4), in the coordinates of the image.
        scores: (n,).
        labels: (n,), classes.
        sources: (n,), the index in ``windows`` of the tile that each comes from.
        windows: the tiles; the whole image may be one of them.
        image_size: (width, height).
        iou_threshold: NMS drops what overlaps a higher score by more than this IoU.
        class_agnostic: detections suppress those of every class, not just their own.

    Returns:
        Indices (m,) of the detections to keep, from the highest score to the lowest.
    """
    if class_agnostic:
        labels = torch.zeros_like(labels)
    # batched_nms moves the boxes of each class by a large offset.
    boxes, scores = boxes.double(), scores.double()
    at_edge = _reach_inner_edge(boxes, sources, windows, image_size, edge_margin)
    kept = torch.ones_like(at_edge)
    area = _area(boxes)
    for source in sources[at_edge].unique():
        parts = (at_edge & (sources == source)).nonzero().flatten()
        others = (sources != source).nonzero().flatten()
        covered = _intersection(boxes[parts], boxes[others]) >= (
            cover_threshold * area[parts, None]
        )
        stronger = ~at_edge[others] | (area[others] > area[parts, None])
        same_class = labels[others] == labels[parts, None]
        kept[parts] = ~(covered & stronger & same_class).any(dim=1)
    kept = kept.nonzero().flatten()
    return kept[batched_nms(boxes[kept], scores[kept], labels[kept], iou_threshold)]


def _reach_inner_edge(
    boxes: Tensor,
    sources: Tensor,
    windows: Sequence[Window],
    image_size: tuple[int, int],
    margin: float,
) -> Tensor:
    width, height = image_size
    edges = boxes.new_tensor(windows).reshape(-1, 4)[sources]
    inner = edges != boxes.new_tensor([0, 0, width, height])
    distance_inwards = (boxes - edges) * boxes.new_tensor([1, 1, -1, -1])
    return ((distance_inwards <= margin) & inner).any(dim=1)


def _intersection(first: Tensor, second: Tensor) -> Tensor:
    """Areas (n, m) common to each of ``first`` (n, 4) and each of ``second`` (m, 4)."""
    top_left = torch.maximum(first[:, None, :2], second[:, :2])
    bottom_right = torch.minimum(first[:, None, 2:], second[:, 2:])
    return (bottom_right - top_left).clamp(min=0).prod(dim=-1)


def _area(boxes):
    """Areas of boxes (n, 4), a numpy array or a tensor."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
