"""Pictures of segmented rooms: as PNG without a display, and in Open3D's window where there is one.

.ply files are written by ``room_writing.write_ply``.
"""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from os import PathLike

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .class_names import CLASSES, COLORS
from .structures import IGNORE

# From where rooms are looked at: seen from the side of low x and low y, from above.
_AZIMUTH = math.radians(235)
_ELEVATION = math.radians(50)
# What would hide the room: what is higher than this share of its height, and, above the knee, what
# is this near (m) to the two sides in front.
_CUT = 0.82
_KNEE, _FRONT = 0.5, 0.3
_MOST_POINTS = 1_000_000
_INK = (30, 30, 30)


def palette(classes: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return a colour (RGB) for each class: S3DIS's own, or one that differs from its neighbours'.

    Of the hues that follow each other by the golden section, no two near ones are alike.
    """
    hues = [hsv_to_rgb(0.618034 * n % 1, 0.9 - 0.4 * (n % 2), 0.95) for n in range(len(classes))]
    own = [tuple(round(255 * part) for part in hue) for hue in hues]
    return [COLORS.get(name, color) for name, color in zip(classes, own, strict=True)]


def class_colors(segment: np.ndarray, classes: Sequence[str] = CLASSES) -> np.ndarray:
    """Return the colours of labels, uint8 (N, 3); ignored points are white."""
    table = np.full((IGNORE + 1, 3), 255, np.uint8)
    table[: len(classes)] = palette(classes)
    return table[segment]


def draw_room(
    file: str | PathLike,
    coord: np.ndarray,
    color: np.ndarray,
    predicted: np.ndarray,
    truth: np.ndarray | None = None,
    classes: Sequence[str] = CLASSES,
    title: str = "",
    size: int = 640,
) -> None:
    """Write a picture of a room: its colours, its true classes and the predicted ones in a row.

    The room is seen from above, at an angle; ceiling and the walls in front are cut off. A legend
    has the classes that occur, with their share of right points where the truth is known.

    Args:
        file: A path that ends in the format to write, like ``.png``.
        coord: Float (N, 3), metres.
        color: Uint8 (N, 3).
        predicted: (N,), numbers of ``classes``.
        truth: (N,), numbers of ``classes`` or 255; None where it is not known.
        classes: Their names.
        title: Stands above the picture.
        size: Width and height of each view, pixels.
    """
    views = {"colours": color}
    if truth is not None:
        views["true classes"] = class_colors(truth, classes)
    views["predicted classes"] = class_colors(predicted, classes)
    draw_views(file, coord, views, _entries(predicted, truth, classes), title, size)


def draw_views(
    file: str | PathLike,
    coord: np.ndarray,
    views: Mapping[str, np.ndarray],
    legend: Sequence[tuple[tuple[int, int, int], str]],
    title: str = "",
    size: int = 640,
    opened: bool = True,
) -> None:
    """Write a picture of a cloud in several colourings, in a row.

    Args:
        file: A path that ends in the format to write, like ``.png``.
        coord: Float (N, 3), metres.
        views: By what stands above each, the colours of the points, uint8 (N, 3).
        legend: Colours and what they mean.
        title: Stands above the picture.
        size: Width and height of each view, pixels.
        opened: Whether it is a room, whose ceiling and walls in front are cut off.
    """
    seen = _opened(coord) if opened else np.arange(len(coord))
    panels = [_render(coord[seen], colors[seen], size) for colors in views.values()]

    font = ImageFont.load_default(max(12, size // 36))
    line = math.ceil(1.7 * font.size)
    strip = _legend(legend, size * len(panels), font)
    top = line * (2 if title else 1)
    picture = Image.new("RGB", (size * len(panels), top + size + strip.height), "white")
    draw = ImageDraw.Draw(picture)
    if title:
        draw.text((line / 2, line / 2), title, _INK, font, anchor="lm")
    for number, (name, panel) in enumerate(zip(views, panels, strict=True)):
        draw.text((number * size + line / 2, top - line / 2), name, _INK, font, anchor="lm")
        picture.paste(Image.fromarray(panel), (number * size, top))
    picture.paste(strip, (0, top + size))
    picture.save(file)


def class_entries(
    segment: np.ndarray | None, classes: Sequence[str]
) -> list[tuple[tuple[int, int, int], str]]:
    """Return the legend of classes that occur among labels."""
    return [] if segment is None else _entries(segment, None, classes)


def _opened(coord: np.ndarray) -> np.ndarray:
    """Return the indices of the points that are drawn, at most ``_MOST_POINTS``."""
    low, high = coord.min(axis=0), coord.max(axis=0)
    height = coord[:, 2] - low[2]
    in_front = (coord[:, :2] < low[:2] + _FRONT).any(axis=1)
    seen = (height < _CUT * (high[2] - low[2])) & ~(in_front & (height > _KNEE))
    indices = np.flatnonzero(seen)
    if len(indices) > _MOST_POINTS:
        random = np.random.default_rng(0)
        indices = np.sort(random.choice(indices, _MOST_POINTS, replace=False))
    return indices


def _render(coord: np.ndarray, colors: np.ndarray, size: int) -> np.ndarray:
    """Project the points in parallel onto (size, size, 3), the nearest on top."""
    image = np.full((size, size, 3), 255, np.uint8)
    sine, cosine = math.sin(_AZIMUTH), math.cos(_AZIMUTH)
    up, along = math.sin(_ELEVATION), math.cos(_ELEVATION)
    axes = np.array(
        [[-sine, cosine, 0], [-up * cosine, -up * sine, along], [along * cosine, along * sine, up]]
    )
    x, y, near = axes @ (coord - coord.mean(axis=0)).T.astype(np.float64)
    scale = 0.94 * size / max(np.ptp(x), np.ptp(y), 1e-9)
    column = np.rint(size / 2 + (x - (x.min() + x.max()) / 2) * scale).astype(int)
    row = np.rint(size / 2 - (y - (y.min() + y.max()) / 2) * scale).astype(int)
    # Points cover about half of the view: dots as large as it takes to leave few holes.
    dot = int(np.clip(round(1.3 * size * math.sqrt(0.5 / len(coord))), 1, 9))
    dots = np.mgrid[:dot, :dot].reshape(2, -1) - dot // 2
    order = np.argsort(near, kind="stable")
    rows = np.clip(row[order, None] + dots[0], 0, size - 1)
    columns = np.clip(column[order, None] + dots[1], 0, size - 1)
    # Of several values for one pixel, numpy keeps the last.
    image[rows.ravel(), columns.ravel()] = np.repeat(colors[order], dot * dot, axis=0)
    return image


def _entries(
    predicted: np.ndarray, truth: np.ndarray | None, classes: Sequence[str]
) -> list[tuple[tuple[int, int, int], str]]:
    entries = []
    for label, (name, color) in enumerate(zip(classes, palette(classes), strict=True)):
        found = predicted == label
        if truth is None:
            if found.any():
                entries.append((color, name))
        elif (truth == label).any():
            right = found[truth == label].mean()
            entries.append((color, f"{name} {100 * right:.0f} %"))
        elif found.any():
            entries.append((color, f"{name} (not there)"))
    return entries


def _legend(
    entries: Sequence[tuple[tuple[int, int, int], str]], width: int, font: ImageFont.ImageFont
) -> Image.Image:
    """A white strip, as many rows high as the entries need."""
    side = font.size
    line, places, x, y = math.ceil(1.7 * side), [], side, 0
    for _, text in entries:
        length = math.ceil(font.getlength(text)) + 3 * side
        if x + length > width and x > side:
            x, y = side, y + line
        places.append((x, y))
        x += length
    strip = Image.new("RGB", (width, y + line), "white")
    draw = ImageDraw.Draw(strip)
    for (color, text), (x, y) in zip(entries, places, strict=True):
        top = y + (line - side) // 2
        draw.rectangle((x, top, x + side - 1, top + side - 1), fill=color, outline=_INK)
        draw.text((x + 1.4 * side, y + line / 2), text, _INK, font, anchor="lm")
    return strip


def show_room(coord: np.ndarray, *colors: np.ndarray, title: str = "") -> None:
    """Open a window of Open3D with the room once for each colouring, side by side, to turn around.

    Args:
        coord: Float (N, 3), metres.
        colors: Uint8 (N, 3) each, such as ``class_colors`` gives.
        title: That of the window.

    Raises:
        RuntimeError: There is no display.
    """
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        raise RuntimeError(
            "there is no display to open a window on: write pictures by draw_room, or .ply files "
            "by write_ply to look at elsewhere"
        )
    import open3d

    step = 1.1 * np.ptp(coord[:, 0])
    clouds = []
    for number, values in enumerate(colors):
        points = coord.astype(np.float64) - coord.mean(axis=0) + (number * step, 0, 0)
        cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
        cloud.colors = open3d.utility.Vector3dVector(values / 255.0)
        clouds.append(cloud)
    open3d.visualization.draw_geometries(clouds, window_name=title)
