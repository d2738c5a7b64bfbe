import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")
import tasks.detection  # isort: skip  # noqa: F401 - mends mmcv before mmdet is imported

from mmdet.registry import METRICS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tasks.detection.annotations import BadInputError
from tasks.detection.class_names import METAINFO
from tasks.detection.error_types import count_errors, error_table
from tasks.detection.metric import SmallObjectMetric
from tasks.detection.protocols import PROTOCOLS

CLASSES = ("car", "boat", "kite")


@pytest.fixture
def logged(monkeypatch):
    """The messages that go to the log."""
    messages = []
    for module in ("metric", "annotations"):
        monkeypatch.setattr(
            f"tasks.detection.{module}.print_log", lambda message, **_: messages.append(message)
        )
    return messages


def write(folder, images, annotations, classes=CLASSES, extra=()):
    """Write a COCO file; annotations are (image, class, box, other keys)."""
    names = [*classes, *extra]
    coco = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 150} for i in images],
        "categories": [{"id": 10 * n + 7, "name": name} for n, name in enumerate(names)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": 10 * names.index(name) + 7,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": 0,
                **(keys[0] if keys else {}),
            }
            for number, (image, name, box, *keys) in enumerate(annotations, start=1)
        ],
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(coco))
    return path


def predict(metric, predictions, classes=CLASSES):
    """Evaluate predictions: for every image its (class, box as x, y, width, height, score)."""
    metric.dataset_meta = {"classes": classes}
    for image, found in predictions.items():
        boxes = torch.tensor([box for _, box, _ in found], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        sample = DetDataSample(metainfo={"img_id": image})
        sample.pred_instances = InstanceData(
            bboxes=boxes,
            scores=torch.tensor([score for *_, score in found], dtype=torch.float64),
            labels=torch.tensor([classes.index(name) for name, *_ in found], dtype=torch.long),
        )
        metric.process({}, [sample.to_dict()])
    figures = metric.evaluate(len(predictions))
    # pycocotools divides by the smallest number more than it should: 1 is 1 - 2e-16 there.
    return {name: round(value, 12) for name, value in figures.items()}


def draw_case(seed, objects=40):
    """Draw objects of all sizes, crowds among them, and detections near and far from them."""
    random = np.random.default_rng(seed)
    images = [3, 5, 8, 1, 12]  # the last two without objects
    truth, found = [], {image: [] for image in images}
    for _ in range(objects):
        image = int(random.choice(images[:3]))
        name = str(random.choice(CLASSES[:2]))  # no kite
        x, y = random.uniform(0, 100), random.uniform(0, 60)
        w, h = np.exp(random.uniform(1, 4.5, 2))
        crowd = int(random.random() < 0.15)
        truth.append((image, name, (x, y, w, h), {"iscrowd": crowd}))
        for _ in range(random.integers(0, 4)):
            shift = random.normal(0, 0.12, 4) * (w, h, w, h)
            box = (x + shift[0], y + shift[1], w * np.exp(shift[2] / w), h * np.exp(shift[3] / h))
            found[image].append((name, box, round(random.random(), 2)))  # scores that are equal
    for image in images:
        for _ in range(10):
            box = (*random.uniform(0, 100, 2), *random.uniform(1, 60, 2))
            found[image].append((str(random.choice(CLASSES)), box, round(random.random(), 2)))
    return images, truth, found


def official(path, results):
    """The twelve numbers of pycocotools' own summary of the file of results."""
    truth = COCO(str(path))
    evaluation = COCOeval(truth, truth.loadRes(str(results)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("seed", range(6))
def test_coco_figures_are_those_of_pycocotools(tmp_path, seed):
    images, truth, found = draw_case(seed)
    path = write(tmp_path, images, truth)
    metric = SmallObjectMetric(str(path), outfile_prefix=str(tmp_path / "found"), prefix="d")
    figures = predict(metric, found)
    expected = official(path, tmp_path / "found.bbox.json")
    assert list(figures) == [f"d/{name}" for name in PROTOCOLS["coco"].report]
    np.testing.assert_allclose(list(figures.values()), expected, rtol=0, atol=1e-9)
    assert 0 < figures["d/AP"] < 1


def test_figures_of_a_range_without_objects_are_minus_one(tmp_path):
    box = (10, 10, 10, 10)
    path = write(tmp_path, [1], [(1, "car", box)])
    figures = predict(SmallObjectMetric(str(path)), {1: [("car", box, 0.9)]})
    assert figures["detection/AP"] == figures["detection/AP_S"] == 1
    assert figures["detection/AP_M"] == figures["detection/AP_L"] == -1


def test_no_detection_at_all_is_an_ap_of_zero(tmp_path):
    path = write(tmp_path, [1], [(1, "car", (10, 10, 10, 10))])
    assert predict(SmallObjectMetric(str(path)), {1: []})["detection/AP"] == 0


@pytest.mark.parametrize(
    ("box", "score"), [((1, 2, float("nan"), 4), 0.5), ((1, 2, 3, 4), float("inf"))]
)
def test_boxes_and_scores_that_are_no_numbers_are_an_error(tmp_path, box, score):
    path = write(tmp_path, [4], [(4, CLASSES[0], (1, 2, 3, 4))])
    with pytest.raises(ValueError, match="image 4: boxes or scores are NaN or infinite"):
        predict(SmallObjectMetric(str(path)), {4: [(CLASSES[0], box, score)]})


def test_an_annotation_of_id_0_can_be_found(tmp_path):
    box = (10, 10, 10, 10)
    path = write(tmp_path, [1], [(1, "car", box, {"id": 0})])
    assert predict(SmallObjectMetric(str(path)), {1: [("car", box, 0.9)]})["detection/AP"] == 1


def test_labels_follow_the_classes_and_not_the_order_of_the_file(tmp_path):
    box = (10, 10, 10, 10)
    path = write(tmp_path, [1], [(1, "boat", box)])
    found = {1: [("boat", box, 0.9)]}
    figures = predict(SmallObjectMetric(str(path)), found, ("kite", "boat", "car"))
    assert figures["detection/AP"] == 1


SIDES = {
    "soda-d": {"eS": 12, "rS": 20, "gS": 32, "N": 40},
    "ai-tod": {"vt": 8, "t": 16, "s": 32, "m": 50},
    "coco": {"S": 32, "M": 96, "L": 97},
}


@pytest.mark.parametrize(
    ("protocol", "area"), [(p, area) for p, areas in SIDES.items() for area in areas]
)
def test_each_range_ends_where_its_protocol_says(tmp_path, protocol, area):
    side = SIDES[protocol][area]
    inside, outside = (10, 10, side, side), (10, 10, side, side + 0.1)
    ends = protocol == "soda-d" or side in (8, 12, 16, 32, 96)  # the others have no end
    for box, expected in ((inside, 1), (outside, -1 if ends and area != "N" else 1)):
        path = write(tmp_path, [1], [(1, "car", box)])
        figures = predict(SmallObjectMetric(str(path), protocol), {1: [("car", box, 0.9)]})
        assert figures[f"detection/AP_{area}"] == expected


BEGINNINGS = {
    "soda-d": {"eS": 0, "rS": 12, "gS": 20, "N": 32},
    "ai-tod": {"vt": 0, "t": 8, "s": 16, "m": 32},
    "coco": {"S": 0, "M": 32, "L": 96},
    "tinyperson": {"50_tiny1": 1, "50_tiny2": 8, "50_tiny3": 12, "50_small": 20},
}


@pytest.mark.parametrize(
    ("protocol", "area"), [(p, area) for p, areas in BEGINNINGS.items() for area in areas]
)
def test_each_range_begins_where_its_protocol_says(tmp_path, protocol, area):
    side = BEGINNINGS[protocol][area]
    for box, expected in (
        ((10, 10, side or 0.1, side or 0.1), 1),
        ((10, 10, side or 0.1, side - 0.01 if side else 0.1), -1 if side else 1),
    ):
        path = write(tmp_path, [1], [(1, "car", box)])
        figures = predict(SmallObjectMetric(str(path), protocol), {1: [("car", box, 0.9)]})
        assert figures[f"detection/AP_{area}"] == expected


def test_soda_d_counts_small_objects_alone_and_nothing_above_2000_pixels(tmp_path):
    small, normal, large = (10, 10, 20, 20), (50, 50, 40, 50), (100, 50, 40, 50.1)
    path = write(tmp_path, [1], [(1, "car", box) for box in (small, normal, large)])
    figures = predict(SmallObjectMetric(str(path), "soda-d"), {1: [("car", small, 0.9)]})
    assert figures["detection/AP"] == figures["detection/AP_rS"] == 1
    assert figures["detection/AP_N"] == 0
    figures = predict(
        SmallObjectMetric(str(path), "soda-d"), {1: [("car", small, 0.9), ("car", normal, 0.8)]}
    )
    assert figures["detection/AP_N"] == 1


@pytest.mark.parametrize(("limits", "expected"), [((100,), 100 / 150), ((1500,), 1)])
def test_limit_of_detections_is_the_configs(tmp_path, limits, expected):
    boxes = [(12 * (n % 15), 12 * (n // 15), 10, 10) for n in range(150)]
    path = write(tmp_path, [1], [(1, "car", box) for box in boxes])
    found = {1: [("car", box, 0.9) for box in boxes]}
    metric = SmallObjectMetric(str(path), "ai-tod", limits=limits, report=["AR"])
    assert predict(metric, found)["detection/AR"] == pytest.approx(expected)
    assert predict(SmallObjectMetric(str(path), "ai-tod"), found)["detection/AP"] == 1


def test_areas_of_the_config_name_the_figures(tmp_path):
    boxes = (10, 10, 5, 5), (50, 50, 15, 15)
    path = write(tmp_path, [1], [(1, "car", box) for box in boxes])
    metric = SmallObjectMetric(str(path), areas={"any": [0, 1e10], "from10to20": [100, 400]})
    figures = predict(metric, {1: [("car", boxes[1], 0.9)]})
    assert list(figures) == [f"detection/{n}" for n in ("AP", "AP_50", "AP_75", "AP_from10to20")]
    assert figures["detection/AP_from10to20"] == 1
    assert figures["detection/AP"] == pytest.approx(51 / 101)


def test_tinyperson_figures_are_those_of_the_ious_they_name(tmp_path):
    truth, found = (10, 10, 10, 10), (10, 10, 10, 6)  # IoU 0.6
    path = write(tmp_path, [1], [(1, "car", truth)])
    figures = predict(SmallObjectMetric(str(path), "tinyperson"), {1: [("car", found, 0.9)]})
    names = ("AP_25", "AP_50", "AP_75", "AP_50_tiny2", "AP_50_tiny1")
    assert [figures[f"detection/{name}"] for name in names] == [1, 1, 0, 1, -1]


@pytest.mark.parametrize("report", ["AP_12", "AP_tiny", "AR_50", "mAP", "AR_L_7"])
def test_a_figure_that_cannot_be_reported_is_named(report):
    with pytest.raises(ValueError, match=report):
        SmallObjectMetric("truth.json", report=["AP", report])


def test_an_unknown_protocol_is_named():
    with pytest.raises(ValueError, match="'coca'"):
        SmallObjectMetric("truth.json", "coca")


REGION = "ignored regions"


@pytest.mark.parametrize("left", [0, 4.4, 5.6, 20])
def test_visdrone_takes_out_what_lies_half_in_ignored_regions(tmp_path, left):
    # The region covers x from 0 to 10; a box of 10 px from x=left lies 10 - left px in it.
    kept = (100, 100, 10, 10)
    box = (left, 20, 10, 10)
    path = write(
        tmp_path,
        [1],
        [(1, "car", kept), (1, "boat", box), (1, REGION, (0, 0, 10, 100), {"iscrowd": 1})],
        extra=[REGION],
    )
    inside = left < 5
    only_kept = predict(SmallObjectMetric(str(path), "visdrone"), {1: [("car", kept, 0.9)]})
    assert only_kept["detection/AP"] == (1 if inside else 0.5)
    false = {1: [("car", kept, 0.5), ("car", box, 0.9), ("boat", box, 0.9)]}
    figures = predict(SmallObjectMetric(str(path), "visdrone"), false)
    assert figures["detection/AP"] == (1 if inside else 0.75)


def test_visdrone_regions_are_taken_together(tmp_path):
    kept, box = (100, 100, 10, 10), (0, 0, 10, 10)
    regions = [(0, 0, 3, 10), (0, 0, 3, 10), (7, 0, 2, 10)]  # half of the box, one of them twice
    crowd = {"iscrowd": 1}
    path = write(
        tmp_path,
        [1],
        [(1, "car", kept), (1, "car", box), *((1, REGION, region, crowd) for region in regions)],
        extra=[REGION],
    )
    found = {1: [("car", kept, 0.9)]}
    assert predict(SmallObjectMetric(str(path), "visdrone"), found)["detection/AP"] == 1
    regions[2] = (7, 0, 1, 10)
    path = write(
        tmp_path,
        [1],
        [(1, "car", kept), (1, "car", box), *((1, REGION, region, crowd) for region in regions)],
        extra=[REGION],
    )
    assert predict(SmallObjectMetric(str(path), "visdrone"), found)["detection/AP"] < 1


def test_visdrone_objects_of_score_0_neither_count_nor_make_detections_false(tmp_path):
    kept, ignored = (100, 100, 10, 10), (20, 20, 30, 30)
    path = write(tmp_path, [1], [(1, "car", kept), (1, "car", ignored, {"iscrowd": 1})])
    part = (25, 25, 10, 10)
    found = {1: [("car", kept, 0.5), ("car", part, 0.9), ("car", ignored, 0.8)]}
    assert predict(SmallObjectMetric(str(path), "visdrone"), found)["detection/AP"] == 1


def test_visdrone_takes_500_detections_over_all_classes(tmp_path):
    box = (100, 100, 10, 10)
    path = write(tmp_path, [1], [(1, "car", box)])
    others = [("boat", (10, 10, 20, 20), 0.9)] * 500
    metric = SmallObjectMetric(str(path), "visdrone")
    assert predict(metric, {1: [*others, ("car", box, 0.5)]})["detection/AP"] == 0
    assert predict(metric, {1: [*others[1:], ("car", box, 0.5)]})["detection/AP"] == 1


def test_images_that_were_not_predicted_are_left_out_with_a_warning(tmp_path, logged):
    box = (10, 10, 10, 10)
    path = write(tmp_path, [1, 2], [(1, "car", box), (2, "car", box)])
    assert predict(SmallObjectMetric(str(path)), {1: [("car", box, 0.9)]})["detection/AP"] == 1
    assert any("1 of the 2 images" in message for message in logged)


def test_an_image_predicted_twice_is_named(tmp_path):
    path = write(tmp_path, [1], [(1, "car", (10, 10, 10, 10))])
    metric = SmallObjectMetric(str(path))
    predict_once = [("car", (10, 10, 10, 10), 0.9)]
    metric.dataset_meta = {"classes": CLASSES}
    results = [
        (1, np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)),
        (1, np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)),
    ]
    with pytest.raises(ValueError, match="image 1 was predicted more than once"):
        metric.compute_metrics(results)
    with pytest.raises(ValueError, match="image 9 was predicted"):
        predict(metric, {9: predict_once})


def test_bad_annotations_are_named_or_left_out(tmp_path, logged):
    box = (10, 10, 10, 10)
    path = write(tmp_path, [1], [(1, "car", box), (1, "car", (20, 20, 0, 5))])
    found = {1: [("car", box, 0.9)]}
    with pytest.raises(BadInputError, match="annotation 2 of image 1"):
        predict(SmallObjectMetric(str(path)), found)
    figures = predict(SmallObjectMetric(str(path), bad_input="skip"), found)
    assert figures["detection/AP"] == 1
    assert any("box without area: 1" in message for message in logged)


def test_a_class_without_category_is_named(tmp_path):
    path = write(tmp_path, [1], [(1, "car", (10, 10, 10, 10))])
    with pytest.raises(BadInputError, match="no category named plane; it has car, boat, kite"):
        predict(SmallObjectMetric(str(path)), {1: []}, ("car", "plane"))


def test_ignore_without_iscrowd_is_warned_of(tmp_path, logged):
    path = write(tmp_path, [1], [(1, "car", (10, 10, 10, 10), {"ignore": 1})])
    predict(SmallObjectMetric(str(path)), {1: []})
    assert any("have ignore but not iscrowd" in message for message in logged)


def test_metric_is_built_from_a_config_and_logs_its_tables(tmp_path, logged):
    box = (10, 10, 10, 10)
    path = write(tmp_path, [1], [(1, "car", box)])
    metric = METRICS.build(
        {
            "type": "SmallObjectMetric",
            "ann_file": str(path),
            "protocol": "soda-d",
            "classwise": True,
            "errors_above": 0.3,
        }
    )
    predict(metric, {1: [("car", box, 0.9)]})
    tables = [message for message in logged if "+---" in message]
    assert "AP_eS" in tables[0]
    assert "| car   | 1.0000    |" in tables[1]
    assert "| boat  | no object |" in tables[1]
    assert "duplicate" in tables[2]


def test_every_protocol_belongs_to_a_set():
    assert PROTOCOLS.keys() == METAINFO.keys()


def errors(annotations, detections, **options):
    """Count errors over one image; detections are (class, box, score)."""
    coco = {
        "images": [{"id": 1}],
        "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES)],
        "annotations": [
            {"image_id": 1, "category_id": CLASSES.index(n), "bbox": box, "iscrowd": crowd}
            for n, box, crowd in annotations
        ],
    }
    found = [
        {"image_id": 1, "category_id": CLASSES.index(n), "bbox": box, "score": score}
        for n, box, score in detections
    ]
    return count_errors(coco, found, range(len(CLASSES)), **options)


BOX, NEAR, HALF, FAR = [10, 10, 10, 10], [10, 10, 10, 8], [10, 10, 10, 3], [60, 60, 10, 10]


@pytest.mark.parametrize(
    ("detections", "expected"),
    [
        ([], {"missed": 1}),
        ([("car", BOX, 0.9)], {"found": 1}),
        ([("car", BOX, 0.2)], {"missed": 1}),
        ([("car", BOX, 0.9), ("car", NEAR, 0.8)], {"found": 1, "duplicate": 1}),
        ([("boat", BOX, 0.9)], {"missed": 1, "wrong class": 1}),
        ([("car", HALF, 0.9)], {"missed": 1, "localisation": 1}),
        ([("car", FAR, 0.9)], {"missed": 1, "background": 1}),
        ([("boat", HALF, 0.9)], {"missed": 1, "background": 1}),
    ],
    ids=str,
)
def test_each_kind_of_error_is_told(detections, expected):
    counts = errors([("car", BOX, 0)], detections)["all"]
    assert {k: v for k, v in counts.items() if v} == {"objects": 1, **expected}


def test_errors_in_a_crowd_of_the_class_count_nowhere():
    crowd = [("car", [0, 0, 100, 100], 1)]
    assert not any(errors(crowd, [("car", FAR, 0.9), ("car", BOX, 0.9)])["all"].values())
    assert errors(crowd, [("boat", FAR, 0.9)])["boat"]["background"] == 1


def test_errors_stand_under_their_class_and_add_up():
    truth = [("car", BOX, 0), ("boat", FAR, 0)]
    counts = errors(truth, [("boat", BOX, 0.9), ("boat", FAR, 0.8), ("boat", FAR, 0.7)])
    assert counts["boat"]["wrong class"] == counts["boat"]["duplicate"] == 1
    assert counts["car"]["missed"] == 1
    for row in counts.values():
        assert row["found"] + row["missed"] == row["objects"]
    table = error_table(counts)
    assert table.splitlines()[1].split("|")[1:-1] == [
        f" {name} ".ljust(len(cell))
        for name, cell in zip(
            ["class", *counts["all"]], table.splitlines()[1].split("|")[1:-1], strict=True
        )
    ]


def test_the_surer_detection_takes_the_object_first():
    truth = [("car", [0, 0, 10, 10], 0), ("car", [0, 2, 10, 10], 0)]
    between, below = [0, 1.5, 10, 10], [0, 5, 10, 10]  # near to both, to the second alone
    counts = errors(truth, [("car", below, 0.5), ("car", between, 0.9)])["car"]
    assert (counts["found"], counts["duplicate"], counts["missed"]) == (1, 1, 1)
    counts = errors(truth, [("car", below, 0.9), ("car", between, 0.5)])["car"]
    assert (counts["found"], counts["duplicate"], counts["missed"]) == (2, 0, 0)


def test_real_annotations_found_perfectly_score_1():
    path = Path(__file__).parents[4] / "shared/data/real/detection/visdrone_first50_coco.json"
    if not path.is_file():
        pytest.skip(f"no real annotations in {path}")
    coco = json.loads(path.read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    found = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        found[annotation["image_id"]].append(
            (names[annotation["category_id"]], annotation["bbox"], 1)
        )
    metric = SmallObjectMetric(str(path), limits=[1500], report=["AP", "AP_S", "AP_M"])
    figures = predict(metric, found, ("vehicle", "human"))
    assert set(figures.values()) == {1}


def test_files_are_written_of_a_set_whose_annotations_are_secret(tmp_path, logged):
    path = write(tmp_path, [1, 2], [])
    coco = json.loads(path.read_text())
    del coco["annotations"]
    path.write_text(json.dumps(coco))
    out = tmp_path / "out/detections"
    metric = SmallObjectMetric(str(path), format_only=True, outfile_prefix=str(out))
    assert predict(metric, {1: [("boat", (10, 20, 30, 40), 0.5)], 2: []}) == {}
    (found,) = json.loads((tmp_path / "out/detections.bbox.json").read_text())
    assert found == {"image_id": 1, "bbox": [10, 20, 30, 40], "score": 0.5, "category_id": 17}
    assert any("has no annotations" in message for message in logged)
    with pytest.raises(BadInputError, match="there is none named annotations"):
        predict(SmallObjectMetric(str(path)), {1: [], 2: []})
    with pytest.raises(ValueError, match="format_only=True needs outfile_prefix"):
        SmallObjectMetric(str(path), format_only=True)


def test_visdrones_files_have_its_own_numbers_of_classes(tmp_path, logged):
    classes = METAINFO["visdrone"]["classes"]
    path = write(tmp_path, [1, 2], [], classes)
    out = tmp_path / "text"
    metric = SmallObjectMetric(
        str(path), protocol="visdrone", format_only=True, outfile_prefix=str(out), image_limit=2
    )
    found = [("van", (1, 2, 3, 4), 0.5), ("motor", (5, 6, 7, 8), 0.9), ("car", (5, 6, 7, 8), 0.1)]
    predict(metric, {1: found, 2: []}, classes)
    assert (out / "1.txt").read_text().splitlines() == [
        "5.00,6.00,7.00,8.00,0.90000,10,-1,-1",
        "1.00,2.00,3.00,4.00,0.50000,5,-1,-1",
    ]
    assert (out / "2.txt").read_text() == ""


def test_visdrones_toolkit_can_read_the_files(tmp_path, logged):
    """As the set's page "Results format" and the reader of its toolkit, saveAnnoRes.m, say."""
    classes = METAINFO["visdrone"]["classes"]
    images, _, found = draw_case(0)
    found = {
        image: [(classes[n % 10], box, score) for n, (_, box, score) in enumerate(of_image)] * 8
        for image, of_image in found.items()
    }
    metric = SmallObjectMetric(
        str(write(tmp_path, images, [], classes)),
        protocol="visdrone",
        format_only=True,
        outfile_prefix=str(tmp_path / "text"),
    )
    predict(metric, found, classes)
    assert {path.name for path in (tmp_path / "text").iterdir()} == {f"{i}.txt" for i in images}
    for image in images:
        lines = np.loadtxt(tmp_path / f"text/{image}.txt", delimiter=",", ndmin=2)
        expected = sorted(found[image], key=lambda one: -one[2])[:500]
        assert lines.shape == (len(expected), 8)
        assert (np.diff(lines[:, 4]) <= 0).all()  # the first 500 lines are taken
        assert lines[:, 4].min() >= 0
        assert lines[:, 4].max() <= 1
        assert {*lines[:, 5]} <= {*range(1, 11)}
        assert (lines[:, 6:] == -1).all()  # truncation and occlusion, of annotations alone
        columns = [[*box, score, classes.index(name) + 1] for name, box, score in expected]
        np.testing.assert_allclose(lines[:, :6], columns, rtol=0, atol=0.00501)
