"""Checkpoints of OpenMMLab are published, and load into its libraries without dr2net."""

import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmengine")
import dr2net.openmmlab.mended  # isort: skip

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from dr2net.openmmlab.network_files import files_of
from dr2net.openmmlab.publishing import plain_settings
from tools.publish import main

ROOT = Path(__file__).parents[2]
DETECTION = ROOT / "configs/detection/demo/dr2net_retinanet_small_objects.py"

# By demo: its config, its package, and what a network's forward takes.
DEMOS = {
    "video": (
        "dr2net_vit_tiny_motion",
        "mmaction",
        lambda: ({"inputs": torch.randn(2, 1, 3, 8, 32, 32), "stage": "head"}),
    ),
    "detection": (
        "dr2net_retinanet_small_objects",
        "mmdet",
        lambda: {"inputs": torch.randn(1, 3, 64, 64)},
    ),
    "pointcloud": (
        "dr2net_point_vit_tiny_rooms",
        "timm",
        lambda: {"inputs": {"coord": torch.rand(2, 256, 3), "feat": torch.rand(2, 256, 4)}},
    ),
}

# What dr2net.openmmlab.mended mends of the libraries themselves, where they need it: mmcv without
# its compiled operators; of mmaction2 1.2.0 that it refuses newer versions of mmcv, that its wheel
# lacks a localizer, and that it imports what transformers 5 no longer has.
MENDED = {
    "detection": """
import mmcv
try:
    import mmcv._ext
except ImportError:
    class Missing(ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *_: 0 / 0
    sys.modules["mmcv._ext"] = Missing("mmcv._ext")
    sys.modules["mmcv._ext"].__spec__ = ModuleSpec("mmcv._ext", None)
""",
    "video": """
import mmcv
mmcv.__version__ = "2.1.0"
import mmaction.utils.dependency
mmaction.utils.dependency.WITH_MULTIMODAL = False
try:
    import mmaction.models.localizers.drn
except ImportError:
    for name in ("drn", "drn.drn"):
        name = f"mmaction.models.localizers.{name}"
        sys.modules[name] = ModuleType(name)
        sys.modules[name].DRN = None
        sys.modules[name].__path__ = []
        sys.modules[name].__spec__ = ModuleSpec(name, None)
""",
    "pointcloud": "",
}
LOAD = """
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
sys.modules["dr2net"] = sys.modules["tasks"] = None  # their import is an error
MENDED
import torch
USAGE
"""
FORWARD = """
model.eval()
with torch.no_grad():
    torch.save(model(**torch.load("inputs.pt"), mode="tensor"), "found.pt")
"""


