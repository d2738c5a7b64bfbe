import filecmp
import json

import numpy as np
import pytest

pytest.importorskip("cv2")
import cv2

from tools.demos import small_object_images
from tools.demos.small_object_images import (
    CONTRASTS,
    SHAPES,
    SIDE,
    SIZES,
    draw_image,
    write_data_set,
)

PARTS = ["pretrain", "finetune"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A small set of images, which tests must not change."""
    folder = tmp_path_factory.mktemp("data") / "small_objects"
    write_data_set(folder, shrink=100)
    return folder


@pytest.fixture(params=PARTS)
def drawn(request):
    image, objects = draw_image(request.param, np.random.default_rng(1))
    return image, np.array(objects)


def test_configs_of_both_parts_name_the_classes_in_their_order():
    pytest.importorskip("mmdet")
    from mmengine.config import Config

    from tools.demos.detection import DEMO

    for path in (DEMO.pretraining, *DEMO.ways.values()):
        config = Config.fromfile(path)
        assert config.model.detector.bbox_head.num_classes == len(SHAPES)
        for dataset in (config.train_dataloader.dataset.dataset, config.val_dataloader.dataset):
            assert list(dataset.metainfo.classes) == list(SHAPES)


def test_parts_differ_in_ground_and_contrast():
    warm, cold = (draw_image(part, np.random.default_rng(0))[0] for part in PARTS)
    assert warm[..., 0].mean() > warm[..., 2].mean() + 30
    assert cold[..., 2].mean() > cold[..., 0].mean() + 20
    for weaker, stronger in zip(CONTRASTS["finetune"], CONTRASTS["pretrain"], strict=True):
        assert weaker < stronger
    # Of the same random numbers, what is drawn differs in the mean colour and its strength.
    assert (cold.std(axis=(0, 1)) < warm.std(axis=(0, 1))).all()


def test_objects_of_every_class_are_many_and_mostly_of_8_to_32_pixels(drawn):
    image, objects = drawn
    assert image.shape == (SIDE, SIDE, 3)
    assert image.dtype == np.uint8
    sides = objects[:, 3:].max(axis=1)
    assert len(objects) == small_object_images.OBJECTS >= 100
    assert sides.min() >= SIZES[0]
    assert sides.max() <= SIZES[1]
    assert (sides <= 32).mean() > 0.6
    assert np.bincount(objects[:, 0], minlength=len(SHAPES)).min() > len(objects) / 16


def test_boxes_lie_in_the_image_and_apart(drawn):
    boxes = drawn[1][:, 1:]
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    assert low.min() >= 0
    assert high.max() <= SIDE
    shared = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    np.fill_diagonal(shared[..., 0], -1)
    assert not (shared > 0).all(axis=-1).any()


@pytest.mark.parametrize("part", PARTS)
def test_box_is_where_the_object_is(part, monkeypatch):
    # On even ground without scraps, what differs from the ground is the object.
    monkeypatch.setattr(small_object_images, "OBJECTS", 1)
    monkeypatch.setattr(small_object_images, "SCRATCHES", 0)
    monkeypatch.setattr(small_object_images, "SMUDGES", 0)
    ground = np.full((SIDE, SIDE, 3), 100, np.float32)
    monkeypatch.setattr(small_object_images, "_draw_ground", lambda *_: ground.copy())
    for seed in range(8):
        image, [(_, left, top, width, height)] = draw_image(part, np.random.default_rng(seed))
        rows, columns = np.nonzero((image != 100).any(axis=2))
        found = columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
        # The outermost pixels may show so little of it that nothing is left after rounding.
        np.testing.assert_allclose(found, (left, top, width, height), atol=1)


def test_sizes_do_not_depend_on_the_class():
    sizes = set()
    for shape in SHAPES.values():
        random = np.random.default_rng(0)
        masks = [small_object_images._draw_shape(shape, random) for _ in range(5)]
        sizes.add(tuple(max(mask.shape) for mask in masks))
    assert len(sizes) == 1


def test_files_are_what_was_drawn_in_cocos_format(images):
    coco = json.loads((images / "finetune/val.json").read_text())
    (entry,) = coco["images"]
    pixels = cv2.imread(str(images / "finetune/val" / entry["file_name"]))[..., ::-1]
    key = [small_object_images.SEED, 1, 1, 0]
    image, objects = draw_image("finetune", np.random.default_rng(key))
    assert abs(pixels.astype(int) - image).mean() < 3  # JPEG
    assert [category["name"] for category in coco["categories"]] == list(SHAPES)
    assert [(a["category_id"] - 1, *a["bbox"]) for a in coco["annotations"]] == objects


def test_training_and_test_images_differ(images):
    for part in PARTS:
        assert not filecmp.cmp(images / part / "train/0000.jpg", images / part / "val/0000.jpg")


def test_complete_set_is_kept_and_other_settings_replace_it(images, tmp_path, monkeypatch):
    folder = tmp_path / "small_objects"
    write_data_set(folder, shrink=100)
    assert filecmp.cmp(images / "finetune/train.json", folder / "finetune/train.json", False)
    marked = folder / "finetune/train/0000.jpg"
    marked.write_bytes(b"")
    write_data_set(folder, shrink=100)
    assert marked.read_bytes() == b""
    monkeypatch.setattr(small_object_images, "OBJECTS", 10)
    write_data_set(folder, shrink=100)
    assert marked.read_bytes() != b""
    assert not list(tmp_path.glob("*.partial"))


def test_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="name a folder that is not there yet"):
        write_data_set(tmp_path, shrink=100)
