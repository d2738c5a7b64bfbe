import itertools

import pytest
import torch

pytest.importorskip("mmengine")
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData

import dr2net
import dr2net.openmmlab.mended  # registers Dr2NetBackbone, and makes backbones importable
from dr2net.diagnostics import bytes_kept
from tests.toy import assert_same_bits, gradients

VIT = {
    "type": "mmaction.VisionTransformer",
    "img_size": 32,
    "patch_size": 8,
    "embed_dims": 32,
    "num_heads": 2,
    "depth": 2,
    "num_frames": 4,
}
SWIN = {
    "type": "mmdet.SwinTransformer",
    "embed_dims": 8,
    "window_size": 4,
    "mlp_ratio": 2,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "strides": (4, 2),
    "out_indices": (0, 1),
}
VIDEO_SWIN = {
    "type": "mmaction.SwinTransformer3D",
    "arch": {"embed_dims": 8, "depths": [2, 2], "num_heads": [2, 4]},
    "pretrained2d": False,
    "window_size": (2, 4, 4),
    "mlp_ratio": 2,
    "out_indices": (1,),
}
MVIT = {
    "type": "mmaction.MViT",
    "arch": {"embed_dims": 8, "num_layers": 5, "num_heads": 1, "downscale_indices": [2]},
    "spatial_size": 32,
    "temporal_size": 4,
    "adaptive_kv_stride": (1, 4, 4),
    "mlp_ratio": 2,
}
BACKBONES = {"ViT": VIT, "Swin": SWIN, "Video Swin": VIDEO_SWIN, "MViT": MVIT}


def build(backbone=VIT, **options):
    return MODELS.build(ConfigDict(type="Dr2NetBackbone", backbone=backbone, **options))


def initialised(backbone, convert):
    """The backbone's parameters after ``init_weights``."""
    torch.manual_seed(0)
    model = build(backbone) if convert else MODELS.build(ConfigDict(backbone))
    model.init_weights()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_it_builds_the_registered_backbone_and_converts_it():
    model = build(alpha=0.5, beta=0.5)
    assert dr2net.get_coefficients(model) == (0.5, 0.5)
    names = [name for name, _ in model.named_parameters()]
    assert names == [name for name, _ in MODELS.build(dict(VIT)).named_parameters()]


def test_it_is_found_from_a_library_s_scope():
    from mmaction.registry import MODELS as MMACTION_MODELS

    with DefaultScope.overwrite_default_scope("mmaction"):
        config = {"type": "Dr2NetBackbone", "backbone": {**VIT, "type": "VisionTransformer"}}
        assert dr2net.chains(MMACTION_MODELS.build(config))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_initial_weights_are_those_of_the_backbone_alone(backbone):
    plain, found = (initialised(BACKBONES[backbone], convert) for convert in (False, True))
    assert list(found) == list(plain)
    assert all(torch.equal(plain[name], found[name]) for name in plain)


def random_weights(backbone):
    torch.manual_seed(1)
    state = MODELS.build(dict(backbone)).state_dict()
    return {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in state.items()}


def swin_of_mmdetection():
    return {"state_dict": {f"backbone.{k}": v for k, v in random_weights(SWIN).items()}}


def swin_of_its_authors():
    names = {
        "stages.": "layers.",
        "attn.w_msa.": "attn.",
        "ffn.layers.0.0.": "mlp.fc1.",
        "ffn.layers.1.": "mlp.fc2.",
        "patch_embed.projection.": "patch_embed.proj.",
    }
    state = {"head.weight": torch.zeros(2, 16)}
    for name, value in random_weights(SWIN).items():
        for new, old in names.items():
            name = name.replace(new, old)
        state[name] = value
    return {"model": state}


def swin_for_images():
    state = random_weights(VIDEO_SWIN)
    for name, value in state.items():
        if name == "patch_embed.proj.weight":
            state[name] = value[:, :, 0]
        elif name.endswith("relative_position_bias_table"):
            state[name] = value[: 5 * 5]  # of windows of 3, which are resized to 4
    return {"model": state}


def mvit_of_maskfeat():
    state = {f"backbone.{k}": v for k, v in random_weights(MVIT).items()}
    for name, value in state.items():
        if "rel_pos_h" in name:
            state[name] = value[1:-1]  # of smaller frames
    return {"state_dict": state}


