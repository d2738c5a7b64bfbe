"""What is special to the ViTs of timm and mmaction2; all coefficients, for every family's sake."""

import copy

import pytest
import torch

import dr2net
from tests.conversion.families import CLIPS, IMAGES, STOCHASTIC, converted, mmaction_vit, timm_vit
from tests.toy import COEFFICIENTS, assert_same_bits, gradients

FAMILIES = pytest.mark.parametrize("family", list(STOCHASTIC))


@pytest.fixture(autouse=True)
def few_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(family, **options):
    build, shape = STOCHASTIC[family]
    return build(**options).train(), torch.randn(shape, requires_grad=True)


VARIANTS = {
    "timm": (timm_vit, IMAGES, {}),
    "timm LayerScale": (timm_vit, IMAGES, {"init_values": 0.5}),
    "timm registers": (timm_vit, IMAGES, {"reg_tokens": 4, "global_pool": "avg"}),
    "timm qk norm": (timm_vit, IMAGES, {"qk_norm": True, "qkv_bias": False}),
    "timm post norm": (timm_vit, IMAGES, {"block_fn": "ResPostBlock"}),
    "timm depth 12": (timm_vit, IMAGES, {"depth": 12}),
    "mmaction": (mmaction_vit, CLIPS, {}),
    "mmaction LayerScale": (mmaction_vit, CLIPS, {"init_values": 0.5}),
    "mmaction no bias": (mmaction_vit, CLIPS, {"qkv_bias": False, "use_mean_pooling": False}),
    "mmaction learned position": (mmaction_vit, CLIPS, {"use_learnable_pos_emb": True}),
    "mmaction feature map": (mmaction_vit, CLIPS, {"return_feat_map": True}),
    "mmaction depth 12": (mmaction_vit, CLIPS, {"depth": 12}),
}


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_at_one_and_zero_it_is_the_original_network_bit_for_bit(variant):
    build, shape, options = VARIANTS[variant]
    if "block_fn" in options:
        from timm.models import vision_transformer

        options = {"block_fn": getattr(vision_transformer, options["block_fn"])}
    network, x = build(**options).train(), torch.randn(shape, requires_grad=True)
    assert_same_bits(gradients(network, x), gradients(converted(network, 1, 0), x))


@FAMILIES
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize(("alpha", "beta"), COEFFICIENTS)
def test_gradients_are_those_of_stored_activations(family, alpha, beta, bf16):
    network, x = make(family)
    model = converted(network, alpha, beta)
    assert_same_bits(
        gradients(model, x, reversible=False, bf16=bf16),
        gradients(model, x, reversible=True, bf16=bf16),
    )


@FAMILIES
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_gradients_are_exact_at_full_depth(family, bf16):
    network, x = make(family, depth=12)
    for alpha, beta in ((1, 0.1), (0.5, 0.5), (0, 1)):
        model = converted(network, alpha, beta)
        assert_same_bits(
            gradients(model, x, reversible=False, bf16=bf16),
            gradients(model, x, reversible=True, bf16=bf16),
        )


@FAMILIES
def test_the_class_is_still_the_family_s(family):
    network, _ = make(family)
    original = type(network)
    model = dr2net.convert(network)
    assert isinstance(model, original)
    assert "VisionTransformer" in type(model).__name__  # OpenMMLab's optimizers look for it
    assert type(copy.deepcopy(network)) is type(model)


@FAMILIES
def test_a_class_that_loops_over_its_blocks_is_refused_when_it_runs(family):
    network, x = make(family)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x

    network.__class__ = type("Looping", (type(network),), {"forward": forward})
    with pytest.raises(RuntimeError, match="call the chain"):
        dr2net.convert(network)(x)


@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_mmaction_clips_of_another_size_resize_the_position_embedding(size):
    network, x = mmaction_vit().train(), torch.randn(1, 3, 4, *size)
    expected = network(x)
    assert torch.equal(dr2net.convert(network, 1, 0)(x), expected)


def test_mmaction_fused_attention_agrees_with_the_original():
    network, x = mmaction_vit(depth=12).train(), torch.randn(CLIPS, requires_grad=True)
    original = gradients(network, x)
    fused = gradients(converted(network, 1, 0, fused_attention=True), x)
    for a, b in zip(original, fused, strict=True):
        assert (a - b).norm() <= 1e-5 * a.norm()  # the tolerance that scaled_dot_product states


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_mmaction_fused_attention_is_exact_under_replay(bf16):
    build, shape = STOCHASTIC["mmaction"]
    model = dr2net.convert(build().train(), 1, 0.1, fused_attention=True)
    x = torch.randn(shape, requires_grad=True)
    assert_same_bits(
        gradients(model, x, reversible=False, bf16=bf16),
        gradients(model, x, reversible=True, bf16=bf16),
    )


