import re
from pathlib import Path

import pytest

pytest.importorskip("mmdet")
import tasks.detection  # noqa: F401  # isort: skip

import mmdet
import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

import dr2net
from dr2net.openmmlab import CoefficientScheduleHook
from tasks.detection.class_names import METAINFO
from tasks.detection.protocols import PROTOCOLS
from tasks.detection.tiles import OVERLAP, SCALE_FACTOR, TILE_SIZE
from tests.detectors import CONFIGS, build, small_model

PATHS = sorted(CONFIGS.glob("*.py"))
DINO = [f"dino{scales}scale_swin{size}" for scales in (4, 5) for size in "tsbl"]
NETWORKS = [*DINO, "retinanet_swint"]
VITS = [
    f"{head}_vitb_{vit}" for head in ("dino4scale", "retinanet") for vit in ("dinov2", "dinov3")
]
MMDETECTION = Path(mmdet.__file__).parent / ".mim/configs"
# By the last word of a config's name: what METAINFO calls the set.
SETS = {"coco": "coco", "sodad": "soda-d", "visdrone": "visdrone", "aitod": "ai-tod"}
SMALL_SETS = ("sodad", "visdrone", "aitod")
SMALL_OBJECTS = [
    f"{network}_{name}"
    for network in ("dino4scale_swint", "retinanet_swint")
    for name in SMALL_SETS
]
VITS_SMALL_OBJECTS = [f"{network}_{name}" for network in VITS for name in SMALL_SETS]
# Of https://github.com/microsoft/Swin-Transformer, without its head of 1,000 classes.
MILLIONS = {"t": 27.5, "s": 48.8, "b": 86.8, "l": 195.1}


def read(kind, network):
    name = network if network.endswith(SMALL_SETS) else f"{network}_coco"
    return Config.fromfile(CONFIGS / f"{kind}_{name}.py")


def detector_of(config):
    return config["model"].get("detector", config["model"])


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    init_default_scope("mmdet")
    return request.param


def test_every_network_is_there_in_its_kinds():
    coco, small = [*NETWORKS, *VITS], [*SMALL_OBJECTS, *VITS_SMALL_OBJECTS]
    expected = {f"{kind}_{name}" for kind in ("conventional", "dr2net") for name in small}
    for kind in ("conventional", "checkpointed", "dr2net"):
        expected |= {f"{kind}_{network}_coco" for network in coco}
    expected |= {f"previous_reversible_{network}_coco" for network in NETWORKS}
    expected |= {f"dr2net_paper_{network}_coco" for network in NETWORKS}
    expected |= {f"dr2net_paper_{name}" for name in SMALL_OBJECTS}
    expected |= {f"dr2net_whole_dino5scale_swin{size}_coco" for size in "tl"}
    assert expected == {path.stem for path in PATHS}


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


def test_head_data_and_metric_are_those_of_the_set(path):
    config = Config.fromfile(path)
    name = SETS[path.stem.split("_")[-1]]
    assert detector_of(config).bbox_head.num_classes == len(METAINFO[name]["classes"])
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        dataset = loader.dataset.get("dataset", loader.dataset)
        assert dataset.type == "SmallObjectDataset"
        assert dataset.get("metainfo", "coco") == name
    for loader, evaluator in (
        (config.val_dataloader, config.val_evaluator),
        (config.test_dataloader, config.test_evaluator),
    ):
        assert evaluator.protocol == name
        assert evaluator.ann_file == f"{config.data_root}/{loader.dataset.ann_file}"
    figure = config.default_hooks.checkpoint.save_best.removeprefix("detection/")
    assert figure in PROTOCOLS[name].report


@pytest.mark.parametrize("network", [*SMALL_OBJECTS, *VITS_SMALL_OBJECTS])
def test_as_many_detections_come_out_as_the_metric_takes(network):
    config = read("conventional", network)
    protocol = PROTOCOLS[config.val_evaluator.protocol]
    if config.model.type == "TiledDetector":
        classes = config.model.detector.bbox_head.num_classes
        assert config.model.max_detections == classes * max(protocol.limits)
    else:
        assert config.model.test_cfg.max_per_img == max(protocol.limits)