PRETRAINED = {"type": "Pretrained", "prefix": "backbone."}
LOADED = {
    "mmdetection's Swin": (SWIN, swin_of_mmdetection, {"init_cfg": {"type": "Pretrained"}}),
    "the authors' Swin": (
        {**SWIN, "convert_weights": True},
        swin_of_its_authors,
        {"init_cfg": {"type": "Pretrained"}},
    ),
    "Swin for images": ({**VIDEO_SWIN, "pretrained2d": True}, swin_for_images, {}),
    "mmaction2's Video Swin": (VIDEO_SWIN, lambda: {"state_dict": random_weights(VIDEO_SWIN)}, {}),
    "mmaction2's MViT": (
        MVIT,
        lambda: {"state_dict": {f"backbone.{k}": v for k, v in random_weights(MVIT).items()}},
        {"init_cfg": PRETRAINED},
    ),
    "MaskFeat's MViT": (
        {**MVIT, "pretrained_type": "maskfeat"},
        mvit_of_maskfeat,
        {"init_cfg": PRETRAINED},
    ),
}


@pytest.mark.parametrize("case", LOADED)
def test_pretrained_files_load_as_into_the_backbone_alone(case, tmp_path):
    backbone, contents, options = LOADED[case]
    file = str(tmp_path / "pretrained.pth")
    torch.save(contents(), file)
    if options:
        init_cfg = {**options["init_cfg"], "checkpoint": file}
        backbone = {**backbone, "init_cfg": init_cfg}
    else:
        backbone = {**backbone, "pretrained": file}
    plain, found = (initialised(backbone, convert) for convert in (False, True))
    assert all(torch.equal(plain[name], found[name]) for name in plain)
    weight = next(name for name in plain if name.endswith("blocks.0.norm1.weight"))
    assert plain[weight].std() > 0.1  # it came from the file


def test_at_one_and_zero_it_is_the_backbone_bit_for_bit():
    plain, model = MODELS.build(dict(VIT)).train(), build(alpha=1, beta=0).train()
    model.load_state_dict(plain.state_dict(), strict=True)
    x = torch.randn(1, 3, 4, 32, 32, requires_grad=True)
    assert_same_bits(gradients(plain, x), gradients(model, x))


def test_options_reach_conversion():
    model = build(arithmetic="float", reversible=False, fused_attention=True)
    (chain,) = dr2net.chains(model)
    assert (chain.arithmetic, chain.reversible) == ("float", False)
    assert chain.branches[0].__name__ == "attention_fused"


def test_checkpointed_blocks_keep_less_and_have_the_same_bits_where_activations_are_stored():
    plain, model = (build(alpha=1, beta=0, checkpointed=flag).train() for flag in (False, True))
    model.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 4, 32, 32, requires_grad=True)
    assert_same_bits(gradients(plain, x), gradients(model, x))
    assert bytes_kept(lambda: model(x)) < bytes_kept(lambda: plain(x)) / 2


@pytest.mark.parametrize(
    ("backbone", "mlp", "shape"),
    [("ViT", "blocks.0.mlp", (1, 3, 4, 32, 32)), ("Swin", "stages.0.blocks.0.ffn", (1, 3, 32, 48))],
)
def test_mlps_run_over_slices_of_tokens(backbone, mlp, shape):
    x = torch.randn(shape, requires_grad=True)
    model = build(BACKBONES[backbone], mlp_tokens=7)
    model.train()
    expected = gradients(model, x, reversible=False)
    assert_same_bits(gradients(model, x), expected)
    layers, rows = model.get_submodule(mlp).layers, []
    layers[0][0].register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
    model(x)
    shorter = -sum(rows) % 7  # the fewest slices, as even as can be
    assert rows == [7] * (len(rows) - shorter) + [6] * shorter
    (chain, *_) = dr2net.chains(build(BACKBONES[backbone]))
    assert chain.slicer is None


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="fussed_attention: not an option"):
        build(fussed_attention=True)


def test_layer_wise_learning_rates_see_the_blocks():
    from mmaction.engine.optimizers import LearningRateDecayOptimizerConstructor

    recognizer = torch.nn.Module()
    recognizer.backbone = build()
    constructor = LearningRateDecayOptimizerConstructor(
        {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 1.0}},
        {"decay_rate": 0.5, "decay_type": "layer_wise", "num_layers": 2},
    )
    groups = constructor(recognizer).optimizer.param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    blocks = recognizer.backbone.blocks
    assert rates[id(recognizer.backbone.patch_embed.projection.weight)] == 0.125
    assert rates[id(blocks[0].mlp.layers[1].weight)] == 0.25
    assert rates[id(blocks[1].mlp.layers[1].weight)] == 0.5


def recognizer(backbone, head):
    return {
        "type": "mmaction.Recognizer3D",
        "backbone": backbone,
        "cls_head": {"num_classes": 3, **head},
        "data_preprocessor": {"type": "mmaction.ActionDataPreprocessor", "format_shape": "NCTHW"},
    }


