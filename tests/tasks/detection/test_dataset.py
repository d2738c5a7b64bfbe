import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmdet")
import tasks.detection  # isort: skip  # noqa: F401 - mends mmcv before mmdet is imported

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

from dr2net.openmmlab.random_state import SeededIndex
from tasks.detection.annotations import KINDS, SPELLED_OUT, BadInputError
from tasks.detection.class_names import METAINFO
from tasks.detection.dataset import SmallObjectDataset

META = {"classes": ("boat", "car"), "ignored_classes": ("fog",)}
CATEGORIES = [{"id": 4, "name": "car"}, {"id": 0, "name": "fog"}, {"id": 2, "name": "boat"}]
NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture
def logged(monkeypatch):
    """The messages that go to the log."""
    messages = []
    for module in ("dataset", "annotations"):
        monkeypatch.setattr(
            f"tasks.detection.{module}.print_log", lambda message, **_: messages.append(message)
        )
    return messages


@pytest.fixture
def coco(tmp_path):
    """A good COCO file of three images, to be spoilt."""
    sizes = {"a.png": (60, 40), "b.jpg": (50, 50), "c.png": (30, 20), "d.png": (60, 40)}
    for name, size in sizes.items():
        Image.new("RGB", size).save(tmp_path / name)
    return {
        "images": [
            {"id": 11, "file_name": "a.png", "width": 60, "height": 40},
            {"id": 12, "file_name": "b.jpg", "width": 50, "height": 50},
            {"id": 13, "file_name": "c.png", "width": 30, "height": 20},
        ],
        "annotations": [
            {"id": 101, "image_id": 11, "category_id": 4, "bbox": [1, 2, 10, 8], "iscrowd": 0},
            {"id": 102, "image_id": 11, "category_id": 2, "bbox": [20.5, 3, 0.5, 6], "area": 3},
            {"id": 103, "image_id": 12, "category_id": 4, "bbox": [5, 5, 9, 9], "iscrowd": 1},
            {"id": 104, "image_id": 12, "category_id": 2, "bbox": [-2, 5, 9, 9], "iscrowd": 0},
            {"id": 105, "image_id": 13, "category_id": 2, "bbox": [0, 0, 30, 20], "iscrowd": 0},
            {"id": 106, "image_id": 13, "category_id": 0, "bbox": [3, 3, 5, 5], "iscrowd": 0},
        ],
        "categories": [*CATEGORIES],
    }


def build(folder, coco, **options):
    (folder / "truth.json").write_text(json.dumps(coco))
    # Serializing collects garbage first, which takes most of the time here.
    settings = {"metainfo": META, "data_prefix": {"img": ""}, "serialize_data": False} | options
    return SmallObjectDataset(ann_file="truth.json", data_root=str(folder), **settings)


def contents(dataset):
    """Image id and boxes with labels and flags of every item."""
    return {
        item["img_id"]: [(*i["bbox"], i["bbox_label"], i["ignore_flag"]) for i in item["instances"]]
        for item in map(dataset.get_data_info, range(len(dataset)))
    }


GOOD = {
    11: [(1, 2, 11, 10, 1, 0), (20.5, 3, 21, 9, 0, 0)],
    12: [(5, 5, 14, 14, 1, 1), (-2, 5, 7, 14, 0, 0)],
    13: [(0, 0, 30, 20, 0, 0), (3, 3, 8, 8, -1, 1)],
}


def test_labels_follow_the_classes_and_small_and_ignored_boxes_stay(tmp_path, coco):
    dataset = build(tmp_path, coco)
    assert contents(dataset) == GOOD
    assert dataset.findings == []
    assert dataset.get_data_info(0)["img_path"] == str(tmp_path / "a.png")


