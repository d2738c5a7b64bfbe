import json
import pickle

import numpy as np
import pytest

pytest.importorskip("mmdet")
import tasks.detection  # noqa: F401  # isort: skip

import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image

from dr2net.openmmlab.random_state import SeededIndex
from tasks.detection import transforms
from tasks.detection.tiles import tile_windows
from tasks.detection.transforms import CropAroundObject, TiledDataset

# x, y, width, height and whether it is a crowd: tiles of 60 pixels that overlap by 20 begin at 0
# and 40 in x, and at 0 and 20 in y.
BOXES = [
    ((2, 2, 10, 10), 0),  # in the first tile alone
    ((35, 5, 10, 10), 0),  # half of it in the second tile, all of it in the first
    ((33, 60, 10, 10), 0),  # three tenths of it in the last tile
    ((70, 70, 20, 10), 1),
]
LOADING = [{"type": "LoadTile"}, {"type": "mmdet.LoadAnnotations", "with_bbox": True}]


def coco_file(folder, annotated_size=(100, 80)):
    """Two images of 100 x 80 pixels, the second without boxes, where each pixel is unique."""
    rows, columns = np.mgrid[:80, :100].astype(np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.stack([rows, columns, rows * 0], axis=2)).save(folder / name)
    width, height = annotated_size
    images = [
        {"id": 5, "file_name": "a.png", "width": width, "height": height},
        {"id": 8, "file_name": "b.png", "width": width, "height": height},
    ]
    annotations = [
        {
            "id": index + 1,
            "image_id": 5,
            "category_id": 1,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": crowd,
            "segmentation": [[0, 0, 1, 0, 1, 1]],
        }
        for index, (box, crowd) in enumerate(BOXES)
    ]
    categories = [{"id": 1, "name": "car"}]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(truth))
    return {
        "type": "mmdet.CocoDataset",
        "data_root": str(folder),
        "ann_file": "truth.json",
        "data_prefix": {"img": ""},
        "metainfo": {"classes": ("car",)},
    }


def tiled(folder, pipeline=LOADING, annotated_size=(100, 80), serialize_data=False, **options):
    # Serialising, as is the default, collects garbage, which takes seconds in a large process.
    config = {
        "type": "TiledDataset",
        "dataset": {**coco_file(folder, annotated_size), "serialize_data": serialize_data},
        "serialize_data": serialize_data,
        "tile_size": 60,
        "overlap": 20,
        "pipeline": pipeline,
        **options,
    }
    return DATASETS.build(config)


def test_every_tile_is_an_item_with_its_boxes_in_its_own_coordinates(tmp_path):
    dataset = tiled(tmp_path, keep_empty=True)
    assert dataset.metainfo["classes"] == ("car",)
    windows = tile_windows(100, 80, 60, 20)
    assert [dataset.get_data_info(index)["tile"] for index in range(len(dataset))] == windows * 2
    first, second, third, last = (dataset[index] for index in range(4))
    assert first["gt_bboxes"].tensor.tolist() == [[2, 2, 12, 12], [35, 5, 45, 15]]
    assert second["gt_bboxes"].tensor.tolist() == [[0, 5, 5, 15]]
    assert third["gt_bboxes"].tensor.tolist() == [[33, 40, 43, 50]]
    assert last["gt_bboxes"].tensor.tolist() == [[0, 40, 3, 50], [30, 50, 50, 60]]
    assert [list(item["gt_ignore_flags"]) for item in (first, second, third, last)] == [
        [False, False],
        [False],  # half of it is more than two fifths
        [False],
        [True, True],  # cut too much; a crowd from the start
    ]
    assert last["gt_bboxes_labels"].tolist() == [0, 0]
    assert dataset[6]["gt_bboxes"].tensor.shape == (0, 4)


