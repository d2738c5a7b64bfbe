import copy

import pytest

pytest.importorskip("mmdet")
import tasks.detection  # noqa: F401  # isort: skip

import torch
from mmcv.ops import multi_scale_deform_attn
from mmdet.models.layers import Mask2FormerTransformerEncoder
from mmdet.models.layers.transformer import deformable_detr_layers
from mmengine.runner.checkpoint import load_checkpoint, save_checkpoint

import dr2net
from dr2net.diagnostics import bytes_kept
from dr2net.openmmlab.checkpoint import UnmatchedCheckpointError
from tasks.detection.deformable_attention import attend_by_grid_sample
from tests.deformable_attention import formula
from tests.detectors import SWIN, build, small_model, without_compiled
from tests.toy import assert_same_bits

NETWORKS = ["dino4scale_swint_coco", "dino5scale_swint_coco", "retinanet_swint_coco"]


def pair(network, **backbone):
    """The conventional detector and the Dr²Net with its weights."""
    torch.manual_seed(0)
    conventional = build(small_model(f"conventional_{network}"))
    converted = build(small_model(f"dr2net_{network}", **backbone))
    converted.load_state_dict(conventional.state_dict())
    return conventional, converted


def training_step(detector, batch):
    """The losses of a training step and all gradients, from a fixed seed."""
    torch.manual_seed(1)  # stochastic depth and DINO's noise
    data = detector.data_preprocessor(copy.deepcopy(batch), training=True)
    detector.zero_grad(set_to_none=True)
    losses = detector(**data, mode="loss")
    total, named = detector.parse_losses(losses)
    total.backward()
    found = [*named.values(), *(parameter.grad for parameter in detector.parameters())]
    blocks = getattr(detector.backbone, "stages", None) or detector.backbone.vit.blocks
    assert all(p.grad is not None and p.grad.any() for p in blocks.parameters())
    return [None if value is None else value.detach() for value in found]


@pytest.mark.parametrize("network", NETWORKS)
def test_at_1_0_losses_and_gradients_are_the_unconverted_detector_s(network, photographs):
    conventional, converted = pair(network, alpha=1.0, beta=0.0)
    assert len(dr2net.chains(converted)) == 4
    expected = training_step(conventional, photographs)
    assert_same_bits(expected, training_step(converted, photographs))


@pytest.mark.parametrize("coefficients", [(1.0, 0.1), (0.5, 0.5), (0.0, 1.0)])
@pytest.mark.parametrize("network", NETWORKS)
def test_rebuilt_gradients_are_the_stored_ones(network, coefficients, photographs):
    alpha, beta = coefficients
    conventional, converted = pair(network, alpha=alpha, beta=beta)
    rebuilt = training_step(converted, photographs)
    dr2net.set_reversible(converted, False)
    assert_same_bits(training_step(converted, photographs), rebuilt)
    # It is a different network, not the one at (1, 0).
    assert not torch.equal(rebuilt[0], training_step(conventional, photographs)[0])


@pytest.mark.parametrize("network", NETWORKS)
def test_checkpointed_blocks_give_the_conventional_gradients(network, photographs):
    conventional, _ = pair(network)
    checkpointed = build(small_model(f"checkpointed_{network}"))
    checkpointed.load_state_dict(conventional.state_dict())
    assert_same_bits(
        training_step(conventional, photographs), training_step(checkpointed, photographs)
    )


@without_compiled
@pytest.mark.parametrize("coefficients", [(1.0, 0.0), (0.5, 0.5)])
def test_dino_s_gradients_are_the_same_if_every_sample_is_kept(
    coefficients, photographs, monkeypatch
):
    alpha, beta = coefficients
    _, converted = pair("dino4scale_swint_coco", alpha=alpha, beta=beta)
    found = training_step(converted, photographs)
    calls = []

    def attend(*inputs):
        calls.append(inputs)
        return attend_by_grid_sample(*inputs)

    monkeypatch.setattr(multi_scale_deform_attn, "multi_scale_deformable_attn_pytorch", attend)
    assert_same_bits(training_step(converted, photographs), found)
    assert len(calls) == 4  # two layers of the encoder, two of the decoder


@without_compiled
def test_dino_s_losses_are_those_of_the_formula(photographs, monkeypatch):
    conventional, _ = pair("dino4scale_swint_coco")
    found = training_step(conventional, photographs)
    monkeypatch.setattr(multi_scale_deform_attn, "multi_scale_deformable_attn_pytorch", formula)
    expected = training_step(conventional, photographs)
    for one, other in zip(found, expected, strict=True):
        # Sums in another order, in float32.
        assert one is other is None or (one - other).norm() <= 1e-4 * other.norm() + 1e-6


