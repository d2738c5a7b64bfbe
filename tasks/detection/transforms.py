"""Training on tiles of large images: all of them, in a fixed order, or random ones at objects."""

import logging
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmcv.transforms.utils import cache_randomness
from mmdet.datasets import BaseDetDataset
from mmdet.registry import DATASETS as MMDET_DATASETS
from mmdet.structures.bbox import autocast_box_type
from mmengine.logging import print_log
from mmengine.registry import DATASETS, TRANSFORMS

from dr2net.openmmlab.random_state import sample_random_state

from .tiles import IGNORED_PART, OVERLAP, TILE_SIZE, Window, check_tiling, cut_boxes, tile_windows


@DATASETS.register_module()
class TiledDataset(BaseDetDataset):
    """The images of a dataset as overlapping tiles, for training; no image files are written.

    Each item is one tile, in the order of the images and of ``tiles.tile_windows``. Its boxes
    follow SODA-D's rule, ``tiles.cut_boxes``: what was cut too much keeps its visible part, with
    the ignore flag. The counts of tiles and boxes are printed. The pipeline begins with

        [dict(type='LoadTile'), dict(type='LoadAnnotations', with_bbox=True),
         dict(type='Resize', scale_factor=1.5, keep_ratio=True), ...]

    Reading a tile decodes its whole image. Where that is the bottleneck, ``CropAroundObject`` takes
    its tile from an image of an ordinary dataset.

    Args:
        dataset: config of a detection dataset; its pipeline is not used.
        tile_size, overlap: pixels of the original image.
        ignored_part: a box is ignored in tiles that show this part of its area or less.
        keep_empty: keep tiles that show no box, or only ignored ones. The paper drops tiles
            without boxes in training.
        options: ``pipeline`` and the other arguments of mmengine's ``BaseDataset``.

    Raises:
        ValueError: With ``test_mode``: a box that several tiles show would be counted more than
            once. Test on the whole images with ``TiledDetector``.
    """

    def __init__(
        self,
        dataset: dict[str, Any],
        tile_size: int = TILE_SIZE,
        overlap: int = OVERLAP,
        ignored_part: float = IGNORED_PART,
        keep_empty: bool = False,
        **options: Any,
    ) -> None:
        if options.get("test_mode", False):
            raise ValueError(
                "TiledDataset is for training: evaluated tile by tile, a box in the overlap of two "
                "tiles would count twice. Use the dataset itself, with type='TiledDetector'"
            )
        check_tiling(tile_size, overlap)
        self.tile_size = tile_size
        self.overlap = overlap
        self.ignored_part = ignored_part
        self.keep_empty = keep_empty
        self._dataset = MMDET_DATASETS.build(dataset)
        metainfo = self._dataset.metainfo
        super().__init__(**options)
        self._metainfo = metainfo

    def load_data_list(self) -> list[dict]:
        """All tiles, each a dict like that of an image, with its ``tile`` and ``image_shape``."""
        # Its annotations are not needed twice.
        dataset, self._dataset = self._dataset, None
        tiles = [tile for index in range(len(dataset)) for tile in self._cut(dataset, index)]
        learned = [sum(not box["ignore_flag"] for box in tile["instances"]) for tile in tiles]
        kept = [
            tile for tile, boxes in zip(tiles, learned, strict=True) if boxes or self.keep_empty
        ]
        print_log(
            f"{len(dataset)} images cut into {len(tiles)} tiles of {self.tile_size} pixels that "
            f"overlap by {self.overlap}: {len(tiles) - len(kept)} without boxes to learn dropped, "
            f"{len(kept)} kept, with {sum(learned)} boxes and "
            f"{sum(len(tile['instances']) for tile in kept) - sum(learned)} ignored ones",
            logger="current",
            level=logging.INFO,
        )
        return kept

    def _cut(self, dataset: BaseDetDataset, index: int) -> list[dict]:
        image = dataset.get_data_info(index)
        instances = image["instances"]
        boxes = np.array([box["bbox"] for box in instances], np.float64).reshape(-1, 4)
        tiles = []
        for window in tile_windows(image["width"], image["height"], self.tile_size, self.overlap):
            seen, parts, ignored = cut_boxes(boxes, window, self.ignored_part)
            cut = [
                {
                    "bbox": part,
                    "bbox_label": instances[box]["bbox_label"],
                    "ignore_flag": int(instances[box]["ignore_flag"] or flag),
                }
                for box, part, flag in zip(seen, parts.tolist(), ignored, strict=True)
            ]
            tiles.append(
                {
                    **image,
                    "instances": cut,
                    "width": window[2] - window[0],
                    "height": window[3] - window[1],
                    "tile": window,
                    "image_shape": (image["height"], image["width"]),
                }
            )
        return tiles

    def __getitem__(self, index: int) -> dict:
        """One tile after the pipeline, whose random numbers are those of the sampler's seed."""
        with sample_random_state(index):
            return super().__getitem__(int(index))


