import json

import numpy as np
import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
import tasks.video.localization  # noqa: F401  # isort: skip

from mmengine.registry import init_default_scope

from dr2net.openmmlab.random_state import SeededIndex
from tasks.video import UnreadableVideoError
from tasks.video.localization import BadAnnotationError, LocalizationDataset, SampleWholeVideo
from tasks.video.localization.annotations import read_blocked, read_classes
from tests.video_clips import write_clip

RATE, FRAMES = 5, 8
SAMPLER = {"type": "SampleWindow", "num_frames": FRAMES, "frame_rate": RATE, "chunk_frames": 4}
PIPELINE = [
    {"type": "DecordOpen"},
    SAMPLER,
    {"type": "DecordDecode"},
    {"type": "Resize", "scale": (16, 16), "keep_ratio": False},
    {"type": "FormatShape", "input_format": "NCTHW"},
    {"type": "PackWindow"},
]


@pytest.fixture(autouse=True)
def _mmaction_scope():
    init_default_scope("mmaction")


def entry(*annotations, duration=4.0, subset="training"):
    """A video of annotations (label, start, end); clips have 25 frames a second."""
    found = [{"label": label, "segment": [start, end]} for label, start, end in annotations]
    return {"duration": duration, "subset": subset, "annotations": found}


RUN = entry(("run", 0.5, 2.5))


@pytest.fixture
def make_dataset(tmp_path):
    def make(database, pipeline=PIPELINE, subset="training", **options):
        (tmp_path / "annotations.json").write_text(json.dumps({"database": database}))
        (tmp_path / "classes.txt").write_text("jump\nrun\n")
        for video in database:
            if not (tmp_path / f"videos/{video}.mp4").exists():
                write_clip(tmp_path / f"videos/{video}.mp4", frames=100, speed=1)
        return LocalizationDataset(
            ann_file="annotations.json",
            class_file="classes.txt",
            data_prefix={"video": "videos"},
            data_root=str(tmp_path),
            subset=subset,
            pipeline=pipeline,
            **options,
        )

    return make


def info(dataset):
    return [dataset.get_data_info(index) for index in range(len(dataset))]


class TestAnnotations:
    def test_they_are_seconds_and_numbers_of_classes(self, make_dataset, tmp_path):
        dataset = make_dataset({"a": entry(("run", 0.5, 2.5), ("jump", 3, 4))})
        (item,) = info(dataset)
        assert item["filename"] == str(tmp_path / "videos/a.mp4")
        assert item["segments"].tolist() == [[0.5, 2.5], [3, 4]]
        assert item["labels"].tolist() == [1, 0]
        assert dataset.metainfo["classes"] == ("jump", "run")

    def test_those_that_end_shortly_after_the_video_are_cut(self, make_dataset):
        (item,) = info(make_dataset({"a": entry(("run", 0.5, 4.7))}))
        assert item["segments"].tolist() == [[0.5, 4]]

    def test_repeated_ones_are_one(self, make_dataset):
        (item,) = info(make_dataset({"a": entry(("run", 0.5, 2.5), ("run", 0.5, 2.5))}))
        assert len(item["labels"]) == 1

    @pytest.mark.parametrize(
        ("annotation", "message"),
        [
            (("swim", 0, 1), "label 'swim' is no class"),
            (("run", 2, 1), r"segment \[2, 1\] is reversed"),
            (("run", 2, 2), r"segment \[2, 2\] is empty"),
            (("run", -1, 2), r"segment \[-1, 2\] begins before the video"),
            (("run", 1, 5.5), r"segment \[1, 5.5\] goes beyond the video's end at 4 s"),
            (("run", 4, 4.5), r"segment \[4, 4.5\] goes beyond the video's end"),
            (("run", 0, None), "segment has to be two finite numbers"),
            (("run", 0, float("nan")), "segment has to be two finite numbers"),
        ],
    )
    def test_bad_ones_name_file_and_place(self, make_dataset, annotation, message):
        database = {"a": RUN, "b": entry(("run", 0, 1), annotation)}
        with pytest.raises(
            BadAnnotationError,
            match=rf"annotations\.json has 1 bad[^\n]*\nvideo b, annotation 1: {message}",
        ):
            make_dataset(database)
        items = info(make_dataset(database, bad_input="skip"))
        assert [len(item["labels"]) for item in items] == [1, 1]

    @pytest.mark.parametrize("duration", [None, 0, -3, "4", float("nan")])
    def test_a_bad_duration_names_the_video(self, make_dataset, duration):
        database = {"a": RUN, "b": entry(("run", 0, 1), duration=duration)}
        with pytest.raises(BadAnnotationError, match=r"video b: duration .* is no positive number"):
            make_dataset(database)
        assert [item["video_id"] for item in info(make_dataset(database, bad_input="skip"))] == [
            "a"
        ]

    def test_another_value_of_bad_input_is_named(self, make_dataset):
        with pytest.raises(ValueError, match="bad_input is 'strict' or 'skip', got 'ignore'"):
            make_dataset({"a": RUN}, bad_input="ignore")

    def test_ignored_labels_are_not_wrong(self, make_dataset):
        database = {"a": entry(("run", 0, 1), ("Ambiguous", 1, 2))}
        (item,) = info(make_dataset(database, ignored_labels=["Ambiguous"]))
        assert item["labels"].tolist() == [1]

    def test_short_ones_can_be_left_out(self, make_dataset):
        database = {"a": entry(("run", 0, 0.03), ("run", 1, 2))}
        (item,) = info(make_dataset(database, shortest=0.01))
        assert item["segments"].tolist() == [[1, 2]]

    def test_class_agnostic_labels_are_0(self, make_dataset):
        assert info(make_dataset({"a": RUN}, class_agnostic=True))[0]["labels"].tolist() == [0]

    def test_blocked_videos_other_subsets_and_those_without_actions_are_left_out(
        self, make_dataset, tmp_path
    ):
        (tmp_path / "blocked.json").write_text('["b"]')
        database = {
            "a": RUN,
            "b": RUN,
            "c": entry(("run", 0, 1), subset="validation"),
            "d": entry(),
        }
        dataset = make_dataset(database, block_list="blocked.json")
        assert [item["video_id"] for item in info(dataset)] == ["a"]

    def test_without_actions_a_video_is_still_tested(self, make_dataset):
        assert len(make_dataset({"a": entry()}, test_mode=True)) == 1

    def test_an_unknown_subset_names_those_that_there_are(self, make_dataset):
        with pytest.raises(BadAnnotationError, match=r"'test' .* its subsets are training"):
            make_dataset({"a": RUN}, subset="test")


