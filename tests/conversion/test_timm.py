"""What is special to timm's families; what all families promise is tested over their examples."""

import copy
from functools import partial

import pytest
import timm
import torch
from timm.models._features import FeatureGetterNet, FeatureHookNet, FeatureListNet
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
)
from torch import nn

pytest.importorskip("mmengine")  # tools.pages.families builds OpenMMLab's networks too
import dr2net
from dr2net.conversion.timm_resnet import MODULES, convolutions
from tests.toy import assert_same_bits, gradients
from tools.pages.families.timm import EXAMPLES

HIERARCHICAL = [name for name, example in EXAMPLES.items() if example.chains > 1]
PLAIN = ["timm EVA-02", "timm BEiT"]
RESNETS = ["timm ResNet", "timm SE-ResNeXt"]
COEFFICIENTS = pytest.mark.parametrize(("alpha", "beta"), [(1, 0.1), (0.5, 0.5), (0, 1)])


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(name, chance=0.0, depth=3):
    example = EXAMPLES[name]
    return example.build(depth, chance), torch.randn(example.shape)


def converted(network, alpha=1.0, beta=0.0):
    return dr2net.convert(copy.deepcopy(network), alpha, beta)


def vit(**options):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 3}
    return timm.models.VisionTransformer(**sizes, num_classes=5, init_values=0.5, **options)


def eva(**options):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 3}
    return timm.models.Eva(**sizes, num_classes=5, init_values=0.5, **options)


def resnet(block, **options):
    return timm.models.ResNet(
        block,
        layers=(1, 3, 1, 2),
        channels=(16, 16, 16, 16),
        stem_type="deep",
        stem_width=8,
        num_classes=5,
        zero_init_last=False,
        **options,
    )


def assert_original_and_exact(network, x, *side):
    """At (1, 0) bit for bit the network; elsewhere gradients are those of stored activations."""
    state = copy.deepcopy(network.state_dict())
    expected = gradients(network, x, *side)
    network.load_state_dict(state)
    assert_same_bits(gradients(converted(network), x, *side), expected)
    for alpha, beta in ((1, 0.1), (0.5, 0.5), (0, 1)):
        model = converted(network, alpha, beta)
        stored = gradients(model, x, *side, reversible=False)
        model.load_state_dict(state)
        assert_same_bits(gradients(model, x, *side), stored)


def assert_nested_equal(found, expected):
    assert type(found) is type(expected)
    if isinstance(found, torch.Tensor):
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()
    else:
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_nested_equal(a, b)


# Intermediate features


