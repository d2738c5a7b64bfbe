"""Configs that mmdetection and mmaction2 ship become Dr²Nets by one option of the command line.

Beside it they are told where the data are, and made small: networks, images, batches. The packages'
pretrained files are not looked for.
"""

import json
import pickle
import uuid
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("mmcv")
import cv2
import numpy as np
import torch

import dr2net
from dr2net.openmmlab.checkpoint import UnmatchedCheckpointError
from tests.tools.conftest import run_train
from tests.video_clips import write_annotation, write_clip
from tools.test import main as run_test

OPTION = "default_hooks.dr2net.type=Dr2NetHook"
LOADER = [
    "train_dataloader.batch_size=1",
    "train_dataloader.num_workers=0",
    "train_dataloader.persistent_workers=False",
]
SMALL_VIT = [
    "model.backbone.img_size=32",
    "model.backbone.embed_dims=48",
    "model.backbone.depth=2",
    "model.backbone.num_heads=3",
]


def shipped(package, name):
    spec = find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    (config,) = Path(spec.origin).parent.glob(f".mim/configs/{name}")
    return config


def write_frames(folder, count, size=64):
    """Images of a bright square on a dark ground, which moves."""
    folder.mkdir(parents=True)
    for number in range(count):
        image = np.full((size, size, 3), 60, np.uint8)
        image[8:40, 4 + number % 16 : 36 + number % 16] = 220
        cv2.imwrite(str(folder / f"img_{number:05}.jpg"), image)


def write_videos(folder):
    """Two clips, and their list without spaces in names, at which mmaction2 splits lines."""
    for number in range(2):
        write_clip(folder / f"{number}.mp4", frames=40)
    return write_annotation(folder / "train.txt", ["0.mp4 0", "1.mp4 1"])


def assert_two_iterations_of_a_dr2net(runner, chains):
    assert runner.iter == 2
    assert len(dr2net.chains(runner.model.backbone)) == chains
    assert dr2net.get_coefficients(runner.model) == (0.875, 0.125)
    assert "train/alpha" in runner.message_hub.log_scalars