def test_mmaction_fused_attention_keeps_dropout():
    build, shape = STOCHASTIC["mmaction"]
    model = dr2net.convert(build().train(), 1, 0, fused_attention=True)
    x = torch.randn(shape)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize("mask", [False, True])
def test_timm_attention_masks_reach_every_block(mask):
    network, x = timm_vit().eval(), torch.randn(IMAGES)
    attn_mask = torch.zeros(17, 17).masked_fill(torch.ones(17, 17).tril() == 0, -1e9)
    options = {"attn_mask": attn_mask} if mask else {"is_causal": True}
    expected = network(x, **options)
    assert torch.equal(dr2net.convert(network, 1, 0)(x, **options), expected)


def test_timm_attention_masks_get_their_gradient():
    found = []
    model = dr2net.convert(timm_vit().train(), 0.5, 0.5)
    for reversible in (False, True):
        dr2net.set_reversible(model, reversible)
        attn_mask = torch.zeros(17, 17, requires_grad=True)
        model(torch.ones(IMAGES) / 3, attn_mask=attn_mask).sum().backward()
        found.append([attn_mask.grad])
    assert_same_bits(*found)


@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("indices", [None, 1, [0, 2], [1]])
@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("intermediates_only", [False, True])
@pytest.mark.parametrize("return_prefix_tokens", [False, True])
def test_timm_intermediates_are_those_of_the_original(
    indices, output_fmt, norm, stop_early, intermediates_only, return_prefix_tokens
):
    check_intermediates(
        indices,
        output_fmt=output_fmt,
        norm=norm,
        stop_early=stop_early,
        intermediates_only=intermediates_only,
        return_prefix_tokens=return_prefix_tokens,
    )


def check_intermediates(indices, **options):
    network, x = timm_vit().eval(), torch.randn(IMAGES)
    expected = network.forward_intermediates(x, indices, **options)
    found = converted(network, 1, 0).forward_intermediates(x, indices, **options)
    assert_nested_equal(found, expected)


@pytest.mark.parametrize("norm", [False, True])
def test_timm_intermediates_have_the_gradients_of_the_original(norm):
    network, x = timm_vit().train(), torch.randn(IMAGES)
    found = []
    for model in (network, converted(network, 1, 0)):
        final, maps = model.forward_intermediates(x, [0, 1, 2], norm=norm)
        loss = final.sin().sum() + sum(feature.cos().sum() for feature in maps)
        parameters = dict(model.named_parameters())
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        found.append(list(grads))
    assert_same_bits(*found)


def assert_nested_equal(found, expected):
    assert type(found) is type(expected)
    if isinstance(found, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(found, dict):
        assert list(found) == list(expected)
        assert_nested_equal(list(found.values()), list(expected.values()))
    else:
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_nested_equal(a, b)


@pytest.mark.parametrize("return_prefix_tokens", [False, True])
@pytest.mark.parametrize("intermediates_only", [False, True])
def test_timm_intermediates_as_a_dictionary(return_prefix_tokens, intermediates_only):
    check_intermediates(
        [0, 2],
        output_dict=True,
        return_prefix_tokens=return_prefix_tokens,
        intermediates_only=intermediates_only,
    )


def test_timm_pruning_shortens_the_chain():
    network, x = timm_vit().eval(), torch.randn(IMAGES)
    model = converted(network, 1, 0)
    for vit in (network, model):
        vit.prune_intermediate_layers([0, 1])
    assert len(dr2net.chains(model)[0]) == 2
    assert torch.equal(model(x), network(x))


def test_timm_gradient_checkpointing_is_not_needed_and_does_no_harm():
    network, x = timm_vit().train(), torch.randn(IMAGES, requires_grad=True)
    model = converted(network, 0.5, 0.5)
    expected = gradients(model, x)
    model.set_grad_checkpointing(True)
    assert_same_bits(gradients(model, x), expected)


def test_timm_blocks_that_cannot_be_split_are_named():
    from timm.models.vision_transformer import Block

    network = timm_vit(block_fn=type("MyBlock", (Block,), {}))
    with pytest.raises(ValueError, match=r"\['MyBlock'\] has no adapter: blocks must all be of"):
        dr2net.convert(network)


def test_timm_overridden_methods_stay():
    class Mine(type(timm_vit())):
        def forward_features(self, x, attn_mask=None, is_causal=False):
            return super().forward_features(x) * 2

    network = timm_vit().eval()
    network.__class__ = Mine
    x = torch.randn(IMAGES)
    expected = network(x)
    assert torch.equal(converted(network, 1, 0)(x), expected)
