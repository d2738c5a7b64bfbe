"""Pictures of a detector's work: what it found in an image, and how AP depends on object size."""

import math
import re
from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from os import PathLike

import numpy as np
from matplotlib.figure import Figure
from mmdet.structures import DetDataSample
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .annotations import images_of_any_size
from .tiles import Window

Color = tuple[int, int, int]

_TILE_COLOR = (255, 255, 255)
# A number of the metric that says for which sizes it is: AP_S or bbox_mAP_s, not AP or AP_50.
_BY_SIZE = re.compile(r"(?:^|_)m?AP_(?P<size>[A-Za-z]\w*)$")


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    file: str | PathLike,
    tiles: Sequence[Window] = (),
) -> None:
    """Write a picture of the image with boxes in the colour of their class, and tiles in white.

    The image keeps its pixels; under it comes a legend with the number of boxes of each class that
    has some. A box's outline lies around it, so that small objects stay visible, but inside the
    image.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (n, 4), (x1, y1, x2, y2) in pixels.
        labels: (n,), indices in ``classes``.
        file: a path that ends in the format to write, like ``.png``.
        tiles: windows (x1, y1, x2, y2), like the ``tiles`` that ``TiledDetector`` reports.
    """
    height, width = image.shape[:2]
    line = max(1, round(max(width, height) / 1000))
    labels = np.asarray(labels, int)
    colors = class_colors(len(classes))
    legend = [
        (colors[label], f"{classes[label]} ({count})")
        for label, count in zip(*np.unique(labels, return_counts=True), strict=True)
    ]
    if len(tiles):
        legend.append((_TILE_COLOR, f"tile ({len(tiles)})"))
    strip = _draw_legend(legend, width)
    picture = Image.new("RGB", (width, height + strip.height))
    picture.paste(Image.fromarray(image), (0, 0))
    picture.paste(strip, (0, height))
    draw = ImageDraw.Draw(picture)
    for left, top, right, bottom in tiles:
        draw.rectangle((left, top, right - 1, bottom - 1), outline=_TILE_COLOR, width=line)
    for box, label in zip(np.asarray(boxes, float).reshape(-1, 4), labels, strict=True):
        outline = [*(np.floor(box[:2]) - line), *(np.ceil(box[2:]) + line - 1)]
        outline = np.clip(outline, 0, (width - 1, height - 1) * 2)
        draw.rectangle(tuple(outline), outline=colors[label], width=line)
    picture.save(file)


def draw_sample(
    sample: DetDataSample,
    classes: Sequence[str],
    file: str | PathLike,
    score_threshold: float = 0.3,
) -> None:
    """Write a picture of a tested image: its predictions from a score on, and its tiles if any."""
    found = sample.pred_instances
    found = found[found.scores >= score_threshold].cpu().numpy()
    with images_of_any_size(), Image.open(sample.img_path) as image:
        pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))  # as it was tested
    draw_detections(pixels, found.bboxes, found.labels, classes, file, sample.get("tiles", ()))


def class_colors(count: int) -> list[Color]:
    """Bright colours for ``count`` classes; of two with similar hues, one is pale."""
    # Hues stop short of red, where they began.
    shades = [(0.9 * index / count, 0.4 if index % 2 else 1.0) for index in range(count)]
    return [
        tuple(round(255 * part) for part in hsv_to_rgb(hue, saturation, 1.0))
        for hue, saturation in shades
    ]


def _draw_legend(entries: Sequence[tuple[Color, str]], width: int) -> Image.Image:
    """A black strip, as many rows high as the entries need."""
    size = max(12, round(width / 80))
    font = ImageFont.load_default(size)
    row, places, x, y = math.ceil(1.6 * size), [], size, 0
    for _, text in entries:
        length = math.ceil(font.getlength(text)) + 3 * size
        if x + length > width and x > size:
            x, y = size, y + row
        places.append((x, y))
        x += length
    strip = Image.new("RGB", (width, y + row))
    draw = ImageDraw.Draw(strip)
    for (color, text), (x, y) in zip(entries, places, strict=True):
        top = y + (row - size) // 2
        draw.rectangle((x, top, x + size - 1, top + size - 1), outline=color, width=3)
        draw.text((x + 1.5 * size, y + row / 2), text, _TILE_COLOR, font, anchor="lm")
    return strip


def draw_ap_by_size(metrics: Mapping[str, float], file: str | PathLike, title: str = "") -> None:
    """Write a bar chart of AP by the size of objects.

    Args:
        metrics: a detection metric's, such as ``{"coco/AP": 0.3, "coco/AP_S": 0.2, ...}``. One bar
            is drawn for each name that ends in a size, such as ``AP_S``, ``AP_eS`` or
            ``bbox_mAP_s``, in the order given. A negative or undefined number is the metric's way
            to say that there are no objects of that size.
        file: a path that ends in the format to write, like ``.png``.

    Raises:
        ValueError: No name of the metric ends in a size.
    """
    by_size = {
        match["size"]: value
        for name, value in metrics.items()
        if (match := _BY_SIZE.search(name.split("/")[-1]))
    }
    if not by_size:
        raise ValueError(
            f"no AP by size among {sorted(metrics)}: expected names such as AP_S, AP_eS, bbox_mAP_s"
        )
    figure = Figure(figsize=(1.2 + 0.9 * len(by_size), 3.2), layout="constrained")
    axes = figure.subplots()
    heights = [value if value >= 0 else 0.0 for value in by_size.values()]
    bars = axes.bar(list(by_size), heights, color="tab:blue")
    texts = [f"{value:.3f}" if value >= 0 else "no objects" for value in by_size.values()]
    axes.bar_label(bars, texts, padding=2)
    axes.set(xlabel="size of objects", ylabel="AP", title=title)
    axes.set_ylim(0, 1.15 * max(heights) or 1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