def detector(backbone):
    return {
        "type": "mmdet.RetinaNet",
        "data_preprocessor": {"type": "mmdet.DetDataPreprocessor", "pad_size_divisor": 8},
        "backbone": backbone,
        "neck": {"type": "mmdet.FPN", "in_channels": [8, 16], "out_channels": 8, "num_outs": 3},
        "bbox_head": {
            "type": "mmdet.RetinaHead",
            "num_classes": 2,
            "in_channels": 8,
            "feat_channels": 8,
            "stacked_convs": 1,
            "anchor_generator": {
                "type": "mmdet.AnchorGenerator",
                "scales": [1],
                "ratios": [1.0],
                "strides": [4, 8, 16],
            },
            "bbox_coder": {"type": "mmdet.DeltaXYWHBBoxCoder"},
            "loss_cls": {"type": "mmdet.FocalLoss"},
            "loss_bbox": {"type": "mmdet.L1Loss"},
        },
        "train_cfg": {
            "assigner": {"type": "mmdet.MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4},
            "sampler": {"type": "mmdet.PseudoSampler"},
            "allowed_border": -1,
            "pos_weight": -1,
        },
    }


def clips():
    from mmaction.structures import ActionDataSample

    samples = [ActionDataSample().set_gt_label(label) for label in (0, 2)]
    return {"inputs": [torch.randn(1, 3, 4, 32, 32) for _ in samples], "data_samples": samples}


def images():
    from mmdet.structures import DetDataSample

    data = []
    for height, width in ((40, 48), (29, 61)):  # a batch is padded to the largest of its images
        sample = DetDataSample(metainfo={"img_shape": (height, width), "scale_factor": (1, 1)})
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[4.0, 4.0, 20.0, 20.0]]), labels=torch.tensor([1])
        )
        data.append((torch.rand(3, height, width) * 255, sample))
    inputs, samples = zip(*data, strict=True)
    return {"inputs": list(inputs), "data_samples": list(samples)}


SWIN_HEAD = {"type": "mmaction.I3DHead", "in_channels": 16}
MVIT_HEAD = {"type": "mmaction.MViTHead", "in_channels": 16}

# name: (backbone, what stands around it, a batch, names for keep)
MODELS_AROUND = {
    "RetinaNet with Swin": (SWIN, detector, images, ("stages.0",)),
    "Recognizer3D with Video Swin": (
        VIDEO_SWIN,
        lambda backbone: recognizer(backbone, SWIN_HEAD),
        clips,
        ("layers.0", "layers.1.blocks.1"),
    ),
    "Recognizer3D with MViT": (
        MVIT,
        lambda backbone: recognizer(backbone, MVIT_HEAD),
        clips,
        ("blocks.0", "blocks.4"),
    ),
}


def train_step(model, batch):
    """Losses and gradients of a step, from a fixed seed."""
    torch.manual_seed(7)
    data = model.data_preprocessor(batch(), training=True)
    losses, _ = model.parse_losses(model(**data, mode="loss"))
    losses.backward()
    return [losses.detach(), *(parameter.grad for parameter in model.parameters())]


def built(config, state=None):
    torch.manual_seed(0)
    # As a config's default_scope: another test may have left one of its own.
    with DefaultScope.overwrite_default_scope(config["type"].partition(".")[0]):
        model = MODELS.build(ConfigDict(config))
    model.init_weights()
    if state is not None:
        model.load_state_dict(state, strict=True)
    model.train()
    return model


@pytest.mark.parametrize("name", MODELS_AROUND)
def test_at_one_and_zero_a_step_of_the_whole_model_has_the_same_bits(name):
    backbone, around, batch, _ = MODELS_AROUND[name]
    plain = built(around(backbone))
    wrapped = {"type": "Dr2NetBackbone", "alpha": 1, "beta": 0, "backbone": backbone}
    model = built(around(wrapped), plain.state_dict())
    assert_same_bits(train_step(plain, batch), train_step(model, batch))


@pytest.mark.parametrize("name", MODELS_AROUND)
def test_kept_blocks_leave_the_gradients_of_a_step(name):
    backbone, around, batch, keep = MODELS_AROUND[name]
    found = []
    for options in ({"reversible": False}, {}, {"keep": keep}):
        wrapped = {"type": "Dr2NetBackbone", "beta": 0.5, "backbone": backbone, **options}
        model = built(around(wrapped))
        found.append(train_step(model, batch))
    assert sum(len(chain.keep) for chain in dr2net.chains(model)) > 0
    for first, second in itertools.pairwise(found):
        assert_same_bits(first, second)
