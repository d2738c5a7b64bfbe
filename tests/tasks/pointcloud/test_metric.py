import json
import logging

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger

from tasks.pointcloud import PointCloudSample, PointSegmentationMetric
from tasks.pointcloud.class_names import CLASSES
from tasks.pointcloud.confusion import class_table, figures

FEW = ("a", "b", "c", "d")


def sample(truth, found, name="Area_5/office_1", full=True):
    made = PointCloudSample(metainfo={"name": name} | ({"full_resolution": True} if full else {}))
    made.gt_segment, made.pred_segment = torch.as_tensor(truth), torch.as_tensor(found)
    return made


def evaluate(samples, classes=CLASSES, **options):
    metric = PointSegmentationMetric(**options)
    metric.dataset_meta = {"classes": classes}
    evaluator = Evaluator(metric)
    for one in samples:  # as mmengine's loops do, batch by batch
        evaluator.process([one])
    return evaluator.evaluate(len(samples))


def random_rooms(count=4, absent=(), seed=0):
    random = np.random.default_rng(seed)
    labels = [label for label in range(13) if label not in absent]
    rooms = []
    for number in range(count):
        truth = random.choice(labels, 5000)
        found = np.where(random.random(5000) < 0.6, truth, random.choice(labels, 5000))
        rooms.append((truth, found, f"Area_5/office_{number}"))
    return rooms


@pytest.mark.parametrize("absent", [(), (3, 9)])
def test_figures_are_those_of_scikit_learn(absent):
    sklearn = pytest.importorskip("sklearn.metrics")
    rooms = random_rooms(absent=absent)
    found = evaluate([sample(*room) for room in rooms])
    truth, predicted = (np.concatenate([room[part] for room in rooms]) for part in (0, 1))
    assert found["full_resolution/mIoU"] == pytest.approx(
        sklearn.jaccard_score(truth, predicted, average="macro"), abs=1e-12
    )
    assert found["full_resolution/mAcc"] == pytest.approx(
        sklearn.balanced_accuracy_score(truth, predicted), abs=1e-12
    )
    assert found["full_resolution/OA"] == pytest.approx(
        sklearn.accuracy_score(truth, predicted), abs=1e-12
    )
    present = [label for label in range(13) if label not in absent]
    by_class = sklearn.jaccard_score(truth, predicted, average=None, labels=present)
    for label, value in zip(present, by_class, strict=True):
        assert found[f"full_resolution/IoU_{CLASSES[label]}"] == pytest.approx(value, abs=1e-12)
    recall = sklearn.recall_score(truth, predicted, average=None, labels=present)
    for label, value in zip(present, recall, strict=True):
        assert found[f"full_resolution/Acc_{CLASSES[label]}"] == pytest.approx(value, abs=1e-12)
    assert len(found) == 3 + 2 * 13


def test_all_rooms_together_have_one_matrix():
    """Not the mean of the rooms' figures: a small room counts little."""
    rooms = [sample([0] * 90, [0] * 90), sample([0] * 5 + [1] * 5, [1] * 5 + [1] * 5)]
    found = evaluate(rooms, FEW)
    assert found["full_resolution/OA"] == pytest.approx(95 / 100)
    assert found["full_resolution/IoU_a"] == pytest.approx(90 / 95)
    assert found["full_resolution/IoU_b"] == pytest.approx(5 / 10)


def test_ignored_points_are_not_counted():
    found = evaluate([sample([0, 1, 255, 255], [0, 1, 0, 2])], FEW)
    assert found["full_resolution/OA"] == found["full_resolution/mIoU"] == 1


def test_a_class_that_is_neither_there_nor_predicted_is_left_out_of_the_means():
    found = evaluate([sample([0, 0, 1, 1], [0, 0, 1, 0])], FEW)
    assert found["full_resolution/mIoU"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["full_resolution/mAcc"] == pytest.approx((1 + 1 / 2) / 2)
    assert np.isnan(found["full_resolution/IoU_c"])
    assert np.isnan(found["full_resolution/Acc_c"])


def test_a_class_that_is_predicted_and_not_there_counts_as_0_in_miou_alone():
    found = evaluate([sample([0, 0, 1, 1], [0, 0, 1, 2])], FEW)
    assert found["full_resolution/IoU_c"] == 0
    assert np.isnan(found["full_resolution/Acc_c"])
    assert found["full_resolution/mIoU"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found["full_resolution/mAcc"] == pytest.approx((1 + 1 / 2) / 2)


def test_nothing_to_count_is_no_figure():
    assert all(np.isnan(value) for value in figures(np.zeros((4, 4), int), FEW).values())


def test_figures_of_subsampled_clouds_are_named_so():
    found = evaluate([sample([0, 1], [0, 1], full=False)], FEW)
    assert {name.split("/")[0] for name in found} == {"val_subsampled"}
    assert found["val_subsampled/mIoU"] == 1


def test_full_and_subsampled_clouds_are_not_mixed():
    rooms = [sample([0, 1], [0, 1]), sample([0, 1], [0, 1], full=False)]
    with pytest.raises(ValueError, match="some rooms were predicted at full resolution, others"):
        evaluate(rooms, FEW)


def test_as_many_predictions_as_labels_are_asked_for():
    with pytest.raises(ValueError, match="Area_5/office_1: 3 labels, 2 predictions"):
        evaluate([sample([0, 1, 1], [0, 1])], FEW)


@pytest.mark.parametrize("label", [4, -1])
def test_a_prediction_is_one_of_the_classes(label):
    with pytest.raises(ValueError, match=r"Area_5/office_1: predictions from .* for 4 classes"):
        evaluate([sample([0, 1], [label, 0])], FEW)


def test_the_confusion_matrix_is_written_with_what_it_is_of(tmp_path):
    rooms = [sample([0, 1, 3], [0, 2, 3], "Area_5/b"), sample([0], [1], "Area_5/a")]
    file = tmp_path / "results/confusion.json"
    evaluate(rooms, FEW, confusion_file=str(file))
    content = json.loads(file.read_text())
    assert content == {
        "kind": "full_resolution",
        "rooms": ["Area_5/a", "Area_5/b"],
        "classes": list(FEW),
        "confusion": [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]],
    }


def test_a_table_of_the_classes_is_logged(caplog):
    table = class_table(np.array([[9, 1], [0, 0]]), ("chair", "sofa"))
    lines = table.splitlines()
    assert lines[0].split() == ["class", "IoU", "(%)", "Acc", "(%)", "points"]
    assert lines[1].split() == ["chair", "90.00", "90.00", "10"]
    assert lines[2].split() == ["sofa", "0.00", "-", "0"]
    assert lines[3].split() == ["mean", "45.00", "90.00", "10", "OA", "90.00", "%"]
    logger = MMLogger.get_instance("tables")
    logger.addHandler(caplog.handler)
    caplog.handler.setLevel(logging.INFO)
    evaluate([sample([0, 1], [0, 1])], FEW)
    assert "full_resolution\nclass" in caplog.text
