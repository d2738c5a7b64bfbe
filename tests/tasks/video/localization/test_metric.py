import json

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
import tasks.video.localization  # noqa: F401  # isort: skip

import torch
from mmengine.structures import InstanceData

from tasks.video.localization import LocalizationMetric


@pytest.fixture
def files(tmp_path):
    def entry(label):
        return {
            "subset": "validation",
            "duration": 20.0,
            "annotations": [{"label": label, "segment": [0, 10]}],
        }

    database = {"a": entry("jump"), "b": entry("run")}
    (tmp_path / "annotations.json").write_text(json.dumps({"database": database}))
    scores = {"a": [0.9, 0.1], "b": [0.2, 0.8]}
    content = {"class": ["jump", "run"], "results": scores}
    (tmp_path / "scores.json").write_text(json.dumps(content))
    return tmp_path


def evaluate(folder, windows, **options):
    settings = {
        "ann_file": str(folder / "annotations.json"),
        "subset": "validation",
        "thresholds": (0.5, 0.95),
    }
    metric = LocalizationMetric(**{**settings, **options})
    metric.dataset_meta = {"classes": ("jump", "run")}
    samples = []
    for video, *predictions in windows:
        segments, scores, labels = map(torch.tensor, zip(*predictions, strict=True))
        found = InstanceData(segments=segments, scores=scores, labels=labels)
        samples.append({"video_id": video, "pred_instances": found})
    metric.process({}, samples)
    return metric.evaluate(len(samples))


FOUND = [
    ("a", ([0.0, 10.0], 0.9, 0)),
    ("b", ([0.0, 6.0], 0.9, 1)),
    ("b", ([15.0, 20.0], 0.1, 1)),
]


def test_figures_are_of_whole_videos(files):
    figures = evaluate(files, FOUND)
    assert figures == {
        "localization/mAP": 0.75,
        "localization/mAP_0.50": 1,
        "localization/mAP_0.95": 0.5,
    }


def test_overlapping_windows_are_merged(files):
    doubled = [*FOUND[:1], ("a", ([0.0, 10.0], 0.8, 0)), *FOUND[1:]]
    outfile = files / "found.json"
    nms = {"sigma": 0.1, "min_score": 0.01}
    evaluate(files, doubled, nms=nms, outfile=str(outfile))
    results = json.loads(outfile.read_text())["results"]
    assert [prediction["score"] for prediction in results["a"]] == [pytest.approx(0.9)]
    assert set(results["b"][0]) == {"label", "segment", "score"}
    assert results["b"][0]["label"] == "run"


def test_classes_of_videos_can_come_from_elsewhere(files):
    agnostic = [(video, (segment, score, 0)) for video, (segment, score, _) in FOUND]
    options = {"nms": {"by_class": False}, "outfile": str(files / "found.json")}
    classes = {"file": str(files / "scores.json"), "top": 1}
    assert evaluate(files, agnostic, video_classes=classes, **options)["localization/mAP"] == 0.75
    results = json.loads((files / "found.json").read_text())["results"]
    assert [p["label"] for p in results["b"]] == ["run", "run"]
    assert results["b"][0]["score"] == pytest.approx(0.9 * 0.8)
    evaluate(files, agnostic, video_classes={**classes, "top": 2}, **options)
    results = json.loads((files / "found.json").read_text())["results"]
    assert {p["label"] for p in results["b"]} == {"run", "jump"}


def test_a_video_without_classes_is_named(files):
    content = {"class": ["jump", "run"], "results": {"a": [0.9, 0.1], "b": [0.2]}}
    (files / "scores.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"scores\.json: video b has 1 scores .* expected 2"):
        evaluate(files, FOUND, video_classes={"file": str(files / "scores.json")})


def test_videos_that_were_not_predicted_count_as_missed(files):
    assert evaluate(files, FOUND[:1])["localization/mAP"] == 0.5


def test_blocked_videos_do_not_count(files):
    (files / "blocked.json").write_text('["b"]')
    figures = evaluate(files, FOUND[:1], block_list=str(files / "blocked.json"))
    assert figures["localization/mAP"] == 1


def test_unknown_rules_are_named_at_once(files):
    with pytest.raises(ValueError, match="rules 'coco' are unknown"):
        LocalizationMetric("annotations.json", "validation", (0.5,), rules="coco")


def test_a_file_for_the_leaderboard_needs_no_annotations(files):
    secret = {"a": {"subset": "testing", "duration": 20.0}}
    (files / "secret.json").write_text(json.dumps({"database": secret}))
    options = {"ann_file": str(files / "secret.json"), "subset": "testing", "format_only": True}
    with pytest.raises(ValueError, match="format_only=True needs outfile"):
        evaluate(files, FOUND, **options)
    assert evaluate(files, FOUND, **options, outfile=str(files / "out/actions.json")) == {}
    written = json.loads((files / "out/actions.json").read_text())
    # What the published evaluator asks for.
    assert written.keys() == {"version", "results", "external_data"}
    assert written["results"].keys() == {"a", "b"}
    assert written["results"]["a"] == [
        {"label": "jump", "segment": [0.0, 10.0], "score": pytest.approx(0.9)}
    ]
