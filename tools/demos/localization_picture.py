"""The localization demo's picture: memory and curves, and what each way finds in a test video."""

from pathlib import Path

import matplotlib.pyplot as plt
from mmengine.config import Config

from tasks.video.localization.annotations import read_database
from tasks.video.localization.pictures import draw_lanes
from tasks.video.localization.prediction import finder
from tools.demos.motion_videos import CLASSES
from tools.demos.picture import count_panels, draw_panels
from tools.figures import save_figure
from tools.predict import load_model

WIDTH = 13.0  # inches


def draw(
    path: Path,
    result: dict,
    networks: dict[str, tuple[Path, Path]],
    settings: dict[str, str],
) -> None:
    """Write a PNG file.

    Args:
        path: The file.
        result: As for ``picture.draw_panels``.
        networks: By way, the config file and the trained weights of a network.
        settings: What is changed of the configs.
    """
    lanes, seconds = find_in_first_video(networks, settings)
    figure = plt.figure(figsize=(WIDTH, 9.0), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(4.6, 4.4))
    draw_panels(
        above.subplots(1, count_panels(result)),
        result,
        "mAP",
        title="Videos not trained on",
        label="average mAP (%)",
        loss_label="focal and DIoU loss",
    )
    panel = below.subplots()
    draw_lanes(panel, lanes, (0.0, seconds))
    panel.set_title(
        f"A test video: its {len(lanes['truth'])} actions, and the best as many that each way finds"
    )
    save_figure(figure, path)


def find_in_first_video(
    networks: dict[str, tuple[Path, Path]], settings: dict[str, str]
) -> tuple[dict[str, list[dict]], float]:
    """Return ``truth`` and what each network finds in the first test video, and its seconds.

    Of what a network finds the best actions are taken, as many as there are in truth.
    """
    lanes: dict[str, list[dict]] = {}
    seconds = 0.0
    for name, (config_file, checkpoint) in networks.items():
        config = Config.fromfile(config_file)
        config.merge_from_dict(settings)
        dataset = config.test_dataloader.dataset
        root = Path(dataset.data_root)
        if not lanes:
            database = read_database(root / dataset.ann_file)
            video = next(v for v, entry in database.items() if entry["subset"] == dataset.subset)
            lanes["truth"], seconds = database[video]["annotations"], database[video]["duration"]
        model, _ = load_model(config, str(checkpoint), "cpu")
        find = finder(model, config, CLASSES)
        found = find(root / dataset.data_prefix.video / f"{video}.mp4", seconds)
        lanes[name] = found[: len(lanes["truth"])]
    return lanes, seconds