@pytest.mark.parametrize(
    "network", [name for name in [*SMALL_OBJECTS, *VITS_SMALL_OBJECTS] if name.endswith("sodad")]
)
def test_soda_d_is_cut_alike_for_training_and_testing(network):
    config = read("conventional", network)
    training, testing = config.train_dataloader.dataset, config.model
    assert (training.tile_size, training.overlap) == (TILE_SIZE, OVERLAP)
    assert (testing.tile_size, testing.overlap) == (TILE_SIZE, OVERLAP)
    (resize,) = [step for step in training.pipeline if step.type == "Resize"]
    assert resize.scale_factor == testing.scale_factor == SCALE_FACTOR


def test_small_version_builds(path):
    backbone = build(small_model(path.stem)).backbone
    # dr2net_whole is converted by a hook.
    points = {"dr2net": (0.875, 0.125), "dr2net_paper": (1, 0.1), "previous_reversible": (0, 1)}
    expected = points.get(re.match("(.*?)_(dino|retinanet)", path.stem)[1])
    assert dr2net.is_convertible(backbone)
    chains = len(dr2net.chains(backbone))
    assert chains == (0 if expected is None else 1 if "vitb" in path.stem else 4)
    if expected is not None:
        assert dr2net.get_coefficients(backbone) == pytest.approx(expected, abs=2**-16)


@pytest.mark.parametrize("backbone", ["swint", "vitb_dinov2", "vitb_dinov3"])
@pytest.mark.parametrize("name", ["sodad", "visdrone"])
def test_anchors_in_ignored_regions_are_no_background(name, backbone):
    config = read("conventional", f"retinanet_{backbone}_{name}")
    assigner = TASK_UTILS.build(detector_of(config).train_cfg.assigner)
    priors = torch.tensor([[2.0, 2, 18, 18], [50, 50, 66, 66], [80, 80, 96, 96]])
    assigned = assigner.assign(
        InstanceData(priors=priors),
        InstanceData(bboxes=priors[2:], labels=torch.tensor([0])),
        InstanceData(bboxes=torch.tensor([[0.0, 0, 20, 20]]), labels=torch.tensor([-1])),
    )
    assert assigned.gt_inds.tolist() == [-1, 0, 1]


@pytest.mark.parametrize("network", [*NETWORKS, *SMALL_OBJECTS])
def test_the_paper_s_way_differs_from_conventional_in_backbone_and_schedule_alone(network):
    found = read("dr2net_paper", network).to_dict()
    wrapper = detector_of(found)["backbone"]
    assert (wrapper["alpha"], wrapper["beta"], wrapper["arithmetic"]) == (1.0, 0.1, "exact")
    detector_of(found)["backbone"] = wrapper["backbone"]
    schedule = found["default_hooks"].pop("coefficients")
    assert schedule.pop("type") == "CoefficientScheduleHook"
    moving = CoefficientScheduleHook(**schedule).schedule
    assert (moving.at(0), moving.at(moving.end)) == ((1.0, 0.1), (0.0, 1.0))
    assert found == read("conventional", network).to_dict()


@pytest.mark.parametrize("network", [*NETWORKS, *SMALL_OBJECTS, *VITS, *VITS_SMALL_OBJECTS])
def test_dr2net_differs_from_conventional_in_backbone_and_held_point_alone(network):
    found = read("dr2net", network).to_dict()
    wrapper = detector_of(found)["backbone"]
    detector_of(found)["backbone"] = wrapper.pop("backbone")
    assert wrapper == {"type": "Dr2NetBackbone"}
    held = found["default_hooks"].pop("coefficients")
    assert held.pop("type") == "CoefficientScheduleHook"
    at = CoefficientScheduleHook(**held).schedule.at
    assert at(0) == at(10**6) == (0.875, 0.125)
    assert found == read("conventional", network).to_dict()


@pytest.mark.parametrize("network", NETWORKS)
def test_previous_reversible_differs_from_conventional_in_the_backbone_alone(network):
    found = read("previous_reversible", network).to_dict()
    wrapper = found["model"]["backbone"]
    assert (wrapper["alpha"], wrapper["beta"], wrapper["arithmetic"]) == (0.0, 1.0, "float")
    found["model"]["backbone"] = wrapper["backbone"]
    assert found == read("conventional", network).to_dict()


@pytest.mark.parametrize("network", [*NETWORKS, *VITS])
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


