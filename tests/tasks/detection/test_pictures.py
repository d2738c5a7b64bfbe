import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmdet")
import tasks.detection  # noqa: F401  # isort: skip

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from PIL import Image

from tasks.detection.pictures import class_colors, draw_ap_by_size, draw_detections, draw_sample
from tasks.detection.tiles import tile_windows

CLASSES = ("car", "person", "van")
GRAY = (90, 90, 90)
WHITE = (255, 255, 255)


@pytest.fixture
def photograph():
    return np.full((200, 300, 3), GRAY, np.uint8)


def draw(image, boxes, labels, folder, **options):
    file = folder / "picture.png"
    draw_detections(image, np.array(boxes), np.array(labels), CLASSES, file, **options)
    with Image.open(file) as picture:
        return np.array(picture.convert("RGB"))


def has(pixels, color):
    return (pixels == color).all(axis=-1)


def test_the_outline_of_a_box_lies_around_it_and_nothing_else_changes(photograph, tmp_path):
    picture = draw(photograph, [(40, 50, 60, 80)], [1], tmp_path)
    expected = photograph.copy()
    expected[49:81, 39:61] = class_colors(3)[1]
    expected[50:80, 40:60] = GRAY
    assert np.array_equal(picture[:200], expected)


def test_boxes_at_and_beyond_the_edges_of_the_image_are_outlined_inside_it(photograph, tmp_path):
    picture = draw(photograph, [(0, 0, 20, 30), (280, 150, 310, 220)], [0, 0], tmp_path)
    red = has(picture[:200], class_colors(3)[0])
    assert red[:31, 0].all()
    assert red[0, :21].all()
    assert red[149:200, 299].all()
    assert red[199, 279:300].all()


def test_tiles_are_outlined_in_white(photograph, tmp_path):
    tiles = tile_windows(300, 200, 200, 50)
    white = has(draw(photograph, [], [], tmp_path, tiles=tiles)[:200], WHITE)
    assert white[100].nonzero()[0].tolist() == [0, 100, 199, 299]
    assert white[:, 50].nonzero()[0].tolist() == [0, 199]


def test_lines_are_wider_in_large_images(tmp_path):
    picture = draw(np.zeros((30, 3000, 3), np.uint8), [(1000, 10, 1020, 20)], [0], tmp_path)
    red = has(picture[15], class_colors(3)[0])
    assert red.nonzero()[0].tolist() == [997, 998, 999, 1020, 1021, 1022]


def test_the_legend_under_the_image_shows_the_classes_that_have_boxes(photograph, tmp_path):
    """A name for each, and rows enough for all of them."""
    picture = draw(photograph, [(9, 9, 20, 20)] * 3, [0, 2, 2], tmp_path, tiles=[(0, 0, 99, 99)])
    assert picture.shape[0] > 200
    assert picture.shape[1] == 300
    legend, colors = picture[200:], class_colors(3)
    shown = [has(legend, color).sum() > 50 for color in (*colors, WHITE)]
    assert shown == [True, False, True, True]
    names = tuple(f"a class with a long name, number {index}" for index in range(12))
    file = tmp_path / "many.png"
    draw_detections(photograph, np.ones((12, 4)), np.arange(12), names, file)
    with Image.open(file) as many:
        assert many.height >= 200 + 12 * 12
        for color in class_colors(12):
            assert has(np.array(many)[200:], color).sum() > 50


@pytest.mark.parametrize("count", [1, 3, 10, 80])
def test_classes_have_different_colors_and_none_is_that_of_tiles(count):
    assert len({*class_colors(count), WHITE}) == count + 1


def test_a_tested_image_is_drawn_with_its_likely_predictions_and_its_tiles(photograph, tmp_path):
    Image.fromarray(photograph).save(tmp_path / "image.png")
    sample = DetDataSample(metainfo={"img_path": str(tmp_path / "image.png")})
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[40.0, 50, 60, 80], [100, 100, 120, 120]]),
        labels=torch.tensor([0, 1]),
        scores=torch.tensor([0.8, 0.2]),
    )
    for threshold, tiles in ((0.3, False), (0.1, True)):
        if tiles:
            sample.set_metainfo({"tiles": [(0, 0, 150, 150)]})
        draw_sample(sample, CLASSES, tmp_path / "picture.jpg", threshold)
        draw_sample(sample, CLASSES, tmp_path / "picture.png", threshold)
        with Image.open(tmp_path / "picture.jpg") as picture:
            assert picture.width == 300
        with Image.open(tmp_path / "picture.png") as picture:
            pixels = np.array(picture)[:200]
        assert has(pixels, class_colors(3)[0])[49:81, 39].all()
        assert has(pixels, class_colors(3)[1]).any() == (threshold < 0.2)
        assert has(pixels, WHITE).any() == tiles


def test_a_real_photograph_keeps_its_pixels_inside_the_boxes(tmp_path):
    folder = Path(__file__).parents[4] / "shared/data/real/detection"
    if not folder.is_dir():
        pytest.skip(f"no real photographs in {folder}")
    truth = json.loads((folder / "terrain1_coco.json").read_text())
    boxes = np.array([annotation["bbox"] for annotation in truth["annotations"]])
    boxes[:, 2:] += boxes[:, :2]
    with Image.open(folder / "terrain1.jpg") as image:
        pixels = np.array(image.convert("RGB"))
    picture = draw(pixels, boxes, [0] * len(boxes), tmp_path)
    red = has(picture[:1365], class_colors(3)[0])
    assert picture.shape[1] == 2048
    for left, top, right, bottom in boxes.astype(int):
        assert red[top - 1, left:right].all()
        assert red[bottom, left:right].all()
        assert red[top:bottom, left - 1].all()
        assert red[top:bottom, right].all()
    changed = (picture[:1365] != pixels).any(axis=-1)
    assert not (changed & ~red).any()


def bars(file):
    """Heights in pixels of the coloured bars, from left to right."""
    with Image.open(file) as picture:
        blue = has(np.array(picture.convert("RGB")), (31, 119, 180))
    heights = blue.sum(axis=0)
    starts = ((heights > 0) & (np.roll(heights, 1) == 0)).nonzero()[0]
    return [int(heights[start + 5]) for start in starts]


def test_ap_by_size_is_drawn_to_scale_in_the_metrics_order(tmp_path):
    metrics = {"coco/AP": 0.9, "coco/AP_50": 0.9, "coco/AP_eS": 0.1, "coco/AP_N": 0.4}
    draw_ap_by_size({**metrics, "coco/AP_rS": 0.2}, tmp_path / "ap.png", "SODA-D")
    first, second, third = bars(tmp_path / "ap.png")
    assert second == pytest.approx(4 * first, abs=4)
    assert third == pytest.approx(2 * first, abs=4)


@pytest.mark.parametrize("nothing", [-1.0, float("nan")])
def test_sizes_without_objects_have_no_bar(nothing, tmp_path):
    draw_ap_by_size({"bbox_mAP_s": 0.3, "bbox_mAP_l": nothing}, tmp_path / "ap.png")
    assert len(bars(tmp_path / "ap.png")) == 1
    draw_ap_by_size({"AP_vt": nothing, "AP_t": 0.0}, tmp_path / "ap.png")
    assert bars(tmp_path / "ap.png") == []


def test_metrics_without_ap_by_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no AP by size among \['AP', 'AP_50', 'AR_S'\]"):
        draw_ap_by_size({"AP": 0.5, "AP_50": 0.6, "AR_S": 0.7}, tmp_path / "ap.png")
