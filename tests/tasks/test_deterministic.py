"""A training step of every task's networks under deterministic algorithms: twice the same bits.

On a GPU PyTorch refuses what has no deterministic form; on a CPU operations are compared with the
list of those.
"""

import copy
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dr2net
from tests.toy import assert_same_bits

CONFIGS = Path(__file__).parents[2] / "configs"
# Before CUDA starts: test files are imported before any test runs.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Refused on a GPU by torch 2.11 (the callers of alertNotDeterministic in its library), without what
# is replaced by another operation in deterministic mode (scatter, bilinear interpolation).
REFUSED = re.compile(
    r"(_?adaptive_\w+|avg_pool3d|max_pool3d\w*|fractional_\w+|grid_sampler_\w+|reflection_pad[13]d"
    r"|replication_pad\w+|_?upsample_(bi|tri)?(linear|cubic)\w+|_ctc_loss)_backward"
    r"|max_unpool\w+|(nan)?median|histc|index_reduce_?|put_?|nll_loss2d_forward"
)


class Operations(TorchDispatchMode):
    """Names of the operations that were called, in forward and backward."""

    def __init__(self):
        super().__init__()
        self.called = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.called.add(operation._schema.name.removeprefix("aten::"))
        return operation(*args, **(kwargs or {}))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    torch.use_deterministic_algorithms(True)  # tests/conftest.py takes it back
    return request.param


def assert_two_steps_are_the_same(model, loss, but_for=()):
    """``loss(model)`` and the gradients of all parameters, from one seed.

    Args:
        but_for: refused operations that are others on a GPU.
    """
    if next(model.parameters()).device.type == "cpu":
        with Operations() as operations:
            loss(model).backward()
        assert "mm" in operations.called or "addmm" in operations.called
        assert {name for name in operations.called if REFUSED.fullmatch(name)} <= {*but_for}
    steps = []
    for _ in range(2):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 - what OpenMMLab's transforms draw from
        torch.manual_seed(1)
        model.zero_grad(set_to_none=True)
        value = loss(model)
        value.backward()
        steps.append([value.detach(), *(parameter.grad for parameter in model.parameters())])
    assert steps[0][0].isfinite()
    assert_same_bits(*steps)


def losses_of(data):
    """The sum of the losses of an OpenMMLab model on a batch, random transforms included."""

    def loss(model):
        inputs = model.data_preprocessor(copy.deepcopy(data), True)
        return model.parse_losses(model(**inputs, mode="loss"))[0]

    return loss


@pytest.mark.parametrize(
    "name",
    ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224"],
)
def test_a_network_of_timm(name, device):
    timm = pytest.importorskip("timm")
    small = {"swin": {}}.get(name[:4], {"depth": 2, "embed_dim": 48, "num_heads": 3})
    model = timm.create_model(name, img_size=112, drop_path_rate=0.2, **small).to(device).train()
    dr2net.convert(model)
    images = torch.randn(2, 3, 112, 112, device=device)
    assert_two_steps_are_the_same(
        model, lambda model: model.forward_features(images).square().mean()
    )


@pytest.mark.parametrize("kind", ["conventional", "dr2net"])
def test_the_video_task_s_vit(kind, device):
    pytest.importorskip("mmcv")
    import tasks.video  # noqa: F401

    from mmaction.registry import MODELS  # isort: skip
    from mmaction.structures import ActionDataSample
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    init_default_scope("mmaction")
    config = Config.fromfile(CONFIGS / f"video/{kind}_vitb_k400.py").model
    small = {"img_size": 32, "embed_dims": 48, "depth": 2, "num_heads": 3, "num_frames": 4}
    config.backbone.get("backbone", config.backbone).update(small)
    config.cls_head.in_channels = 48
    data = {
        "inputs": [torch.randint(256, (1, 3, 4, 32, 32), dtype=torch.uint8) for _ in range(2)],
        "data_samples": [ActionDataSample().set_gt_label(label) for label in (3, 7)],
    }
    assert_two_steps_are_the_same(MODELS.build(config).to(device).train(), losses_of(data))


@pytest.mark.parametrize(
    "name",
    [
        "dr2net_paper_dino4scale_swint_coco",
        "dr2net_retinanet_swint_coco",
        "conventional_dino4scale_vitb_dinov2_coco",
        "conventional_retinanet_vitb_dinov2_coco",
        "conventional_retinanet_vitb_dinov3_coco",
    ],
)
def test_a_detector(name, device):
    pytest.importorskip("mmdet")
    import tasks.detection  # noqa: F401

    from mmdet.structures import DetDataSample  # isort: skip
    from mmengine.structures import InstanceData

    from tests.detectors import build, small_model

    samples, images = [], []
    for height, width in ((96, 140), (110, 120)):  # so that there is padding to mask
        images.append(torch.randint(256, (3, height, width), dtype=torch.uint8))
        sample = DetDataSample(metainfo={"img_shape": (height, width), "scale_factor": (1, 1)})
        corners = torch.rand(5, 2) * 60
        boxes = torch.cat([corners, corners + 10 + torch.rand(5, 2) * 20], 1)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.randint(80, (5,)))
        samples.append(sample)
    detector = build(small_model(name))
    if "vitb" in name:
        dr2net.convert(detector)
    data = {"inputs": images, "data_samples": samples}
    # By a kernel of its own on a GPU.
    but_for = ["grid_sampler_2d_backward"] if "dino4scale" in name else []
    assert_two_steps_are_the_same(detector.to(device), losses_of(data), but_for)


@pytest.mark.parametrize("class_weight", [None, [1.0, 2.0, 0.5, 1.0, 3.0]])
def test_the_segmentor(class_weight, device):
    pytest.importorskip("mmengine")
    pytest.importorskip("timm")
    import tasks.pointcloud  # noqa: F401

    from mmengine.registry import MODELS  # isort: skip
    from tests.tasks.pointcloud.test_segmentor import DR2NET, MODEL, batch

    model = MODELS.build({**MODEL, **DR2NET, "class_weight": class_weight}).to(device).train()
    assert_two_steps_are_the_same(model, losses_of(batch()))