@pytest.mark.parametrize("network", [*VITS, *VITS_SMALL_OBJECTS])
def test_levels_of_a_vit_and_what_the_head_knows_of_them(network):
    model = detector_of(read("conventional", network))
    patch = int(re.search(r"patch(\d+)", model.backbone.name)[1])
    assert patch == {"dinov2": 14, "dinov3": 16}[re.search("dinov.", network)[0]]
    assert model.data_preprocessor.pad_size_divisor == 2 * patch
    strides = [patch / scale for scale in model.neck.scales]
    assert strides == [patch * 2**i for i in range(-1, len(strides) - 1)]
    if network.startswith("dino"):
        assert len(strides) == model.num_feature_levels == 4
    else:
        assert model.bbox_head.anchor_generator.strides == strides
    assert model.neck.get("out_channels", 256) == model.bbox_head.get("in_channels", 256)


@pytest.mark.parametrize(("network", "millions"), [(VITS[0], 86.6), (VITS[1], 85.6)])
def test_vit_has_the_size_of_its_name_and_as_many_layers_as_learning_rates(network, millions):
    init_default_scope("mmdet")
    config = read("conventional", network)
    backbone = MODELS.build(config.model.backbone)
    count = sum(value.numel() for value in backbone.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.1)
    assert len(backbone.vit.blocks) == config.depth
    assert config.model.neck.in_channels == backbone.vit.num_features


@pytest.mark.parametrize("kind", ["conventional", "dr2net"])
@pytest.mark.parametrize(("network", "decay"), [(VITS[0], 1e-4), (VITS[2], 0.1)])
def test_learning_rates_decay_from_the_last_layer_of_a_vit_to_the_first(network, decay, kind):
    model = small_model(f"{kind}_{network}_coco")
    model.backbone.get("backbone", model.backbone).depth = 12
    detector = build(model)
    settings = read(kind, network).optim_wrapper
    optimizer = build_optim_wrapper(detector, settings).optimizer
    groups = {id(group["params"][0]): group for group in optimizer.param_groups}
    found = {
        name: (groups[id(value)]["lr"] / 1e-4, groups[id(value)]["weight_decay"])
        for name, value in detector.named_parameters()
    }
    blocks = "backbone.vit.blocks"
    expected = {
        "backbone.vit.patch_embed.proj.weight": (0.7**13, decay),
        "backbone.vit.pos_embed": (0.7**13, 0),
        f"{blocks}.0.attn.qkv.weight": (0.7**12, decay),
        f"{blocks}.1.mlp.fc1.weight": (0.7**11, decay),
        f"{blocks}.1.norm2.weight": (0.7**11, 0),
        f"{blocks}.10.attn.qkv.weight": (0.7**2, decay),
        f"{blocks}.11.mlp.fc2.bias": (0.7, decay),
        "backbone.vit.norm.bias": (1, 0),
        "neck.levels.0.0.weight": (1, decay),
        "neck.levels.0.2.weight": (1, 0),
    }
    for name, (rate, weight_decay) in expected.items():
        assert found[name] == pytest.approx((rate, weight_decay)), name


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
    assert without_bounds(found["model"]) == expected["model"]
    for key in ("optim_wrapper", "param_scheduler", "train_cfg"):
        assert found[key] == expected[key], key
    assert found["auto_scale_lr"]["base_batch_size"] == 16
    for loader in ("train_dataloader", "val_dataloader"):
        datasets = [config[loader]["dataset"] for config in (found, expected)]
        pipelines = [dataset["pipeline"] for dataset in datasets]
        filters = [dataset.get("filter_cfg", {}) for dataset in datasets]
        assert filters[0].get("filter_empty_gt") == filters[1].get("filter_empty_gt")
        assert pipelines[0] == without_backend(pipelines[1])
        assert found[loader]["batch_size"] == expected[loader]["batch_size"]


def without_bounds(model):
    """As mmdetection's: the same on images of few boxes (tests/tasks/detection/test_many_boxes)."""
    model["type"] = model["type"].removeprefix("Bounded")
    model["bbox_head"]["type"] = model["bbox_head"]["type"].removeprefix("Bounded")
    assigner = model["train_cfg"]["assigner"]
    if "match_costs" in assigner:
        (in_parts,) = assigner["match_costs"]
        assigner["match_costs"] = in_parts["costs"]
    for name in ("iou_calculator", "gpu_assign_thr"):
        assigner.pop(name, None)
    return model


def without_backend(value):
    """mmdetection's pipelines name a storage backend, None, that is the default."""
    if isinstance(value, dict):
        return {k: without_backend(v) for k, v in value.items() if k != "backend_args"}
    return [without_backend(v) for v in value] if isinstance(value, list) else value
