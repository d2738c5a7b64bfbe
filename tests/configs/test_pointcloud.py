from pathlib import Path

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("timm")
import tasks.pointcloud  # noqa: F401  # isort: skip

from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import MODELS, DefaultScope

import dr2net
from dr2net.openmmlab import CoefficientScheduleHook
from tasks.pointcloud.class_names import CLASSES

CONFIGS = Path(__file__).parents[2] / "configs/pointcloud"
PATHS = sorted(CONFIGS.glob("*.py"))


@pytest.fixture(autouse=True)
def scope_of_mmengine():
    """As ``default_scope`` in the configs, whatever other tests have left."""
    with DefaultScope.overwrite_default_scope("mmengine"):
        yield


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


def read(kind):
    return Config.fromfile(CONFIGS / f"{kind}_pix4point_s3dis.py").to_dict()


def test_all_kinds_are_there():
    kinds = ("conventional", "dr2net", "dr2net_paper", "previous_reversible")
    assert {f"{kind}_pix4point_s3dis" for kind in kinds} == {path.stem for path in PATHS}


def test_opens_with_the_commands_that_run_it(path):
    name = f"configs/pointcloud/{path.name}"
    head = path.read_text().split('"""')[1]
    assert f"python tools/train.py {name}" in head
    assert f"tools/dist_train.sh {name}" in head
    assert f"python tools/test.py {name} CHECKPOINT" in head


def test_pipelines_build(path):
    config = Config.fromfile(path)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        Compose(loader.dataset.pipeline)


def test_areas_are_those_of_the_protocol(path):
    config = Config.fromfile(path)
    assert config.train_dataloader.dataset.areas == [1, 2, 3, 4, 6]
    assert config.val_dataloader.dataset.areas == config.test_dataloader.dataset.areas == [5]


def test_tests_see_what_training_and_validation_see(path):
    config = Config.fromfile(path)
    train, val = (
        {t.pop("type"): t for t in loader.dataset.pipeline}
        for loader in (config.train_dataloader, config.val_dataloader)
    )
    model = config.model
    assert model.voxel_size == train["VoxelSubsample"].voxel_size == 0.04
    assert model.voxel_size == val["VoxelSubsample"].voxel_size
    assert model.max_points == train["SphereCrop"].num_points == 24000
    after = list(val)[list(val).index("VoxelSubsample") + 1 :]
    assert [transform.type for transform in model.transforms] == after


def test_backbone_and_head_are_pix4point_s_for_the_classes_of_s3dis(path):
    model = MODELS.build(Config.fromfile(path).model)
    assert model.decode_head.num_classes == len(CLASSES)
    backbone = model.backbone
    assert backbone.cls_token.shape == (1, 1, 384)
    assert len(backbone.blocks) == 12
    assert backbone.blocks[11].drop_path1.drop_prob == pytest.approx(0.1)
    points = {
        "conventional": None,
        "dr2net": (0.875, 0.125),
        "dr2net_paper": (1, 0.1),
        "previous_reversible": (0, 1),
    }
    expected = points[path.stem.removesuffix("_pix4point_s3dis")]
    assert len(dr2net.chains(model)) == (0 if expected is None else 1)
    if expected is not None:
        assert dr2net.get_coefficients(model) == pytest.approx(expected, abs=2**-16)


def test_the_paper_s_way_differs_from_conventional_in_backbone_and_schedule_alone():
    found = read("dr2net_paper")
    wrapper = found["model"]["segmentor"]["backbone"]
    assert (wrapper["alpha"], wrapper["beta"], wrapper["arithmetic"]) == (1.0, 0.1, "exact")
    found["model"]["segmentor"]["backbone"] = wrapper["backbone"]
    schedule = found["default_hooks"].pop("coefficients")
    assert (schedule["begin"], schedule["end"], schedule["by_epoch"]) == (0, 20, True)
    assert (schedule["alpha"], schedule["beta"]) == ((1.0, 0.0), (0.1, 1.0))
    assert schedule["order"] == "alternate"
    assert found == read("conventional")


def test_dr2net_differs_from_conventional_in_backbone_and_held_point_alone():
    found = read("dr2net")
    wrapper = found["model"]["segmentor"]["backbone"]
    found["model"]["segmentor"]["backbone"] = wrapper.pop("backbone")
    assert wrapper == {"type": "Dr2NetBackbone"}
    held = found["default_hooks"].pop("coefficients")
    assert held.pop("type") == "CoefficientScheduleHook"
    at = CoefficientScheduleHook(**held).schedule.at
    assert at(0) == at(10**6) == (0.875, 0.125)
    assert found == read("conventional")


def test_previous_reversible_differs_from_conventional_in_the_backbone_alone():
    found = read("previous_reversible")
    wrapper = found["model"]["segmentor"]["backbone"]
    assert (wrapper["alpha"], wrapper["beta"], wrapper["arithmetic"]) == (0.0, 1.0, "float")
    found["model"]["segmentor"]["backbone"] = wrapper["backbone"]
    assert found == read("conventional")


def test_parameter_names_are_those_of_the_conventional_network():
    names = [
        [name for name, _ in MODELS.build(read(kind)["model"]).named_parameters()]
        for kind in ("conventional", "dr2net", "dr2net_paper")
    ]
    assert names[0] == names[1] == names[2]
