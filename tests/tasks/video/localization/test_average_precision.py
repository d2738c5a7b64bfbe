import random
from fractions import Fraction

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
import tasks.video.localization  # noqa: F401  # isort: skip

from tasks.video.localization.average_precision import (
    ACTIVITYNET,
    THUMOS14,
    mean_average_precision,
)


def annotate(*annotations, subset="validation"):
    """A database of (video, label, start, end)."""
    database = {}
    for video, label, start, end in annotations:
        entry = database.setdefault(video, {"subset": subset, "annotations": []})
        entry["annotations"].append({"label": label, "segment": [start, end]})
    return database


def predict(*predictions):
    """Results of (video, label, start, end, score)."""
    results = {}
    for video, label, start, end, score in predictions:
        found = {"label": label, "segment": [start, end], "score": score}
        results.setdefault(video, []).append(found)
    return results


def evaluate(annotations, predictions, thresholds=(0.5,), **options):
    database, results = annotate(*annotations), predict(*predictions)
    return mean_average_precision(database, results, "validation", thresholds, **options)


def reference(database, results, thresholds):
    """The definition, in fractions, one prediction, annotation and recall at a time."""
    truth = {}
    for video, entry in database.items():
        for annotation in entry["annotations"]:
            start, end = map(Fraction, annotation["segment"])
            truth.setdefault(annotation["label"], []).append((video, start, end))
    values = []
    for threshold in thresholds:
        for label, annotations in truth.items():
            found = [
                (prediction["score"], video, *map(Fraction, prediction["segment"]))
                for video, predictions in results.items()
                for prediction in predictions
                if prediction["label"] == label
            ]
            found.sort(key=lambda prediction: -prediction[0])
            free = list(annotations)
            curve, true = [], 0
            for count, (_, video, start, end) in enumerate(found, start=1):
                best = None
                for annotation in free:
                    if annotation[0] != video:
                        continue
                    shared = max(0, min(end, annotation[2]) - max(start, annotation[1]))
                    union = end - start + annotation[2] - annotation[1] - shared
                    overlap = float(shared / union) if union else 0.0
                    if overlap >= threshold and (best is None or overlap > best[0]):
                        best = overlap, annotation
                if best is not None:
                    free.remove(best[1])
                    true += 1
                curve.append((Fraction(true, len(annotations)), Fraction(true, count)))
            steps = sorted({recall for recall, _ in curve if recall})
            area, before = Fraction(0), Fraction(0)
            for step in steps:
                area += (step - before) * max(p for recall, p in curve if recall >= step)
                before = step
            values.append(area)
    return float(sum(values) / len(values))


def random_files(seed):
    """Few labels, annotations and predictions that nearly match, on a grid of 1/8 s."""
    draw = random.Random(seed)
    labels = [f"class {number}" for number in range(draw.randint(1, 5))]

    def time(limit):
        return draw.randrange(limit * 8) / 8

    annotations, predictions = [], []
    for video in (f"video {number}" for number in range(draw.randint(1, 8))):
        for _ in range(draw.randint(1, 6)):
            start, length = time(50), 1 / 8 + time(20)
            annotations.append((video, draw.choice(labels), start, start + length))
            for _ in range(draw.randint(0, 3)):
                shifted = start + time(4)
                label = draw.choice([annotations[-1][1], *labels])
                predictions.append((video, label, shifted, shifted + length, draw.random()))
        if draw.random() < 0.5:
            predictions.append((video, "of no class", 0, 1, 0.99))
            predictions.append((video, labels[0], 3, 3, draw.random()))
    predictions.append(("not annotated", labels[0], 0, 1, draw.random()))
    return annotations, predictions


@pytest.mark.parametrize("seed", range(25))
def test_it_is_the_definition(seed):
    annotations, predictions = random_files(seed)
    database = annotate(*annotations)
    unique = {
        video: {
            "subset": "validation",
            "annotations": list(
                {(a["label"], *a["segment"]): a for a in entry["annotations"]}.values()
            ),
        }
        for video, entry in database.items()
    }
    thresholds = THUMOS14 if seed % 2 else ACTIVITYNET
    found = mean_average_precision(database, predict(*predictions), "validation", thresholds)
    assert found["mAP"] == pytest.approx(
        reference(unique, predict(*predictions), thresholds), abs=1e-12
    )


ONE = [("a", "run", 0, 10)]