def test_mmdetection_s_retinanet(tmp_path):
    config = shipped("mmdet", "swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py")
    write_frames(tmp_path / "images", 2)
    images = [
        {"id": i, "file_name": f"img_{i:05}.jpg", "width": 64, "height": 64} for i in range(2)
    ]
    box = {"bbox": [4, 8, 32, 32], "area": 1024, "iscrowd": 0, "category_id": 1}
    coco = {
        "images": images,
        "annotations": [{**box, "id": i + 1, "image_id": i} for i in range(2)],
        "categories": [{"id": 1, "name": "person"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(coco))
    settings = [
        "model.backbone.embed_dims=8",
        "model.backbone.depths=[2,2,2,2]",
        "model.backbone.num_heads=[1,2,4,8]",
        "model.backbone.init_cfg=None",
        "model.neck.in_channels=[16,32,64]",
        "train_dataloader.dataset.pipeline.2.scale=(64,64)",
        "train_dataloader.dataset.data_root=",
        f"train_dataloader.dataset.ann_file={tmp_path / 'train.json'}",
        f"train_dataloader.dataset.data_prefix.img={tmp_path / 'images'}",
        "train_dataloader.dataset.metainfo.classes=(person,)",
        "model.bbox_head.num_classes=1",
        "train_cfg.max_epochs=1",
        *LOADER,
    ]
    runner = run_train(config, tmp_path / "run", "--no-validate", settings=[OPTION, *settings])
    assert_two_iterations_of_a_dr2net(runner, chains=4)

    tested = [
        *settings,
        "test_dataloader.dataset.pipeline.1.scale=(64,64)",
        "test_dataloader.dataset.data_root=",
        f"test_dataloader.dataset.ann_file={tmp_path / 'train.json'}",
        f"test_dataloader.dataset.data_prefix.img={tmp_path / 'images'}",
        "test_dataloader.dataset.metainfo.classes=(person,)",
        "test_dataloader.num_workers=0",
        "test_dataloader.persistent_workers=False",
        f"test_evaluator.ann_file={tmp_path / 'train.json'}",
        "model.test_cfg.score_thr=0.0",
    ]
    command = [str(config), str(tmp_path / "run/epoch_1.pth"), "--work-dir", str(tmp_path / "test")]
    scores = {}
    for way in ([], ["--tta"]):
        name = f"experiment_name={uuid.uuid4().hex}"
        file = tmp_path / f"{len(way)}.pkl"
        options = [*way, "--out", str(file), "--cfg-options", name]
        run_test([*command, *options, OPTION, *tested])
        scores[len(way)] = pickle.loads(file.read_bytes())[0]["pred_instances"]["scores"]
        with pytest.raises(UnmatchedCheckpointError, match="no chain that takes"):
            run_test([*command, *options, *tested])  # without the hook
    assert min(map(len, scores.values())) > 0
    assert not torch.equal(scores[0], scores[1])


def test_mmaction_s_swin(tmp_path):
    config = shipped("mmaction", "recognition/swin/swin-tiny-*_kinetics400-rgb.py")
    videos = write_videos(tmp_path / "videos")
    settings = [
        "model.backbone.arch._delete_=True",
        "model.backbone.arch.embed_dims=8",
        "model.backbone.arch.depths=[2,2,2,2]",
        "model.backbone.arch.num_heads=[1,2,4,8]",
        "model.backbone.pretrained=None",
        "model.backbone.pretrained2d=False",
        "model.cls_head.in_channels=64",
        "train_dataloader.dataset.pipeline.1.clip_len=8",
        "train_dataloader.dataset.pipeline.5.scale=(64,64)",
        f"train_dataloader.dataset.ann_file={videos}",
        f"train_dataloader.dataset.data_prefix.video={videos.parent}",
        "train_cfg.max_epochs=1",
        *LOADER,
    ]
    runner = run_train(config, tmp_path / "run", "--no-validate", settings=[OPTION, *settings])
    assert_two_iterations_of_a_dr2net(runner, chains=4)


def test_mmaction_s_videomae_for_detection(tmp_path):
    config = shipped("mmaction", "detection/videomae/vit-base-*_ava-kinetics-rgb.py")
    write_frames(tmp_path / "frames/clip", 96)
    box = "0.1,0.1,0.6,0.6"
    (tmp_path / "train.csv").write_text(f"clip,0901,{box},1,0\nclip,0902,{box},2,0\n")
    (tmp_path / "excluded.csv").write_text("")
    (tmp_path / "labels.pbtxt").write_text('label {\n name: "a"\n label_id: 1\n}\n' * 2)
    proposals = {f"clip,090{i}": np.array([[0.1, 0.1, 0.6, 0.6, 0.9]]) for i in (1, 2)}
    (tmp_path / "proposals.pkl").write_bytes(pickle.dumps(proposals))
    dataset = {
        "ann_file": "train.csv",
        "exclude_file": "excluded.csv",
        "label_file": "labels.pbtxt",
        "proposal_file": "proposals.pkl",
        "data_prefix.img": "frames",
    }
    settings = [
        *SMALL_VIT,
        "model.init_cfg=None",
        "model.roi_head.bbox_head.in_channels=48",
        "train_dataloader.dataset.pipeline.2.scale_range=(40,48)",
        "train_dataloader.dataset.pipeline.3.size=32",
        *(f"train_dataloader.dataset.{key}={tmp_path / file}" for key, file in dataset.items()),
        "train_cfg.max_epochs=1",
        *LOADER,
    ]
    runner = run_train(config, tmp_path / "run", "--no-validate", settings=[OPTION, *settings])
    assert_two_iterations_of_a_dr2net(runner, chains=1)


# mmaction2 ships this one for testing alone: it says nothing of training.
TRAINING = """
_base_ = "{config}"
train_dataloader = dict(
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="VideoDataset",
        ann_file="{videos}/train.txt",
        data_prefix=dict(video="{videos}"),
        pipeline=[
            dict(type="DecordInit"),
            dict(type="SampleFrames", clip_len=16, frame_interval=1, num_clips=1),
            dict(type="DecordDecode"),
            dict(type="Resize", scale=(32, 32), keep_ratio=False),
            dict(type="FormatShape", input_format="NCTHW"),
            dict(type="PackActionInputs"),
        ],
    ),
)
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=1e-4))
"""


def test_mmaction_s_videomae_for_recognition(tmp_path):
    shipped_config = shipped("mmaction", "recognition/videomae/vit-base-*_kinetics-400.py")
    write_videos(tmp_path)
    config = tmp_path / "config.py"
    config.write_text(TRAINING.format(config=shipped_config, videos=tmp_path))
    settings = [*SMALL_VIT, "model.cls_head.in_channels=48", *LOADER]
    runner = run_train(config, tmp_path / "run", settings=[OPTION, *settings])
    assert_two_iterations_of_a_dr2net(runner, chains=1)
