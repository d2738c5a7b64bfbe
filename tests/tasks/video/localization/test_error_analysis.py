import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
import tasks.video.localization  # noqa: F401  # isort: skip

from PIL import Image

from tasks.video.localization.average_precision import mean_average_precision
from tasks.video.localization.error_analysis import KINDS, MULTIPLES, analyse_errors

TOOL = Path(__file__).parents[4] / "tools/localization_errors.py"


def entry(*annotations, subset="validation"):
    found = [{"label": label, "segment": [start, end]} for label, start, end in annotations]
    return {"subset": subset, "duration": 200.0, "annotations": found}


def prediction(label, start, end, score):
    return {"label": label, "segment": [start, end], "score": score}


# Two jumps, of 10 and 40 seconds, and a throw; a video without any; and one of another subset.
DATABASE = {
    "a": entry(("jump", 10, 20), ("throw", 30, 40), ("jump", 100, 140)),
    "none": entry(),
    "other": entry(("jump", 0, 10), subset="training"),
}


@pytest.mark.parametrize(
    ("kind", "video", "segment"),
    [
        ("true positive", "a", (100, 140)),
        ("double detection", "a", (10, 19)),
        ("wrong label", "a", (30, 39)),
        ("localization", "a", (10, 14)),
        ("confusion", "a", (30, 33)),
        ("background", "a", (60, 70)),
        ("background", "a", (19.5, 29)),  # overlaps by less than a tenth
        ("background", "none", (10, 20)),
        ("background", "unknown", (10, 20)),
    ],
)
def test_each_kind_is_told(kind, video, segment):
    results = {"a": [prediction("jump", 10, 20, 0.9)]}
    results.setdefault(video, []).append(prediction("jump", *segment, 0.5))
    kinds, _ = analyse_errors(DATABASE, results, "validation", 0.5, [15])
    expected = np.zeros(len(KINDS), int)
    expected[0] += 1
    expected[KINDS.index(kind)] += 1
    assert kinds[0].tolist() == expected.tolist()
    assert not kinds[1:].any()


def test_an_action_found_is_counted_at_its_length_and_an_edge_is_of_the_shorter():
    results = {"a": [prediction("jump", 10, 20, 0.9), prediction("throw", 33, 40, 0.1)]}
    _, actions = analyse_errors(DATABASE, results, "validation", 0.5, [10, 20])
    assert actions.tolist() == [[2, 2], [0, 0], [1, 0]]
    _, actions = analyse_errors(DATABASE, results, "validation", 0.8, [10, 20])
    assert actions.tolist() == [[2, 1], [0, 0], [1, 0]]


def test_rows_are_of_as_many_predictions_as_a_class_has_annotations_best_first():
    many = [prediction("jump", 60, 70, 1 - n / 100) for n in range(50)]
    many += [prediction("throw", 30, 40, 0.9), prediction("throw", 10, 20, 0.8)]
    kinds, _ = analyse_errors(DATABASE, {"a": many}, "validation", 0.5, [15])
    # Of two jumps 20 predictions, of one throw both.
    assert kinds.sum(axis=1).tolist() == [3, 3] + [2] * (MULTIPLES - 2)
    assert kinds[0, KINDS.index("true positive")] == kinds[1, KINDS.index("wrong label")] == 1


def test_blocked_videos_and_repeated_annotations_count_for_nothing():
    database = DATABASE | {"b": entry(("jump", 5, 9), ("jump", 5, 9))}
    results = {video: [prediction("jump", 5, 9, 0.9)] for video in ("b", "other")}
    kinds, actions = analyse_errors(database, results, "validation", 0.5, [15])
    assert (kinds.sum(), actions.sum(axis=0).tolist()) == (2, [4, 1])
    kinds, actions = analyse_errors(database, results, "validation", 0.5, [15], blocked={"b"})
    assert (kinds.sum(), actions.sum(axis=0).tolist()) == (1, [3, 0])