def test_items_have_the_keys_of_mmdets_dataset(tmp_path, coco):
    for annotation in coco["annotations"]:
        annotation["area"] = 1
    ours = build(tmp_path, coco).get_data_info(0)
    path = str(tmp_path / "truth.json")
    theirs = CocoDataset(ann_file=path, metainfo=META, data_prefix={"img": ""}, pipeline=[])
    assert ours.keys() == theirs.get_data_info(0).keys()
    assert ours["instances"][0].keys() == theirs.get_data_info(0)["instances"][0].keys()


def test_augmentation_follows_the_sampler_s_seed(tmp_path, coco):
    flip = {"type": "RandomFlip", "prob": 0.5}
    pipeline = [
        {"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True}, flip
    ]  # fmt: skip
    dataset = build(tmp_path, coco, pipeline=pipeline)

    def flips(seed):
        return [dataset[SeededIndex(0, (seed, epoch))]["flip"] for epoch in range(16)]

    first = flips(1)
    np.random.rand(5)  # noqa: NPY002 - what was drawn before makes no difference
    assert flips(1) == first
    assert flips(2) != first
    assert 0 < sum(first) < 16


def add(what, **keys):
    """Return a change that appends an entry like the first one to a list of the file."""
    return lambda coco: coco[what].append(coco[what][0] | keys)


def set_first(what, **keys):
    return lambda coco: coco[what][0].update(keys)


def without(image=None, box=None):
    """What is left of the good file without an image, or without a box of an image."""
    left = {i: list(boxes) for i, boxes in GOOD.items() if i != image or box is not None}
    if box is not None:
        del left[image][box]
    return left


BAD = [
    # kind, change of the file, what the message names, what is left
    ("malformed image entry", add("images", id=None), "entry 3 of images", GOOD),
    ("malformed image entry", add("images", id=9, width=0), "entry 3 of images", GOOD),
    ("duplicate image id", add("images", file_name="x.png"), "image 11 (x.png)", GOOD),
    ("missing file", set_first("images", file_name="no.png"), "image 11 (no.png)", without(11)),
    ("wrong size", set_first("images", width=61), "annotated 61 × 40", without(11)),
    ("malformed annotation", add("annotations", id=1, bbox=[1, 2, 3]), "annotation 1", GOOD),
    ("malformed annotation", add("annotations", id=1, bbox=None), "annotation 1", GOOD),
    ("malformed annotation", add("annotations", id=1, bbox=[1, 2, "3", 4]), "annotation 1", GOOD),
    ("malformed annotation", add("annotations", id=1, image_id=None), "annotation 1", GOOD),
    ("duplicate annotation id", add("annotations"), "annotation 101 of image 11 (a.png)", GOOD),
    ("unknown image", add("annotations", id=1, image_id=7), "annotation 1 of image 7", GOOD),
    ("unknown category", add("annotations", id=1, category_id=9), "9, known are 0, 2, 4", GOOD),
    ("coordinate not finite", add("annotations", id=1, bbox=[NAN, 2, 3, 4]), "annotation 1", GOOD),
    ("coordinate not finite", add("annotations", id=1, bbox=[1, 2, INFINITE, 4]), "inf", GOOD),
    ("coordinate not finite", add("annotations", id=1, area=NAN), "area nan", GOOD),
    ("box without area", add("annotations", id=1, bbox=[1, 2, 0, 4]), "annotation 1 of", GOOD),
    ("box without area", add("annotations", id=1, bbox=[9, 9, -3, -4]), "[9, 9, -3, -4]", GOOD),
    ("box without area", add("annotations", id=1, area=0), "area 0", GOOD),
    ("box outside the image", add("annotations", id=1, bbox=[60, 2, 3, 4]), "of 60 × 40", GOOD),
    ("box outside the image", add("annotations", id=1, bbox=[1, -4, 3, 4]), "[1, -4, 3, 4]", GOOD),
    ("box outside the image", set_first("annotations", bbox=[-9, 2, 8, 4]), "", without(11, 0)),
    ("empty image", add("images", id=9, file_name="d.png"), "image 9 (d.png)", GOOD),
    ("duplicate category", add("categories", id=7), "category 7 (car)", GOOD),
]


@pytest.mark.parametrize(("kind", "change", "named", "left"), BAD)
def test_bad_input_is_named_or_left_out(tmp_path, coco, logged, kind, change, named, left):
    change(coco)
    with pytest.raises(BadInputError) as error:
        build(tmp_path, coco)
    assert f"bad input in {tmp_path / 'truth.json'} ({kind}: 1" in str(error.value)
    assert named in str(error.value)
    assert "bad_input='skip'" in str(error.value)
    assert error.value.findings[0].kind == kind

    dataset = build(tmp_path, coco, bad_input="skip")
    assert contents(dataset) == left
    assert [finding.kind for finding in dataset.findings] == [kind]
    (message,) = [m for m in logged if "bad input" in m]
    assert f"({kind}: 1)" in message
    assert named in message
    assert f"kept: {len(left)} images" in message


def test_every_kind_of_bad_input_is_tried():
    of_their_own = {"unreadable file", "turned image", "file of several images"}
    assert {kind for kind, *_ in BAD} | of_their_own == set(KINDS)


def test_every_copy_of_a_file_is_named_or_left_out(tmp_path, coco):
    add("images", id=9, file_name="./a.png")(coco)
    add("annotations", id=1, image_id=9)(coco)
    with pytest.raises(BadInputError) as error:
        build(tmp_path, coco)
    assert "image 11 (a.png): file of several images: it is that of 9 too" in str(error.value)
    assert "image 9 (./a.png): file of several images: it is that of 11 too" in str(error.value)
    assert contents(build(tmp_path, coco, bad_input="skip")) == without(11)


def turn(path, size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)


@pytest.mark.parametrize(
    ("orientation", "size"), [(2, (50, 40)), (3, (50, 40)), (4, (50, 40)), (6, (50, 50))]
)
def test_an_image_that_exif_turns_unseen_is_named_or_left_out(tmp_path, coco, orientation, size):
    turn(tmp_path / "b.jpg", size, orientation)
    coco["images"][1]["height"] = size[1]
    with pytest.raises(BadInputError, match=rf"image 12 .*EXIF orientation {orientation} mirr"):
        build(tmp_path, coco)
    assert contents(build(tmp_path, coco, bad_input="skip")) == without(12)
    assert contents(build(tmp_path, coco, boxes_as_shown=True)) == GOOD
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] != 12]
    assert contents(build(tmp_path, coco, allow_empty=True)) == GOOD | {12: []}


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_an_image_whose_size_tells_how_its_boxes_were_drawn_is_taken(tmp_path, coco, orientation):
    turned = orientation > 1
    turn(tmp_path / "b.jpg", (40, 50) if turned else (50, 40), orientation)
    coco["images"][1]["height"] = 40
    assert contents(build(tmp_path, coco)) == GOOD


