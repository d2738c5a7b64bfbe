from pathlib import Path

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
import tasks.video  # noqa: F401  # isort: skip

from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope

from dr2net import get_coefficients
from dr2net.openmmlab import CoefficientScheduleHook

CONFIGS = sorted((Path(__file__).parents[2] / "configs/video").glob("*.py"))


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request):
    init_default_scope("mmaction")
    return request.param


def test_opens_with_the_commands_that_run_it(path):
    name = f"configs/video/{path.name}"
    head = path.read_text().split('"""')[1]
    assert f"python tools/train.py {name}" in head
    assert f"tools/dist_train.sh {name}" in head
    assert f"python tools/test.py {name} CHECKPOINT" in head


def test_head_mixup_and_data_agree_on_the_classes(path):
    config = Config.fromfile(path)
    classes = config.model.cls_head.num_classes
    mixed = [augment.num_classes for augment in config.model.data_preprocessor.blending.augments]
    loaders = (config.train_dataloader, config.val_dataloader, config.test_dataloader)
    assert {*mixed, *(loader.dataset.num_classes for loader in loaders)} == {classes}


def test_test_views_are_those_of_the_recipe(path):
    pipeline = Config.fromfile(path).test_dataloader.dataset.pipeline
    clips, crops = pipeline[1].num_clips, [t.type for t in pipeline if "Crop" in t.type]
    assert (clips, crops) == (5 if "k400" in path.stem else 2, ["ThreeCrop"])


def test_pipelines_build(path):
    config = Config.fromfile(path)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        Compose(loader.dataset.pipeline)


def test_layers_of_the_decay_are_those_of_the_backbone(path):
    config = Config.fromfile(path)
    backbone = config.model.backbone.get("backbone", config.model.backbone)
    assert config.optim_wrapper.paramwise_cfg.num_layers == backbone.depth


def read(kind, size, data):
    return Config.fromfile(CONFIGS[0].parent / f"{kind}_{size}_{data}.py").to_dict()


@pytest.mark.parametrize("size", ["vits", "vitb"])
@pytest.mark.parametrize("data", ["k400", "ssv2"])
class TestKindsDifferInNothingElse:
    def test_the_paper_s_way(self, size, data):
        found = read("dr2net_paper", size, data)
        wrapper = found["model"]["backbone"]
        found["model"]["backbone"] = wrapper["backbone"]
        assert (wrapper["alpha"], wrapper["beta"], wrapper["arithmetic"]) == (1.0, 0.1, "exact")
        schedule = found["default_hooks"].pop("coefficients")
        assert (schedule["alpha"], schedule["beta"]) == ((1.0, 0.0), (0.1, 1.0))
        assert found == read("conventional", size, data)

    def test_dr2net(self, size, data):
        found = read("dr2net", size, data)
        wrapper = found["model"]["backbone"]
        found["model"]["backbone"] = wrapper.pop("backbone")
        assert wrapper == {"type": "Dr2NetBackbone", "fused_attention": True}
        held = found["default_hooks"].pop("coefficients")
        assert held.pop("type") == "CoefficientScheduleHook"
        at = CoefficientScheduleHook(**held).schedule.at
        assert at(0) == at(10**6) == (0.875, 0.125)
        assert found == read("conventional", size, data)


@pytest.mark.parametrize("size", ["vits", "vitb"])
@pytest.mark.parametrize(
    ("kind", "coefficients"), [("dr2net", (0.875, 0.125)), ("dr2net_paper", (1, 0.1))]
)
def test_built_it_has_its_coefficients_and_the_parameter_names_of_the_conventional_network(
    kind, size, coefficients
):
    init_default_scope("mmaction")
    names = []
    for name in ("conventional", kind):
        model = Config.fromfile(CONFIGS[0].parent / f"{name}_{size}_k400.py").model
        backbone = model.backbone.get("backbone", model.backbone)
        backbone.update(embed_dims=12, num_heads=1, num_frames=2, img_size=16)
        model.cls_head.in_channels = 12
        built = MODELS.build(model)
        names.append([name for name, _ in built.named_parameters()])
    assert names[0] == names[1]
    assert get_coefficients(built) == pytest.approx(coefficients, abs=2**-16)
