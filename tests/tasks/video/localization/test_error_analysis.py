import json

import numpy as np
import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
import tasks.video.localization  # noqa: F401  # isort: skip

from PIL import Image

from tasks.video.localization.error_analysis import KINDS, MULTIPLES, analyse_errors
from tools import localization_errors


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
    ],
)
def test_each_kind_is_told(kind, video, segment):
    results = {"a": [prediction("jump", 10, 20, 0.9)]}
    results.setdefault(video, []).append(prediction("jump", *segment, 0.5))
    kinds, _ = analyse_errors(DATABASE, results, "validation", 0.5, [15])
    expected = np.zeros(len(KINDS), int)
    expected[KINDS.index("true positive")] += 1
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


def test_other_and_blocked_videos_and_repeated_annotations_count_for_nothing():
    database = DATABASE | {"b": entry(("jump", 5, 9), ("jump", 5, 9))}
    videos = ("b", "none", "other", "unknown")
    results = {video: [prediction("jump", 5, 9, 0.9)] for video in videos}
    kinds, actions = analyse_errors(database, results, "validation", 0.5, [15])
    assert (kinds.sum(), actions.sum(axis=0).tolist()) == (2, [4, 1])
    kinds, actions = analyse_errors(database, results, "validation", 0.5, [15], blocked={"b"})
    assert (kinds.sum(), actions.sum(axis=0).tolist()) == (1, [3, 0])


def test_of_annotations_that_are_overlapped_alike_that_of_its_own_class_is_asked():
    # As THUMOS14 has dives from a cliff under two classes.
    database = {"a": entry(("cliff", 10, 20), ("dive", 10, 20))}
    for label in ("cliff", "dive"):
        loose, again = prediction(label, 10, 14, 0.8), prediction(label, 10, 20, 0.7)
        results = {"a": [prediction(label, 10, 20, 0.9), loose, again]}
        kinds, _ = analyse_errors(database, results, "validation", 0.5, [15])
        assert dict(zip(KINDS, kinds.sum(axis=0).tolist(), strict=True)) == {
            "true positive": 1,
            "double detection": 1,
            "wrong label": 0,
            "localization": 1,
            "confusion": 0,
            "background": 0,
        }


def expected_counts(database, results, overlap):
    """The counts of all kinds, over all predictions, as their definition reads."""
    counts = dict.fromkeys(KINDS, 0)
    free = {
        (video, number): annotation
        for video, of_video in database.items()
        for number, annotation in enumerate(of_video["annotations"])
    }
    everything = dict(free)
    found = [(one["score"], video, one) for video, of in results.items() for one in of]
    for _, video, one in sorted(found, key=lambda each: -each[0]):

        def shared(annotation, one=one):
            (start, end), (other_start, other_end) = one["segment"], annotation["segment"]
            both = max(0, min(end, other_end) - max(start, other_start))
            return both / (end - start + other_end - other_start - both)

        own = [
            (shared(annotation), key)
            for key, annotation in free.items()
            if key[0] == video and annotation["label"] == one["label"]
        ]
        if own and max(own)[0] >= overlap:
            del free[max(own)[1]]
            counts["true positive"] += 1
            continue
        most, label = max((shared(a), a["label"]) for k, a in everything.items() if k[0] == video)
        right = label == one["label"]
        if most < 0.1:
            counts["background"] += 1
        elif most < overlap:
            counts["localization" if right else "confusion"] += 1
        else:
            counts["double detection" if right else "wrong label"] += 1
    return counts


@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.75])
def test_counts_of_many_predictions_are_those_of_the_definition(overlap):
    random = np.random.default_rng(0)
    database, results = {}, {}
    for video in "abcdefgh":
        labels = random.choice(["jump", "throw", "dive"], 6).tolist()
        starts = np.sort(random.uniform(0, 180, 6))
        ends = starts + random.uniform(2, 20, 6)
        database[video] = entry(*zip(labels, starts.tolist(), ends.tolist(), strict=True))
        results[video] = [
            prediction(
                str(random.choice(["jump", "throw", "dive"])) if shift > 2 else label,
                start + shift,
                end + shift,
                float(random.random()),
            )
            for label, start, end in zip(labels, starts.tolist(), ends.tolist(), strict=True)
            for shift in random.normal(0, 4, 3).tolist()
        ]
    kinds, actions = analyse_errors(database, results, "validation", overlap, [5, 10])
    expected = expected_counts(database, results, overlap)
    assert min(expected.values()) > 0
    assert dict(zip(KINDS, kinds.sum(axis=0).tolist(), strict=True)) == expected
    assert actions[:, 0].sum() == 48
    assert actions[:, 1].sum() == expected["true positive"]


