import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmdet")
import tasks.detection  # isort: skip  # noqa: F401 - mends mmcv before mmdet is imported

from tasks.detection.annotations import BadInputError
from tasks.detection.class_names import METAINFO
from tasks.detection.dataset import SmallObjectDataset
from tools.prepare_detection import main

LINES = {
    "b_2": "10,20,30,40,1,4,0,1\n1,2,3,4,1,10,0,0,\n\n0,0,50,10,0,0,0,0\n",
    "a_1": "5,6,7,8,1,11,1,2\n9,9,4,4,0,2,0,0\n3,3,2,2,1,1,0,0\n",
}


@pytest.fixture
def visdrone(tmp_path):
    """A set of two images in VisDrone-DET's layout."""
    for part in ("images", "annotations"):
        (tmp_path / "set" / part).mkdir(parents=True)
    for name, text in LINES.items():
        Image.new("RGB", (80, 60)).save(tmp_path / f"set/images/{name}.jpg")
        (tmp_path / f"set/annotations/{name}.txt").write_text(text)
    return tmp_path / "set"


def convert(*arguments):
    """Run the command; return the file it wrote, which is its second path."""
    main([str(argument) for argument in arguments])
    return json.loads(Path(arguments[2]).read_text())


def coco_like(folder, layout, **changes):
    """Write a file of two images in the published form of a set that has COCO-like files."""
    classes = METAINFO[layout]["classes"]
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (80, 60)).save(folder / name)
    coco = {
        "images": [
            {"id": 0, "file_name": "a.jpg", "width": 80, "height": 60},
            {"id": 1, "file_name": "b.jpg", "width": 80, "height": 60},
        ],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [5, 6, 7, 8], "iscrowd": 0},
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(classes, start=1)],
    } | changes
    path = folder / "published.json"
    path.write_text(json.dumps(coco))
    return path


def read(path, images, layout):
    """Read a converted file as training does; return all flags and labels, image by image."""
    dataset = SmallObjectDataset(
        ann_file=str(path), data_prefix={"img": f"{images}/"}, metainfo=layout, allow_empty=True
    )
    items = map(dataset.get_data_info, range(len(dataset)))
    return [[(i["bbox_label"], i["ignore_flag"]) for i in item["instances"]] for item in items]


def test_visdrone_boxes_keep_numbers_and_marks(tmp_path, visdrone, capsys):
    coco = convert("visdrone", visdrone, tmp_path / "out.json")
    assert coco["images"] == [
        {"id": 1, "file_name": "a_1.jpg", "width": 80, "height": 60},
        {"id": 2, "file_name": "b_2.jpg", "width": 80, "height": 60},
    ]
    keys = ("id", "image_id", "category_id", "bbox", "iscrowd", "truncation", "occlusion")
    assert [tuple(annotation[key] for key in keys) for annotation in coco["annotations"]] == [
        (1, 1, 11, [5, 6, 7, 8], 1, 1, 2),  # others
        (2, 1, 2, [9, 9, 4, 4], 1, 0, 0),  # of score 0
        (3, 1, 1, [3, 3, 2, 2], 0, 0, 0),
        (4, 2, 4, [10, 20, 30, 40], 0, 0, 1),
        (5, 2, 10, [1, 2, 3, 4], 0, 0, 0),
        (6, 2, 0, [0, 0, 50, 10], 1, 0, 0),  # ignored region
    ]
    assert [annotation["area"] for annotation in coco["annotations"]][-3:] == [1200, 12, 500]
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert names == {0: "ignored regions", 11: "others"} | dict(
        enumerate(METAINFO["visdrone"]["classes"], start=1)
    )
    assert "2 images with 6 annotations, 3 of these ignored" in capsys.readouterr().out