def build(config, alpha, beta, num_classes=None):
    """A demo's model after a change of each parameter."""
    config = Config.fromfile(config)
    model = config.model.get("detector") or config.model.get("segmentor") or config.model
    if num_classes is not None:
        model.bbox_head.num_classes = num_classes
    model.backbone.update(alpha=alpha, beta=beta)
    init_default_scope(config.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return model.eval()


def tensors(output):
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [tensor for part in parts for tensor in tensors(part)]


def load_without_dr2net(folder, mended, then=""):
    """Runs what the card of a published folder says, in a process that cannot import dr2net."""
    (usage,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert "# without dr2net" in usage
    done = subprocess.run(
        [sys.executable, "-c", LOAD.replace("MENDED", mended).replace("USAGE", usage) + then],
        cwd=folder,
        env={"PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("demo", DEMOS)
@pytest.mark.filterwarnings("ignore:This .* left")
def test_a_process_without_dr2net_loads_what_revert_gives(demo, tmp_path):
    name, needed, draw = DEMOS[demo]
    pytest.importorskip(needed, exc_type=ImportError)
    config = ROOT / f"configs/{demo}/demo/{name}.py"
    model = build(config, 0.875, 0.125)
    saved = tmp_path / "epoch_5.pth"
    meta = {"dataset_meta": {"classes": ("ring", "cross")}, "cfg": "long"}
    torch.save({"meta": meta, "state_dict": model.state_dict(), "optimizer": {}}, saved)
    said = ["--metric", "AP 49.6", "--result", "own/rings", "AP", "49.6"]
    path = main([str(config), str(saved), str(tmp_path / "out"), *said])

    assert re.fullmatch(rf"{name}-[0-9a-f]{{8}}\.pth", path.name)
    published = torch.load(path)
    assert published["meta"] == {"dataset_meta": meta["dataset_meta"]}
    assert "optimizer" not in published
    card = (path.parent / "README.md").read_text()
    assert "- Measured: AP 49.6" in card
    assert "value: 49.6" in (path.parent / ".eval_results/own--rings.yaml").read_text()
    written = Config.fromfile(path.with_name(f"{name}.py"), import_custom_modules=False)
    # What inferencers read, in types of the library, which the steps of point clouds have not.
    steps = written.get("test_dataloader", {}).get("dataset", {}).get("pipeline", [])
    first = {"video": ["DecordInit"], "detection": ["LoadImageFromFile"], "pointcloud": []}
    assert [step.type for step in steps[:1]] == first[demo]
    inputs = draw()
    torch.save(inputs, path.parent / "inputs.pt")
    load_without_dr2net(path.parent, MENDED[demo], FORWARD)
    with torch.no_grad():
        expected = tensors(dr2net.revert(model)(**inputs, mode="tensor"))
    found = tensors(torch.load(path.parent / "found.pt"))
    assert len(found) == len(expected) > 0
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("dr2net_dino4scale_swint_coco", {"many_boxes"}),
        ("dr2net_retinanet_vitb_dinov2_coco", {"simple_pyramid", "vit"}),
    ],
)
def test_detectors_of_own_files_load_without_dr2net(name, files, tmp_path):
    pytest.importorskip("mmdet", exc_type=ImportError)
    pytest.importorskip("timm")
    from tests.detectors import small_model

    settings = small_model(name)
    init_default_scope("mmdet")
    saved = tmp_path / "epoch_5.pth"
    torch.save({"state_dict": MODELS.build(deepcopy(settings)).state_dict()}, saved)
    config = tmp_path / f"{name}.py"
    imports = {"imports": ["dr2net.openmmlab", "tasks.detection"]}
    Config({"model": settings, "default_scope": "mmdet", "custom_imports": imports}).dump(config)
    path = main([str(config), str(saved), str(tmp_path / "out")])
    copied = {file.stem for file in next(path.parent.glob("detection_network_*")).iterdir()}
    assert copied == {"__init__", *files}
    load_without_dr2net(path.parent, MENDED["detection"])


def test_files_that_need_dr2net_are_not_copied():
    pytest.importorskip("timm")
    import tasks.pointcloud  # noqa: F401

    files = files_of(["tasks.pointcloud.point_vit"])
    assert files.keys() == {"point_vit", "checkpointing", "grouping", "neighbours"}
    assert all(file.stem == name for name, file in files.items())
    assert files_of(["tasks.pointcloud.point_vit_adapter"]) is None  # imports dr2net
    assert files_of(["tasks.pointcloud.metric"]) is None  # imports tasks.files
    assert files_of(["tasks.pointcloud.point_vit", "tasks.files"]) is None


def test_a_network_of_files_that_need_dr2net_says_so(tmp_path):
    pytest.importorskip("mmaction")
    import tasks.video.localization  # noqa: F401
    from tests.localization import HEAD, PYRAMID, VIT, build_localizer

    config, saved = tmp_path / "own.py", tmp_path / "epoch_5.pth"
    model = {
        "type": "ActionLocalizer",
        "positions": 32,
        "backbone": VIT,
        "pyramid": PYRAMID,
        "head": HEAD,
    }
    imports = {"imports": ["tasks.video.localization"]}
    config.write_text(f"default_scope = 'mmaction'\n{model = }\ncustom_imports = {imports}\n")
    torch.save({"state_dict": build_localizer().state_dict()}, saved)
    path = main([str(config), str(saved), str(tmp_path / "out")])
    needs = "needs dr2net, for ActionFormerHead, ActionFormerPyramid, ActionLocalizer, ChunkViT"
    assert needs in (path.parent / "README.md").read_text()
    assert Config.fromfile(path.parent / "own.py").custom_imports.imports == imports["imports"]
    assert not [entry for entry in path.parent.iterdir() if entry.is_dir()]


@pytest.mark.filterwarnings("ignore:This .* left")
def test_a_config_may_say_its_classes_at_its_top(tmp_path):
    config, saved = tmp_path / "own.py", tmp_path / "epoch_5.pth"
    config.write_text(f"_base_ = {str(DETECTION)!r}\nclasses = ['a', 'b', 'c', 'd', 'e']\n")
    torch.save({"state_dict": build(DETECTION, 0.875, 0.125, num_classes=5).state_dict()}, saved)
    path = main([str(config), str(saved), str(tmp_path / "out")])
    assert Config.fromfile(path.parent / "own.py").model.bbox_head.num_classes == 5


@pytest.mark.filterwarnings("ignore:This .* left")
def test_what_others_wrote_is_imported_as_before(tmp_path, monkeypatch):
    pytest.importorskip("mmdet", exc_type=ImportError)
    (tmp_path / "their_package.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    config, saved = tmp_path / "own.py", tmp_path / "epoch_5.pth"
    imports = ["dr2net.openmmlab", "tasks.detection", "their_package"]
    config.write_text(f"_base_ = {str(DETECTION)!r}\ncustom_imports = dict({imports = })\n")
    torch.save({"state_dict": build(DETECTION, 0.875, 0.125).state_dict()}, saved)
    path = main([str(config), str(saved), str(tmp_path / "out")])
    published = Config.fromfile(path.parent / "own.py")
    assert published.custom_imports.imports == ["their_package"]
    dataset = published.test_dataloader.dataset
    assert dataset.type == "CocoDataset"  # of which SmallObjectDataset is one
    assert {step.type for step in dataset.pipeline} >= {"LoadImageFromFile", "PackDetInputs"}


@pytest.mark.filterwarnings("ignore:This .* left")
@pytest.mark.parametrize("inherits", [True, False], ids=["of the library's kind", "of its own"])
def test_steps_within_steps_are_the_librarys_as_well_or_none_is_written(tmp_path, inherits):
    pytest.importorskip("mmdet", exc_type=ImportError)
    config, saved = tmp_path / "own.py", tmp_path / "epoch_5.pth"
    step = "LoadTile" if inherits else "CropAroundObject"
    config.write_text(
        f"_base_ = {str(DETECTION)!r}\n"
        f"within = [[dict(type={step!r})], [dict(type='LoadImageFromFile')]]\n"
        "choice = dict(type='RandomChoice', transforms=within)\n"
        "resize = dict(type='Resize', scale=(64, 48), keep_ratio=True)\n"
        "pipeline = [choice, resize, dict(type='PackDetInputs')]\n"
        "test_dataloader = dict(dataset=dict(pipeline=pipeline))\n"
    )
    torch.save({"state_dict": build(DETECTION, 0.875, 0.125).state_dict()}, saved)
    path = main([str(config), str(saved), str(tmp_path / "out")])
    published = Config.fromfile(path.parent / "own.py")
    if not inherits:
        assert "test_dataloader" not in published
        return
    choice, *resizes, _ = published.test_dataloader.dataset.pipeline
    assert (64, 48) in [resize.get("scale") for resize in resizes]  # which has to be a tuple
    assert choice.type == "RandomChoice"
    assert choice.transforms == [[{"type": "LoadImageFromFile"}]] * 2


def test_off_the_line_and_of_another_model_nothing_is_published(tmp_path):
    saved = tmp_path / "epoch_5.pth"
    torch.save({"state_dict": build(DETECTION, 0.0, 1.0).state_dict()}, saved)
    with pytest.raises(ValueError, match=r"At \(alpha, beta\) = \(0\.0, 1\.0\) the plain"):
        main([str(DETECTION), str(saved), str(tmp_path / "out")])
    torch.save({"state_dict": {"backbone.weight": torch.zeros(1)}}, saved)
    with pytest.raises(ValueError, match="is not of the model of the config"):
        main([str(DETECTION), str(saved), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_wrappers_are_taken_off_at_any_depth():
    backbone = {"type": "dr2net.Dr2NetBackbone", "backbone": {"type": "ResNet"}, "beta": 0.5}
    found = plain_settings({"type": "Ensemble", "models": [{"backbone": backbone}]})
    assert found == {"type": "Ensemble", "models": [{"backbone": {"type": "ResNet"}}]}
