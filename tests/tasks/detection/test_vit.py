"""Detectors on plain ViTs of timm: ``TimmViT`` and ``SimpleFeaturePyramid``."""

import copy

import pytest

pytest.importorskip("mmdet")
import tasks.detection  # noqa: F401  # isort: skip

import huggingface_hub.constants
import timm
import torch
from mmdet.registry import TASK_UTILS
from mmengine.config import Config
from timm.models import vision_transformer
from torch import nn

import dr2net
from dr2net.diagnostics import bytes_kept
from dr2net.openmmlab import checkpoint
from tasks.detection import SimpleFeaturePyramid, TimmViT
from tests.detectors import CONFIGS, VIT, build, small_model
from tests.tasks.detection.test_models import training_step
from tests.toy import assert_same_bits

NETWORKS = [
    f"{head}_vitb_{vit}" for head in ("dino4scale", "retinanet") for vit in ("dinov2", "dinov3")
]
DINOV2, DINOV3 = "vit_base_patch14_reg4_dinov2.lvd142m", "vit_base_patch16_dinov3.lvd1689m"


def detector(network, kind="conventional"):
    torch.manual_seed(0)
    return build(small_model(f"{kind}_{network}_coco"))


def small_vit(name, **options):
    torch.manual_seed(0)
    return TimmViT(name, **{**VIT, **options})


# The detectors


@pytest.mark.parametrize("network", NETWORKS)
def test_at_1_0_losses_and_gradients_are_the_unconverted_detector_s(network, photographs):
    conventional = detector(network)
    expected = training_step(conventional, photographs)
    converted = dr2net.convert(conventional, 1, 0)
    of_backbone, *others = dr2net.chains(converted)
    assert len(of_backbone) == VIT["depth"]
    assert len(others) == (2 if network.startswith("dino") else 0)  # encoder and decoder
    assert_same_bits(expected, training_step(converted, photographs))