def test_visdrone_file_trains_with_regions_ignored(tmp_path, visdrone):
    convert("visdrone", visdrone, tmp_path / "out.json")
    assert read(tmp_path / "out.json", visdrone / "images", "visdrone") == [
        [(-1, 1), (1, 1), (0, 0)],
        [(3, 0), (9, 0), (-1, 1)],
    ]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("1,2,3,4,1,1,0", "malformed annotation"),
        ("1,2,3,4,1,1,0,0,0", "malformed annotation"),
        ("1,2,x,4,1,1,0,0", "malformed annotation"),
        ("1,2,nan,4,1,1,0,0", "malformed annotation"),
        ("1,2,3,4,2,1,0,0", "malformed annotation"),
        ("1,2,3,4,1,12,0,0", "unknown category"),
        ("1,2,0,4,1,1,0,0", "box without area"),
        ("1,2,-3,-4,1,1,0,0", "box without area"),
        ("80,2,3,4,1,1,0,0", "box outside the image"),
    ],
)
def test_visdrone_bad_line_is_named_or_left_out(tmp_path, visdrone, capsys, line, kind):
    text = visdrone / "annotations/a_1.txt"
    text.write_text(f"3,3,2,2,1,1,0,0\n{line}\n4,4,2,2,1,1,0,0\n")
    target = tmp_path / "out.json"
    with pytest.raises(BadInputError) as error:
        convert("visdrone", visdrone, target)
    assert f"{text}, line 2: {kind}" in str(error.value)
    assert not target.exists()
    coco = convert("visdrone", visdrone, target, "--skip-bad")
    boxes = [a["bbox"] for a in coco["annotations"] if a["image_id"] == 1]
    assert boxes == [[3, 3, 2, 2], [4, 4, 2, 2]]
    assert len(coco["annotations"]) == 5


@pytest.mark.parametrize(
    ("name", "kind"),
    [("images/a_1.jpg", "missing file"), ("annotations/a_1.txt", "missing file")],
)
def test_visdrone_missing_file_is_named_or_left_out(tmp_path, visdrone, name, kind):
    (visdrone / name).unlink()
    with pytest.raises(BadInputError, match=f"a_1.*{kind}.*a_1"):
        convert("visdrone", visdrone, tmp_path / "out.json")
    coco = convert("visdrone", visdrone, tmp_path / "out.json", "--skip-bad")
    assert [image["file_name"] for image in coco["images"]] == ["b_2.jpg"]


def test_visdrone_damaged_image_is_named_or_left_out(tmp_path, visdrone):
    (visdrone / "images/a_1.jpg").write_bytes(b"")
    with pytest.raises(BadInputError, match=r"a_1\.jpg: unreadable file"):
        convert("visdrone", visdrone, tmp_path / "out.json")
    assert len(convert("visdrone", visdrone, tmp_path / "out.json", "--skip-bad")["images"]) == 1


@pytest.mark.parametrize("part", ["images", "annotations"])
def test_visdrone_folder_that_is_not_there_is_named(tmp_path, visdrone, part):
    (visdrone / part).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"{part} does not exist"):
        convert("visdrone", visdrone, tmp_path / "out.json")


@pytest.mark.parametrize("layout", ["soda-d", "ai-tod", "tinyperson"])
def test_coco_like_file_is_taken_over(tmp_path, layout):
    coco = convert(layout, coco_like(tmp_path, layout), tmp_path / "out.json", "--images", tmp_path)
    assert coco["annotations"] == [
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [5, 6, 7, 8], "area": 56, "iscrowd": 0},
    ]
    assert read(tmp_path / "out.json", tmp_path, layout) == [[(0, 0)], [(1, 0)]]


def test_soda_d_ignore_is_kept_as_crowd_by_category_and_by_flag(tmp_path):
    classes = METAINFO["soda-d"]["classes"]
    path = coco_like(
        tmp_path,
        "soda-d",
        annotations=[
            {"id": 1, "image_id": 0, "category_id": 10, "bbox": [1, 2, 3, 4], "iscrowd": 0},
            {"id": 2, "image_id": 0, "category_id": 3, "bbox": [1, 2, 3, 4], "ignore": 1},
            {"id": 3, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "ignore": 0},
        ],
        categories=[
            {"id": n, "name": name} for n, name in enumerate((*classes, "ignore"), start=1)
        ],
    )
    coco = convert("soda-d", path, tmp_path / "out.json")
    assert [annotation["iscrowd"] for annotation in coco["annotations"]] == [1, 1, 0]
    assert not any("ignore" in annotation for annotation in coco["annotations"])
    assert read(tmp_path / "out.json", tmp_path, "soda-d") == [[(-1, 1), (2, 1)], [(2, 0)]]


