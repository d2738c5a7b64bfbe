"""The detection demo's picture: memory and curves, and what a network finds in a test image."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from PIL import Image

from tasks.detection.pictures import class_colors
from tools.demos.picture import count_panels, draw_panels
from tools.figures import save_figure

SCORE = 0.4  # of the detections that are drawn
ZOOM = (340, 340, 684, 684)  # x1, y1, x2, y2 in pixels: where the tiles meet


def draw(
    path: Path,
    result: dict,
    config: Path,
    settings: dict[str, str],
    checkpoint: Path,
) -> None:
    """Write a PNG file.

    Args:
        path: The file.
        result: As for ``picture.draw_panels``.
        config: Config file of the network that detects.
        settings: What is changed of the config.
        checkpoint: Its finetuned weights.
    """
    classes, sample = detect(config, settings, checkpoint)
    figure = plt.figure(figsize=(13, 11), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(4.6, 6.4))
    draw_panels(
        above.subplots(1, count_panels(result)),
        result,
        "AP",
        title="Images not trained on",
        label="AP (%)",
        loss_label="focal + L1",
    )
    whole, part = below.subplots(1, 2)
    image = np.array(Image.open(sample.img_path).convert("RGB"))
    for panel in (whole, part):
        panel.imshow(image)
        panel.set_axis_off()
    found = _draw_boxes(whole, sample, classes, line=0.8)
    whole.set_title(
        f"A test image: {found} detections of {len(sample.gt_instances)} objects, "
        f"{len(sample.tiles)} tiles"
    )
    _draw_boxes(part, sample, classes, line=1.6)
    left, top, right, bottom = ZOOM
    part.set(xlim=(left, right), ylim=(bottom, top), title="Where the tiles meet")
    whole.add_patch(_outline(ZOOM, color="black", linewidth=1.5))
    handles = [Rectangle((0, 0), 1, 1, fill=False, color=color) for color in _colors(classes)]
    handles.append(Rectangle((0, 0), 1, 1, fill=False, color="white", linestyle=":"))
    handles.append(Rectangle((0, 0), 1, 1, fill=False, color="white", linewidth=2))
    names = [*classes, "true box", "tile"]
    below.legend(handles, names, loc="outside lower center", ncols=len(names), facecolor="0.4")
    save_figure(figure, path)


def detect(
    config_file: Path, settings: dict[str, str], checkpoint: Path
) -> tuple[tuple[str, ...], DetDataSample]:
    """Return the classes, and the first test image with its true and its predicted boxes."""
    config = Config.fromfile(config_file)
    config.merge_from_dict(settings)
    init_default_scope(config.default_scope)
    dataset = DATASETS.build(config.val_dataloader.dataset)
    model = MODELS.build(config.model).eval()
    load_checkpoint(model, str(checkpoint), map_location="cpu", logger="silent")
    with torch.no_grad():
        (sample,) = model.test_step(pseudo_collate([dataset[0]]))
    return dataset.metainfo["classes"], sample


def _draw_boxes(panel: Axes, sample: DetDataSample, classes: tuple[str, ...], line: float) -> int:
    """Draw tiles, true and predicted boxes; return how many were predicted."""
    for tile in sample.tiles:
        panel.add_patch(_outline(tile, color="white", linewidth=1.5 * line))
    for box in sample.gt_instances.bboxes.tolist():
        panel.add_patch(_outline(box, color="white", linewidth=line, linestyle=":"))
    found = sample.pred_instances
    found = found[found.scores >= SCORE]
    colors = _colors(classes)
    for box, label in zip(found.bboxes.tolist(), found.labels.tolist(), strict=True):
        panel.add_patch(_outline(box, color=colors[label], linewidth=line))
    return len(found)


def _outline(box: tuple[float, ...], **style: object) -> Rectangle:
    # imshow puts the middle of the first pixel at (0, 0).
    left, top, right, bottom = (value - 0.5 for value in box)
    return Rectangle((left, top), right - left, bottom - top, fill=False, **style)


def _colors(classes: tuple[str, ...]) -> list[tuple[float, ...]]:
    return [tuple(part / 255 for part in color) for color in class_colors(len(classes))]