@pytest.mark.parametrize("network", NETWORKS)
def test_rebuilt_gradients_are_the_stored_ones(network, photographs):
    converted = detector(network)
    original = training_step(converted, photographs)
    dr2net.convert(converted, 7 / 8, 1 / 8)
    rebuilt = training_step(converted, photographs)
    dr2net.set_reversible(converted, False)
    assert_same_bits(training_step(converted, photographs), rebuilt)
    # It is a different network, not the one at (1, 0). (DINOv2's blocks start close to identity.)
    pairs = zip(rebuilt, original, strict=True)
    assert not all(a is b is None or torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_parameter_of_the_backbone_and_the_pyramid_learns(network, photographs):
    model = detector(network)
    training_step(model, photographs)
    for name, parameter in [*model.backbone.named_parameters(), *model.neck.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("name", [DINOV2, DINOV3])
def test_a_reversible_backbone_keeps_a_fraction_of_the_activations(name):
    backbone = small_vit(name, depth=12)
    patch = backbone.vit.patch_embed.patch_size[0]
    images = torch.randn(1, 3, 12 * patch, 12 * patch)
    stored = bytes_kept(lambda: backbone(images))
    dr2net.convert(backbone, 7 / 8, 1 / 8)
    assert bytes_kept(lambda: backbone(images)) < stored / 5
    dr2net.set_reversible(backbone, False)
    assert bytes_kept(lambda: backbone(images)) == stored


@pytest.mark.parametrize("network", NETWORKS)
def test_checkpointed_blocks_give_the_conventional_gradients_and_keep_less(network, photographs):
    conventional, checkpointed = detector(network), detector(network, "checkpointed")
    checkpointed.load_state_dict(conventional.state_dict())
    assert_same_bits(
        training_step(conventional, photographs), training_step(checkpointed, photographs)
    )
    patch = conventional.backbone.vit.patch_embed.patch_size[0]
    images = torch.randn(1, 3, 8 * patch, 8 * patch)
    stored = bytes_kept(lambda: conventional.backbone(images))
    assert bytes_kept(lambda: checkpointed.backbone(images)) < stored / 2


@pytest.mark.parametrize("network", ["retinanet_vitb_dinov2", "retinanet_vitb_dinov3"])
def test_anchors_lie_on_the_strides_of_the_levels(network, photographs):
    model = detector(network)
    images = model.data_preprocessor(copy.deepcopy(photographs), training=True)["inputs"]
    height, width = images.shape[2:]
    levels = model.neck(model.backbone(images))
    strides = [stride for stride, _ in model.bbox_head.prior_generator.strides]
    patch = model.backbone.vit.patch_embed.patch_size[0]
    assert strides == [patch * scale for scale in (0.5, 1, 2, 4, 8)]
    for level, stride in zip(levels, strides, strict=True):
        expected = [-(-side // stride) for side in (height, width)]
        assert [*level.shape[2:]] == expected


def test_an_anchor_of_patches_of_14_is_centred_where_its_feature_is():
    model = Config.fromfile(CONFIGS / "conventional_retinanet_vitb_dinov2_coco.py").model
    generator = TASK_UTILS.build(model.bbox_head.anchor_generator)
    anchors = generator.single_level_grid_priors((3, 4), level_idx=1, device="cpu")
    centres = (anchors[:, :2] + anchors[:, 2:]).view(3, 4, 9, 2) / 2
    assert torch.allclose(centres[2, 3], torch.tensor([3 * 14.0, 2 * 14.0]).expand(9, 2))


# The backbone


@pytest.mark.parametrize("name", [DINOV2, DINOV3, "vit_base_patch14_dinov2.lvd142m"])
def test_the_map_is_timm_s_features_without_class_and_registers(name):
    backbone = small_vit(name).eval()
    options = {key: value for key, value in VIT.items() if key != "pretrained"}
    vit = timm.create_model(name, dynamic_img_size=True, **options).eval()
    vit.load_state_dict(backbone.vit.state_dict())
    patch = vit.patch_embed.patch_size[0]
    images = torch.randn(2, 3, 3 * patch, 5 * patch)
    (found,) = backbone(images)
    expected = vit.forward_intermediates(images, 1, norm=True, intermediates_only=True)[0]
    assert found.shape == (2, 32, 3, 5)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", [DINOV2, DINOV3])
def test_images_not_in_whole_patches_are_an_error_that_says_what_to_set(name):
    patch = int(name.split("patch")[1][:2])
    message = rf"patches of {patch} × {patch}.* 112 × {patch + 1} .*pad_size_divisor.* {patch}"
    with pytest.raises(ValueError, match=message):
        small_vit(name)(torch.zeros(1, 3, 112, patch + 1))


def test_stochastic_depth_reaches_the_blocks():
    rates = [
        block.drop_path1.drop_prob for block in small_vit(DINOV3, drop_path_rate=0.3).vit.blocks[1:]
    ]
    assert rates == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("name", ["resnet50", "swin_tiny_patch4_window7_224", "no_such_model"])
def test_what_is_no_plain_vit_is_refused(name):
    with pytest.raises(ValueError, match=rf"name='{name}'.*not a plain ViT.*list_models"):
        TimmViT(name, pretrained=False)


@pytest.mark.parametrize("name", [DINOV2, DINOV3])
def test_without_a_network_the_error_says_what_to_do(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    backbone = small_vit(name, pretrained=True)
    with pytest.raises(RuntimeError, match=rf"(?s){name} from the Hugging.*pretrained=PATH.*False"):
        backbone.init_weights()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("name", [DINOV2, DINOV3])
def test_a_file_in_timm_s_layout_is_what_the_backbone_starts_from(
    name, suffix, tmp_path, monkeypatch
):
    # Of another task, such as the video task's for files of VideoMAE, whose names are the same.
    another = {"state_dict": {"backbone.cls_token": torch.zeros(1)}}
    monkeypatch.setattr(checkpoint, "_converters", [lambda _: another])
    source = small_vit(name).vit.state_dict()
    path = tmp_path / f"vit.{suffix}"
    if suffix == "pth":
        torch.save({"model": source}, path)
    else:
        from safetensors.torch import save_file

        save_file(source, path)
    torch.manual_seed(1)
    backbone = TimmViT(name, **{**VIT, "pretrained": str(path)})
    before = {key: value.clone() for key, value in backbone.vit.state_dict().items()}
    dr2net.convert(backbone)  # as the hook does, before weights are initialised
    backbone.init_weights()
    loaded = backbone.vit.state_dict()
    assert any(not torch.equal(value, before[key]) for key, value in source.items())
    assert all(torch.equal(value, loaded[key]) for key, value in source.items())


def test_dinov2_s_own_file_loads_onto_another_grid_of_positions(tmp_path):
    vit = small_vit(DINOV2, img_size=70).vit.state_dict()
    own = {
        "cls_token": vit["cls_token"],
        "register_tokens": vit["reg_token"],
        "mask_token": torch.zeros(1, 32),
        # The class token has a position of its own there.
        "pos_embed": torch.cat([torch.zeros(1, 1, 32), vit["pos_embed"]], 1),
        **{key: value for key, value in vit.items() if "." in key},
    }
    torch.save(own, tmp_path / "dinov2.pth")
    backbone = small_vit(DINOV2, img_size=140, pretrained=str(tmp_path / "dinov2.pth"))
    backbone.init_weights()
    loaded = backbone.vit.state_dict()
    assert loaded["pos_embed"].shape == (1, 100, 32)
    unchanged = [key for key in vit if key not in ("pos_embed", "cls_token")]
    assert all(torch.equal(vit[key], loaded[key]) for key in unchanged)


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "other.pth")
    backbone = small_vit(DINOV3, pretrained=str(tmp_path / "other.pth"))
    with pytest.raises(RuntimeError, match=r"(?s)no pretrained weights.*other\.pth.*blocks"):
        backbone.init_weights()


@pytest.mark.parametrize("grid", [(2, 3), (5, 5), (7, 11)])
def test_the_deterministic_backward_of_positions_is_the_gradient(grid):
    positions = torch.randn(1, 1 + 25, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 1 + grid[0] * grid[1], 4, dtype=torch.float64)
    results = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            # Timm computes in float32.
            output = vision_transformer.resample_abs_pos_embed(positions, grid, (5, 5))
            (gradient,) = torch.autograd.grad((output * weights).sum(), positions)
        finally:
            torch.use_deterministic_algorithms(False)
        results.append((output.detach(), gradient))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-5, atol=1e-6)


# The pyramid


def test_a_level_has_the_size_and_channels_of_its_scale():
    scales = (4, 2, 1, 0.5, 0.25)
    levels = SimpleFeaturePyramid(16, 8, scales)([torch.randn(2, 16, 6, 9)])
    sizes = [(24, 36), (12, 18), (6, 9), (3, 5), (2, 3)]
    assert [tuple(level.shape) for level in levels] == [(2, 8, *size) for size in sizes]


def test_a_feature_of_a_level_sees_the_map_where_it_lies():
    pyramid = SimpleFeaturePyramid(8, 4, (2, 1, 0.5))
    single = torch.randn(1, 8, 16, 16, requires_grad=True)
    for level, scale in zip(pyramid([single]), (2, 1, 0.5), strict=True):
        row, column = int(4 * scale), int(12 * scale)
        (gradient,) = torch.autograd.grad(level[0, 0, row, column], single)
        rows, columns = gradient[0].abs().sum(0).nonzero().T
        assert rows.float().mean().item() == pytest.approx(4.5, abs=1)
        assert columns.float().mean().item() == pytest.approx(12.5, abs=1)


def test_levels_are_layers_of_the_paper():
    layers = [type(layer) for layer in SimpleFeaturePyramid(16, 8, (4,)).levels[0]]
    norm = timm.layers.LayerNorm2d
    first = [nn.ConvTranspose2d, norm, nn.GELU, nn.ConvTranspose2d]
    assert layers == [*first, nn.Conv2d, norm, nn.Conv2d, norm]


@pytest.mark.parametrize("scale", [3, 0.4, 0, -1])
def test_other_scales_are_refused(scale):
    with pytest.raises(ValueError, match=rf"scales={scale} is none of"):
        SimpleFeaturePyramid(16, 8, (scale,))
