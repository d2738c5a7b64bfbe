"""A checkpoint of OpenMMLab is published, and loads into mmdetection without dr2net."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("mmdet", exc_type=ImportError)
import dr2net.openmmlab  # isort: skip - before OpenMMLab

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from dr2net.openmmlab.publishing import plain_settings
from tools.publish import main

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/detection/demo/dr2net_retinanet_small_objects.py"

# What dr2net.openmmlab stands in for, where mmcv has no compiled operators.
LOAD = """
import sys
from types import ModuleType
sys.modules["dr2net"] = sys.modules["tasks"] = None  # their import is an error
import mmcv
try:
    import mmcv._ext
except ImportError:
    class Missing(ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *_: 0 / 0
    from importlib.machinery import ModuleSpec
    sys.modules["mmcv._ext"] = Missing("mmcv._ext")
    sys.modules["mmcv._ext"].__spec__ = ModuleSpec("mmcv._ext", None)
import torch
{usage}
model.eval()
with torch.no_grad():
    torch.save(model(torch.load("images.pt"), mode="tensor"), "found.pt")
"""


def detector(alpha, beta, num_classes=None):
    """The demo's detector after a change of each parameter."""
    config = Config.fromfile(CONFIG)
    if num_classes is not None:
        config.model.detector.bbox_head.num_classes = num_classes
    config.model.detector.backbone.update(alpha=alpha, beta=beta)
    init_default_scope(config.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return model.eval()


def tensors(output):
    return [tensor for level in output for tensor in level]


@pytest.mark.filterwarnings("ignore:This .* left")
def test_a_process_without_dr2net_loads_what_revert_gives(tmp_path):
    model = detector(0.875, 0.125)
    saved = tmp_path / "epoch_5.pth"
    meta = {"dataset_meta": {"classes": ("ring", "cross")}, "cfg": "long"}
    torch.save({"meta": meta, "state_dict": model.state_dict(), "optimizer": {}}, saved)
    path = main([str(CONFIG), str(saved), str(tmp_path / "out"), "--metric", "AP 49.6"])

    assert re.fullmatch(r"dr2net_retinanet_small_objects-[0-9a-f]{8}\.pth", path.name)
    published = torch.load(path)
    assert published["meta"] == {"dataset_meta": meta["dataset_meta"]}
    assert "optimizer" not in published
    card = (path.parent / "README.md").read_text()
    assert "- Measured: AP 49.6" in card
    images = torch.randn(1, 3, 64, 64)
    torch.save(images, path.parent / "images.pt")
    (usage,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert "# without dr2net" in usage
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(usage=usage)],
        cwd=path.parent,
        env={"PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = dr2net.revert(model)(images, mode="tensor")
    found = torch.load(path.parent / "found.pt")
    assert all(map(torch.equal, tensors(found), tensors(expected)))


@pytest.mark.filterwarnings("ignore:This .* left")
def test_a_config_may_say_its_classes_at_its_top(tmp_path):
    config, saved = tmp_path / "own.py", tmp_path / "epoch_5.pth"
    config.write_text(f"_base_ = {str(CONFIG)!r}\nclasses = ['a', 'b', 'c', 'd', 'e']\n")
    torch.save({"state_dict": detector(0.875, 0.125, num_classes=5).state_dict()}, saved)
    path = main([str(config), str(saved), str(tmp_path / "out")])
    assert Config.fromfile(path.parent / "own.py").model.bbox_head.num_classes == 5


def test_off_the_line_and_of_another_model_nothing_is_published(tmp_path):
    saved = tmp_path / "epoch_5.pth"
    torch.save({"state_dict": detector(0.0, 1.0).state_dict()}, saved)
    with pytest.raises(ValueError, match=r"At \(alpha, beta\) = \(0\.0, 1\.0\) the plain"):
        main([str(CONFIG), str(saved), str(tmp_path / "out")])
    torch.save({"state_dict": {"backbone.weight": torch.zeros(1)}}, saved)
    with pytest.raises(ValueError, match="is not of the model of the config"):
        main([str(CONFIG), str(saved), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_wrappers_are_taken_off_at_any_depth():
    backbone = {"type": "dr2net.Dr2NetBackbone", "backbone": {"type": "ResNet"}, "beta": 0.5}
    found = plain_settings({"type": "Ensemble", "models": [{"backbone": backbone}]})
    assert found == {"type": "Ensemble", "models": [{"backbone": {"type": "ResNet"}}]}