@pytest.mark.parametrize("overlap", [0, 0.1, 1.1, float("nan")])
def test_other_overlaps_are_refused(overlap):
    with pytest.raises(ValueError, match="an overlap is above"):
        analyse_errors(DATABASE, {}, "validation", overlap, [15])


@pytest.mark.parametrize("edges", [[], [0, 10], [10, 10], [20, 10], [float("nan")]])
def test_other_edges_are_refused(edges):
    with pytest.raises(ValueError, match="edges are seconds"):
        analyse_errors(DATABASE, {}, "validation", 0.5, edges)


@pytest.mark.parametrize(
    ("subset", "results", "message"),
    [
        ("testing", {"a": [prediction("jump", 1, 2, 0.5)]}, "no annotation in the subset"),
        ("validation", {}, "labels of predictions none"),
        ("validation", {"a": [prediction("action", 1, 2, 0.5)]}, "labels of predictions action"),
        ("validation", {"other": [prediction("jump", 1, 2, 0.5)]}, "labels of predictions none"),
    ],
)
def test_nothing_to_count_is_an_error(subset, results, message):
    with pytest.raises(ValueError, match=message):
        analyse_errors(DATABASE, results, subset, 0.5, [15])


@pytest.fixture
def run(tmp_path, capsys):
    """Run the tool in this process; returns what it printed, and its message where it failed."""

    def run(submission, *options, database=DATABASE):
        annotations, actions = tmp_path / "annotations.json", tmp_path / "actions.json"
        annotations.write_text(json.dumps({"database": database}))
        actions.write_text(submission)
        command = [annotations, actions, tmp_path / "errors.png", "--subset", "validation"]
        failed = None
        try:
            localization_errors.main([*map(str, command), *options])
        except SystemExit as stopped:
            failed = stopped.code
        printed = capsys.readouterr()
        return printed.out, f"{printed.err}{failed or ''}", failed is not None

    return run


def test_the_tool_prints_tables_and_draws_them(run, tmp_path):
    results = {"a": [prediction("jump", 10, 20, 0.9)], "none": [prediction("throw", 1, 2, 0.9)]}
    printed, _, failed = run(json.dumps({"results": results}), "--lengths", "15")
    assert not failed
    cells = [[cell.strip() for cell in line.split("|")] for line in printed.splitlines()]
    assert ["", "1G", "2", "50.0", "0.0", "0.0", "0.0", "0.0", "50.0", ""] in cells
    assert ["", "up to 15", "2", "50.0", ""] in cells
    with Image.open(tmp_path / "errors.png") as picture:
        assert picture.width > 800


@pytest.mark.parametrize(
    "wrong",
    [
        {"subset": "validation"},
        {"subset": "validation", "duration": 9.0, "annotations": None},
        {"duration": 9.0, "annotations": [{"label": "jump"}]},
    ],
)
def test_wrong_annotations_are_counted_and_left_out(wrong, run):
    results = json.dumps({"results": {"a": [prediction("jump", 10, 20, 0.9)]}})
    _, message, failed = run(results, database=DATABASE | {"wrong": wrong})
    assert not failed
    assert "1 annotations or videos are wrong and left out" in message


@pytest.mark.parametrize(
    ("submission", "options", "message"),
    [
        ("[]", [], "actions.json has to be an object"),
        ("{", [], "actions.json has to be an object"),
        ('{"results": {"a": [{"label": "jump"}]}}', [], "video a, prediction 0"),
        ('{"results": {"a": [{"label": [], "segment": [1, 2], "score": 1}]}}', [], "prediction 0"),
        ('{"results": {}}', ["--subset", "test"], "annotations have training, validation"),
        ('{"results": {}}', ["--overlap", "2"], "an overlap is above"),
        ('{"results": {}}', ["--ignored-labels", "jump", "throw"], "no annotation in the subset"),
    ],
)
def test_the_tool_says_what_is_wrong(submission, options, message, run, tmp_path):
    _, said, failed = run(submission, *options)
    assert failed
    assert message in said
    assert not (tmp_path / "errors.png").exists()
