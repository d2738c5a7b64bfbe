"""The objects in an image file of any size, as numbers and as a picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from PIL import Image, ImageOps

import tasks.detection  # noqa: F401 - gives mmcv's operators a body where it has none
from dr2net.openmmlab.loaders import of_the_test

from .annotations import DAMAGED, images_of_any_size
from .pictures import draw_detections, draw_sample
from .tiled_detector import TiledTesting, make_tiled

KIND = "image"
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# The arguments of ``predictor`` that a command line gives.
OPTIONS = ("score_threshold", "tile_size")
# An image that the test would shrink by more than this is cut into tiles instead.
MOST_SHRINKING = 2.0


def is_input(path: Path) -> bool:
    """Whether a path is that of an image, by its ending."""
    return path.suffix.lower() in ENDINGS and path.is_file()


def predictor(
    model: BaseDetector,
    config: Config,
    classes: list[str] | None,
    score_threshold: float = 0.3,
    tile_size: int | None = None,
) -> Callable[[Path, Path], dict]:
    """Return what predicts an image: given its file and a path for the picture, without an ending.

    It raises ValueError where the file cannot be read as an image. Its result has ``width`` and
    ``height``, the number of ``tiles`` (0 where it was tested whole), and ``detections``, from the
    highest score down: ``label``, ``class``, ``score`` and ``box`` (x1, y1, x2, y2), pixels.

    Args:
        model: A detector in eval mode.
        config: Its config. The test pipeline says how images are resized; a ``TiledDetector`` cuts
            as its own settings say.
        classes: The names of its classes; None to name them by their numbers.
        score_threshold: The lowest score that is drawn; the result has all.
        tile_size: Cut images with a longer side into tiles of so many pixels. By default tiles are
            as large as the test resizes images to, for those that it would shrink to less than a
            half. The whole image is tested too, for what is larger than a tile.

    Raises:
        ValueError: The model is no detector; ``tile_size`` is given for one that is tiled already.
    """
    if not isinstance(model, BaseDetector):
        raise ValueError(f"{type(model).__name__} is no detector of mmdetection's kind")
    whole = _pipeline(config)
    own = getattr(model, "tiled_testing", None)
    if own is not None and tile_size is not None:
        raise ValueError(
            f"the config's model is a TiledDetector with tiles of {own.tile_size} pixels: set "
            "--cfg-options model.tile_size=PIXELS instead of --tile-size"
        )
    scale = next((tuple(step["scale"]) for step in whole if "scale" in step), None)
    plain = Compose([{"type": "LoadImageFromNDArray"}, *whole])
    uncut = Compose([{"type": "LoadImageFromNDArray"}, *[s for s in whole if _packs(s)]])

    def is_to_be_cut(height: int, width: int) -> bool:
        if tile_size is not None:
            return max(height, width) > tile_size
        if scale is None:
            return False
        shrinking = max(max(height, width) / max(scale), min(height, width) / min(scale))
        return shrinking > MOST_SHRINKING

    def predict(file: Path, target: Path) -> dict:
        image = read_image(file)
        height, width = image.shape[:2]
        given = {"img": image, "img_id": 0, "img_path": str(file)}
        if own is None and is_to_be_cut(height, width):
            side = tile_size or max(scale)
            tiled = TiledTesting(
                tile_size=side,
                overlap=side // 5,
                scale_factor=1.0,
                whole_image_scale=scale,
                batch_size=1,
                score_threshold=0.0,
            )
            with make_tiled(model, tiled):
                sample = _test(model, uncut(given))
        else:
            sample = _test(model, plain(given))
        found = sample.pred_instances.cpu().numpy()
        if not np.isfinite(found.scores).all():
            raise ValueError("the network returned NaN or infinity, which is no prediction")
        order = np.argsort(-found.scores, kind="stable")
        boxes, scores, labels = found.bboxes[order], found.scores[order], found.labels[order]
        count = max([len(classes or ()), *(int(label) + 1 for label in labels)], default=0)
        names = [*(classes or ()), *(f"class {n}" for n in range(len(classes or ()), count))]
        drawn = scores >= score_threshold
        tiles = sample.get("tiles", ())
        draw_detections(
            np.ascontiguousarray(image[..., ::-1]),
            boxes[drawn],
            labels[drawn],
            names,
            target.with_name(f"{target.name}.png"),
            tiles,
        )
        return {
            "width": width,
            "height": height,
            "tiles": len(tiles),
            "detections": [
                {
                    "label": int(label),
                    "class": names[label],
                    "score": float(score),
                    "box": [round(float(edge), 2) for edge in box],
                }
                for box, score, label in zip(boxes, scores, labels, strict=True)
            ],
        }

    return predict


def read_image(file: Path) -> np.ndarray:
    """Read an image as training does: (H, W, 3) uint8 BGR, turned as its EXIF data says.

    Raises:
        ValueError: It is damaged, cut short, or no image.
    """
    try:
        with images_of_any_size(), Image.open(file) as image:
            image.load()  # cv2 fills what is missing of a file that was cut short
            # By cv2, as in training. It fails at more than a billion pixels, and at PNG files in a
            # process that has loaded another zlib, as Open3D and decord bring.
            try:
                pixels = mmcv.imread(str(file))
            except cv2.error:
                pixels = None
            if pixels is None:
                pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))[..., ::-1].copy()
    except DAMAGED as error:
        raise ValueError(f"it cannot be read: {error}: is it a whole image?") from error
    return pixels


def _pipeline(config: Config) -> list[dict]:
    """The test pipeline after its loading, without what needs annotations."""
    pipeline = of_the_test(config.get("test_dataloader")).pipeline
    return [dict(step) for step in pipeline if "Load" not in step["type"]]


def _packs(step: dict) -> bool:
    return step["type"].endswith("PackDetInputs")


def _test(model: Any, packed: dict) -> Any:
    with torch.no_grad():
        (sample,) = model.test_step(pseudo_collate([packed]))
    return sample


def name_of(sample: Any) -> str:
    """Return what the picture of a tested image is called."""
    return Path(sample.img_path).stem


def draw_tested(
    sample: Any, batch: dict, number: int, classes: list[str] | None, target: Path
) -> None:
    """Write ``<target>.png`` of a tested image: its detections of a score of 0.3 and more.

    Args:
        sample: What the model returned.
        batch: What it was given; not looked at.
        number: Of the image in the batch.
        classes: The names of the classes.
        target: A path without an ending.
    """
    draw_sample(sample, classes or (), target.with_name(f"{target.name}.png"))


def draw_item(item: Any, classes: list[str] | None, target: Path) -> None:
    """Write ``<target>.png`` of an item of a data set: what a network gets, with its boxes.

    Ignored boxes are drawn as a class of their own.

    Args:
        item: From a dataset.
        classes: The names of the classes.
        target: A path without an ending.
    """
    sample = item["data_samples"]
    image = item["inputs"].permute(1, 2, 0).numpy().astype(np.uint8)[..., ::-1]
    parts = [sample.gt_instances, sample.get("ignored_instances", sample.gt_instances[:0])]
    boxes = [get_box_tensor(part.bboxes).numpy().reshape(-1, 4) for part in parts]
    labels = [parts[0].labels.numpy(), np.full(len(parts[1]), len(classes or ()))]
    draw_detections(
        np.ascontiguousarray(image),
        np.concatenate(boxes),
        np.concatenate(labels),
        [*(classes or ()), "ignored"],
        target.with_name(f"{target.name}.png"),
    )
