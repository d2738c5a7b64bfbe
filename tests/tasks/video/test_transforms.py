import random

import numpy as np
import pytest

pytest.importorskip("mmcv")
from tasks.video import ClipRandAugment, DecordOpen  # isort: skip

from tests.video_clips import write_clip


@pytest.fixture
def frame():
    return np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)


def seed(number):
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002


class TestClipRandAugment:
    @pytest.mark.parametrize("number", range(5))
    def test_every_frame_gets_the_same_operations(self, frame, number):
        seed(number)
        frames = ClipRandAugment().transform({"imgs": [frame] * 3})["imgs"]
        assert all(np.array_equal(f, frames[0]) for f in frames)
        assert frames[0].shape == frame.shape
        assert frames[0].dtype == np.uint8

    def test_clips_get_different_operations(self, frame):
        seed(0)
        transform = ClipRandAugment()
        clips = [transform.transform({"imgs": [frame]})["imgs"][0] for _ in range(4)]
        assert len({clip.tobytes() for clip in clips}) == 4

    def test_operations_follow_from_the_random_state(self, frame):
        clips = []
        for _ in range(2):
            seed(1)
            clips.append(ClipRandAugment().transform({"imgs": [frame]})["imgs"][0])
        assert np.array_equal(*clips)


class TestDecordOpen:
    def test_frames_are_counted(self, tmp_path):
        path = write_clip(tmp_path / "a.mp4", frames=7)
        assert DecordOpen().transform({"filename": str(path)})["total_frames"] == 7

    def test_a_missing_file_is_an_error(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            DecordOpen().transform({"filename": str(tmp_path / "a.mp4")})