@TRANSFORMS.register_module()
class LoadTile(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` that keeps the ``tile`` of a ``TiledDataset``.

    Raises:
        ValueError: The image does not have the size that its annotation gives.
    """

    def transform(self, results: dict) -> dict | None:
        """Load ``img_path`` and cut ``tile`` out of it."""
        results = super().transform(results)
        if results is None:
            return None
        if results["ori_shape"] != tuple(results["image_shape"]):
            raise ValueError(
                f"{results['img_path']} (image id {results['img_id']}) has height and width "
                f"{results['ori_shape']}, its annotation says {tuple(results['image_shape'])}"
            )
        left, top, right, bottom = results["tile"]
        results["img"] = results["img"][top:bottom, left:right]
        results["img_shape"] = results["ori_shape"] = results["img"].shape[:2]
        return results


@TRANSFORMS.register_module()
class CropAroundObject(BaseTransform):
    """Crop a random tile that shows a random object whole, as far as it fits.

    The object is any box that is not ignored, each as likely as the others, and the tile lies
    anywhere inside the image where it shows it; in an image without one, anywhere. An image smaller
    than a tile stays whole. Boxes follow SODA-D's rule, ``tiles.cut_boxes``: those cut too much
    keep their visible part and have their ignore flag set.

    Required keys: ``img``, ``gt_bboxes``, ``gt_bboxes_labels``, ``gt_ignore_flags``; all are
    modified, and ``img_shape``. ``tile`` is added: the window in the image that came in.

    Args:
        tile_size: pixels of the image that comes in.
        ignored_part: boxes that show this part of their area or less are ignored.

    Raises:
        ValueError: There are masks, which are not cut.
    """

    def __init__(self, tile_size: int = TILE_SIZE, ignored_part: float = IGNORED_PART) -> None:
        check_tiling(tile_size, 0)
        self.tile_size = tile_size
        self.ignored_part = ignored_part

    @autocast_box_type()
    def transform(self, results: dict) -> dict:
        """Crop ``results["img"]`` and its boxes."""
        if "gt_masks" in results or "gt_seg_map" in results:
            raise ValueError("CropAroundObject cuts boxes only: load annotations without masks")
        boxes, flags = results["gt_bboxes"].numpy(), results["gt_ignore_flags"]
        left, top, right, bottom = window = self._choose(results["img"].shape, boxes[~flags])
        seen, parts, ignored = cut_boxes(boxes, window, self.ignored_part)
        results["img"] = results["img"][top:bottom, left:right]
        results["img_shape"] = results["img"].shape[:2]
        results["gt_bboxes"] = type(results["gt_bboxes"])(parts)
        results["gt_bboxes_labels"] = results["gt_bboxes_labels"][seen]
        results["gt_ignore_flags"] = flags[seen] | ignored
        results["tile"] = window
        return results

    # mmdet's transforms draw from numpy's global state, which the samplers' seeds set.
    @cache_randomness
    def _choose(self, image_shape: tuple[int, ...], objects: np.ndarray) -> Window:
        size = np.minimum(self.tile_size, image_shape[1::-1])
        last = image_shape[1::-1] - size
        low, high = np.zeros_like(last), last
        if len(objects):
            box = objects[np.random.randint(len(objects))]  # noqa: NPY002
            # A tile that starts between these shows the box whole, or nothing but the box.
            bounds = np.stack([np.ceil(box[2:] - size), np.floor(box[:2])])
            low, high = np.clip(np.sort(bounds, axis=0), 0, last).astype(int)
        left, top = np.random.randint(low, high + 1).tolist()  # noqa: NPY002
        return left, top, left + int(size[0]), top + int(size[1])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.tile_size}, ignored_part={self.ignored_part})"