@pytest.mark.parametrize("content", ["{", "[]", '{"database": []}', '{"database": {"a": 1}}'])
def test_a_file_of_another_format_says_what_is_expected(make_dataset, tmp_path, content):
    dataset_of = make_dataset({"a": RUN}, lazy_init=True)
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(BadAnnotationError, match=r"annotations\.json (has to be|is not JSON)"):
        dataset_of.load_data_list()


@pytest.mark.parametrize("content", ['["a", "b c"]', '{"a": 1, "b c": 2}', "a\nb c\n\n"])
def test_block_lists_come_in_three_forms(tmp_path, content):
    (tmp_path / "blocked").write_text(content)
    assert read_blocked(tmp_path / "blocked") == {"a", "b c"}


@pytest.mark.parametrize("content", ["", "run\njump\nrun\n"])
def test_class_files_name_each_class_once(tmp_path, content):
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(BadAnnotationError, match=r"classes\.txt has to name each class once"):
        read_classes(tmp_path / "classes.txt")


class TestWindows:
    def windows(self, make_dataset, duration, overlap=0.5):
        window = {"num_frames": FRAMES, "frame_rate": RATE, "overlap": overlap}
        database = {"a": entry(("run", 0, 0.5), duration=duration)}
        return [
            item["first"] for item in info(make_dataset(database, window=window, test_mode=True))
        ]

    @pytest.mark.parametrize(
        ("duration", "expected"),
        [
            (0.5, [0]),
            (1.6, [0]),
            (1.7, [0, 1]),
            (2.4, [0, 4]),
            (4.0, [0, 4, 8, 12]),
            (4.1, [0, 4, 8, 12, 13]),
        ],
    )
    def test_they_cover_the_video_without_repeating(self, make_dataset, duration, expected):
        assert self.windows(make_dataset, duration) == expected

    def test_they_are_where_they_say(self, make_dataset):
        window = {"num_frames": FRAMES, "frame_rate": RATE, "overlap": 0.5}
        dataset = make_dataset({"a": RUN}, window=window, test_mode=True)
        sample = dataset[2]["data_samples"]
        assert (sample.start, sample.frame_seconds) == (8 / RATE, 1 / RATE)
        assert sample.valid_frames == sample.num_frames == FRAMES


def sampled(duration, fps, **settings):
    """What a sampler draws of a video of so many seconds, whose one action is its middle half."""
    from mmengine.registry import TRANSFORMS

    results = {
        "total_frames": round(duration * fps),
        "avg_fps": fps,
        "duration": duration,
        "segments": np.array([[duration / 4, duration * 3 / 4]]),
        "labels": np.array([1]),
    }
    return TRANSFORMS.build({**SAMPLER, **settings}).transform(results)


