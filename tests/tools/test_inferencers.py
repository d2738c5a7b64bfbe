"""mmaction2's own inferencer with our configs."""

import pytest

pytest.importorskip("mmcv")
import cv2

import dr2net.openmmlab.mended  # isort: skip  # noqa: F401 - makes mmaction2 importable

from mmaction.apis.inferencers import ActionRecogInferencer


def test_a_video_is_recognized_and_drawn(make_config, kinetics, tmp_path):
    inferencer = ActionRecogInferencer(str(make_config()), device="cpu")
    video = str(kinetics / "videos_val/class 0/clip_0.mp4")
    found = inferencer([video], vid_out_dir=str(tmp_path), out_type="img")
    (prediction,) = found["predictions"]
    assert len(prediction["pred_scores"]) == 6
    frames = list(tmp_path.rglob("*.png"))
    assert len(frames) == 20
    assert cv2.imread(str(frames[0])).shape == (48, 64, 3)
