"""The point cloud demo's picture: memory and curves, and a test room as a network sees it."""

from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from PIL import Image

from tasks.pointcloud.pictures import draw_room
from tools.demos.picture import count_panels, draw_panels
from tools.figures import save_figure

WIDTH = 13.0  # inches


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
        config: Config file of the network that segments.
        settings: What is changed of the config.
        checkpoint: Its finetuned weights.
    """
    room = picture_of_room(config, settings, checkpoint)
    above, below = 4.6, WIDTH * room.shape[0] / room.shape[1]
    figure = plt.figure(figsize=(WIDTH, above + below), layout="constrained")
    parts = figure.subfigures(2, 1, height_ratios=(above, below))
    draw_panels(
        parts[0].subplots(1, count_panels(result)),
        result,
        "mIoU",
        title="Rooms not trained on, every point",
        label="mIoU (%)",
        loss_label="cross-entropy (nats)",
    )
    panel = parts[1].subplots()
    panel.imshow(room)
    panel.set_axis_off()
    save_figure(figure, path)


def picture_of_room(config_file: Path, settings: dict[str, str], checkpoint: Path) -> np.ndarray:
    """Test the network on the first test room; return true and predicted classes as an image."""
    config = Config.fromfile(config_file)
    config.merge_from_dict(settings)
    init_default_scope(config.default_scope)
    dataset = DATASETS.build(config.test_dataloader.dataset)
    model = MODELS.build(config.model).eval()
    load_checkpoint(model, str(checkpoint), map_location="cpu", logger="silent")
    data = pseudo_collate([dataset[0]])
    with torch.no_grad():
        (sample,) = model.test_step(data)
    coord, color = (data["inputs"][key][0].numpy() for key in ("coord", "color"))
    truth, predicted = sample.gt_segment.numpy(), sample.pred_segment.numpy()
    title = f"A test room: {100 * (predicted == truth).mean():.1f} % of {len(truth):,} points right"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "room.png"
        draw_room(file, coord, color.astype(np.uint8), predicted, truth, title=title)
        return np.array(Image.open(file))