@pytest.mark.parametrize(
    ("annotations", "predictions", "expected"),
    [
        pytest.param(ONE, [("a", "run", 0, 10, 0.1)], 1, id="found"),
        pytest.param(ONE, [("a", "run", 0, 5, 0.1)], 1, id="overlap at the threshold"),
        pytest.param(ONE, [("a", "run", 0, 4.9, 0.1)], 0, id="overlap below it"),
        pytest.param(ONE, [("b", "run", 0, 10, 0.1)], 0, id="another video"),
        pytest.param(ONE, [("a", "jump", 0, 10, 0.1)], 0, id="another label"),
        pytest.param(ONE, [], 0, id="nothing predicted"),
        pytest.param(ONE, [("a", "run", 5, 5, 0.1)], 0, id="prediction of no length"),
        pytest.param(
            ONE,
            [("a", "run", 30, 40, 0.9), ("a", "run", 0, 10, 0.1)],
            1 / 2,
            id="a better one that finds nothing",
        ),
        pytest.param(
            [*ONE, ("a", "run", 20, 30)],
            [("a", "run", 0, 10, 0.9), ("a", "run", 0, 10, 0.8), ("a", "run", 20, 30, 0.7)],
            (1 + 2 / 3) / 2,
            id="found a second time",
        ),
        pytest.param(
            [*ONE, ("b", "jump", 0, 10)], [("a", "run", 0, 10, 0.1)], 1 / 2, id="an empty class"
        ),
        pytest.param(
            [("a", "run", 0, 10), ("a", "run", 2, 12)],
            # The first takes the annotation that it overlaps most, and leaves the other.
            [("a", "run", 2, 11, 0.9), ("a", "run", 0, 9, 0.8)],
            1,
            id="the nearest annotation first",
        ),
    ],
)
def test_what_counts_as_found(annotations, predictions, expected):
    assert evaluate(annotations, predictions)["mAP"] == pytest.approx(expected, abs=1e-12)


def test_figures_of_thresholds_and_classes():
    found = evaluate(
        [*ONE, ("a", "jump", 0, 10)],
        [("a", "run", 0, 6, 0.5), ("a", "jump", 0, 10, 0.5)],
        thresholds=(0.5, 0.7),
    )
    assert found["classes"] == ["run", "jump"]
    assert found["by_class"].tolist() == [[1, 1], [0, 1]]
    assert found["by_threshold"].tolist() == [1, 0.5]
    assert found["mAP"] == 0.75


class TestRules:
    REPEATED = (*ONE, ("a", "run", 0.0005, 10))

    def test_repeated_annotations_are_one_for_opentad(self):
        found = [("a", "run", 0, 10, 0.5)]
        assert evaluate(self.REPEATED, found)["mAP"] == 1
        assert evaluate(self.REPEATED, found, rules="activitynet")["mAP"] == 0.5

    def test_annotations_of_no_length_count_for_activitynet_alone(self):
        annotations, found = [*ONE, ("a", "run", 3, 3)], [("a", "run", 0, 10, 0.5)]
        assert evaluate(annotations, found)["mAP"] == 1
        assert evaluate(annotations, found, rules="activitynet")["mAP"] == 0.5
        # 0 / 0 passes every threshold there.
        both = [*found, ("a", "run", 7, 7, 0.4)]
        assert evaluate(annotations, both, rules="activitynet")["mAP"] == 1

    def test_unknown_rules_are_named(self):
        with pytest.raises(ValueError, match="rules 'coco' are unknown: use one of opentad, act"):
            evaluate(ONE, [], rules="coco")


def test_blocked_videos_and_other_subsets_are_left_out():
    database = annotate(*ONE, ("b", "run", 0, 10)) | annotate(("c", "run", 0, 1), subset="test")
    results = predict(("a", "run", 0, 10, 0.5), ("b", "run", 50, 60, 0.9), ("c", "run", 0, 1, 0.8))
    found = mean_average_precision(database, results, "validation", (0.5,), blocked={"b"})
    assert found["mAP"] == 0.5  # c is no video of the subset, and its prediction a false one


@pytest.mark.parametrize("thresholds", [(), (0.0,), (1.1,)])
def test_thresholds_that_mean_nothing_are_an_error(thresholds):
    with pytest.raises(ValueError, match=r"thresholds of overlap lie in \(0, 1\]"):
        evaluate(ONE, [], thresholds=thresholds)


def test_a_subset_without_annotations_names_those_that_there_are():
    with pytest.raises(ValueError, match=r"no annotation in the subset 'test'; .* validation"):
        mean_average_precision(annotate(*ONE), {}, "test", (0.5,))


@pytest.mark.parametrize(
    "prediction",
    [
        {"label": "run", "segment": [0, 1]},
        {"label": "run", "segment": [0], "score": 1},
        {"label": "run", "segment": [0, float("nan")], "score": 1},
        {"label": "run", "segment": [0, 1], "score": float("inf")},
        {"label": "run", "segment": [0, 1], "score": "0.5"},
        "run",
    ],
)
def test_a_malformed_prediction_is_named(prediction):
    good = {"label": "run", "segment": [0, 1], "score": 0.5}
    with pytest.raises(ValueError, match=r"video a, prediction 1: expected dict\(label, segment"):
        mean_average_precision(annotate(*ONE), {"a": [good, prediction]}, "validation", (0.5,))