class TestSampleWindow:
    @pytest.mark.parametrize("fps", [5, 10, 25, 30, 29.97])
    def test_samples_are_at_the_same_seconds_whatever_the_frame_rate(self, fps):
        found = sampled(60.0, fps)
        seconds = found["start"] + np.arange(FRAMES) / RATE
        assert np.abs(found["frame_inds"] / fps - seconds).max() <= 0.5 / fps + 1e-9

    def test_chunks_are_what_the_backbone_takes(self):
        found = sampled(60.0, 25)
        assert (found["num_clips"], found["clip_len"]) == (2, 4)

    def test_a_random_window_holds_an_action_in_seconds_of_the_video(self):
        for _ in range(50):
            found = sampled(60.0, 25, num_frames=160)
            (segment,) = found["segments"]
            start, end = found["start"], found["start"] + 160 / RATE
            assert segment.tolist() == [max(15, start), min(45, end)]
            assert segment[1] - segment[0] >= 0.75 * 30

    def test_a_short_video_is_padded_with_its_last_frame(self):
        found = sampled(1.0, 25, crop_ratio=None)
        assert found["valid_frames"] == 5
        assert found["frame_inds"].tolist() == [0, 5, 10, 15, 20, 20, 20, 20]

    def test_a_short_video_is_cropped_at_random(self):
        lengths = {sampled(10.0, 25, num_frames=80)["valid_frames"] for _ in range(100)}
        assert min(lengths) == 45
        assert max(lengths) == 50

    def test_a_window_that_is_named_is_taken(self):
        from mmengine.registry import TRANSFORMS

        results = {"total_frames": 100, "avg_fps": 25, "duration": 4.0, "first": 13}
        found = TRANSFORMS.build(SAMPLER).transform(results)
        assert found["start"] == 13 / RATE
        assert found["valid_frames"] == 7
        assert found["frame_inds"].tolist() == [65, 70, 75, 80, 85, 90, 95, 95]

    def test_frames_that_make_no_chunks_are_refused(self):
        with pytest.raises(
            ValueError, match="num_frames 10 has to be a positive multiple of the 4"
        ):
            sampled(60.0, 25, num_frames=10)


class TestSampleWholeVideo:
    def test_samples_are_the_middles_of_equal_shares(self):
        results = {"total_frames": 80, "avg_fps": 20, "duration": 4.0}
        found = SampleWholeVideo(FRAMES, chunk_frames=4).transform(results)
        assert found["frame_inds"].tolist() == [4, 14, 24, 34, 44, 54, 64, 74]
        assert (found["start"], found["frame_seconds"]) == (0, 0.5)

    def test_a_video_of_few_frames_repeats_them(self):
        results = {"total_frames": 4, "avg_fps": 1, "duration": 4.0}
        found = SampleWholeVideo(FRAMES, chunk_frames=4).transform(results)
        assert found["frame_inds"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


class TestReading:
    def test_a_sample_has_chunks_and_actions(self, make_dataset):
        sample = make_dataset({"a": RUN})[0]
        assert sample["inputs"].shape == (2, 3, 4, 16, 16)
        truth = sample["data_samples"].gt_instances
        assert truth.labels.tolist() == [1]

    def test_windows_follow_from_the_seed(self, make_dataset):
        dataset = make_dataset({"a": entry(("run", 0, 1), ("run", 1.5, 2.5), ("run", 3, 4))})
        starts = [dataset[SeededIndex(0, (seed,))]["data_samples"].start for seed in (1, 1, 2, 3)]
        assert starts[0] == starts[1]
        assert len(set(starts)) > 1

    @staticmethod
    def breaks(path, how):
        if how == "missing":
            path.unlink()
        elif how == "empty":
            path.write_bytes(b"")
        elif how == "damaged":
            path.write_bytes(path.read_bytes()[:500])
        else:
            write_clip(path, frames=50)

    @pytest.mark.parametrize("how", ["missing", "empty", "damaged", "short"])
    def test_an_unreadable_video_is_replaced_and_named_in_training(
        self, make_dataset, tmp_path, how
    ):
        dataset = make_dataset({"a": RUN, "b": RUN})
        TestReading.breaks(tmp_path / "videos/b.mp4", how)
        sample = dataset[1]["data_samples"]
        (message,) = set(sample.metainfo["unreadable_videos"])
        assert "b.mp4" in message
        assert "annotations.json, video b) cannot be read" in message
        assert sample.video_id == "a"

    @pytest.mark.parametrize("how", ["missing", "empty", "damaged", "short"])
    def test_an_unreadable_video_is_an_error_in_testing(self, make_dataset, tmp_path, how):
        window = {"num_frames": FRAMES, "frame_rate": RATE, "overlap": 0.5}
        dataset = make_dataset({"a": RUN}, window=window, test_mode=True)
        TestReading.breaks(tmp_path / "videos/a.mp4", how)
        with pytest.raises(UnreadableVideoError, match=r"annotations\.json, video a\) cannot"):
            dataset[0]