@pytest.mark.parametrize("name", HIERARCHICAL)
@pytest.mark.parametrize("indices", [None, 1, [0, -1], [0]])
@pytest.mark.parametrize(("norm", "stop_early"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("intermediates_only", [False, True])
def test_intermediates_of_stages_are_those_of_the_original(
    name, indices, norm, stop_early, intermediates_only
):
    network, x = make(name)
    options = {
        "indices": indices,
        "norm": norm,
        "stop_early": stop_early,
        "intermediates_only": intermediates_only,
    }
    model = converted(network)
    expected = network.forward_intermediates(x, **options)
    assert_nested_equal(model.forward_intermediates(x, **options), expected)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("indices", [None, 1, [0, 2], [1]])
@pytest.mark.parametrize(("norm", "stop_early"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
@pytest.mark.parametrize(
    ("return_prefix_tokens", "intermediates_only"), [(False, False), (True, False), (True, True)]
)
def test_intermediates_of_tokens_are_those_of_the_original(
    name, indices, norm, stop_early, output_fmt, return_prefix_tokens, intermediates_only
):
    network, x = make(name)
    options = {
        "indices": indices,
        "norm": norm,
        "stop_early": stop_early,
        "output_fmt": output_fmt,
        "return_prefix_tokens": return_prefix_tokens,
        "intermediates_only": intermediates_only,
    }
    network.eval()
    expected = network.forward_intermediates(x, **options)
    assert_nested_equal(converted(network).forward_intermediates(x, **options), expected)


class Intermediates(nn.Module):
    def __init__(self, model, **options):
        super().__init__()
        self.model, self.options = model, options

    def forward(self, x):
        return self.model.forward_intermediates(x, **self.options)


@pytest.mark.parametrize("name", [*HIERARCHICAL, *PLAIN])
def test_gradients_through_intermediates_are_those_of_the_original_and_exact(name):
    network, x = make(name, chance=0.2)
    options = {"norm": True}
    state = copy.deepcopy(network.state_dict())
    expected = gradients(Intermediates(network, **options), x)
    network.load_state_dict(state)
    assert_same_bits(gradients(Intermediates(converted(network), **options), x), expected)
    model = Intermediates(converted(network, 0.5, 0.5), **options)
    stored = gradients(model, x, reversible=False)
    model.model.load_state_dict(state)
    assert_same_bits(gradients(model, x), stored)


@pytest.mark.parametrize("name", PLAIN)
def test_an_unknown_format_of_intermediates_is_refused(name):
    network, x = make(name)
    with pytest.raises(ValueError, match=r"output_fmt='NHWC': use 'NCHW' or 'NLC'"):
        dr2net.convert(network).forward_intermediates(x, output_fmt="NHWC")


# Feature extractors


@pytest.mark.parametrize("name", HIERARCHICAL)
def test_a_converted_network_serves_in_a_list_of_features(name):
    network, x = make(name)
    flatten = "ResNet" not in name and "ResNeXt" not in name
    wrap = partial(FeatureListNet, out_indices=(0, 1), flatten_sequential=flatten)
    model = wrap(converted(network))
    assert dr2net.chains(model)
    assert_nested_equal(model(x), wrap(network)(x))


@pytest.mark.parametrize("name", HIERARCHICAL)
def test_a_converted_network_serves_with_hooks_on_its_stages(name):
    network, x = make(name)
    wrap = partial(FeatureHookNet, out_indices=(0, 1))
    model = wrap(converted(network))
    assert_nested_equal(model(x), wrap(network)(x))


def test_hooks_on_single_blocks_are_refused():
    network, x = make("timm EVA-02")
    model = FeatureHookNet(dr2net.convert(network), out_indices=(0, 1))
    with pytest.raises(ValueError, match="has hooks, which do not run in a reversible chain"):
        model(x)


@pytest.mark.parametrize("name", list(EXAMPLES))
@pytest.mark.parametrize("first", ["convert", "wrap"])
def test_a_getter_of_features_holds_a_converted_network(name, first):
    network, x = make(name)
    wrap = partial(FeatureGetterNet, out_indices=[0, 1])
    expected = wrap(copy.deepcopy(network).eval())(x)
    if first == "convert":
        model = wrap(dr2net.convert(network.eval(), 1, 0))
    else:
        model = dr2net.convert(wrap(network.eval()), 1, 0)
    assert dr2net.chains(model)
    assert_nested_equal(model(x), expected)


def test_features_only_of_a_vit_is_converted_inside():
    network = timm.create_model("test_vit", features_only=True).eval()
    x = torch.randn(1, 3, 160, 160)
    assert_nested_equal(converted(network)(x), network(x))


def test_a_network_that_a_wrapper_took_apart_is_refused():
    network = timm.create_model("test_resnet", features_only=True)
    with pytest.raises(TypeError, match=r"No adapter for timm\.models\._features\.FeatureListNet"):
        dr2net.convert(network)


# Methods that change a converted network


@pytest.mark.parametrize("name", [*HIERARCHICAL, *PLAIN])
@pytest.mark.parametrize("indices", [[0], [0, 1]])
def test_pruning_works_on_converted_networks(name, indices):
    network, x = make(name)
    model = converted(network)
    for pruned in (network, model):
        pruned.prune_intermediate_layers(indices)
        pruned.eval()
    assert_nested_equal(model(x), network(x))
    assert_nested_equal(
        model.forward_intermediates(x, indices), network.forward_intermediates(x, indices)
    )


@pytest.mark.parametrize("name", HIERARCHICAL)
def test_a_pruned_network_is_converted(name):
    network, x = make(name)
    network.prune_intermediate_layers([1])
    assert_nested_equal(converted(network).eval()(x), network.eval()(x))


@pytest.mark.parametrize("name", [n for n in EXAMPLES if "ConvNeXt" not in n and "Res" not in n])
@pytest.mark.parametrize(("alpha", "beta"), [(1, 0), (0.5, 0.5)])
def test_the_input_size_of_a_converted_network_changes(name, alpha, beta):
    network, _ = make(name)
    x = torch.randn(1, 3, 48, 48, requires_grad=True)
    model = converted(network, alpha, beta)
    model.set_input_size((48, 48))
    network.set_input_size((48, 48))
    other = converted(network, alpha, beta)
    assert_same_bits(gradients(model, x), gradients(other, x))


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_the_classifier_of_a_converted_network_is_replaced(name):
    network, x = make(name)
    model = dr2net.convert(network)
    model.reset_classifier(7)
    assert model(x).shape == (len(x), 7)


@pytest.mark.filterwarnings("ignore:Checkpointing was switched on")
@pytest.mark.parametrize("name", list(EXAMPLES))
@pytest.mark.parametrize("call", ["forward", "intermediates"])
def test_gradient_checkpointing_is_not_needed_and_does_no_harm(name, call):
    network, x = make(name, chance=0.2)
    outcomes = []
    for when in ("never", "before", "after"):
        model = copy.deepcopy(network)
        if when == "before":
            model.set_grad_checkpointing(True)
        dr2net.convert(model, 0.5, 0.5)
        if when == "after":
            model.set_grad_checkpointing(True)
        outcomes.append(gradients(model if call == "forward" else Intermediates(model), x))
    assert_same_bits(outcomes[0], outcomes[1])
    assert_same_bits(outcomes[0], outcomes[2])


def test_gradient_checkpointing_of_a_resnet_stays_on_for_the_network_that_is_given_back():
    network, x = make("timm ResNet")
    network.set_grad_checkpointing(True)
    model = dr2net.convert(network, 1, 0)
    model(x)
    assert dr2net.revert(model).grad_checkpointing


# Branches


@pytest.mark.parametrize("name", list(EXAMPLES))
@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_branches_do_not_change_the_stream_that_they_read(name, alpha):
    network, x = make(name, chance=0.2)
    model = dr2net.convert(network, alpha, 0)
    seen = []
    for chain in dr2net.chains(model):

        def watched(branch, block, x, alpha, *args, **kwargs):
            before = x.detach().clone()
            output = branch(block, x, alpha, *args, **kwargs)
            seen.append(torch.equal(x, before))
            return output

        chain.branches = tuple(partial(watched, branch) for branch in chain.branches)
    model(x)
    assert len(seen) >= 3
    assert all(seen)


# Parallel blocks of VisionTransformer

PARALLEL = {
    "scaling": ParallelScalingBlock,
    "scaling, fused": partial(ParallelScalingBlock, fuse_out_proj=True),
    "differential": DiffParallelScalingBlock,
    "differential, dual": partial(DiffParallelScalingBlock, dual_lambda=True),
    "things": ParallelThingsBlock,
    "three things": partial(ParallelThingsBlock, num_parallel=3),
}


@pytest.mark.parametrize("kind", list(PARALLEL))
@pytest.mark.parametrize("chance", [0, 0.2])
def test_parallel_blocks_are_split(kind, chance):
    network = vit(
        block_fn=PARALLEL[kind],
        drop_path_rate=chance,
        proj_drop_rate=chance,
        attn_drop_rate=chance,
    )
    model = converted(network)
    assert len(dr2net.chains(model)[0].branches) == (2 if "things" in kind else 1)
    assert_original_and_exact(network, torch.randn(2, 3, 32, 32, requires_grad=True))


@pytest.mark.parametrize("kind", list(PARALLEL))
def test_masks_reach_parallel_blocks(kind):
    network = vit(block_fn=PARALLEL[kind]).eval()
    x = torch.randn(2, 3, 32, 32)
    mask = torch.ones(17, 17).tril() == 1
    for options in ({"attn_mask": mask}, {"is_causal": True}):
        assert torch.equal(converted(network)(x, **options), network(x, **options))
    assert not torch.equal(network(x, attn_mask=mask), network(x))


@pytest.mark.parametrize("kind", ["scaling", "differential"])
def test_a_parallel_branch_is_what_its_block_adds(kind):
    block = vit(block_fn=PARALLEL[kind]).eval().blocks[0]
    (parallel,) = dr2net.chains(converted(vit(block_fn=PARALLEL[kind])))[0].branches
    x = torch.randn(2, 17, 32)
    assert torch.equal(parallel(block, x, 1.0), block(x))
    torch.testing.assert_close(parallel(block, x, 0.0), block(x) - x)
    assert "drop_path" not in vars(block)  # nothing is left on the block


def test_attention_that_depends_on_the_depth_is_the_block_s_own():
    network = vit(attn_layer="diff")
    assert_original_and_exact(network, torch.randn(2, 3, 32, 32, requires_grad=True))


# Rotary embeddings of Eva

ROPES = {
    "axial": {"use_rot_pos_emb": True, "ref_feat_shape": (2, 2)},
    "dinov3, moving coordinates": {
        "use_rot_pos_emb": True,
        "rope_type": "dinov3",
        "rope_rotate_half": True,
        "rope_rescale_coords": 2.0,
        "rope_shift_coords": 0.5,
    },
    "mixed": {"use_rot_pos_emb": True, "rope_type": "mixed", "use_abs_pos_emb": False},
    "mixed, patches dropped": {
        "use_rot_pos_emb": True,
        "rope_type": "mixed",
        "patch_drop_rate": 0.3,
    },
    "mixed, any size": {
        "use_rot_pos_emb": True,
        "rope_type": "mixed",
        "dynamic_img_size": True,
        "attn_type": "rope",
    },
    "axial, patches dropped": {"use_rot_pos_emb": True, "patch_drop_rate": 0.3},
    "none, post norm": {"use_post_norm": True},
    "axial, post norm": {"use_post_norm": True, "use_rot_pos_emb": True},
    "axial, grouped queries": {
        "use_rot_pos_emb": True,
        "attn_type": "rope",
        "num_kv_heads": (2, 1, 1),
        "qkv_fused": False,
        "qk_norm": True,
        "attn_only_layer_scale": True,
    },
}


@pytest.mark.parametrize("kind", list(ROPES))
def test_rotary_embeddings_are_those_of_the_original(kind):
    assert_original_and_exact(eva(**ROPES[kind]), torch.randn(2, 3, 32, 32, requires_grad=True))


def test_each_block_has_its_own_mixed_rotary_embedding_with_its_gradient():
    model = converted(eva(**ROPES["mixed"]), 0.5, 0.5).train()
    found = []
    for reversible in (False, True):
        dr2net.set_reversible(model, reversible)
        model.zero_grad()
        model(torch.ones(1, 3, 32, 32).cumsum(3)).sin().sum().backward()
        found.append([model.rope.freqs.grad.clone()])
    assert_same_bits(*found)
    norms = found[0][0].flatten(2).norm(dim=(0, 2))  # over both axes and what is left, per depth
    assert norms.shape == (3,)
    assert (norms > 0).all()
    assert len(norms.unique()) == 3


def test_blocks_of_a_pruned_network_keep_their_mixed_rotary_embedding():
    network, x = eva(**ROPES["mixed"]).eval(), torch.randn(1, 3, 32, 32)
    model = converted(network)
    expected = network.forward_intermediates(x, [0, 1], intermediates_only=True)
    for first in (model.prune_intermediate_layers, network.prune_intermediate_layers):
        first([0, 1])
    assert_nested_equal(model.forward_intermediates(x, [0, 1], intermediates_only=True), expected)
    assert_nested_equal(
        converted(network).forward_intermediates(x, [0, 1], intermediates_only=True), expected
    )


def test_masks_reach_every_block_of_eva_and_get_their_gradient():
    network, x = eva(**ROPES["mixed"]), torch.randn(2, 3, 32, 32)
    assert torch.equal(converted(network)(x, is_causal=True), network(x, is_causal=True))

    class Masked(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x, mask):
            return self.model(x, attn_mask=mask)

    mask = torch.randn(17, 17, requires_grad=True)
    expected = gradients(Masked(network), x, mask)
    assert expected[2].norm() > 0
    assert_same_bits(gradients(Masked(converted(network)), x, mask), expected)
    model = Masked(converted(network, 0.5, 0.5))
    assert_same_bits(gradients(model, x, mask), gradients(model, x, mask, reversible=False))


# BEiT's position bias


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("swiglu", [False, True])
def test_position_biases_are_those_of_the_original(shared, own, swiglu):
    network = timm.models.Beit(
        img_size=32,
        patch_size=8,
        embed_dim=32,
        num_heads=2,
        depth=3,
        num_classes=5,
        use_rel_pos_bias=own,
        use_shared_rel_pos_bias=shared,
        swiglu_mlp=swiglu,
        scale_mlp=swiglu,
        init_values=None if swiglu else 0.5,
    )
    assert_original_and_exact(network, torch.randn(2, 3, 32, 32, requires_grad=True))


def test_the_shared_position_bias_gets_the_gradient_of_all_blocks():
    network, x = make("timm BEiT")
    model = dr2net.convert(network, 0.5, 0.5)
    model(x).sin().sum().backward()
    whole = model.rel_pos_bias.relative_position_bias_table.grad
    assert whole.norm() > 0
    own = sum(block.attn.relative_position_bias_table.grad for block in model.blocks)
    torch.testing.assert_close(whole, own)  # each block adds the shared bias to its own


# Memory layouts


LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


@pytest.mark.parametrize("name", ["timm ConvNeXt", *RESNETS])
@pytest.mark.parametrize("weights", list(LAYOUTS))
@pytest.mark.parametrize("images", list(LAYOUTS))
def test_memory_layouts_are_those_of_the_original(name, weights, images):
    network, x = make(name, chance=0.2)
    network = network.to(memory_format=LAYOUTS[weights])
    x = x.to(memory_format=LAYOUTS[images]).requires_grad_()
    original, model = copy.deepcopy(network).eval(), converted(network).eval()
    assert_nested_equal(model.forward_intermediates(x), original.forward_intermediates(x))
    assert_original_and_exact(network, x)


@pytest.mark.parametrize(
    ("conv_mlp", "norm_layer"),
    [
        (False, None),
        (False, "rmsnorm2d"),
        (True, None),
        (True, "simplenorm"),
        (True, "batchnorm2d"),
    ],
)
@pytest.mark.parametrize(("use_grn", "gamma"), [(False, 0.5), (True, None)])
def test_both_forms_of_a_convnext_block_are_the_original(conv_mlp, norm_layer, use_grn, gamma):
    network = timm.models.ConvNeXt(
        depths=(1, 1, 1, 2),
        dims=(8, 8, 16, 16),
        kernel_sizes=3,
        num_classes=5,
        conv_mlp=conv_mlp,
        norm_layer=norm_layer,
        use_grn=use_grn,
        ls_init_value=gamma,
        drop_path_rate=0.2,
    )
    assert_original_and_exact(network, torch.randn(2, 3, 64, 64, requires_grad=True))


def test_a_convnext_block_that_changes_the_shape_is_ordinary():
    network, x = make("timm ConvNeXt")
    stage = network.stages[1]
    stage.blocks[0] = timm.models.convnext.ConvNeXtBlock(16, 16, dilation=(1, 2))
    model = converted(network)
    assert dr2net.chains(model)[1].ordinary == {"0"}
    assert torch.equal(model(x), network(x))


# ResNet

BLOCKS = [block.__name__ for block in MODULES]
OPTIONS = {
    "BasicBlock": {"attn_layer": "se"},
    "Bottleneck": {"attn_layer": "eca"},
    "SelectiveKernelBasic": {"attn_layer": timm.layers.SEModule},
    "SelectiveKernelBottleneck": {"sk_kwargs": {"split_input": True}},
    "ResNestBottleneck": {"radix": 2, "avd": True, "avd_first": True},
    "Bottle2neck": {"scale": 4},
}


def resnet_of(name, **options):
    block = next(block for block in MODULES if block.__name__ == name)
    return resnet(block, block_args=OPTIONS[name], **options)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("chance", [0, 0.2])
def test_each_kind_of_resnet_block_is_the_original(name, chance):
    drop_block = 0 if name.startswith("Selective") else chance  # which those do not have
    network = resnet_of(name, drop_path_rate=chance, drop_block_rate=drop_block)
    assert_original_and_exact(network, torch.randn(2, 3, 64, 64, requires_grad=True))


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_the_activation_of_a_resnet_block_comes_after_the_scaled_sum(name, alpha):
    block = resnet_of(name).layer2[1].eval()
    x = torch.randn(2, 16 * block.expansion, 8, 8)
    found = convolutions(block, x, alpha)
    # timm's own forward, with what scales in place of the shortcut: exact at powers of two
    block.downsample = Scale(alpha)
    assert torch.equal(found, block(x))


class Scale(nn.Module):
    def __init__(self, alpha):
        super().__init__()
        self.alpha = alpha

    def forward(self, x):
        return x * self.alpha


def test_resnet_blocks_with_anti_aliasing_and_deep_stem_are_the_original():
    network = resnet(
        timm.models.resnet.Bottleneck,
        aa_layer=timm.layers.BlurPool2d,
        replace_stem_pool=True,
        down_kernel_size=3,
        avg_down=True,
        block_reduce_first=2,
    )
    assert_original_and_exact(network, torch.randn(2, 3, 64, 64, requires_grad=True))


def test_only_resnet_blocks_that_change_the_shape_are_ordinary():
    network, _ = make("timm ResNet", depth=4)
    first, third, fourth = dr2net.chains(dr2net.convert(network))
    assert first.ordinary == set()
    assert third.ordinary == fourth.ordinary == {"0"}
    assert len(fourth.couplings()) == 3
    assert type(network.layer2) is nn.Sequential  # its one block changes the shape


def test_a_resnet_without_a_reversible_block_is_refused_and_left_as_it_was():
    network = timm.models.ResNet(timm.models.resnet.Bottleneck, layers=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="no block that keeps the shape"):
        dr2net.convert(network)
    assert type(network) is timm.models.ResNet
    assert type(network.layer1) is nn.Sequential


# BatchNorm

CONVOLUTIONAL = {
    **{name: partial(make, name) for name in RESNETS},
    "ConvNeXt": lambda: (
        timm.models.ConvNeXt(
            depths=(1, 1, 1, 2),
            dims=(8, 8, 16, 16),
            num_classes=5,
            conv_mlp=True,
            norm_layer="batchnorm2d",
            ls_init_value=0.5,
        ),
        torch.randn(2, 3, 64, 64),
    ),
}


def train(model, batches, reversible=True):
    """Statistics and parameters after a step of SGD on each batch."""
    if dr2net.is_convertible(model) and dr2net.chains(model):
        dr2net.set_reversible(model, reversible)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for x in batches:
        optimizer.zero_grad()
        model(x).sin().sum().backward()
        optimizer.step()
    return {key: value for key, value in model.state_dict().items() if "coefficients" not in key}


def assert_same_state(first, second):
    assert list(first) == list(second)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("name", list(CONVOLUTIONAL))
def test_running_statistics_move_as_in_the_original(name):
    network, x = CONVOLUTIONAL[name]()
    batches = [x, x.flip(0) + 1]
    assert_same_state(train(converted(network), batches), train(network, batches))


@pytest.mark.parametrize("name", list(CONVOLUTIONAL))
@COEFFICIENTS
def test_running_statistics_move_once_per_step(name, alpha, beta):
    network, x = CONVOLUTIONAL[name]()
    batches = [x, x.flip(0) + 1]
    stored = train(converted(network, alpha, beta), batches, reversible=False)
    reversible = train(converted(network, alpha, beta), batches)
    assert_same_state(reversible, stored)
    counts = [value.item() for key, value in reversible.items() if "num_batches" in key]
    assert counts
    assert set(counts) == {2}


@pytest.mark.parametrize("name", list(CONVOLUTIONAL))
@pytest.mark.parametrize("frozen", ["all", "every other"])
@COEFFICIENTS
def test_frozen_batch_norms_stay_frozen(name, frozen, alpha, beta):
    network, x = CONVOLUTIONAL[name]()
    network.train()
    norms = {
        key: module for key, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)
    }
    assert norms
    still = list(norms)[:: 1 if frozen == "all" else 2]
    for key in still:
        norms[key].eval()
        norms[key].running_var.fill_(2.0)
    stored = train(converted(network, alpha, beta), [x, x + 1], reversible=False)
    reversible = train(converted(network, alpha, beta), [x, x + 1])
    assert_same_state(reversible, stored)
    assert_same_state(
        train(converted(network), [x, x + 1]), train(copy.deepcopy(network), [x, x + 1])
    )
    for key in norms:
        assert reversible[f"{key}.num_batches_tracked"] == (0 if key in still else 2)
        assert (reversible[f"{key}.running_var"] == 2).all() == (key in still)


# What cannot be split


class MyBlock(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_unknown_blocks_are_named_and_the_network_is_left_as_it_was(name):
    network, _ = make(name)
    blocks = [
        module
        for module in network.modules()
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and hasattr(module[-1], "drop_path2")
    ] or [
        module
        for module in network.modules()
        if isinstance(module, nn.Sequential)
        and type(module[-1]).__name__ in ("ConvNeXtBlock", "BasicBlock", "Bottleneck")
    ]
    blocks[-1][-1] = MyBlock()
    kinds = [type(module) for module in network.modules()]
    with pytest.raises(ValueError, match=r"'MyBlock'.* has no adapter: blocks must all be of one"):
        dr2net.convert(network)
    assert [type(module) for module in network.modules()] == kinds