@pytest.mark.parametrize("network", NETWORKS)
def test_detections_at_1_0_are_the_unconverted_detector_s(network, photographs):
    found = []
    for detector in pair(network, alpha=1.0, beta=0.0):
        if network.startswith("retinanet"):
            detector.bbox_head.test_cfg.score_thr = 0.0
        detector.eval()
        sample = detector.test_step(copy.deepcopy(photographs))[0]
        found.append(sample.pred_instances)
    assert len(found[0]) > 10
    for field in ("bboxes", "scores", "labels"):
        assert torch.equal(found[0][field], found[1][field])
    # In the pixels of the photograph, which is 2,048 wide.
    assert found[0].bboxes.max() > 160
    assert (found[0].bboxes[:, 2] <= 2048).all()


def original_swin(backbone):
    """The backbone's weights as the Swin repository saves them, with its head and masks."""
    names = {
        "stages": "layers",
        "attn.w_msa.": "attn.",
        "ffn.layers.0.0.": "mlp.fc1.",
        "ffn.layers.1.": "mlp.fc2.",
        "patch_embed.projection": "patch_embed.proj",
    }
    weights = {}
    for name, value in backbone.state_dict().items():
        if name.startswith("norm"):
            continue  # detection's own
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        if "downsample.reduction" in name:  # the four neighbours are the outer index there
            out = value.shape[0]
            value = value.reshape(out, -1, 4)[:, :, [0, 2, 1, 3]].transpose(1, 2).reshape(out, -1)
        elif "downsample.norm" in name:
            value = value.reshape(-1, 4)[:, [0, 2, 1, 3]].T.reshape(-1)
        weights[name] = value
    weights["norm.weight"] = torch.ones(8 * SWIN["embed_dims"])
    weights["head.weight"] = torch.zeros(1000, 8 * SWIN["embed_dims"])
    weights["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    return weights


@pytest.mark.parametrize("kind", ["conventional", "dr2net"])
@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_pretrained_swin_file_is_what_the_backbone_starts_from(kind, key, tmp_path):
    source = build(small_model("conventional_dino4scale_swint_coco")).backbone
    for parameter in source.parameters():
        parameter.data.normal_()
    torch.save({key: original_swin(source)}, tmp_path / "swin.pth")
    model = small_model(f"{kind}_dino4scale_swint_coco")
    inner = model.backbone.get("backbone", model.backbone)
    inner.init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "swin.pth")}
    loaded = dict(build(model).backbone.named_parameters())
    for name, value in source.named_parameters():
        assert torch.equal(value, loaded[name]) != name.startswith("norm"), name


@pytest.mark.parametrize("kind", ["conventional", "checkpointed", "previous_reversible", "dr2net"])
def test_a_detector_s_checkpoint_of_mmdetection_loads_into_every_kind(kind, tmp_path):
    source = build(small_model("conventional_dino5scale_swint_coco"))
    file = {
        "meta": {"epoch": 12, "iter": 87960, "dataset_meta": {"classes": ("human",)}},
        "state_dict": source.state_dict(),
        "message_hub": {},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "param_schedulers": [{"last_step": 12}],
    }
    save_checkpoint(file, str(tmp_path / "dino.pth"))
    target = build(small_model(f"{kind}_dino5scale_swint_coco"))
    with torch.no_grad():
        target.level_embed.zero_()
    load_checkpoint(target, str(tmp_path / "dino.pth"), strict=True)
    loaded = dict(target.named_parameters())
    for name, value in source.named_parameters():
        assert torch.equal(value, loaded[name]), name


def test_a_finetuned_detector_s_checkpoint_brings_its_coefficients(tmp_path):
    _, source = pair("dino4scale_swint_coco", alpha=0.25, beta=0.5)
    save_checkpoint({"state_dict": source.state_dict()}, str(tmp_path / "dr2net.pth"))
    target = build(small_model("dr2net_dino4scale_swint_coco"))
    load_checkpoint(target, str(tmp_path / "dr2net.pth"), strict=True)
    assert dr2net.get_coefficients(target) == (0.25, 0.5)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    save_checkpoint({"state_dict": {"conv1.weight": torch.ones(1)}}, str(tmp_path / "other.pth"))
    with pytest.raises(UnmatchedCheckpointError):
        load_checkpoint(
            build(small_model("dr2net_retinanet_swint_coco")), str(tmp_path / "other.pth")
        )


# All of a detector

