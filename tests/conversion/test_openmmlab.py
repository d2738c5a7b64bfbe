"""What is special to mmdetection's Swin and to mmaction2's Video Swin and MViT.

What every family promises is tested over all of them in test_families.py.
"""

import copy
import re

import pytest
import torch

pytest.importorskip("mmengine")
import dr2net
import dr2net.openmmlab.mended  # makes mmaction2 and mmdetection importable
from tests.conversion.families import mmaction_vit
from tests.toy import assert_same_bits, export, gradients


def swin(**options):
    from mmdet.models.backbones.swin import SwinTransformer

    defaults = {
        "embed_dims": 8,
        "window_size": 4,
        "mlp_ratio": 2,
        "depths": (2, 2),
        "num_heads": (2, 4),
        "strides": (4, 2),
        "out_indices": (0, 1),
        "drop_path_rate": 0.3,
    }
    return randomised(SwinTransformer(**defaults | options))


def video_swin(**options):
    from mmaction.models.backbones.swin import SwinTransformer3D

    defaults = {
        "arch": {"embed_dims": 8, "depths": [2, 2], "num_heads": [2, 4]},
        "pretrained2d": False,
        "window_size": (2, 4, 4),
        "mlp_ratio": 2,
        "out_indices": (0, 1),
        "drop_path_rate": 0.3,
    }
    return randomised(SwinTransformer3D(**defaults | options))


def mvit(arch=None, **options):
    from mmaction.models.backbones.mvit import MViT

    sizes = {"embed_dims": 8, "num_layers": 5, "num_heads": 1, "downscale_indices": [2]}
    defaults = {
        "spatial_size": 32,
        "temporal_size": 4,
        "out_scales": [0, 1],
        "drop_path_rate": 0.3,
        "adaptive_kv_stride": (1, 4, 4),
        "mlp_ratio": 2,
    }
    return randomised(MViT(sizes | (arch or {}), **defaults | options))