def test_images_to_be_predicted_need_no_annotations(tmp_path, coco):
    del coco["annotations"]
    assert contents(build(tmp_path, coco, test_mode=True)) == {11: [], 12: [], 13: []}
    with pytest.raises(BadInputError, match="none named annotations"):
        build(tmp_path, coco)


@pytest.mark.parametrize(
    "content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "cut"]
)
def test_files_that_are_no_images_are_named_or_left_out(tmp_path, coco, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadInputError, match=r"image 11 \(a.png\): unreadable file"):
        build(tmp_path, coco)
    assert contents(build(tmp_path, coco, bad_input="skip")) == without(11)


def test_an_image_that_exif_turns_has_the_size_it_is_loaded_with(tmp_path, coco):
    turn(tmp_path / "turned.jpg", (40, 60), 6)
    coco["images"][0]["file_name"] = "turned.jpg"
    dataset = build(tmp_path, coco, pipeline=[{"type": "LoadImageFromFile"}])
    assert dataset.findings == []
    assert dataset[0]["img"].shape == (40, 60, 3)


def test_an_image_of_more_pixels_than_pil_allows_is_measured(tmp_path, coco, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert len(build(tmp_path, coco)) == 3
    assert Image.MAX_IMAGE_PIXELS == 100


def test_all_findings_are_counted_and_some_spelled_out(tmp_path, coco, logged):
    for number in range(30):
        add("annotations", id=number, bbox=[1, 1, 0, 0])(coco)
    add("annotations", id=99, category_id=77)(coco)
    with pytest.raises(BadInputError) as error:
        build(tmp_path, coco)
    message = str(error.value)
    assert "(box without area: 30, unknown category: 1)" in message
    assert message.count("bbox [1, 1, 0, 0]") == SPELLED_OUT
    assert f"... and {31 - SPELLED_OUT} more" in message
    assert len(error.value.findings) == 31
    assert len(build(tmp_path, coco, bad_input="skip").findings) == 31


def test_files_are_not_looked_at_where_that_is_switched_off(tmp_path, coco):
    for path in tmp_path.glob("*.*g"):
        path.unlink()
    assert contents(build(tmp_path, coco, check_images=False)) == GOOD


@pytest.mark.parametrize(
    "options",
    [{"allow_empty": True}, {"test_mode": True}, {"filter_cfg": {"filter_empty_gt": True}}],
    ids=lambda options: next(iter(options)),
)
def test_empty_images_are_taken_or_filtered_where_the_config_says_so(
    tmp_path, coco, logged, options
):
    add("images", id=9, file_name="d.png")(coco)
    dataset = build(tmp_path, coco, **options)
    filtered = "filter_cfg" in options
    assert contents(dataset) == (GOOD if filtered else GOOD | {9: []})
    assert any("leaves out 1 of 4 images" in message for message in logged) == filtered


def test_an_image_of_ignored_regions_alone_is_empty(tmp_path, coco):
    coco["annotations"] = [a for a in coco["annotations"] if a["id"] != 105]
    with pytest.raises(BadInputError, match=r"image 13 \(c.png\): empty image"):
        build(tmp_path, coco)


def test_categories_that_are_not_asked_for_are_counted(tmp_path, coco, logged):
    dataset = build(tmp_path, coco, metainfo={"classes": ("boat",)})
    assert contents(dataset) == {11: [GOOD[11][1]], 12: [GOOD[12][1]], 13: [GOOD[13][0]]}
    assert any("not among the classes, left out: car: 2, fog: 1" in m for m in logged)


def test_what_is_odd_is_kept_and_counted(tmp_path, coco, logged):
    coco["annotations"][0]["area"] = 2400
    assert contents(build(tmp_path, coco)) == GOOD
    (message,) = logged
    assert "boxes partly outside their image, kept: 1, first id 104" in message
    assert "area larger than the box, which misleads AP by size, kept: 1, first id 101" in message


def test_nothing_is_logged_about_a_file_without_fault(tmp_path, coco, logged):
    coco["annotations"][3]["bbox"][0] = 0
    build(tmp_path, coco)
    assert logged == []


def test_a_file_of_which_nothing_is_left_is_named(tmp_path, coco):
    coco["annotations"] = []
    with pytest.raises(BadInputError, match=r"no image of .*truth\.json is left"):
        build(tmp_path, coco, bad_input="skip")


def test_a_class_without_category_is_named_with_those_there_are(tmp_path, coco):
    with pytest.raises(BadInputError, match="no category named bike; it has car, fog, boat"):
        build(tmp_path, coco, metainfo={"classes": ("car", "bike")}, bad_input="skip")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "is not a JSON file"),
        ("[]", "none named images, annotations, categories"),
        ('{"images": [], "annotations": {}, "categories": []}', "none named annotations"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "entry without name"),
        (
            '{"images": [], "annotations": [], "categories": '
            '[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "found 1 twice",
        ),
        (
            '{"images": [], "annotations": [{"category_id": 1}, {"category_id": 2}], '
            '"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
            "found a twice",
        ),
    ],
)
def test_a_file_that_is_not_coco_is_named(tmp_path, text, named):
    path = tmp_path / "truth.json"
    path.write_text(text)
    with pytest.raises(BadInputError, match=named) as error:
        SmallObjectDataset(ann_file=str(path), data_prefix={"img": ""}, bad_input="skip")
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"truth\.json does not exist; docs/detection\.md"):
        SmallObjectDataset(ann_file=str(tmp_path / "truth.json"), data_prefix={"img": ""})