EVERYTHING = ["backbone.stages.*.blocks", "encoder.layers", "decoder.layers"]
WAYS = {
    "branches": {},
    "blocks": {"couplings": "block"},
    "names": {"blocks": EVERYTHING},
}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("network", ["dino4scale_swint_coco", "dino5scale_swint_coco"])
def test_dino_s_encoder_and_decoder_convert_with_the_backbone(network, way, photographs):
    conventional, _ = pair(network)
    converted = dr2net.convert(copy.deepcopy(conventional), 1, 0, **WAYS[way])
    assert [chain.name for chain in dr2net.chains(converted)] == [
        *(f"backbone.stages.{stage}.blocks" for stage in range(4)),
        "encoder.layers",
        "decoder.layers",
    ]
    assert len(dr2net.chains(converted)[4].couplings()) == (4 if way == "branches" else 2)
    expected = training_step(conventional, photographs)
    assert_same_bits(expected, training_step(converted, photographs))
    dr2net.set_coefficients(converted, 0.875, 0.125)
    rebuilt = training_step(converted, photographs)
    dr2net.set_reversible(converted, False)
    assert_same_bits(training_step(converted, photographs), rebuilt)
    assert not torch.equal(rebuilt[0], expected[0])


def test_all_of_a_dino_in_slices_has_the_stored_gradients_and_keeps_less(photographs):
    detector = dr2net.convert(build(small_model("conventional_dino5scale_swint_coco")))
    whole = training_step(detector, photographs)
    dr2net.slice_mlps(detector, 500)
    sliced = training_step(detector, photographs)
    assert torch.allclose(whole[0], sliced[0], rtol=1e-5)
    kept = bytes_of_forward(detector, photographs)
    dr2net.set_reversible(detector, False)
    assert_same_bits(training_step(detector, photographs), sliced)
    assert kept < 0.5 * bytes_of_forward(detector, photographs)


def bytes_of_forward(detector, batch):
    data = detector.data_preprocessor(copy.deepcopy(batch), training=True)
    return bytes_kept(lambda: detector(**data, mode="loss"))


def test_a_checkpointed_encoder_is_refused_with_what_to_leave_out(monkeypatch):
    # Its layers are of fairscale, which need not be installed: any function serves.
    monkeypatch.setattr(deformable_detr_layers, "checkpoint_wrapper", lambda layer: layer)
    model = small_model("conventional_dino4scale_swint_coco")
    model.encoder.num_cp = 1
    with pytest.raises(ValueError, match=r"checkpoints 1 of its layers.* leave out num_cp"):
        dr2net.convert(build(model))


def test_layers_of_another_class_are_named():
    detector = build(small_model("conventional_dino4scale_swint_coco"))
    detector.encoder.layers[0].__class__ = type("Layer", (type(detector.encoder.layers[0]),), {})
    with pytest.raises(ValueError, match="with a Layer has no adapter"):
        dr2net.convert(detector)


def test_an_encoder_with_a_loop_of_its_own_keeps_it():
    layer = {
        "self_attn_cfg": {"embed_dims": 32, "num_levels": 2, "num_heads": 4},
        "ffn_cfg": {"embed_dims": 32, "feedforward_channels": 64},
    }
    torch.manual_seed(0)
    encoder = Mask2FormerTransformerEncoder(num_layers=2, layer_cfg=layer)
    inputs = {
        "query": torch.randn(1, 26, 32),
        "query_pos": torch.randn(1, 26, 32),
        "key_padding_mask": None,
        "spatial_shapes": torch.tensor([[4, 5], [2, 3]]),
        "level_start_index": torch.tensor([0, 20]),
        "valid_ratios": torch.ones(1, 2, 2),
        "reference_points": torch.rand(1, 26, 2, 2),
    }

    def step():
        encoder.zero_grad()
        torch.manual_seed(1)  # dropout
        output = encoder(**inputs)
        output.square().mean().backward()
        return [output.detach(), *(p.grad for p in encoder.parameters())]

    expected = step()
    dr2net.convert(encoder, 1, 0)
    assert_same_bits(expected, step())
    dr2net.set_coefficients(encoder, 0.875, 0.125)
    rebuilt = step()
    dr2net.set_reversible(encoder, False)
    assert_same_bits(step(), rebuilt)
    assert not torch.equal(rebuilt[0], expected[0])


def test_a_reverted_dino_is_mmdetection_s(photographs):
    detector = build(small_model("conventional_dino4scale_swint_coco"))
    expected, names = training_step(detector, photographs), list(detector.state_dict())
    classes = [type(module) for module in detector.modules()]
    converted = dr2net.convert(detector, 1, 0)
    assert [type(module) for module in converted.modules()] != classes
    reverted = dr2net.revert(converted)
    assert [type(module) for module in reverted.modules()] == classes
    assert list(reverted.state_dict()) == names
    assert_same_bits(training_step(reverted, photographs), expected)