def randomised(network):
    """Gives weights to all: tables of position biases start at zero."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.train()  # returns nothing in mmdetection and mmaction2
    return network


def converted(network, alpha, beta, **options):
    return dr2net.convert(copy.deepcopy(network), alpha, beta, **options)


IMAGE, CLIP = (2, 3, 32, 32), (2, 3, 4, 32, 32)

# name: (network, its options, input shape)
VARIANTS = {
    "Swin padded": (swin, {}, (1, 3, 36, 60)),
    "Swin odd": (swin, {}, (1, 3, 29, 43)),
    "Swin within a window": (swin, {"window_size": 7}, (2, 3, 16, 20)),
    "Swin checkpointed": (swin, {"with_cp": True, "drop_rate": 0.1}, IMAGE),
    "Swin frozen": (swin, {"frozen_stages": 1}, IMAGE),
    "Swin last feature": (swin, {"out_indices": (1,)}, IMAGE),
    "Swin no biases": (swin, {"qkv_bias": False, "patch_norm": False}, IMAGE),
    "Video Swin padded": (video_swin, {}, (1, 3, 6, 36, 60)),
    "Video Swin odd": (video_swin, {}, (1, 3, 5, 29, 43)),
    "Video Swin within a window": (video_swin, {"window_size": (8, 7, 7)}, (2, 3, 4, 16, 20)),
    "Video Swin checkpointed": (video_swin, {"with_cp": True, "drop_rate": 0.1}, CLIP),
    "Video Swin frozen": (video_swin, {"frozen_stages": 1}, CLIP),
    "Video Swin last feature": (video_swin, {"out_indices": (1,)}, CLIP),
    "Video Swin after merging": (video_swin, {"out_after_downsample": True}, CLIP),
    "MViT other size": (mvit, {"use_abs_pos_embed": True}, (1, 3, 8, 48, 40)),
    "MViT last scale": (mvit, {"out_scales": -1}, CLIP),
    "MViT class token unseen": (mvit, {"output_cls_token": False}, CLIP),
    "MViT no class token": (mvit, {"with_cls_token": False, "output_cls_token": False}, CLIP),
    "MViT wider MLP": (mvit, {"dim_mul_in_attention": False}, CLIP),
    "MViT wider elsewhere": (mvit, {"arch": {"dim_mul_indices": [1]}}, CLIP),
    "MViT plain pooling": (mvit, {"residual_pooling": False, "rel_pos_embed": False}, CLIP),
}


def make(variant):
    build, options, shape = VARIANTS[variant]
    return build(**options), torch.randn(shape, requires_grad=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_at_one_and_zero_it_is_the_original_network_bit_for_bit(variant):
    network, x = make(variant)
    assert_same_bits(gradients(network, x), gradients(converted(network, 1, 0), x))


@pytest.mark.parametrize("variant", ["Swin no biases", "Video Swin padded", "MViT last scale"])
def test_streams_are_laid_out_in_memory_as_the_original_s(variant):
    network, x = make(variant)
    found = []
    for model in (network, converted(network, 1, 0)):
        norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
        strides = []
        for norm in norms:
            norm.register_forward_pre_hook(lambda _, inputs: strides.append(inputs[0].stride()))  # noqa: B023
        model(x)
        found.append(strides)
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore:Checkpointing was switched on")
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_stored_activations(variant, bf16):
    network, x = make(variant)
    model = converted(network, 0.5, 0.5)
    stored = gradients(model, x, reversible=False, bf16=bf16)
    assert_same_bits(stored, gradients(model, x, reversible=True, bf16=bf16))


@pytest.mark.parametrize("variant", ["Swin padded", "Video Swin padded", "MViT other size"])
def test_shifts_and_sizes_reach_the_recomputation_step_by_step(variant):
    network, x = make(variant)
    model = converted(network, 1, 0.1)
    for sizes in ((x.shape[-2:]), (32, 32), (20, 44)):
        cropped = torch.randn(*x.shape[:-2], *sizes, requires_grad=True)
        assert_same_bits(
            gradients(model, cropped, reversible=False), gradients(model, cropped, reversible=True)
        )


@pytest.mark.parametrize(("build", "stage"), [(swin, "stages.0"), (video_swin, "layers.0")])
def test_a_stage_is_kept_by_its_name(build, stage):
    network = build()
    x = torch.randn(IMAGE if build is swin else CLIP, requires_grad=True)
    model = converted(network, 0.5, 0.5, keep=(stage,))
    assert [sorted(chain.keep) for chain in dr2net.chains(model)] == [["0", "1"], []]
    assert_same_bits(gradients(converted(network, 0.5, 0.5), x), gradients(model, x))


@pytest.mark.parametrize("build", [swin, video_swin])
def test_frozen_stages_stay_frozen(build):
    model = dr2net.convert(build(frozen_stages=1), 0.5, 0.5)
    model.train()
    first, second = dr2net.chains(model)
    assert (first.training, second.training) == (False, True)
    x = torch.randn(IMAGE if build is swin else CLIP)
    gradients(model, x)
    assert all(parameter.grad is None for parameter in first.parameters())
    assert all(parameter.grad is not None for parameter in second.parameters())


def test_a_mask_made_in_inference_mode_serves_training():
    from mmaction.models.backbones.swin import compute_mask

    compute_mask.cache_clear()  # mmaction2 keeps the masks of each size
    network, x = make("Video Swin padded")
    model = converted(network, 0.5, 0.5)
    with torch.inference_mode():
        model(x)
    found = gradients(model, x)
    compute_mask.cache_clear()
    assert_same_bits(found, gradients(model, x))


@pytest.mark.parametrize(
    ("arch", "options", "ordinary"),
    [
        ({}, {}, {"2"}),
        ({}, {"dim_mul_in_attention": False}, {"1", "2"}),
        ({"dim_mul_indices": [1]}, {}, {"1", "2"}),
        ({"downscale_indices": [1, 3]}, {"out_scales": [0, 1, 2]}, {"1", "3"}),
    ],
)
def test_mvit_blocks_that_pool_or_widen_are_ordinary(arch, options, ordinary):
    network = mvit(arch, **options)
    (chain,) = dr2net.chains(converted(network, 0.5, 0.5))
    assert chain.ordinary == ordinary
    x = torch.randn(CLIP)
    assert_same_bits(gradients(network, x), gradients(converted(network, 1, 0), x))


def test_an_exported_mvit_returns_the_same_bits():
    model, x = converted(mvit(), 0.5, 0.5).eval(), torch.randn(CLIP)
    with torch.no_grad():
        expected = model(x)
    found = export(model, (x,)).module()(x)
    for a, b in zip(expected, found, strict=True):
        assert_same_bits(a, b)


class TestBlocksThatCannotBeSplit:
    def check(self, network, block, needed):
        block.__class__ = type("Mine", (type(block),), {})
        before = [type(module) for module in network.modules()]
        with pytest.raises(ValueError, match=f"Mine.*{re.escape(needed)}"):
            dr2net.convert(network)
        assert [type(module) for module in network.modules()] == before

    def test_swin(self):
        network = swin()
        self.check(network, network.stages[1].blocks[0], "SwinBlock")

    def test_video_swin(self):
        network = video_swin()
        self.check(network, network.layers[1].blocks[0], "SwinTransformerBlock3D")

    def test_mvit(self):
        network = mvit()
        self.check(network, network.blocks[1], "MultiScaleBlock")

    def test_video_vit(self):
        network = mmaction_vit()
        self.check(network, network.blocks[1], "its Block")

    def test_video_vit_whose_blocks_have_adapters_inside_converts_by_its_blocks(self):
        network = mmaction_vit()
        plain = type(network.blocks[0])

        class Adapted(plain):
            def forward(self, x):
                return super().forward(x) + self.adapter(x)

        for block in network.blocks:
            block.__class__ = Adapted
            block.adapter = torch.nn.Linear(32, 32)
        with pytest.raises(ValueError, match=r"Adapted has no adapter.*blocks='blocks'\)"):
            dr2net.convert(network)
        x = torch.randn(2, 3, 4, 32, 32)
        model = dr2net.convert(copy.deepcopy(network), 1, 0, blocks="blocks", example=x)
        assert_same_bits(gradients(model, x), gradients(network, x))
        dr2net.set_coefficients(model, 0.875, 0.125)
        expected = gradients(model, x, reversible=False)
        assert_same_bits(gradients(model, x), expected)
        adapters = [block.adapter.weight.grad for block in model.blocks]
        assert all(grad.abs().sum() > 0 for grad in adapters)

    def test_video_vit_with_another_attention_keeps_it_unless_it_is_to_be_fused(self):
        network = mmaction_vit()

        class Attention(type(network.blocks[0].attn)):
            def forward(self, x):
                return super().forward(x) * 2

        network.blocks[0].attn.__class__ = Attention
        with pytest.raises(ValueError, match="takes the place of mmaction2's Attention"):
            dr2net.convert(network, fused_attention=True)
        x = torch.randn(2, 3, 4, 32, 32)
        expected = gradients(network, x)
        assert_same_bits(gradients(dr2net.convert(network, 1, 0, example=x), x), expected)

    def test_swin_with_another_ffn(self):
        network = swin()
        network.stages[0].blocks[1].ffn = torch.nn.Linear(8, 8)
        with pytest.raises(ValueError, match="mmcv's FFN"):
            dr2net.convert(network)
