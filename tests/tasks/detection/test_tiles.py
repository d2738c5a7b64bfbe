import numpy as np
import pytest

pytest.importorskip("mmdet")
import tasks.detection  # noqa: F401  # isort: skip

import torch

from tasks.detection.tiles import cut_boxes, merge_detections, tile_windows

SIZES = [(4000, 3000), (2048, 1365), (801, 800), (800, 800), (799, 2000), (300, 200), (1, 1)]


@pytest.mark.parametrize("image_size", SIZES)
@pytest.mark.parametrize(("tile_size", "overlap"), [(800, 150), (512, 0), (256, 255), (1024, 60)])
def test_tiles_cover_every_pixel_and_lie_inside_the_image(image_size, tile_size, overlap):
    width, height = image_size
    if overlap == 255:  # a tile at every pixel
        width, height = min(width, 270), min(height, 262)
    seen = np.zeros((height, width), bool)
    windows = tile_windows(width, height, tile_size, overlap)
    for left, top, right, bottom in windows:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert (right - left, bottom - top) == (min(tile_size, width), min(tile_size, height))
        seen[top:bottom, left:right] = True
    assert seen.all()
    assert len(set(windows)) == len(windows)


def test_default_tiles_are_those_of_the_soda_d_paper():
    """800 pixels at a stride of 650; the last one moved in to the edge."""
    assert sorted({window[0] for window in tile_windows(2048, 1365)}) == [0, 650, 1248]
    assert sorted({window[1] for window in tile_windows(2048, 1365)}) == [0, 565]


@pytest.mark.parametrize(("width", "count"), [(800, 1), (801, 2), (1450, 2), (1451, 3)])
def test_a_further_tile_begins_where_the_last_one_ends(width, count):
    assert len(tile_windows(width, 10)) == count


@pytest.mark.parametrize("width", [150, 149, 8])
@pytest.mark.parametrize("image_width", [2048, 1601, 800])
def test_boxes_up_to_the_overlap_are_whole_in_some_tile(width, image_width):
    windows = tile_windows(image_width, 100, 800, 150)
    for left in range(image_width - width + 1):
        assert any(x1 <= left and left + width <= x2 for x1, _, x2, _ in windows)


@pytest.mark.parametrize(("tile_size", "overlap"), [(100, 100), (100, -1), (0, 0)])
def test_tiles_that_do_not_cover_an_image_are_refused(tile_size, overlap):
    with pytest.raises(ValueError, match=f"tile_size={tile_size}, overlap={overlap}"):
        tile_windows(500, 500, tile_size, overlap)


def test_a_tile_shows_the_visible_parts_in_its_own_coordinates():
    boxes = np.array([[10, 20, 30, 40], [95, 60, 115, 80], [190, 90, 220, 130], [200, 50, 210, 60]])
    seen, parts, ignored = cut_boxes(boxes.astype(np.float32), (100, 50, 200, 100))
    assert seen.tolist() == [1, 2]  # the first is elsewhere, the last begins at the edge
    assert parts.tolist() == [[0, 10, 15, 30], [90, 40, 100, 50]]
    assert ignored.tolist() == [False, True]  # 3/4 visible; 1/3 of the width, 1/4 of the height


@pytest.mark.parametrize(("visible", "ignored"), [(3, True), (4, True), (5, False), (10, False)])
def test_boxes_are_ignored_at_two_fifths_of_their_area_or_less(visible, ignored):
    """SODA-D's split: ``ignore`` where the area ratio is <= interAreaIgnThr, 0.40."""
    box = np.array([[100.0 - visible, 0, 110 - visible, 10]])
    assert cut_boxes(box, (0, 0, 100, 100))[2].tolist() == [ignored]
    assert cut_boxes(box, (0, 0, 100, 100), ignored_part=0.1)[2].tolist() == [False]


def test_no_boxes_are_cut_to_no_boxes():
    seen, parts, ignored = cut_boxes(np.zeros((0, 4)), (0, 0, 10, 10))
    assert (seen.shape, parts.shape, ignored.shape) == ((0,), (0, 4), (0,))


# Two tiles side by side that share the columns from 80 to 100, of an image of 180 x 100.
LEFT, RIGHT = (0, 0, 100, 100), (80, 0, 180, 100)


