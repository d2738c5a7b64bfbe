from pathlib import Path

import pytest

pytest.importorskip("mmdet")
import tasks.detection  # noqa: F401  # isort: skip

import mmdet
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope

import dr2net
from dr2net.openmmlab import CoefficientScheduleHook
from tests.detectors import CONFIGS, build, small_model

PATHS = sorted(CONFIGS.glob("*_coco.py"))
DINO = [f"dino{scales}scale_swin{size}" for scales in (4, 5) for size in "tsbl"]
NETWORKS = [*DINO, "retinanet_swint"]
MMDETECTION = Path(mmdet.__file__).parent / ".mim/configs"
# Of https://github.com/microsoft/Swin-Transformer, without its head of 1,000 classes.
MILLIONS = {"t": 27.5, "s": 48.8, "b": 86.8, "l": 195.1}


def read(kind, network):
    return Config.fromfile(CONFIGS / f"{kind}_{network}_coco.py")


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    init_default_scope("mmdet")
    return request.param


def test_every_network_is_there_in_four_kinds():
    kinds = ("conventional", "checkpointed", "previous_reversible", "dr2net")
    expected = {f"{kind}_{network}_coco" for kind in kinds for network in NETWORKS}
    assert expected <= {path.stem for path in PATHS}


def test_opens_with_the_commands_that_run_it(path):
    name = f"configs/detection/{path.name}"
    head = path.read_text().split('"""')[1]
    assert f"python tools/train.py {name}" in head
    assert f"tools/dist_train.sh {name}" in head
    assert f"python tools/test.py {name} CHECKPOINT" in head


def test_pipelines_build(path):
    config = Config.fromfile(path)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        Compose(loader.dataset.pipeline)


def test_head_has_the_classes_of_coco(path):
    assert Config.fromfile(path).model.bbox_head.num_classes == 80


def test_small_version_builds(path):
    backbone = build(small_model(path.stem)).backbone
    converted = path.stem.startswith(("dr2net", "previous"))
    assert dr2net.is_convertible(backbone)
    assert len(dr2net.chains(backbone)) == (4 if converted else 0)


@pytest.mark.parametrize("network", NETWORKS)
def test_dr2net_differs_from_conventional_in_backbone_and_schedule_alone(network):
    found = read("dr2net", network).to_dict()
    wrapper = found["model"]["backbone"]
    assert (wrapper["alpha"], wrapper["beta"], wrapper["arithmetic"]) == (1.0, 0.1, "exact")
    found["model"]["backbone"] = wrapper["backbone"]
    schedule = found["default_hooks"].pop("coefficients")
    assert schedule.pop("type") == "CoefficientScheduleHook"
    assert CoefficientScheduleHook(**schedule).schedule.at(0) == (1.0, 0.1)
    assert found == read("conventional", network).to_dict()


@pytest.mark.parametrize("network", NETWORKS)
def test_previous_reversible_differs_from_conventional_in_the_backbone_alone(network):
    found = read("previous_reversible", network).to_dict()
    wrapper = found["model"]["backbone"]
    assert (wrapper["alpha"], wrapper["beta"], wrapper["arithmetic"]) == (0.0, 1.0, "float")
    found["model"]["backbone"] = wrapper["backbone"]
    assert found == read("conventional", network).to_dict()


@pytest.mark.parametrize("network", NETWORKS)
def test_checkpointed_differs_from_conventional_in_that_alone(network):
    found = read("checkpointed", network).to_dict()
    assert found["model"]["backbone"].pop("with_cp")
    expected = read("conventional", network).to_dict()
    assert not expected["model"]["backbone"].pop("with_cp")
    assert found == expected


@pytest.mark.parametrize("network", NETWORKS)
def test_backbone_has_the_size_of_its_name_and_parameter_names_of_the_conventional(network):
    init_default_scope("mmdet")
    shapes = []
    for kind in ("conventional", "dr2net"):
        backbone = MODELS.build(read(kind, network).model.backbone)
        shapes.append([(name, value.shape) for name, value in backbone.named_parameters()])
    assert shapes[0] == shapes[1]
    count = sum(shape.numel() for _, shape in shapes[0]) / 1e6
    assert count == pytest.approx(MILLIONS[network[-1]], abs=0.2)


def test_largest_detector_has_the_published_number_of_parameters():
    init_default_scope("mmdet")
    model = MODELS.build(read("dr2net", "dino5scale_swinl").model)
    # Table 3 of https://arxiv.org/abs/2203.03605: 218 M.
    assert round(sum(value.numel() for value in model.parameters()) / 1e6) == 218


@pytest.mark.parametrize("scales", [4, 5])
@pytest.mark.parametrize("size", "tsbl")
def test_neck_takes_what_the_backbone_gives(scales, size):
    model = read("conventional", f"dino{scales}scale_swin{size}").model
    backbone = model.backbone
    assert model.neck.in_channels == [backbone.embed_dims * 2**i for i in backbone.out_indices]
    levels = (
        model.num_feature_levels,
        model.neck.num_outs,
        model.encoder.layer_cfg.self_attn_cfg.num_levels,
        model.decoder.layer_cfg.cross_attn_cfg.num_levels,
    )
    assert levels == (scales,) * 4


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("checkpointed_dino5scale_swinl_coco", "dino/dino-5scale_swin-l_8xb2-12e_coco.py"),
        ("conventional_retinanet_swint_coco", "swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py"),
    ],
)
def test_hyper_parameters_are_those_that_mmdetection_publishes(name, published):
    found = Config.fromfile(CONFIGS / f"{name}.py").to_dict()
    expected = Config.fromfile(MMDETECTION / published).to_dict()
    found["model"]["backbone"]["type"] = found["model"]["backbone"]["type"].removeprefix("mmdet.")
    assert found["model"] == expected["model"]
    for key in ("optim_wrapper", "param_scheduler", "train_cfg"):
        assert found[key] == expected[key], key
    assert found["auto_scale_lr"]["base_batch_size"] == 16
    for loader in ("train_dataloader", "val_dataloader"):
        pipelines = [config[loader]["dataset"]["pipeline"] for config in (found, expected)]
        assert pipelines[0] == without_backend(pipelines[1])
        assert found[loader]["batch_size"] == expected[loader]["batch_size"]


def without_backend(value):
    """mmdetection's pipelines name a storage backend, None, that is the default."""
    if isinstance(value, dict):
        return {k: without_backend(v) for k, v in value.items() if k != "backend_args"}
    return [without_backend(v) for v in value] if isinstance(value, list) else value
