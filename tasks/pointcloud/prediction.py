"""The classes of the points of a room's file, as numbers, as a cloud and as a picture."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import print_log

from dr2net.openmmlab.loaders import of_the_test

from .pictures import class_colors, class_entries, draw_room, draw_views
from .room_files import ENDINGS, is_room, read_room
from .room_writing import write_ply

KIND = "room, a folder with coord.npy or a file"
# The arguments of ``predictor`` that a command line gives.
OPTIONS = ("white",)

is_input = is_room

__all__ = [
    "ENDINGS",
    "KIND",
    "OPTIONS",
    "draw_item",
    "draw_tested",
    "is_input",
    "name_of",
    "predictor",
]


def predictor(
    model: Any, config: Config, classes: list[str] | None, white: float | None = None
) -> Callable[[Path, Path], dict]:
    """Return what predicts a room: given its file or folder and a path without an ending.

    It raises ``BadRoomError``, a ValueError, where that cannot be read as a room. It writes a
    picture, and a .ply file with all points in their order, in the colours of their classes, whose
    property ``segment`` has the numbers of these. Its result has ``points``, ``has_colors``, and
    ``classes``: ``label``, ``class`` and the number of ``points`` of those that were found.

    Labels in the file are not used: tools/test.py compares with them.

    Args:
        model: One that ``FullResolutionSegmentor`` made, in eval mode.
        config: Its config.
        classes: The names of its classes; None to name them by their numbers.
        white: The number of full brightness in the files, see ``room_files.read_room``.

    Raises:
        ValueError: The model is another.
    """
    if not hasattr(model, "full_resolution_testing"):
        raise ValueError(
            f"{type(model).__name__} is no FullResolutionSegmentor, which predicts every point: "
            "wrap it as configs/_base_/models/pix4point_s.py does"
        )
    dataset = of_the_test(config.get("test_dataloader"))
    pack = Compose([dict(step) for step in dataset.pipeline])
    # As trained: a network that never saw colours gets none.
    colors = None if dataset.get("colors", True) else False
    if white is None:
        white = dataset.get("white")
    names = list(classes or ())
    names += [f"class {n}" for n in range(len(names), model.decode_head.num_classes)]

    def predict(path: Path, target: Path) -> dict:
        room = read_room(path, white=white, labels=False, colors=colors)
        if colors is None and not room.has_colors:
            print_log(
                f"{path} has no colours: its points are taken for black, which a network that was "
                "trained with colours may not be used to",
                logger="current",
                level=logging.WARNING,
            )
        given = {"coord": room.coord, "color": room.color.astype(np.float32), "name": path.name}
        with torch.no_grad():
            (sample,) = model.test_step(pseudo_collate([pack(given)]))
        found = sample.pred_segment.cpu().numpy()
        shown = class_colors(found, names)
        coord = room.coord
        if any(room.origin):  # back to where it was
            coord = coord.astype(np.float64) + room.origin
        write_ply(target.with_name(f"{target.name}.ply"), coord, shown, found, names)
        title = f"{path.name}: {len(found):,} points"
        picture = target.with_name(f"{target.name}.png")
        draw_room(picture, room.coord, room.color, found, classes=names, title=title)
        counts = np.bincount(found, minlength=len(names)).tolist()
        return {
            "points": len(found),
            "has_colors": room.has_colors,
            "classes": [
                {"label": label, "class": names[label], "points": count}
                for label, count in enumerate(counts)
                if count
            ],
        }

    return predict


def name_of(sample: Any) -> str:
    """Return what the picture of a tested room is called."""
    return str(sample.get("name", "room")).replace("/", "_")


def draw_tested(
    sample: Any, batch: dict, number: int, classes: list[str] | None, target: Path
) -> None:
    """Write ``<target>.png`` of a tested room: its colours, true classes and predicted classes.

    Args:
        sample: What a ``FullResolutionSegmentor`` returned.
        batch: What it was given, as ``PackRoom`` makes it.
        number: Of the room in the batch.
        classes: The names of the classes.
        target: A path without an ending.
    """
    found = sample.pred_segment.cpu().numpy()
    coord, color = (batch["inputs"][key][number].numpy() for key in ("coord", "color"))
    truth = sample.gt_segment.cpu().numpy() if "gt_segment" in sample else None
    draw_room(
        target.with_name(f"{target.name}.png"),
        coord,
        color.astype(np.uint8),
        found,
        truth,
        classes or (),
        title=f"{sample.get('name')}: {len(found):,} points",
    )


def draw_item(item: Any, classes: list[str] | None, target: Path) -> None:
    """Write ``<target>.png`` of an item of a data set: the points that a network gets.

    Args:
        item: From a dataset, packed by ``PackPoints`` or ``PackRoom``.
        classes: The names of the classes.
        target: A path without an ending.
    """
    inputs, sample = item["inputs"], item["data_samples"]
    if "color" in inputs:
        color = inputs["color"].numpy()
    else:  # normalised
        color = inputs["feat"][:, :3].numpy()
        low, high = color.min(axis=0), color.max(axis=0)
        color = (color - low) * (255 / np.maximum(high - low, 1e-6))
    truth = sample.gt_segment.numpy() if "gt_segment" in sample else None
    views = {"colours": color.astype(np.uint8)}
    if truth is not None:
        views["classes"] = class_colors(truth, classes or ())
    title = f"{sample.get('name')}: {len(inputs['coord']):,} points"
    legend = class_entries(truth, classes or ())
    draw_views(
        target.with_name(f"{target.name}.png"),
        inputs["coord"].numpy(),
        views,
        legend,
        title,
        opened=False,
    )