def merge(*detections, windows=(LEFT, RIGHT), **settings):
    """Indices kept of (tile, box, score) or (tile, box, score, class)."""
    tiles, boxes, scores, *labels = zip(*detections, strict=True)
    labels = torch.tensor(labels[0]) if labels else torch.zeros(len(tiles), dtype=torch.long)
    kept = merge_detections(
        torch.tensor(boxes, dtype=torch.float32),
        torch.tensor(scores),
        labels,
        torch.tensor(tiles),
        windows,
        (180, 100),
        **settings,
    )
    return kept.tolist()


def test_a_part_loses_against_the_whole_even_with_a_higher_score():
    """IoU 0.3: NMS alone keeps both."""
    whole, part = (0, (74, 10, 94, 30), 0.5), (1, (80, 10, 86, 30), 0.9)
    assert merge(whole, part) == [0]
    assert merge(whole, part, cover_threshold=1.01) == [1, 0]


def test_a_part_whose_box_is_not_quite_at_the_edge_loses_too():
    whole, part = (0, (74, 10, 94, 30), 0.5), (1, (82.5, 11, 88, 32), 0.9)
    assert merge(whole, part) == [0]
    assert merge(whole, part, edge_margin=2) == [1, 0]


def test_a_part_whose_box_is_larger_than_the_whole_loses_too():
    assert merge((0, (76, 12, 92, 28), 0.5), (1, (80, 10, 94, 30), 0.9)) == [0]


def test_a_part_that_no_other_tile_confirms_is_kept():
    assert merge((1, (80, 10, 86, 30), 0.9), (0, (30, 10, 50, 30), 0.5)) == [0, 1]


def test_a_part_loses_only_against_detections_of_another_tile():
    """Of two objects in one tile, the detector decided itself that they are two."""
    assert merge((1, (82, 10, 90, 30), 0.9), (1, (85, 10, 115, 40), 0.5)) == [0, 1]


def test_a_part_loses_only_against_its_own_class():
    whole, part = (0, (74, 10, 94, 30), 0.5, 1), (1, (80, 10, 86, 30), 0.9, 2)
    assert merge(whole, part) == [1, 0]
    assert merge(whole, part, class_agnostic=True) == [0]


def test_of_two_parts_the_larger_remains():
    """An object wider than the overlap, whole in no tile."""
    assert merge((0, (62, 10, 100, 30), 0.5), (1, (80, 10, 110, 30), 0.9)) == [0]
    assert merge((1, (80, 10, 110, 30), 0.9), (0, (62, 10, 100, 30), 0.5)) == [1]


def test_the_whole_image_cuts_nothing():
    """What reaches from edge to edge of it is whole, and clears parts in tiles."""
    windows = (LEFT, RIGHT, (0, 0, 180, 100))
    parts = [(0, (0, 10, 100, 90), 0.9), (1, (80, 10, 180, 90), 0.9)]
    assert merge(*parts, (2, (0, 10, 180, 90), 0.3), windows=windows) == [2]


def test_edges_of_the_image_make_no_parts():
    """Both lie at outer edges of their tile; the second would lose if one of these were inner."""
    covering = (0, (150, 0, 180, 30), 0.9)
    assert merge(covering, (1, (170, 0, 180, 10), 0.5)) == [0, 1]


def test_the_same_object_of_two_tiles_is_kept_once_with_the_higher_score():
    assert merge((0, (85, 10, 95, 20), 0.5), (1, (85.5, 10, 95, 20), 0.9)) == [1]


@pytest.mark.parametrize(("threshold", "kept"), [(0.5, [1]), (0.6, [1, 0])])
def test_boxes_that_overlap_beyond_the_threshold_are_one_object(threshold, kept):
    """IoU 0.54."""
    detections = (0, (30, 10, 40, 20), 0.5), (0, (33, 10, 43, 20), 0.9)
    assert merge(*detections, iou_threshold=threshold) == kept


def test_boxes_of_many_classes_are_told_apart_exactly():
    """IoU 0.4997, which float32 makes 0.502 where NMS has moved class 80 out of the others' way."""
    boxes = [[9000, 0, 9008.04, 8], [9000, 0, 9016.09, 8], [9990, 90, 10000, 100]]
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([80, 80, 0])
    sources = torch.zeros(3, dtype=torch.long)
    whole = (0, 0, 10000, 100)
    kept = merge_detections(torch.tensor(boxes), scores, labels, sources, [whole], (10000, 100))
    assert kept.tolist() == [0, 1, 2]


def test_no_detections_merge_to_none():
    empty = torch.zeros(0)
    kept = merge_detections(
        torch.zeros(0, 4), empty, empty.long(), empty.long(), [LEFT, RIGHT], (180, 100)
    )
    assert kept.shape == (0,)