def test_settings_that_mean_nothing_are_refused(tmp_path, coco):
    with pytest.raises(ValueError, match="'lenient'"):
        build(tmp_path, coco, bad_input="lenient")
    with pytest.raises(ValueError, match="'sodad'"):
        build(tmp_path, coco, metainfo="sodad")


def test_samplers_see_the_classes_of_objects_alone(tmp_path, coco):
    dataset = build(tmp_path, coco)
    assert [dataset.get_cat_ids(number) for number in range(3)] == [[1, 0], [0], [0]]


def test_a_config_builds_it_and_a_pipeline_packs_ignored_boxes_apart(tmp_path, coco):
    (tmp_path / "truth.json").write_text(json.dumps(coco))
    dataset = DATASETS.build(
        {
            "type": "SmallObjectDataset",
            "ann_file": "truth.json",
            "data_root": str(tmp_path),
            "data_prefix": {"img": ""},
            "metainfo": META,
            "pipeline": [
                {"type": "LoadImageFromFile"},
                {"type": "mmdet.LoadAnnotations", "with_bbox": True},
                {"type": "mmdet.RandomFlip", "prob": 1.0},
                {"type": "mmdet.PackDetInputs", "meta_keys": ("img_id",)},
            ],
        }
    )
    sample = dataset[2]["data_samples"]
    assert sample.gt_instances.labels.tolist() == [0]
    np.testing.assert_array_equal(sample.ignored_instances.bboxes.tensor.numpy(), [[22, 3, 27, 8]])


