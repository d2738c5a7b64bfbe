"""What is special to transformers' ViT, VideoMAE and DINOv2.

What every family promises is tested over all of them in test_families.py.
"""

import copy
import pickle

import pytest
import torch

pytest.importorskip("transformers", minversion="5.23")
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

import dr2net
from dr2net.diagnostics import bytes_kept
from tests.toy import assert_same_bits, gradients

SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
IMAGE, CLIP = (2, 3, 32, 32), (2, 4, 3, 32, 32)


def vit(network=ViTModel, **options):
    return network(ViTConfig(**SIZES | {"encoder_stride": 8} | options)).train()


def videomae(network=VideoMAEModel, **options):
    decoder = {
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
    }
    return network(VideoMAEConfig(num_frames=4, **SIZES | decoder | options)).train()


def dinov2(network=Dinov2Model, **options):
    return network(Dinov2Config(mlp_ratio=2, drop_path_rate=0.3, **SIZES | options)).train()


# name: (network, input shape)
NETWORKS = {"ViT": (vit, IMAGE), "VideoMAE": (videomae, CLIP), "DINOv2": (dinov2, IMAGE)}
ALL = pytest.mark.parametrize("family", NETWORKS)
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["eager", "sdpa"])


class Called(torch.nn.Module):
    """A network called with options, as ``tests.toy.gradients`` calls it without."""

    def __init__(self, network, **options):
        super().__init__()
        self.network, self.options = network, options

    def forward(self, x):
        return self.network(x, **self.options)


def converted(network, alpha, beta, **options):
    return dr2net.convert(copy.deepcopy(network), alpha, beta, **options)


def make(family, **options):
    build, shape = NETWORKS[family]
    return build(**options), torch.randn(shape, requires_grad=True)


def check(network, x, **options):
    """Calls with ``options``: at (1, 0) the original's bits, elsewhere those of stored ones."""
    original = gradients(Called(network, **options), x)
    assert_same_bits(original, gradients(Called(converted(network, 1, 0), **options), x))
    model = Called(converted(network, 0.5, 0.5), **options)
    assert_same_bits(gradients(model, x, reversible=False), gradients(model, x, reversible=True))


