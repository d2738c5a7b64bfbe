import json

import pytest

pytest.importorskip("decord")
import torch

from tasks.video import TopClassesFile, VideoListDataset
from tests.video_clips import write_annotation, write_clip

SCORES = torch.tensor([0.1, 0.4, 0.2, 0.05, 0.15, 0.1])
CLASSES = ("a", "b", "c", "d", "e", "f")
PIPELINE = [
    {"type": "DecordOpen"},
    {"type": "SampleFrames", "clip_len": 2, "frame_interval": 1, "test_mode": True},
    {"type": "DecordDecode"},
    {"type": "FormatShape", "input_format": "NCTHW"},
    {"type": "PackActionInputs"},
]


@pytest.fixture
def metric(tmp_path):
    metric = TopClassesFile(str(tmp_path / "out"), top=3)
    metric.dataset_meta = {"classes": CLASSES}
    return metric


def sample(filename):
    return {"filename": filename, "pred_score": SCORES}


def test_the_best_classes_are_written_as_both_sets_take_them(metric, tmp_path):
    metric.process({}, [sample("v/0347ZoDXyP0_000095_000105.mp4"), sample("v/74225.webm")])
    assert metric.compute_metrics(metric.results) == {}
    lines = (tmp_path / "out/something_something_v2.csv").read_text()
    assert lines == "0347ZoDXyP0;1;2;4\n74225;1;2;4\n"
    results = json.loads((tmp_path / "out/kinetics.json").read_text())["results"]
    assert list(results) == ["0347ZoDXyP0", "74225"]
    assert [entry["label"] for entry in results["74225"]] == ["b", "c", "e"]
    assert results["74225"][0]["score"] == pytest.approx(0.4)


def test_kinetics_needs_names(metric, tmp_path):
    metric.dataset_meta = {}
    metric.process({}, [sample("74225.webm")])
    metric.compute_metrics(metric.results)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["something_something_v2.csv"]


def test_two_videos_of_one_id_are_named(metric):
    metric.process({}, [sample("one/7.webm"), sample("two/7.webm")])
    with pytest.raises(ValueError, match=r"one/7\.webm and two/7\.webm have one id, 7"):
        metric.compute_metrics(metric.results)


def test_a_test_list_may_have_no_labels(metric, tmp_path):
    from mmengine.registry import DefaultScope

    write_clip(tmp_path / "videos/clip 0.mp4")
    write_annotation(tmp_path / "test.txt", ["clip 0.mp4"])
    arguments = {
        "data_root": str(tmp_path),
        "ann_file": "test.txt",
        "data_prefix": {"video": "videos"},
    }
    with DefaultScope.overwrite_default_scope("mmaction"):
        dataset = VideoListDataset(**arguments, pipeline=PIPELINE, labels=False, test_mode=True)
        item = dataset[0]["data_samples"]
        assert item.filename == str(tmp_path / "videos/clip 0.mp4")
        with pytest.raises(ValueError, match="labels=False is for tests"):
            VideoListDataset(**arguments, pipeline=PIPELINE, labels=False)
        with pytest.raises(ValueError, match=r"expected .relative/path\.mp4 label"):
            VideoListDataset(**arguments, pipeline=PIPELINE, test_mode=True)


def test_names_of_classes_bound_the_labels(tmp_path):
    from mmengine.registry import DefaultScope

    write_clip(tmp_path / "clip.mp4")
    write_annotation(tmp_path / "train.txt", ["clip.mp4 2"])
    arguments = {"data_root": str(tmp_path), "ann_file": "train.txt", "pipeline": PIPELINE}
    with DefaultScope.overwrite_default_scope("mmaction"):
        with pytest.raises(ValueError, match=r"line 1: label 2 is not in 0 \.\. 1"):
            VideoListDataset(**arguments, metainfo={"classes": ("a", "b")})
        VideoListDataset(**arguments, metainfo={"classes": ("a", "b", "c")})