def test_tinyperson_ignored_and_uncertain_people_are_crowds(tmp_path):
    flags = ({}, {"ignore": True}, {"uncertain": True}, {"logo": True, "in_dense_image": True})
    path = coco_like(
        tmp_path,
        "tinyperson",
        annotations=[
            {"id": n, "image_id": 0, "category_id": 1, "bbox": [n, n, 3, 4]}
            | {"ignore": False, "uncertain": False, "logo": False, "in_dense_image": False}
            | changed
            for n, changed in enumerate(flags, start=1)
        ],
    )
    coco = convert("tinyperson", path, tmp_path / "out.json")
    assert [annotation["iscrowd"] for annotation in coco["annotations"]] == [0, 1, 1, 0]


def test_tinyperson_file_of_the_task_has_one_class(tmp_path):
    path = coco_like(
        tmp_path,
        "tinyperson",
        categories=[{"id": 1, "name": "person"}, {"id": 2, "name": "sea_person"}],
    )
    coco = convert("tinyperson", path, tmp_path / "out.json")
    assert coco["categories"][0]["name"] == "person"


@pytest.fixture
def corners(tmp_path):
    """A corner annotation of two parts of an image whose pixels all differ."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (60, 80, 3), np.uint8)
    path = coco_like(
        tmp_path,
        "tinyperson",
        images=[
            {"id": 1, "file_name": "s/a.png", "width": 80, "height": 60, "corner": [0, 0, 50, 40]},
            {
                "id": 2,
                "file_name": "s/a.png",
                "width": 40,
                "height": 40,
                "corner": [40, 20, 80, 60],
            },
        ],
        annotations=[
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]},
            {"id": 2, "image_id": 2, "category_id": 2, "bbox": [30, 30, 10, 10], "ignore": True},
        ],
    )
    (tmp_path / "s").mkdir()
    Image.fromarray(pixels).save(tmp_path / "s/a.png")
    return path, pixels


def test_tinyperson_corners_become_images(tmp_path, corners):
    path, pixels = corners
    options = ["--images", tmp_path, "--cut-to", tmp_path / "parts"]
    coco = convert("tinyperson", path, tmp_path / "out.json", *options)
    first, second = coco["images"]
    assert (first["file_name"], first["width"], first["height"]) == ("s/a_0_0_50_40.png", 50, 40)
    assert second["cut_from"] == "s/a.png"
    for image, part in ((first, pixels[:40, :50]), (second, pixels[20:, 40:])):
        cut = np.array(Image.open(tmp_path / "parts" / image["file_name"]))
        np.testing.assert_array_equal(cut, part)
    assert read(tmp_path / "out.json", tmp_path / "parts", "tinyperson") == [[(0, 0)], [(1, 1)]]
    assert not list((tmp_path / "parts").rglob("*.partial"))


def test_tinyperson_corners_need_folders(tmp_path, corners, capsys):
    with pytest.raises(SystemExit):
        convert("tinyperson", corners[0], tmp_path / "out.json")
    assert "give --images and --cut-to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("corner", "named"),
    [
        ([0, 0, 90, 40], r"image 1 .*wrong size: corner \[0, 0, 90, 40\] is not within .*80 × 60"),
        ([0, 0, 50], r"image 1 .*malformed image entry: needs corner=.*found \[0, 0, 50\]"),
        ([50, 0, 50, 40], "image 1 .*malformed image entry"),
        ([-5, 0, 50, 40], "image 1 .*malformed image entry"),
        (None, "image 1 .*malformed image entry"),
    ],
    ids=str,
)
def test_tinyperson_bad_corner_is_named_or_left_out(tmp_path, corners, corner, named):
    path = corners[0]
    coco = json.loads(path.read_text())
    coco["images"][0]["corner"] = corner
    path.write_text(json.dumps(coco))
    options = ["--images", tmp_path, "--cut-to", tmp_path / "parts"]
    with pytest.raises(BadInputError, match=named):
        convert("tinyperson", path, tmp_path / "out.json", *options)
    assert not (tmp_path / "out.json").exists()
    assert not (tmp_path / "parts").exists()
    left = convert("tinyperson", path, tmp_path / "out.json", *options, "--skip-bad")
    assert [entry["id"] for entry in left["images"] + left["annotations"]] == [2, 2]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda image: image.unlink(), "missing file: .*s/b.png does not exist"),
        (lambda image: image.write_bytes(b""), "unreadable file: .*s/b.png"),
        (lambda image: image.write_bytes(image.read_bytes()[:-2000]), "unreadable file: .*s/b.png"),
    ],
    ids=["missing", "empty", "cut short"],
)
def test_tinyperson_bad_image_is_named_or_left_out(tmp_path, corners, damage, named):
    path = corners[0]
    coco = json.loads(path.read_text())
    coco["images"][0]["file_name"] = "s/b.png"
    path.write_text(json.dumps(coco))
    shutil.copy(tmp_path / "s/a.png", tmp_path / "s/b.png")
    damage(tmp_path / "s/b.png")
    options = ["--images", tmp_path, "--cut-to", tmp_path / "parts"]
    with pytest.raises(BadInputError, match=f"image 1 .*{named}"):
        convert("tinyperson", path, tmp_path / "out.json", *options)
    assert not (tmp_path / "parts").exists()
    left = convert("tinyperson", path, tmp_path / "out.json", *options, "--skip-bad")
    assert [image["id"] for image in left["images"]] == [2]


def test_tinyperson_whole_images_are_not_cut(tmp_path, capsys):
    path = coco_like(tmp_path, "tinyperson")
    with pytest.raises(SystemExit):
        convert("tinyperson", path, tmp_path / "out.json", "--cut-to", tmp_path / "parts")
    assert "speaks of whole images: leave out --cut-to" in capsys.readouterr().err


def test_a_mistyped_folder_of_images_is_named(tmp_path, capsys):
    path = coco_like(tmp_path, "ai-tod")
    with pytest.raises(SystemExit):
        convert("ai-tod", path, tmp_path / "out.json", "--skip-bad", "--images", tmp_path / "no")
    assert "no is no folder" in capsys.readouterr().err


def test_a_set_of_which_nothing_is_left_is_not_written(tmp_path):
    path = coco_like(tmp_path, "ai-tod")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError, match=f"{path}: no image is left"):
        convert("ai-tod", path, tmp_path / "o.json", "--skip-bad", "--images", tmp_path / "empty")
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize("layout", ["soda-d", "ai-tod", "tinyperson"])
def test_coco_like_bad_annotation_is_named_or_left_out(tmp_path, layout):
    path = coco_like(tmp_path, layout)
    coco = json.loads(path.read_text())
    coco["annotations"].append({"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 5]})
    coco["annotations"].append({"id": 8, "image_id": 1, "category_id": [1], "bbox": [1, 1, 1, 5]})
    coco["annotations"].append(9)
    path.write_text(json.dumps(coco))
    with pytest.raises(BadInputError) as error:
        convert(layout, path, tmp_path / "out.json")
    message = str(error.value)
    assert f"bad input in {path} (box without area: 1, malformed annotation: 2)" in message
    assert "annotation 7 of image 1 (b.jpg): box without area" in message
    assert "annotation 8: malformed annotation" in message
    assert "entry 4 of annotations" in message
    assert not (tmp_path / "out.json").exists()
    left = convert(layout, path, tmp_path / "out.json", "--skip-bad")
    assert [annotation["id"] for annotation in left["annotations"]] == [1, 2]


def test_a_file_of_another_set_is_refused(tmp_path):
    path = coco_like(tmp_path, "ai-tod")
    with pytest.raises(BadInputError, match="categories that the set does not have: airplane"):
        convert("soda-d", path, tmp_path / "out.json")


def test_images_are_compared_where_their_folder_is_given(tmp_path):
    path = coco_like(tmp_path, "ai-tod")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.jpg")
    convert("ai-tod", path, tmp_path / "out.json")
    with pytest.raises(BadInputError, match=r"image 1 \(b.jpg\): wrong size: annotated 80 × 60"):
        convert("ai-tod", path, tmp_path / "out.json", "--images", tmp_path)


def test_a_run_that_fails_leaves_the_earlier_file_as_it_was(tmp_path):
    path, target = coco_like(tmp_path, "ai-tod"), tmp_path / "out.json"
    convert("ai-tod", path, target)
    before = target.read_bytes()
    path.write_text("{")
    with pytest.raises(BadInputError, match=f"{path} is not a JSON file"):
        convert("ai-tod", path, target)
    assert target.read_bytes() == before
