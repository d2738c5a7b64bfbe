"""``type='TiledDetector'``: any registered detector, tested on overlapping tiles of the image."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from mmdet.datasets.transforms import Resize
from mmdet.models.utils import samplelist_boxtype2tensor
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .tiles import (
    OVERLAP,
    SCALE_FACTOR,
    TILE_SIZE,
    Window,
    check_tiling,
    merge_detections,
    tile_windows,
)


@dataclass(frozen=True)
class TiledTesting:
    """How an image is cut, and how what is found in its tiles becomes one list.

    Args:
        tile_size: pixels of the original image; None for no tiles.
        overlap: pixels shared by neighbouring tiles, at least the size of the largest object.
        scale_factor: by how much a tile is resized for the detector; in training, the
            ``scale_factor`` of mmdet's ``Resize`` on a tile.
        whole_image_scale: also test on the whole image, resized to fit into (width, height) as by
            mmdet's ``Resize`` with ``keep_ratio``, for objects too large for a tile. None for no
            whole image.
        batch_size: tiles that go through the detector at once.
        score_threshold: detections with less are dropped before they are merged.
        iou_threshold, cover_threshold, edge_margin, class_agnostic: see
            ``tiles.merge_detections``.
        max_detections: the most that are kept of one image.

    Raises:
        ValueError: The settings leave nothing to test on, or tiles do not cover the image.
    """

    tile_size: int | None = TILE_SIZE
    overlap: int = OVERLAP
    scale_factor: float = SCALE_FACTOR
    whole_image_scale: tuple[int, int] | None = None
    batch_size: int = 4
    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    cover_threshold: float = 0.5
    edge_margin: float = 4.0
    class_agnostic: bool = False
    max_detections: int = 1500

    def __post_init__(self) -> None:
        if self.tile_size is not None:
            check_tiling(self.tile_size, self.overlap)
        elif self.whole_image_scale is None:
            raise ValueError(
                "TiledDetector has neither tiles nor the whole image to test on: give tile_size, "
                "whole_image_scale, or both"
            )


# A function and not a wrapper module: the detector keeps its parameter names, and with them
# checkpoints, parameter-wise learning rates and everything about its training.
@MODELS.register_module()
def TiledDetector(  # noqa: N802  (a type name to those who write configs)
    detector: dict[str, Any], **settings: Any
) -> nn.Module:
    """Builds ``detector`` and makes it test images tile by tile; it trains as before.

    ``val_step`` and ``test_step`` cut each image as it was loaded, run the detector on batches of
    tiles and return one ``DetDataSample`` per image, in the coordinates of the original image:
    ``pred_instances`` with boxes, scores and labels (no masks), sorted by score, and the windows of
    the tiles as ``tiles`` in the meta information. The dataset is that of whole images, so that
    every ground-truth box is counted once, and its test pipeline loads and packs, no more:

        [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
         dict(type='PackDetInputs')]

    mmengine's FSDP wrapper calls neither step, so that it would not cut; its other wrappers do.

    Args:
        detector: config of a registered detector.
        settings: those of ``TiledTesting``.
    """
    testing = TiledTesting(**settings)
    model = MMDET_MODELS.build(detector)
    model.tiled_testing = testing
    model.__class__ = _tiled(type(model))
    return model


@contextmanager
def make_tiled(model: Any, testing: TiledTesting) -> Iterator[None]:
    """Test a plain detector tile by tile, inside of the context."""
    model.tiled_testing, kind = testing, type(model)
    model.__class__ = _tiled(kind)
    try:
        yield
    finally:
        model.__class__ = kind
        del model.tiled_testing


@cache
def _tiled(kind: type) -> type:
    # The subclass cannot be imported by name, so copies and pickles make it anew.
    def reduce(self: nn.Module, protocol: int) -> tuple:
        return _new_instance, (kind,), self.__dict__

    methods = {"test_step": test_step, "val_step": test_step, "__reduce_ex__": reduce}
    return type(f"Tiled{kind.__name__}", (kind,), {**methods, "detector_class": kind})


def _new_instance(kind: type) -> nn.Module:
    tiled = _tiled(kind)
    return tiled.__new__(tiled)


def test_step(self: Any, data: dict) -> list[DetDataSample]:
    """As mmengine's method of this name, tile by tile.

    Args:
        data: ``inputs``, (3, H, W) images as they were loaded, and ``data_samples``.
    """
    samples = self.data_preprocessor.cast_data(data["data_samples"])
    samplelist_boxtype2tensor(samples)  # as mmdet's preprocessor leaves them to the metric
    for image, sample in zip(data["inputs"], samples, strict=True):
        _detect(self, image, sample)
    return samples


def _detect(detector: Any, image: Tensor, sample: DetDataSample) -> None:
    testing = detector.tiled_testing
    height, width = image.shape[-2:]
    if tuple(sample.ori_shape[:2]) != (height, width):
        raise ValueError(
            f"TiledDetector cuts the original image, but {sample.get('img_path')} of height and "
            f"width {tuple(sample.ori_shape[:2])} came as {(height, width)}: leave Resize, Pad "
            "and crops out of the test pipeline (scale_factor and whole_image_scale resize)"
        )
    tiles = []
    if testing.tile_size is not None:
        tiles = tile_windows(width, height, testing.tile_size, testing.overlap)
    resize = Resize(scale_factor=float(testing.scale_factor), keep_ratio=True)
    steps = range(0, len(tiles), testing.batch_size)
    batches = [(range(len(tiles))[step : step + testing.batch_size], resize) for step in steps]
    windows = tiles
    if testing.whole_image_scale is not None:
        windows = [*tiles, (0, 0, width, height)]
        resize = Resize(scale=tuple(testing.whole_image_scale), keep_ratio=True)
        batches.append((range(len(tiles), len(windows)), resize))
    boxes, scores, labels, sources = [], [], [], []
    for views, resize in batches:
        cuts = [_cut(image, sample, windows[view], resize) for view in views]
        inputs, data_samples = zip(*cuts, strict=True)
        batch = {"inputs": list(inputs), "data_samples": list(data_samples)}
        detected = detector.detector_class.test_step(detector, batch)
        for view, found in zip(views, detected, strict=True):
            found = found.pred_instances
            found = found[found.scores >= testing.score_threshold]
            # Half precision, as autocast may give, does not resolve a pixel of a large image.
            tile_boxes = found.bboxes.float()
            boxes.append(tile_boxes + tile_boxes.new_tensor(windows[view][:2] * 2))
            scores.append(found.scores)
            labels.append(found.labels)
            sources.append(torch.full_like(found.labels, view, dtype=torch.long))
    found = InstanceData(
        bboxes=torch.cat(boxes), scores=torch.cat(scores), labels=torch.cat(labels)
    )
    kept = merge_detections(
        found.bboxes,
        found.scores,
        found.labels,
        torch.cat(sources),
        windows,
        (width, height),
        testing.iou_threshold,
        testing.cover_threshold,
        testing.edge_margin,
        testing.class_agnostic,
    )
    sample.pred_instances = found[kept[: testing.max_detections]]
    sample.set_metainfo({"tiles": tiles})


def _cut(
    image: Tensor, sample: DetDataSample, window: Window, resize: Resize
) -> tuple[Tensor, DetDataSample]:
    """One tile as the ordinary test pipeline would give it, had it been a file."""
    left, top, right, bottom = window
    tile = image[:, top:bottom, left:right].permute(1, 2, 0)
    # The transform that training uses, so that both see the same pixels.
    results = resize({"img": tile.cpu().numpy()})
    tile = torch.from_numpy(results["img"]).permute(2, 0, 1).contiguous()
    metainfo = {
        **sample.metainfo,
        "ori_shape": (bottom - top, right - left),
        "img_shape": results["img_shape"],
        "scale_factor": results["scale_factor"],
        "tile": window,
    }
    return tile, DetDataSample(metainfo=metainfo)
