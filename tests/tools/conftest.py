import json
import logging
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

# The K400 config at 32 × 32 pixels with a tiny network, and as little chance as a test needs.
TINY = """
_base_ = "{root}/configs/video/{base}.py"
load_from = None
sample = dict(type="SampleFrames", clip_len=4, frame_interval=1)
pipeline = [
    dict(type="DecordOpen"),
    sample,
    dict(type="DecordDecode"),
    dict(type="RandomResizedCrop"),
    dict(type="Resize", scale=(32, 32), keep_ratio=False),
    dict(type="Flip"),
    dict(type="FormatShape", input_format="NCTHW"),
    dict(type="PackActionInputs"),
]
test_pipeline = [
    dict(type="DecordOpen"),
    dict(sample, num_clips=5, test_mode=True),
    dict(type="DecordDecode"),
    dict(type="Resize", scale=(-1, 32)),
    dict(type="ThreeCrop", crop_size=32),
    dict(type="FormatShape", input_format="NCTHW"),
    dict(type="PackActionInputs"),
]
vit = dict(img_size=32, embed_dims=48, depth=2, num_heads=3, num_frames=4)
model = dict(
    backbone={backbone},
    cls_head=dict(in_channels=48, num_classes=6, init_std=0.02),
    data_preprocessor=dict(
        blending=dict(augments=[dict(type="MixupBlending", alpha=0.8, num_classes=6)])
    ),
)
local = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    local, batch_size=2, dataset=dict(data_root="{data}", pipeline=pipeline, num_classes=6)
)
val_dataloader = dict(local, dataset=dict(data_root="{data}", pipeline=test_pipeline))
test_dataloader = dict(local, dataset=dict(data_root="{data}", pipeline=test_pipeline))
optim_wrapper = dict(paramwise_cfg=dict(num_layers=2))
auto_scale_lr = dict(enable=False)
param_scheduler = []
train_cfg = dict(max_epochs=2, val_interval=1)
default_hooks = dict(logger=dict(interval=1))
"""


def write_config(folder, data, base="dr2net_paper_vitb_k400", extra=""):
    """Write a tiny config on top of one of ours; return its path."""
    backbone = "dict(backbone=vit)" if base.startswith("dr2net") else "vit"
    path = folder / f"tiny_{base}.py"
    path.write_text(TINY.format(root=ROOT, base=base, backbone=backbone, data=data) + extra)
    return path


def run_train(config, work_dir, *options, settings=()):
    """Run tools/train.py in this process; options as on the command line."""
    from tools.train import main

    # mmengine keeps loggers and histories by experiment, whose name has a resolution of 1 s.
    name = f"experiment_name={uuid.uuid4().hex}"
    return main(
        [str(config), "--work-dir", str(work_dir), *options, "--cfg-options", name, *settings]
    )


@pytest.fixture(autouse=True)
def logging_as_before():
    """Commands silence logging for the whole process, in which other tests listen to it."""
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def kinetics(tmp_path_factory):
    """A small data set in Kinetics layout, which tests must not change."""
    from tests.video_clips import write_kinetics

    return write_kinetics(tmp_path_factory.mktemp("kinetics"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory, kinetics):
    """The config and work folder of a run of two epochs, which tests must not change."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder, kinetics)
    run_train(config, folder / "run")
    return config, folder / "run"


@pytest.fixture
def make_config(tmp_path, kinetics):
    """Write a tiny config, over the common data set if no other is given; return its path."""

    def make(base="dr2net_paper_vitb_k400", data=kinetics, extra=""):
        return write_config(tmp_path, data, base, extra)

    return make


@pytest.fixture
def train():
    """Run tools/train.py in this process; options as on the command line."""
    return run_train


@pytest.fixture
def run_command():
    """Run a command in a process of its own, without GPU."""

    def run(*command, cwd=ROOT):
        environment = os.environ | {
            "CUDA_VISIBLE_DEVICES": "",
            # As in this process: the number of threads decides in which order sums are taken.
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "PYTHON": sys.executable,
        }
        finished = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
        )
        if finished.returncode:
            print(finished.stdout, finished.stderr)  # pytest shows it where the test fails
        finished.check_returncode()
        return finished

    return run


@pytest.fixture
def logged():
    """Read the values of a key that a run logged, in order."""

    def read(work_dir, key="loss"):
        (path,) = work_dir.glob("*/vis_data/scalars.json")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [line[key] for line in lines if key in line]

    return read