@pytest.mark.parametrize(
    ("name", "count"),
    [("soda-d", 9), ("visdrone", 10), ("ai-tod", 8), ("tinyperson", 2), ("coco", 80)],
)
def test_each_set_has_its_classes(tmp_path, coco, name, count):
    classes = METAINFO[name]["classes"]
    assert len(classes) == len(set(classes)) == count
    coco["categories"] = [{"id": n, "name": c} for n, c in enumerate(reversed(classes))]
    coco["annotations"] = []
    dataset = build(tmp_path, coco, metainfo=name, allow_empty=True)
    assert dataset.metainfo["classes"] == classes
    assert dataset.cat_ids == list(range(count))[::-1]


def test_real_annotations_are_all_kept(logged):
    path = Path(__file__).parents[4] / "shared/data/real/detection/visdrone_first50_coco.json"
    if not path.is_file():
        pytest.skip(f"no real annotations in {path}")
    settings = {
        "ann_file": str(path),
        "data_prefix": {"img": ""},
        "metainfo": {"classes": ("human", "vehicle")},
        "check_images": False,
    }
    with pytest.raises(BadInputError, match=r"\(empty image: 2\)"):
        SmallObjectDataset(**settings)
    boxes = contents(SmallObjectDataset(**settings, allow_empty=True))
    assert len(boxes) == 50
    assert sum(map(len, boxes.values())) == 3326


def test_real_photographs_and_their_annotations_are_read(tmp_path, logged):
    folder = Path(__file__).parents[4] / "shared/data/real/detection"
    if not folder.is_dir():
        pytest.skip(f"no real photographs in {folder}")
    dataset = SmallObjectDataset(
        ann_file=str(folder / "terrain1_coco.json"),
        data_prefix={"img": f"{folder}/"},
        metainfo={"classes": ("human",)},
    )
    assert [len(boxes) for boxes in contents(dataset).values()] == [7]
    # Their area is that of the whole photograph.
    assert any("area larger than the box" in m and "kept: 7" in m for m in logged)
