import random

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
from tasks.video import UnreadableVideoError, VideoListDataset  # isort: skip

from mmaction.datasets.transforms import DecordDecode
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader

from dr2net.openmmlab.random_state import SeededSampler
from tests.video_clips import write_annotation, write_clip

PIPELINE = [
    {"type": "DecordOpen"},
    {"type": "SampleFrames", "clip_len": 4, "frame_interval": 1},
    {"type": "DecordDecode"},
    {"type": "RandomResizedCrop"},
    {"type": "Resize", "scale": (16, 16), "keep_ratio": False},
    {"type": "Flip", "flip_ratio": 0.5},
    {"type": "FormatShape", "input_format": "NCTHW"},
    {"type": "PackActionInputs"},
]


@pytest.fixture(autouse=True)
def _mmaction_scope():
    init_default_scope("mmaction")


@pytest.fixture
def make_dataset(tmp_path):
    def make(lines, pipeline=PIPELINE, **options):
        annotation = write_annotation(tmp_path / "train.txt", lines)
        (tmp_path / "videos").mkdir(exist_ok=True)
        prefix = {"video": str(tmp_path / "videos")}
        return VideoListDataset(str(annotation), pipeline, prefix, **options)

    return make


@pytest.fixture
def videos(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
        write_clip(tmp_path / "videos" / name)
    return tmp_path / "videos"


LINES = ["a.mp4 0", "b.mp4 1", "c.mp4 0", "d.mp4 1"]


class TestAnnotation:
    def test_paths_may_contain_spaces_and_lines_be_blank(self, make_dataset, tmp_path):
        dataset = make_dataset(["", "riding a bike/clip 1.mp4 7", "b.mp4\t0", "   "])
        info = [dataset.get_data_info(i) for i in range(len(dataset))]
        assert [(i["filename"], i["label"], i["line"]) for i in info] == [
            (str(tmp_path / "videos/riding a bike/clip 1.mp4"), 7, 2),
            (str(tmp_path / "videos/b.mp4"), 0, 3),
        ]

    @pytest.mark.parametrize("line", ["a.mp4", "a.mp4 x", "a.mp4 -1", "a.mp4 1.0", "7", "a.mp4,3"])
    def test_a_line_that_does_not_parse_is_named(self, make_dataset, line):
        with pytest.raises(ValueError, match=rf"train\.txt, line 2: expected .*, got '{line}'"):
            make_dataset(["a.mp4 0", line])

    def test_a_label_out_of_range_is_named(self, make_dataset):
        with pytest.raises(ValueError, match=r"train\.txt, line 2: label 2 is not in 0 \.\. 1"):
            make_dataset(["a.mp4 0", "b.mp4 2"], num_classes=2)

    @pytest.mark.parametrize("lines", [[""], ["", "  "]])
    def test_an_empty_file_is_an_error(self, make_dataset, lines):
        with pytest.raises(ValueError, match=r"train\.txt lists no video"):
            make_dataset(lines)

    @pytest.mark.parametrize("missing", ["train.txt", "videos"])
    def test_missing_data_says_what_is_expected(self, tmp_path, missing):
        if missing == "videos":
            write_annotation(tmp_path / "train.txt", ["a.mp4 0"])
        with pytest.raises(FileNotFoundError, match=rf"{missing} does not exist\. Expected are"):
            VideoListDataset("train.txt", PIPELINE, {"video": "videos"}, data_root=str(tmp_path))

    @pytest.mark.parametrize("pipeline", [PIPELINE[:2], [*PIPELINE[:2], *PIPELINE[3:]]])
    def test_a_pipeline_that_decodes_nothing_is_an_error(self, make_dataset, videos, pipeline):
        with pytest.raises(ValueError, match="the pipeline decodes nothing"):
            make_dataset(LINES, pipeline=pipeline)[0]

    def test_a_decoder_is_known_by_what_it_does(self, make_dataset, videos):
        class Frames(DecordDecode):
            """A decoder of another's, whose name tells nothing."""

        pipeline = [*PIPELINE[:2], Frames(), *PIPELINE[3:]]
        samples = make_dataset(LINES, pipeline=pipeline, num_repeats=2)[0]
        assert len(samples) == 2


def break_missing(path):
    path.unlink()


def break_empty(path):
    path.write_bytes(b"")


def break_text(path):
    path.write_text("not a video\n" * 100)


def break_truncated(path):
    path.write_bytes(path.read_bytes()[:500])


BREAKS = [break_missing, break_empty, break_text, break_truncated]


class TestUnreadableVideo:
    @pytest.mark.parametrize("break_video", BREAKS)
    def test_training_replaces_it_and_says_so(self, make_dataset, videos, break_video):
        break_video(videos / "b.mp4")
        sample = make_dataset(LINES)[1]["data_samples"]
        (message,) = set(sample.metainfo["unreadable_videos"])
        assert message.startswith(
            f"{videos / 'b.mp4'} ({videos.parent / 'train.txt'}, line 2) cannot"
        )

    @pytest.mark.parametrize("break_video", BREAKS)
    def test_testing_stops(self, make_dataset, videos, break_video):
        break_video(videos / "b.mp4")
        with pytest.raises(
            UnreadableVideoError, match=r"b\.mp4 .*train\.txt, line 2\) cannot be read"
        ):
            make_dataset(LINES, test_mode=True)[1]

    def test_readable_samples_say_nothing(self, make_dataset, videos):
        assert "unreadable_videos" not in make_dataset(LINES)[0]["data_samples"].metainfo

    def test_the_replacement_follows_from_the_seed(self, make_dataset, videos):
        break_empty(videos / "b.mp4")
        dataset = make_dataset(LINES)
        labels_and_inputs = []
        for _ in range(2):
            index = next(i for i in SeededSampler(dataset, shuffle=False, seed=3) if i == 1)
            labels_and_inputs.append(dataset[index]["inputs"])
            random.random()
            np.random.random()  # noqa: NPY002
        assert torch.equal(*labels_and_inputs)

    def test_too_many_in_a_row_end_training(self, make_dataset, videos):
        for path in videos.iterdir():
            break_empty(path)
        with pytest.raises(
            UnreadableVideoError, match=r"3 videos in a row cannot be read.*\n.*mp4"
        ):
            make_dataset(LINES, max_replacements=3)[0]

    def test_errors_reach_the_main_process_from_workers(self, make_dataset, videos):
        break_empty(videos / "c.mp4")
        dataset = make_dataset(LINES, test_mode=True)
        with pytest.raises(UnreadableVideoError, match=r"c\.mp4"):
            list(DataLoader(dataset, num_workers=1, collate_fn=pseudo_collate))

    def test_a_mistake_in_a_transform_is_not_taken_for_one(self, make_dataset, videos):
        pipeline = [*PIPELINE[:3], {"type": "Resize", "scale": (16, 16), "interpolation": "none"}]
        with pytest.raises(KeyError):
            make_dataset(LINES, pipeline=pipeline)[0]


class TestReading:
    @pytest.mark.parametrize("frames", [1, 2, 3])
    def test_a_video_shorter_than_the_clip_is_repeated(self, make_dataset, tmp_path, frames):
        write_clip(tmp_path / "videos/short.mp4", frames=frames)
        assert make_dataset(["short.mp4 0"])[0]["inputs"].shape == (1, 3, 4, 16, 16)

    def test_a_truncated_avi_is_read_as_far_as_it_goes(self, make_dataset, tmp_path, shared_videos):
        whole = (shared_videos / "test.avi").read_bytes()
        (tmp_path / "videos").mkdir()
        (tmp_path / "videos/half.avi").write_bytes(whole[: len(whole) // 2])
        assert make_dataset(["half.avi 0"])[0]["inputs"].shape == (1, 3, 4, 16, 16)

    def test_real_clips_are_read(self, make_dataset, tmp_path, shared_videos):
        (tmp_path / "videos").symlink_to(shared_videos)
        names = ["part_0.mp4", "test.avi", "test_video_structuralize.mp4"]
        dataset = make_dataset([f"{name} 0" for name in names], test_mode=True)
        for index in range(len(dataset)):
            assert dataset[index]["inputs"].float().std() > 10


class TestRepeatedAugmentation:
    def test_an_item_is_that_many_augmentations_of_one_clip(self, make_dataset, videos):
        samples = make_dataset(LINES, num_repeats=3)[1]
        assert [int(s["data_samples"].gt_label) for s in samples] == [1, 1, 1]
        assert not torch.equal(samples[0]["inputs"], samples[1]["inputs"])

    def test_the_frames_are_decoded_once(self, make_dataset, videos):
        pipeline = [*PIPELINE[:3], *PIPELINE[6:]]
        first, second = make_dataset(LINES, pipeline=pipeline, num_repeats=2)[1]
        assert torch.equal(first["inputs"], second["inputs"])

    def test_a_replaced_video_is_reported_once(self, make_dataset, videos):
        break_empty(videos / "b.mp4")
        samples = make_dataset(LINES, num_repeats=2)[1]
        reported = ["unreadable_videos" in s["data_samples"].metainfo for s in samples]
        assert reported == [True, False]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_epochs_are_the_same_whatever_the_workers(make_dataset, videos, workers):
    def epochs(numbers, num_workers):
        dataset = make_dataset(LINES)
        sampler = SeededSampler(dataset, seed=5)
        loader = DataLoader(
            dataset,
            batch_size=2,
            sampler=sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            collate_fn=pseudo_collate,
        )
        result = []
        for number in numbers:
            sampler.set_epoch(number)
            result.append(torch.cat([torch.stack(batch["inputs"]) for batch in loader]))
        return result

    unbroken = epochs([0, 1], 0)
    assert not torch.equal(*unbroken)
    (resumed,) = epochs([1], workers)
    assert torch.equal(resumed, unbroken[1])
