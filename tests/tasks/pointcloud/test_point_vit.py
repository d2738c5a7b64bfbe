import copy

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("timm")
import tasks.pointcloud  # noqa: F401  # isort: skip

import timm
import torch
from mmengine.registry import MODELS
from torch import nn

import dr2net
from dr2net.diagnostics import bytes_kept
from tasks.pointcloud import PointViT, grouping, point_vit
from tests.toy import assert_same_bits, gradients

PAIRS = pytest.mark.parametrize(("alpha", "beta"), [(1, 0.1), (0.5, 0.5), (0.3, 0.7), (0, 1)])
PRECISION = pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
SMALL = {"embed_dims": 32, "depth": 3, "num_heads": 2, "drop_path_rate": 0.3, "group_size": 8}


class OnOneCloud(nn.Module):
    """The backbone as a function of the features, on clouds of which one has points twice."""

    def __init__(self, backbone, points=128):
        super().__init__()
        self.backbone = backbone
        coord = torch.rand(2, points, 3, generator=torch.Generator().manual_seed(0))
        coord[1, points // 2 :] = coord[1, : points // 2]
        self.coord = coord

    def forward(self, feat):
        return self.backbone(self.coord, feat)


def make(**options):
    return OnOneCloud(PointViT(**SMALL | options).train())


def features(points=128):
    return torch.randn(2, points, 4, requires_grad=True)


def converted(model, alpha, beta, **options):
    model = copy.deepcopy(model)
    dr2net.convert(model.backbone, alpha, beta, **options)
    return model


@PRECISION
def test_at_one_and_zero_it_is_the_original_network_bit_for_bit(bf16):
    model, feat = make(), features()
    found = gradients(converted(model, 1, 0), feat, bf16=bf16)
    assert_same_bits(gradients(model, feat, bf16=bf16), found)


def test_as_a_registered_backbone_it_is_the_same():
    backbone = {"type": "PointViT", **SMALL}
    torch.manual_seed(0)
    original = OnOneCloud(MODELS.build(backbone).train())
    torch.manual_seed(0)
    wrapped = {"type": "Dr2NetBackbone", "backbone": backbone, "alpha": 1.0, "beta": 0.0}
    model, feat = OnOneCloud(MODELS.build(wrapped).train()), features()
    assert [name for name, _ in original.named_parameters()] == [
        name for name, _ in model.named_parameters()
    ]
    assert_same_bits(gradients(original, feat), gradients(model, feat))


@PAIRS
@PRECISION
def test_gradients_are_those_of_stored_activations(alpha, beta, bf16):
    model, feat = converted(make(), alpha, beta), features()
    assert_same_bits(
        gradients(model, feat, reversible=False, bf16=bf16),
        gradients(model, feat, reversible=True, bf16=bf16),
    )


def test_gradients_of_pix4point_s_are_exact():
    model, feat = OnOneCloud(PointViT().train()), features()
    expected = gradients(model, feat)
    dr2net.convert(model.backbone, 1, 0)
    assert_same_bits(gradients(model, feat), expected)
    for alpha, beta in ((1, 0.1), (0.5, 0.5), (0, 1)):
        dr2net.set_coefficients(model, alpha, beta)
        assert_same_bits(
            gradients(model, feat, reversible=False), gradients(model, feat, reversible=True)
        )


def test_reverted_it_is_the_original_network():
    model, feat = make(), features()
    found = gradients(OnOneCloud(dr2net.revert(converted(model, 1, 0).backbone)), feat)
    assert_same_bits(gradients(model, feat), found)


def test_verify_passes():
    model = converted(make(), 1, 0.1).backbone
    dr2net.verify(model, torch.rand(2, 128, 3), torch.randn(2, 128, 4))


@pytest.mark.parametrize("pair", [None, (1, 0), (1, 0.1), (0.5, 0.5), (0, 1)])
def test_a_training_step_moves_the_position_embedding(pair):
    model = make() if pair is None else converted(make(), *pair)
    position = {
        name: value
        for name, value in model.named_parameters()
        if "pos_embed" in name or "cls_pos" in name
    }
    assert len(position) == 5  # weights and biases of two layers, and of the class token
    before = {name: value.detach().clone() for name, value in position.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, (*_, tokens), class_token = model(features())
    (tokens.sin().sum() + class_token.cos().sum()).backward()
    assert all(value.grad.abs().max() > 0 for value in position.values())
    optimizer.step()
    assert all(not torch.equal(value, before[name]) for name, value in position.items())


def test_the_position_is_added_before_every_block():
    backbone = make().backbone.eval()
    x, position = torch.randn(2, 9, 32), torch.randn(2, 9, 32)
    expected = x
    for block in backbone.blocks:
        expected = block(expected + position)
    assert torch.equal(backbone.blocks(x, position), expected)


def test_points_are_sampled_and_searched_outside_of_the_chain(monkeypatch):
    calls = []
    for name in ("farthest_points", "nearest_points"):
        original = getattr(grouping, name)
        monkeypatch.setattr(
            grouping,
            name,
            lambda *args, f=original, **options: calls.append(f.__name__) or f(*args, **options),
        )
    _, features_of_stages, _ = converted(make(), 0.5, 0.5)(features())
    features_of_stages[-1].sum().backward()
    assert calls == ["farthest_points", "nearest_points", "nearest_points"]


@pytest.mark.parametrize("checkpoint", [False, True])
def test_given_groups_are_taken_and_give_the_same_bits(monkeypatch, checkpoint):
    model = converted(make(checkpoint_embedding=checkpoint), 0.5, 0.5)
    feat, coord = features(), model.coord
    expected = gradients(model, feat)
    groups = grouping.group_points(coord, SMALL["group_size"])
    monkeypatch.delattr(point_vit, "group_points")
    model.forward = lambda feat: model.backbone(coord, feat, groups)
    assert_same_bits(gradients(model, feat), expected)


def test_groups_that_lack_a_stage_are_refused():
    model = PointViT(**SMALL)
    coord, feat = torch.rand(1, 128, 3), torch.rand(1, 128, SMALL.get("in_channels", 4))
    groups = grouping.group_points(coord, SMALL["group_size"])
    del groups["centres_2"]
    with pytest.raises(ValueError, match="groups have no centres_2"):
        model(coord, feat, groups)


def test_groups_of_another_size_are_refused():
    model = make()
    feat = features()
    with pytest.raises(
        ValueError, match=r"groups of 8 .* \(2, 32, 8\) in stage 1, got \(2, 32, 4\)"
    ):
        model.backbone(model.coord, feat, grouping.group_points(model.coord, 4))
    groups = grouping.group_points(model.coord, 8)
    with pytest.raises(ValueError, match=r"\(1, 32, 8\) in stage 1, got \(2, 32, 8\): give Group"):
        model.backbone(model.coord[:1], feat[:1], groups)


def test_blocks_bear_the_names_of_timm_s():
    vit = timm.create_model("deit_small_patch16_224")
    names = {name: value.shape for name, value in vit.state_dict().items()}
    taken = {
        name: value.shape
        for name, value in PointViT().state_dict().items()
        if name.startswith(("blocks.", "norm.", "cls_token"))
    }
    assert len(taken) == 12 * 12 + 3
    assert all(names[name] == shape for name, shape in taken.items())


def test_defaults_are_pix4point_s():
    backbone = PointViT()
    assert len(backbone.blocks) == 12
    assert backbone.blocks[0].attn.num_heads == 6
    assert backbone.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    coords, features_of_stages, class_token = OnOneCloud(backbone)(features())
    assert [tuple(coord.shape) for coord in coords] == [(2, 128, 3), (2, 32, 3), (2, 8, 3)]
    shapes = [tuple(feature.shape) for feature in features_of_stages]
    assert shapes == [(2, 128, 7), (2, 32, 192), (2, 8, 384)]
    assert class_token.shape == (2, 1, 384)


def test_attention_is_fused():
    assert all(block.attn.fused_attn for block in PointViT(**SMALL).blocks)


def test_stochastic_depth_is_off_in_evaluation():
    model, feat = make(), features()
    assert not torch.equal(model(feat)[2], model(feat)[2])
    model.eval()
    assert torch.equal(model(feat)[2], model(feat)[2])


def test_an_embedding_computed_again_keeps_less_and_has_the_same_gradients():
    model, feat = make(), features()
    expected, kept = gradients(model, feat), bytes_kept(lambda: model(feat))
    model.backbone.checkpoint_embedding = True
    for one, other in zip(gradients(model, feat), expected, strict=True):
        # Gradients of weights are summed over the clouds in another order.
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())
    assert bytes_kept(lambda: model(feat)) < kept / 2


@PAIRS
def test_an_embedding_computed_again_leaves_gradients_exact(alpha, beta):
    model, feat = converted(make(checkpoint_embedding=True), alpha, beta), features()
    assert_same_bits(
        gradients(model, feat, reversible=False), gradients(model, feat, reversible=True)
    )


def test_tokens_of_equal_surroundings_are_equal_wherever_they_are():
    """In autocast, coordinates of 100 m would have a resolution of half a metre."""
    embedding = make().backbone.patch_embed[0]
    coord = torch.randint(0, 64, (1, 40, 3)) / 16
    centres = torch.arange(10)[None]
    neighbours = torch.randint(0, 40, (1, 10, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        here, there = (
            embedding(coord + offset, torch.ones(1, 40, 4), centres, neighbours)
            for offset in (0, 100)
        )
    assert torch.equal(here, there)


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="clouds of at least 32 points, got 31: repeat points"):
        PointViT(**SMALL)(torch.rand(1, 31, 3), torch.rand(1, 31, 4))


def test_other_features_are_refused():
    with pytest.raises(ValueError, match=r"in_channels=4, .* \(1, 64, 4\), got \(1, 64, 6\)"):
        PointViT(**SMALL)(torch.rand(1, 64, 3), torch.rand(1, 64, 6))


def test_coordinates_that_are_not_finite_are_refused():
    coord = torch.rand(1, 64, 3)
    coord[0, 5] = torch.nan
    with pytest.raises(ValueError, match="point 5 of cloud 0"):
        PointViT(**SMALL)(coord, torch.rand(1, 64, 4))