# name: (network, input shape, what it is called with)
VARIANTS = {
    "ViT classifier": (
        lambda: vit(ViTForImageClassification),
        IMAGE,
        {"labels": torch.ones(2).long()},
    ),
    "ViT without pooler": (
        lambda: ViTModel(ViTConfig(**SIZES), add_pooling_layer=False),
        IMAGE,
        {},
    ),
    "ViT of another size": (vit, (2, 3, 40, 24), {"interpolate_pos_encoding": True}),
    "ViT masked patches": (
        lambda: vit(ViTForMaskedImageModeling),
        IMAGE,
        {"bool_masked_pos": torch.arange(32).view(2, 16) % 3 == 0},
    ),
    "ViT attention mask": (vit, IMAGE, {"attention_mask": (torch.arange(34) % 5 > 0).view(2, 17)}),
    "ViT without biases": (lambda: vit(qkv_bias=False), IMAGE, {}),
    "VideoMAE classifier": (
        lambda: videomae(VideoMAEForVideoClassification),
        CLIP,
        {"labels": torch.ones(2).long()},
    ),
    "VideoMAE with class norm": (lambda: videomae(use_mean_pooling=False), CLIP, {}),
    "VideoMAE visible patches": (
        videomae,
        CLIP,
        {"bool_masked_pos": torch.arange(64).view(2, 32) % 4 > 0},
    ),
    "VideoMAE pretraining": (
        lambda: videomae(VideoMAEForPreTraining),
        CLIP,
        {"bool_masked_pos": torch.arange(64).view(2, 32) % 4 > 0},
    ),
    "DINOv2 classifier": (
        lambda: dinov2(Dinov2ForImageClassification),
        IMAGE,
        {"labels": torch.ones(2).long()},
    ),
    "DINOv2 of another size": (dinov2, (2, 3, 40, 24), {}),
    "DINOv2 masked patches": (
        dinov2,
        IMAGE,
        {"bool_masked_pos": torch.arange(32).view(2, 16) % 3 == 0},
    ),
    "DINOv2 attention mask": (
        dinov2,
        IMAGE,
        {"attention_mask": (torch.arange(34) % 5 > 0).view(2, 17)},
    ),
    "DINOv2 SwiGLU": (lambda: dinov2(use_swiglu_ffn=True), IMAGE, {}),
    "DINOv2 backbone": (
        lambda: dinov2(Dinov2Backbone, out_features=["stem", "stage1", "stage3"]),
        IMAGE,
        {},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_gradients_have_the_original_s_bits(variant):
    build, shape, options = VARIANTS[variant]
    check(build().train(), torch.randn(shape, requires_grad=True), **options)


@ALL
def test_features_are_laid_out_in_memory_as_the_original_s(family):
    network, x = make(family)
    found = [
        [state.stride() for state in model(x, output_hidden_states=True).hidden_states]
        for model in (network, converted(network, 1, 0))
    ]
    assert found[0] == found[1]


@ALL
@IMPLEMENTATIONS
def test_every_attention_implementation_has_the_original_s_bits(family, implementation):
    check(*make(family, attn_implementation=implementation))


@ALL
def test_the_attention_implementation_can_be_changed_after_conversion(family):
    network, x = make(family)
    model = converted(network, 1, 0)
    for changed in (network, model):
        changed.set_attn_implementation("eager")
    assert_same_bits(gradients(network, x), gradients(model, x))


@ALL
@pytest.mark.parametrize("selected", [True, [0], -1, [0, 2], [1, -2]], ids=str)
def test_hidden_states_are_those_of_the_original(family, selected):
    network, x = make(family)
    check(network, x, output_hidden_states=selected)
    network.eval()
    expected = network(x, output_hidden_states=selected)
    found = converted(network, 1, 0)(x, output_hidden_states=selected)
    assert list(found) == list(expected)
    places = [state is None for state in expected.hidden_states]
    assert [state is None for state in found.hidden_states] == places
    assert not all(places)


@ALL
def test_hidden_states_can_be_asked_for_in_the_config(family):
    network, x = make(family, output_hidden_states=True)
    assert len(converted(network, 1, 0)(x).hidden_states) == 4
    check(network, x)


@ALL
def test_the_last_hidden_state_can_be_tied(family):
    network, x = make(family, output_hidden_states=True, tie_last_hidden_states=True)
    check(network, x)
    found = converted(network, 0.5, 0.5)(x)
    if family != "DINOv2":  # whose encoder, which records, has no norm
        assert found.hidden_states[-1] is found.last_hidden_state


@ALL
def test_only_selected_hidden_states_leave_the_chain(family, monkeypatch):
    network, x = make(family)
    model = converted(network, 0.5, 0.5)
    taken = []
    features = dr2net.ReversibleChain.features
    monkeypatch.setattr(
        dr2net.ReversibleChain,
        "features",
        lambda self, *args, blocks, **kwargs: (
            taken.append(blocks) or features(self, *args, blocks=blocks, **kwargs)
        ),
    )
    model(x)
    model(x, output_hidden_states=1)
    model(x, output_hidden_states=True)
    assert taken == [[2], [0, 2], [0, 1, 2]]


def test_a_backbone_s_feature_maps_are_all_that_leaves_the_chain(monkeypatch):
    network = dinov2(Dinov2Backbone, out_features=["stage2"])
    model, x = converted(network, 0.5, 0.5), torch.randn(IMAGE)
    seen = []
    forward = type(model.encoder).forward
    monkeypatch.setattr(
        type(model.encoder),
        "forward",
        lambda self, *args, **kwargs: seen.append(kwargs) or forward(self, *args, **kwargs),
    )
    found = model(x)
    assert found.hidden_states is None
    assert len(found.feature_maps) == 1
    assert seen[0]["output_hidden_states"] == [2]


@pytest.mark.parametrize("options", [{"output_hidden_states": True}, {"output_hidden_states": [1]}])
def test_a_backbone_s_hidden_states_are_those_of_the_original(options):
    network = dinov2(Dinov2Backbone, out_features=["stage1", "stage2"])
    x = torch.randn(IMAGE, requires_grad=True)
    check(network, x, **options)


@ALL
@IMPLEMENTATIONS
def test_attentions_are_those_of_the_original(family, implementation):
    network, x = make(family, attn_implementation=implementation)
    model = converted(network, 1, 0)
    options = {"output_attentions": True, "output_hidden_states": True}
    expected = gradients(Called(network, **options), x)
    assert_same_bits(expected, gradients(Called(model, **options), x))
    found = model(x, **options)
    assert len(found.attentions) == (3 if implementation == "eager" else 0)  # sdpa has none
    assert model(x).attentions is None


@ALL
def test_attentions_of_a_reversible_chain_in_training_are_refused(family):
    network, x = make(family, attn_implementation="eager")
    model = converted(network, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"no gradient.*set_reversible"):
        model(x, output_attentions=True)
    with torch.no_grad():
        assert len(model(x, output_attentions=True).attentions) == 3
    dr2net.set_reversible(model, False)
    stored = model(x, output_attentions=True)
    stored.attentions[0].square().sum().backward()
    assert x.grad.abs().sum() > 0
    model.eval()
    assert len(model(x, output_attentions=True).attentions) == 3


@ALL
def test_networks_that_have_recorded_convert_and_revert(family):
    network, x = make(family, attn_implementation="eager")
    options = {"output_attentions": True, "output_hidden_states": True}
    expected = gradients(Called(network, **options), x)  # leaves hooks on the layers
    model = dr2net.convert(network, 1, 0)
    assert_same_bits(expected, gradients(Called(model, **options), x))
    dr2net.set_coefficients(model, 0.5, 0.5)
    model(x, output_hidden_states=True)
    dr2net.set_coefficients(model, 1, 0)
    assert_same_bits(expected, gradients(Called(dr2net.revert(model), **options), x))


@ALL
def test_a_tuple_is_returned_where_no_dictionary_is_wanted(family):
    network, x = make(family)
    network.eval()
    options = {"return_dict": False, "output_hidden_states": True}
    expected, found = network(x, **options), converted(network, 1, 0)(x, **options)
    assert isinstance(found, tuple)
    assert len(found) == len(expected)


@ALL
def test_gradient_checkpointing_is_not_needed_and_does_no_harm(family):
    network, x = make(family)
    model = converted(network, 0.5, 0.5)
    expected = gradients(model, x)
    model.gradient_checkpointing_enable()
    assert_same_bits(expected, gradients(model, x))
    model.gradient_checkpointing_disable()
    dr2net.set_coefficients(model, 1, 0)
    network.gradient_checkpointing_enable()
    assert_same_bits(gradients(network, x), gradients(model, x))


@ALL
def test_half_precision_weights_are_trained_alike_both_ways(family):
    network, x = make(family)
    model = converted(network, 0.5, 0.5).to(torch.bfloat16)
    x = x.detach().to(torch.bfloat16)
    assert_same_bits(gradients(model, x, reversible=False), gradients(model, x, reversible=True))


@ALL
def test_saved_folders_load_into_the_original_class(family, tmp_path):
    network, x = make(family)
    model = converted(network, 0.5, 0.25)
    model.save_pretrained(tmp_path)
    expected = gradients(model, x)
    for load in (type(network), AutoModel):
        loaded = load.from_pretrained(tmp_path).train()
        assert type(loaded) is type(network)
        assert_same_bits(expected, gradients(dr2net.convert(loaded, 0.5, 0.25), x))


@ALL
def test_saved_folders_hold_the_coefficients(family, tmp_path):
    network, _ = make(family)
    model = converted(network, 0.5, 0.25)
    (chain,) = dr2net.chains(model)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert torch.equal(state[f"{chain.name}.coefficients"], chain.coefficients)


@ALL
def test_saved_folders_are_refused_at_other_coefficients(family, tmp_path):
    network, _ = make(family)
    converted(network, 0.0, 1.0).save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"at \(alpha, beta\) = \(0\.0, 1\.0\)"):
        dr2net.convert(loaded)
    assert dr2net.get_coefficients(dr2net.convert(loaded, 0.0, 1.0)) == (0.0, 1.0)


def test_pickles_of_a_backbone_run():
    network = dinov2(Dinov2Backbone, out_features=["stage1"])
    model, x = converted(network, 0.5, 0.5), torch.randn(IMAGE)
    assert_same_bits(gradients(model, x), gradients(pickle.loads(pickle.dumps(model)), x))


@ALL
def test_layers_that_cannot_be_split_are_named(family):
    network, x = make(family)
    layers = network.layers if family == "ViT" else network.encoder.layer
    kind = type(layers[1])
    layers[1].__class__ = type("Mine", (kind,), {})
    with pytest.raises(ValueError, match=rf"\['Mine'\] has no adapter.*{kind.__name__}"):
        dr2net.convert(network)
    network(x)


@pytest.mark.parametrize("make", [vit, videomae, dinov2])
def test_gradient_checkpointing_takes_effect_where_activations_are_stored(make):
    x = torch.randn(CLIP if make is videomae else IMAGE, requires_grad=True)
    model = dr2net.convert(make(), 1, 0)
    expected, stored = gradients(model, x), bytes_kept(lambda: model(x))
    model.gradient_checkpointing_enable()
    assert bytes_kept(lambda: model(x)) < stored
    assert_same_bits(gradients(model, x), expected)
    dr2net.set_coefficients(model, 0.875, 0.125)
    (chain,) = dr2net.chains(model)
    model(x)
    assert chain.guard._said == {"checkpointing"}
