import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
import tasks.video.localization  # noqa: F401  # isort: skip

from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import METRICS, init_default_scope

from dr2net import get_coefficients
from dr2net.openmmlab import CoefficientScheduleHook
from tasks.video.localization.average_precision import ACTIVITYNET, THUMOS14
from tests.localization import CONFIGS

WAYS = ("conventional", "checkpointed", "dr2net")
SIZES = {"vits": (384, 12, 6), "vitb": (768, 12, 12), "vitl": (1024, 24, 16)}
SETS = {"thumos14": (768, 20), "activitynet13": (192, 1)}
NAMES = [(w, s, d) for w in WAYS for s in SIZES for d in SETS]
# The paper's way has one, to be followed to the letter.
NAMES.append(("dr2net_paper", "vitb", "thumos14"))


def load(way, size, data):
    init_default_scope("mmaction")
    return Config.fromfile(CONFIGS / f"{way}_{size}_{data}.py")


@pytest.fixture(params=NAMES, ids="_".join)
def names(request):
    return request.param


def test_there_are_no_others():
    found = {path.stem for path in CONFIGS.glob("*.py")}
    assert found == set(map("_".join, NAMES))


def test_opens_with_the_commands_that_run_it(names):
    path = f"configs/video/localization/{'_'.join(names)}.py"
    head = (CONFIGS / f"{'_'.join(names)}.py").read_text(encoding="utf-8").split('"""')[1]
    assert f"python tools/train.py {path}" in head
    assert f"tools/dist_train.sh {path}" in head
    assert f"python tools/test.py {path} CHECKPOINT" in head


def test_backbone_pyramid_and_head_agree(names):
    config, (_, size, data) = load(*names), names
    model, (width, depth, heads) = config.model, SIZES[size]
    positions, classes = SETS[data]
    backbone = model.backbone.get("backbone", model.backbone)
    assert (backbone.embed_dims, backbone.depth, backbone.num_heads) == (width, depth, heads)
    assert model.pyramid.in_channels == width
    assert model.pyramid.channels == model.head.channels
    assert (model.positions, model.head.num_classes) == (positions, classes)
    assert len(model.head.ranges) == model.pyramid.levels
    assert f"videomae_{size}_" in config.load_from


def test_pipelines_and_evaluators_build(names):
    config = load(*names)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        Compose(loader.dataset.pipeline)
    for evaluator in (config.val_evaluator, config.test_evaluator):
        METRICS.build(evaluator)
    thresholds = THUMOS14 if names[2] == "thumos14" else ACTIVITYNET
    assert tuple(config.test_evaluator.thresholds) == pytest.approx(thresholds)


def test_windows_are_those_of_the_recipe(names):
    for loader in (load(*names).train_dataloader, load(*names).test_dataloader):
        sampler = loader.dataset.pipeline[1]
        assert sampler.num_frames == 768
        if names[2] == "thumos14":
            assert sampler.frame_rate == 7.5  # every 4th of 30 frames
            if "window" in loader.dataset:
                assert loader.dataset.window == {
                    "num_frames": 768,
                    "frame_rate": 7.5,
                    "overlap": 0.5,
                }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("data", SETS)
class TestWaysDifferInNothingElse:
    def test_checkpointed(self, size, data):
        found = load("checkpointed", size, data).to_dict()
        assert found["model"]["backbone"].pop("with_cp") is True
        assert found == load("conventional", size, data).to_dict()

    def test_dr2net(self, size, data):
        found = load("dr2net", size, data).to_dict()
        wrapper = found["model"]["backbone"]
        found["model"]["backbone"] = wrapper.pop("backbone")
        assert wrapper == {"type": "Dr2NetBackbone"}
        held = found["default_hooks"].pop("coefficients")
        assert held.pop("type") == "CoefficientScheduleHook"
        at = CoefficientScheduleHook(**held).schedule.at
        assert at(0) == at(10**6) == (0.875, 0.125)
        assert found == load("conventional", size, data).to_dict()


def test_the_paper_s_way_differs_from_conventional_in_backbone_and_schedule_alone():
    found = load("dr2net_paper", "vitb", "thumos14").to_dict()
    wrapper = found["model"]["backbone"]
    found["model"]["backbone"] = wrapper.pop("backbone")
    assert wrapper.pop("type") == "Dr2NetBackbone"
    assert wrapper == {"alpha": 1.0, "beta": 0.1, "arithmetic": "exact"}
    schedule = found["default_hooks"].pop("coefficients")
    assert schedule.pop("type") == "CoefficientScheduleHook"
    at = CoefficientScheduleHook(**schedule).schedule.at
    assert (at(0), at(20)) == ((1, pytest.approx(0.1, abs=2**-16)), (0, 1))
    assert found == load("conventional", "vitb", "thumos14").to_dict()


def test_built_they_have_the_same_parameters():
    built = {}
    for way in WAYS:
        model = load(way, "vits", "thumos14").model
        backbone = model.backbone.get("backbone", model.backbone)
        backbone.update(embed_dims=12, num_heads=1, num_frames=2, img_size=16, depth=2)
        model.pyramid.update(in_channels=12, channels=8)
        model.head.channels = 8
        built[way] = MODELS.build(model)
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in built.values()]
    assert shapes[0] == shapes[1] == shapes[2]
    assert get_coefficients(built["dr2net"]) == (0.875, 0.125)