def test_true_positives_are_those_of_the_mean_average_precision():
    random = np.random.default_rng(0)
    database, results = {}, {}
    for video in "abcdefgh":
        labels = random.choice(["jump", "throw", "dive"], 6).tolist()
        starts = np.sort(random.uniform(0, 180, 6))
        ends = starts + random.uniform(2, 20, 6)
        database[video] = entry(*zip(labels, starts.tolist(), ends.tolist(), strict=True))
        results[video] = [
            prediction(label, start + shift, end + shift, float(random.random()))
            for label, start, end in zip(labels, starts.tolist(), ends.tolist(), strict=True)
            for shift in random.normal(0, 3, 2).tolist()
        ]
    kinds, actions = analyse_errors(database, results, "validation", 0.5, [5, 10])
    assert kinds[:, 0].sum() == actions[:, 1].sum() > 10
    assert actions[:, 0].sum() == 48
    # Where nothing but them is predicted, precision is 1, and the average precision is the recall.
    right = {video: [] for video in database}
    for video, found in results.items():
        for each in sorted(found, key=lambda one: -one["score"]):
            more = {**right, video: [*right[video], each]}
            true, _ = analyse_errors(database, more, "validation", 0.5, [5, 10])
            right = more if true[:, 1:].sum() == 0 else right
    found = mean_average_precision(database, right, "validation", [0.5])
    counts = {name: [0, 0] for name in found["classes"]}
    for which, column in ((database, 0), (right, 1)):
        for of_video in which.values():
            for each in of_video["annotations"] if column == 0 else of_video:
                counts[each["label"]][column] += 1
    assert found["mAP"] == pytest.approx(np.mean([n / of for of, n in counts.values()]))


@pytest.mark.parametrize("overlap", [0, 0.1, 1.1, float("nan")])
def test_other_overlaps_are_refused(overlap):
    with pytest.raises(ValueError, match="an overlap is in"):
        analyse_errors(DATABASE, {}, "validation", overlap, [15])


@pytest.mark.parametrize("edges", [[0, 10], [10, 10], [20, 10], [float("nan")]])
def test_other_edges_are_refused(edges):
    with pytest.raises(ValueError, match="edges are seconds"):
        analyse_errors(DATABASE, {}, "validation", 0.5, edges)


def run(folder, submission, *options):
    (folder / "annotations.json").write_text(json.dumps({"database": DATABASE}))
    (folder / "actions.json").write_text(submission)
    command = [sys.executable, TOOL, "annotations.json", "actions.json", "errors.png"]
    return subprocess.run(
        [*command, "--subset", "validation", *options], cwd=folder, capture_output=True, text=True
    )


def test_the_tool_prints_tables_and_draws_them(tmp_path):
    results = {"a": [prediction("jump", 10, 20, 0.9)], "none": [prediction("throw", 1, 2, 0.9)]}
    found = run(tmp_path, json.dumps({"results": results}), "--lengths", "15")
    assert found.returncode == 0, found.stderr
    assert "| 1G               | 2     | 50.0" in found.stdout
    assert "| up to 15   | 2       | 50.0" in found.stdout
    with Image.open(tmp_path / "errors.png") as picture:
        assert picture.width > 800


@pytest.mark.parametrize(
    ("submission", "options", "message"),
    [
        ("[]", [], "actions.json has to be an object"),
        ("{", [], "actions.json has to be an object"),
        ('{"results": {"a": [{"label": "jump"}]}}', [], "video a, prediction 0"),
        ('{"results": {}}', ["--subset", "test"], "annotations have training, validation"),
        ('{"results": {}}', ["--overlap", "2"], "an overlap is in"),
    ],
)
def test_the_tool_says_what_is_wrong(submission, options, message, tmp_path):
    found = run(tmp_path, submission, *options)
    assert found.returncode != 0
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "errors.png").exists()