def test_a_tile_shows_the_pixels_of_its_window(tmp_path):
    dataset = tiled(tmp_path, keep_empty=True)
    for index, (left, top, right, bottom) in enumerate(tile_windows(100, 80, 60, 20)):
        item = dataset[index]
        rows, columns = np.mgrid[top:bottom, left:right]
        assert np.array_equal(item["img"][..., 2], rows)  # BGR
        assert np.array_equal(item["img"][..., 1], columns)
        assert item["img_shape"] == item["ori_shape"] == (60, 60)
        assert (item["img_id"], item["height"], item["width"]) == (5, 60, 60)


def test_tiles_without_a_box_to_learn_are_dropped_and_counted(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(transforms, "print_log", lambda text, **_: printed.append(text))
    dataset = tiled(tmp_path)
    assert [dataset.get_data_info(index)["tile"] for index in range(len(dataset))] == [
        (0, 0, 60, 60),
        (40, 0, 100, 60),
        (0, 20, 60, 80),
    ]
    tiled(tmp_path, keep_empty=True)
    cut = "2 images cut into 8 tiles of 60 pixels that overlap by 20: "
    assert printed == [
        cut + "5 without boxes to learn dropped, 3 kept, with 4 boxes and 0 ignored ones",
        cut + "0 without boxes to learn dropped, 8 kept, with 4 boxes and 2 ignored ones",
    ]


def test_how_much_a_box_may_be_cut_is_configurable(tmp_path):
    flags = tiled(tmp_path, keep_empty=True, ignored_part=0.2)[3]["gt_ignore_flags"]
    assert list(flags) == [False, True]
    assert list(tiled(tmp_path, keep_empty=True, ignored_part=0.5)[1]["gt_ignore_flags"]) == [True]


def test_a_tiled_dataset_goes_to_the_workers_of_a_dataloader(tmp_path):
    dataset = pickle.loads(pickle.dumps(tiled(tmp_path, serialize_data=True)))
    assert dataset[1]["gt_bboxes"].tensor.tolist() == [[0, 5, 5, 15]]
    assert len(dataset.get_subset([0, 2])) == 2


def test_testing_on_tiles_of_the_annotation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a box in the overlap of two tiles would count twice"):
        tiled(tmp_path, test_mode=True)


def test_an_image_of_another_size_than_annotated_is_named(tmp_path):
    dataset = tiled(tmp_path, annotated_size=(120, 80))
    with pytest.raises(
        ValueError, match=r"a\.png \(image id 5\) has .* \(80, 100\), .* says \(80, 120\)"
    ):
        dataset[0]


def test_augmentation_of_a_tile_comes_from_the_seed_of_its_sample(tmp_path):
    pipeline = [*LOADING, {"type": "CropAroundObject", "tile_size": 20}]
    dataset = tiled(tmp_path, pipeline)

    def crops(seed):
        return [dataset[SeededIndex(0, (seed, step))]["tile"] for step in range(8)]

    assert crops(1) == crops(1)
    assert crops(1) != crops(2)


def results(boxes, flags=None, size=(200, 150)):
    width, height = size
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return {
        "img": np.stack([rows, columns, rows], axis=2),
        "gt_bboxes": HorizontalBoxes(boxes),
        "gt_bboxes_labels": np.arange(len(boxes)),
        "gt_ignore_flags": np.array(flags if flags else [False] * len(boxes), bool),
    }


@pytest.mark.parametrize(
    ("box", "places"),
    [
        ((0, 0, 8, 8), 1),  # a corner
        ((190, 140, 200, 150), 1),
        ((60, 50, 124, 114), 1),  # as large as the tile
        ((60, 50, 122, 114), 3),
        ((90.5, 70.2, 101.7, 80.9), 50),
    ],
)
def test_a_crop_shows_its_object_whole_and_lies_in_the_image(box, places):
    np.random.seed(0)  # noqa: NPY002 - mmdet's transforms draw from it
    windows = set()
    for _ in range(60):
        cropped = CropAroundObject(64)(results([box]))
        left, top, right, bottom = cropped["tile"]
        assert left >= 0
        assert top >= 0
        assert right <= 200
        assert bottom <= 150
        assert cropped["img_shape"] == (bottom - top, right - left) == (64, 64)
        expected = np.array(box, np.float32) - np.array([left, top, left, top], np.float32)
        assert cropped["gt_bboxes"].numpy().tolist() == [expected.tolist()]
        assert cropped["gt_ignore_flags"].tolist() == [False]
        assert cropped["img"][0, 0, :2].tolist() == [top, left]
        windows.add((left, top))
    assert min(len(windows), 50) == places


def test_crops_reach_every_object_but_none_for_the_sake_of_an_ignored_one():
    np.random.seed(0)  # noqa: NPY002
    boxes = [(0, 0, 10, 10), (190, 0, 200, 10), (0, 140, 10, 150)]
    shown = np.zeros(3, int)
    for _ in range(200):
        cropped = CropAroundObject(40)(results(boxes, [False, True, False]))
        shown[cropped["gt_bboxes_labels"]] += 1
    assert shown[1] == 0
    assert shown[[0, 2]].sum() == 200
    assert (shown[[0, 2]] > 70).all()


def test_a_crop_follows_the_rule_for_cut_boxes():
    """An object larger than the crop fills it; a third of its area is seen."""
    large = [(10, 20, 110, 140)]
    cropped = CropAroundObject(64)(results(large))
    assert cropped["gt_bboxes"].numpy().tolist() == [[0, 0, 64, 64]]
    assert cropped["gt_ignore_flags"].tolist() == [True]
    assert CropAroundObject(64, ignored_part=0.3)(results(large))["gt_ignore_flags"] == [False]


def test_ignored_objects_stay_ignored_in_a_crop():
    boxes = [(50, 50, 60, 60), (52, 52, 58, 58)]
    cropped = CropAroundObject(64)(results(boxes, [False, True]))
    assert cropped["gt_ignore_flags"].tolist() == [False, True]


def test_an_image_without_objects_is_cropped_anywhere():
    np.random.seed(0)  # noqa: NPY002
    tiles = [CropAroundObject(64)(results([]))["tile"] for _ in range(100)]
    assert len(set(tiles)) > 90
    assert max(x2 for _, _, x2, _ in tiles) > 190
    assert CropAroundObject(64)(results([]))["gt_bboxes"].tensor.shape == (0, 4)


@pytest.mark.parametrize("size", [(50, 40), (50, 150), (64, 64)])
def test_an_image_smaller_than_a_tile_stays_whole(size):
    np.random.seed(0)  # noqa: NPY002
    cropped = CropAroundObject(64)(results([(5, 5, 15, 15)], size=size))
    assert cropped["img_shape"] == (min(size[1], 64), min(size[0], 64))


def test_a_crop_is_registered_takes_arrays_and_repeats_with_its_seed():
    crop = TRANSFORMS.build({"type": "CropAroundObject", "tile_size": 64})
    first, second = (
        {**results([(5, 5, 15, 15), (90, 90, 99, 99)]), "gt_bboxes": boxes}
        for boxes in (
            np.array([[5, 5, 15, 15], [90, 90, 99, 99]], np.float32),
            HorizontalBoxes(torch.tensor([[5.0, 5, 15, 15], [90, 90, 99, 99]])),
        )
    )
    np.random.seed(3)  # noqa: NPY002
    first = crop(first)
    np.random.seed(3)  # noqa: NPY002
    second = crop(second)
    assert first["tile"] == second["tile"]
    assert isinstance(first["gt_bboxes"], np.ndarray)
    assert np.array_equal(first["gt_bboxes"], second["gt_bboxes"].numpy())


def test_masks_are_refused():
    with pytest.raises(ValueError, match="cuts boxes only"):
        CropAroundObject(64)({**results([]), "gt_masks": object()})


def test_nonsense_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="tile_size=0"):
        CropAroundObject(0)
    with pytest.raises(ValueError, match="overlap=60"):
        TiledDataset(coco_file(tmp_path), tile_size=60, overlap=60)
