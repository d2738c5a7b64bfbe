import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

import dr2net
import dr2net.openmmlab  # registers Dr2NetBackbone
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


def build(**options):
    return MODELS.build({"type": "Dr2NetBackbone", "backbone": dict(VIT), **options})


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


def test_initial_weights_are_those_of_the_backbone_alone():
    states = []
    for make in (lambda: MODELS.build(dict(VIT)), build):
        torch.manual_seed(0)
        model = make()
        model.init_weights()
        states.append({name: p.detach() for name, p in model.named_parameters()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


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
