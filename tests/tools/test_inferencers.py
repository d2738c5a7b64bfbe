"""The inferencers of mmdetection and mmaction2 with our configs."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("mmcv")
import cv2
import numpy as np
import torch

import dr2net.openmmlab.mended  # isort: skip  # noqa: F401 - makes mmaction2 importable

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from dr2net.openmmlab.checkpoint import UnmatchedCheckpointError
from tests.video_clips import write_clip
from tools.predict import main as predict
from tools.publish import main as publish

CONFIGS = Path(__file__).parents[2] / "configs"
RECOGNIZER = CONFIGS / "video/demo/dr2net_vit_tiny_motion.py"
DETECTOR = CONFIGS / "detection/demo/dr2net_retinanet_small_objects.py"


def save_checkpoint(config, path, classes=8):
    """Random weights of a config's model, as a run saves them."""
    config = Config.fromfile(config)
    init_default_scope(config.default_scope)
    classes = {"classes": tuple(f"kind {n}" for n in range(classes))}
    state = MODELS.build(config.model).state_dict()
    torch.save({"meta": {"dataset_meta": classes}, "state_dict": state}, path)
    return str(path)


def test_a_video_is_recognized_as_by_our_command_and_drawn(tmp_path):
    mmaction = pytest.importorskip("mmaction.apis.inferencers")
    weights = save_checkpoint(RECOGNIZER, tmp_path / "weights.pth", classes=12)
    video = str(write_clip(tmp_path / "clip.mp4"))
    inferencer = mmaction.MMAction2Inferencer(str(RECOGNIZER), weights, device="cpu")
    found = inferencer(video, vid_out_dir=str(tmp_path / "drawn"), out_type="img")
    (scores,) = found["predictions"][0]["rec_scores"]
    frames = list((tmp_path / "drawn").rglob("*.png"))
    assert len(frames) == 20
    assert cv2.imread(str(frames[0])).shape == (48, 64, 3)

    predict([str(RECOGNIZER), weights, video, "--out", str(tmp_path / "out"), "--top", "12"])
    ours = json.loads((tmp_path / "out/clip.json").read_text())["classes"]
    assert scores == [entry["score"] for entry in sorted(ours, key=lambda entry: entry["label"])]


def test_an_image_is_cut_and_its_objects_are_found_as_by_our_command(tmp_path):
    mmdet = pytest.importorskip("mmdet.apis", exc_type=ImportError)
    weights = save_checkpoint(DETECTOR, tmp_path / "weights.pth")
    image = str(tmp_path / "image.png")
    cv2.imwrite(image, np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8))
    inferencer = mmdet.DetInferencer(str(DETECTOR), weights, device="cpu")
    found = inferencer(image, out_dir=str(tmp_path / "drawn"), no_save_pred=False)
    (theirs,) = found["predictions"]
    assert (tmp_path / "drawn/vis/image.png").is_file()

    predict([str(DETECTOR), weights, image, "--out", str(tmp_path / "out")])
    ours = json.loads((tmp_path / "out/image.json").read_text())
    assert ours["tiles"] > 1
    assert len(theirs["scores"]) == len(ours["detections"]) > 0
    for key, name, error in (
        ("labels", "label", 0),
        ("scores", "score", 0),
        ("bboxes", "box", 0.00501),
    ):
        expected = [entry[name] for entry in ours["detections"]]  # boxes to a hundredth of a pixel
        np.testing.assert_allclose(theirs[key], expected, rtol=0, atol=error)


@pytest.mark.filterwarnings("ignore:This .* left")
def test_published_folders_are_taken(tmp_path):
    mmaction = pytest.importorskip("mmaction.apis.inferencers")
    mmdet = pytest.importorskip("mmdet.apis", exc_type=ImportError)
    video = write_clip(tmp_path / "clip.mp4")
    image = tmp_path / "image.png"
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    for config, scope, kind, source in (
        (RECOGNIZER, "mmaction", mmaction.MMAction2Inferencer, video),
        (DETECTOR, "mmdet", mmdet.DetInferencer, image),
    ):
        weights = save_checkpoint(config, tmp_path / "weights.pth")
        plain = publish([str(config), weights, str(tmp_path / scope)])
        model = str(plain.with_name(config.name))
        found = kind(model, str(plain), device="cpu")(str(source))["predictions"][0]
        predict([model, str(plain), str(source), "--out", str(tmp_path / "out")])
        ours = json.loads((tmp_path / f"out/{source.stem}.json").read_text())
        if scope == "mmdet":  # a tile is resized by 1, as the config says
            assert ours["tiles"] == 0
            assert found["scores"] == [entry["score"] for entry in ours["detections"]]
        else:
            assert max(found["rec_scores"][0]) == ours["classes"][0]["score"]


def test_a_checkpoint_of_a_hook_is_refused(tmp_path):
    mmdet = pytest.importorskip("mmdet.apis", exc_type=ImportError)
    weights = save_checkpoint(DETECTOR, tmp_path / "weights.pth")
    config = tmp_path / "hook.py"
    base = CONFIGS / "detection/demo/pretrain_retinanet_small_objects.py"
    config.write_text(f"_base_ = {str(base)!r}\ncustom_hooks = [dict(type='Dr2NetHook')]\n")
    with pytest.raises(UnmatchedCheckpointError, match="inferencers do not, or Dr2NetBackbone"):
        mmdet.DetInferencer(str(config), weights, device="cpu")


def test_a_video_needs_mmaction2s_visualizer(tmp_path):
    mmaction = pytest.importorskip("mmaction.apis.inferencers")
    config = tmp_path / "other.py"
    visualizer = "dict(_delete_=True, type='Visualizer')"
    config.write_text(f"_base_ = {str(RECOGNIZER)!r}\nvisualizer = {visualizer}\n")
    video = str(write_clip(tmp_path / "clip.mp4"))
    inferencer = mmaction.MMAction2Inferencer(str(config), device="cpu")
    with pytest.raises(TypeError, match="unexpected keyword argument 'show_frames'"):
        inferencer(video, vid_out_dir=str(tmp_path), out_type="img")


@pytest.mark.skipif(find_spec("moviepy") is not None, reason="moviepy is installed")
def test_films_need_moviepy(tmp_path):
    mmaction = pytest.importorskip("mmaction.apis.inferencers")
    video = str(write_clip(tmp_path / "clip.mp4"))
    inferencer = mmaction.MMAction2Inferencer(str(RECOGNIZER), device="cpu")
    with pytest.raises(ImportError, match="install moviepy"):
        inferencer(video, vid_out_dir=str(tmp_path), out_type="video")


def test_without_what_we_mend_mmaction2_says_what_the_faq_says(run_command):
    mmcv = pytest.importorskip("mmcv")
    pytest.importorskip("mmaction")
    if not mmcv.__version__.startswith(("2.2", "2.3")):
        pytest.skip("mmaction2 takes this mmcv")
    code = """
try:
    import mmaction
except AssertionError as error:
    assert "is used but incompatible" in str(error)
else:
    raise SystemExit("mmaction2 takes this mmcv: say so in docs/faq.md")
import dr2net.openmmlab.mended
from mmaction.apis.inferencers import MMAction2Inferencer
"""
    run_command(sys.executable, "-c", code)
