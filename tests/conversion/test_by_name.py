"""Networks without an adapter, converted by the names of their lists of blocks."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import dr2net
from dr2net.diagnostics import bytes_kept
from tests.test_loop import Network, network
from tests.toy import assert_same_bits

IMAGES = (1, 3, 64, 64)


def transformer(name: str, **options):
    def build() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        config = getattr(transformers, f"{name}Config")(**options)
        return getattr(transformers, f"{name}Model")(config)

    return build


TEXT = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 64,
}  # fmt: skip
VISION = {**TEXT, "image_size": 32, "patch_size": 8}
del VISION["vocab_size"]
IDS = (torch.arange(14) % 7).view(2, 7)


def swin_config(**options):
    transformers = pytest.importorskip("transformers")
    return transformers.SwinConfig(
        image_size=64, embed_dim=16, depths=[2, 2, 2, 2], num_heads=[1, 1, 2, 2], window_size=4,
        **options,
    )  # fmt: skip


def mask2former() -> nn.Module:
    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    return transformer(
        "Mask2Former", backbone_config=swin_config(out_features=stages), feature_size=32,
        mask_feature_size=32, hidden_dim=32, encoder_layers=2, decoder_layers=4,
        num_attention_heads=2, num_queries=5, encoder_feedforward_dim=32, dim_feedforward=32,
    )()  # fmt: skip


def detr() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"]
    )
    return transformer(
        "Detr", use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=backbone, d_model=32, encoder_layers=3, decoder_layers=3,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, num_queries=5,
    )()  # fmt: skip


def timm_small(name: str, **options):
    return lambda: timm.create_model(name, **options)


# name: (network, example, lists that are found without being named, their couplings)
NETWORKS = {
    "torchvision ViT": (
        lambda: torchvision.models.VisionTransformer(64, 16, 4, 2, 32, 64, num_classes=5),
        IMAGES, ["encoder.layers"], [4],
    ),
    "torchvision Swin": (
        lambda: torchvision.models.SwinTransformer([4, 4], 32, [2, 4], [2, 2], [4, 4]),
        IMAGES, ["features.1", "features.3"], [2, 4],
    ),
    "torchvision ResNet": (torchvision.models.resnet18, IMAGES, ["layer1"], [2]),
    "timm FeatureListNet of ConvNeXt": (
        timm_small("test_convnext", features_only=True), IMAGES,
        ["stages_1.blocks", "stages_2.blocks", "stages_3.blocks"], None,
    ),
    "timm FeatureListNet of ResNet": (
        timm_small("resnet18", features_only=True), IMAGES, ["layer1"], [2],
    ),
    "timm ViT with relative positions": (
        timm_small("vit_relpos_small_patch16_224", img_size=32, depth=3), (1, 3, 32, 32),
        ["blocks"], [3],
    ),
    "timm SAM": (
        timm_small("samvit_base_patch16", img_size=64, depth=3, embed_dim=48), IMAGES,
        ["blocks"], [3],
    ),
    "timm NaFlexViT": (
        timm_small("naflexvit_base_patch16_gap", depth=3, embed_dim=48, num_heads=2), IMAGES,
        ["blocks"], [3],
    ),
    "timm SENet": (timm_small("legacy_seresnet18"), IMAGES, ["layer1"], [2]),
    "timm MLP-Mixer": (
        timm_small("mixer_s32_224", img_size=64), IMAGES, ["blocks"], [8],
    ),
    "timm CaiT": (
        timm_small("cait_xxs24_224", img_size=64, depth=3, embed_dim=48, num_heads=2), IMAGES,
        ["blocks"], [3],
    ),
    "timm Hiera, whose blocks may pool": (
        timm_small("hiera_tiny_224", embed_dim=16), (1, 3, 224, 224), ["blocks"], [9],
    ),
    "timm PVTv2": (
        timm_small("pvt_v2_b0"), IMAGES,
        ["stages.0.blocks", "stages.1.blocks", "stages.2.blocks", "stages.3.blocks"], None,
    ),
    "Llama": (
        transformer("Llama", num_key_value_heads=2, **TEXT),
        {"input_ids": IDS, "use_cache": False}, ["layers"], [3],
    ),
    "BERT": (transformer("Bert", **TEXT), {"input_ids": IDS}, ["encoder.layer"], [3]),
    "GPT-2": (
        transformer("GPT2", vocab_size=99, n_embd=32, n_layer=3, n_head=2),
        {"input_ids": IDS, "use_cache": False}, ["h"], [3],
    ),
    "Swin of transformers": (
        transformer(
            "Swin", image_size=32, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4
        ),
        (1, 3, 32, 32), ["encoder.layers.0.blocks", "encoder.layers.1.blocks"], [2, 2],
    ),
    "SegFormer": (
        transformer(
            "Segformer", depths=[2, 2, 2, 2], hidden_sizes=[16, 16, 32, 32],
            num_attention_heads=[1, 1, 2, 2],
        ),
        IMAGES, None, [2] * 4,
    ),
    "SAM": (
        transformer(
            "SamVision", **VISION | {"image_size": 64}, window_size=4,
            global_attn_indexes=[1], output_channels=16, mlp_dim=64,
        ),
        IMAGES, ["vision_encoder.layers"], [3],
    ),
    "CLIP": (transformer("CLIPVision", **VISION), (1, 3, 32, 32), ["encoder.layers"], [3]),
    "DETR": (detr, IMAGES, ["encoder.layers", "decoder.layers"], [3, 3]),
    "Mask2Former": (mask2former, IMAGES, None, [2, 2, 2, 2, 2, 3]),
}  # fmt: skip


def example_of(given) -> dict | Tensor:
    return given if isinstance(given, dict) else torch.linspace(-1, 1, 3).repeat(
        torch.Size(given).numel() // 3
    ).view(given) + torch.randn(given, generator=torch.Generator().manual_seed(0))


def gradients(model: nn.Module, example: dict | Tensor) -> list[Tensor | None]:
    torch.manual_seed(3)
    found = model(**example) if isinstance(example, dict) else model(example)
    outputs = [
        t for t in tree_leaves(found)
        if isinstance(t, Tensor) and t.is_floating_point() and t.requires_grad
    ]  # fmt: skip
    loss = sum((t * torch.linspace(-1, 2, t.numel()).view(t.shape)).sum() for t in outputs)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [*outputs, *torch.autograd.grad(loss, parameters, allow_unused=True)]


@pytest.mark.filterwarnings("ignore")  # of the libraries, about the options of tiny networks
@pytest.mark.parametrize("name", NETWORKS)
def test_any_network(name):
    build, given, lists, couplings = NETWORKS[name]
    torch.manual_seed(0)
    plain = build().train()
    example = example_of(given)
    with pytest.raises(TypeError, match=r"convert\(model, blocks=") as error:
        dr2net.convert(copy.deepcopy(plain), example=example)
    found = eval(re.search(r"convert\(model, blocks=(.*)\)", str(error.value))[1])
    found = [found] if isinstance(found, str) else found
    assert lists is None or found == lists

    model = dr2net.convert(copy.deepcopy(plain), 1, 0, blocks=found, example=example)
    assert_same_bits(gradients(model, example), gradients(plain, example))
    dr2net.set_coefficients(model, 0.9, 0.1)
    stored = gradients(dr2net_stored(model), example)
    dr2net.set_reversible(model, True)
    assert_same_bits(gradients(model, example), stored)
    assert couplings in (None, [len(chain.coupled_keys()) for chain in dr2net.chains(model)])
    call = (lambda m: m(**example)) if isinstance(example, dict) else (lambda m: m(example))
    assert bytes_kept(lambda: call(model)) < bytes_kept(lambda: call(plain))
    with pytest.warns(UserWarning, match="left"):
        dr2net.revert(model)
    assert_same_bits(gradients(model, example), gradients(plain, example))


def dr2net_stored(model: nn.Module) -> nn.Module:
    dr2net.set_reversible(model, False)
    return model


# Names


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(Network(2) for _ in range(3))
        self.extra = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return sum(stage(x) for stage in self.stages)


@pytest.mark.parametrize(
    "names",
    [
        "stages.*.layers",
        ["stages.0.layers", "stages.[12].layers"],
        ("stages.0.layers", "stages.1.layers", "stages.2.layers", "stages.*.layers"),
    ],
)
def test_lists_are_named_one_by_one_or_by_a_pattern(names):
    model = dr2net.convert(Pyramid(), blocks=names)
    assert [chain.name for chain in dr2net.chains(model)] == [
        f"stages.{stage}.layers" for stage in range(3)
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("stage.layers", r"blocks='stage\.layers' names nothing.*blocks=\['stages', 'stages\.0"),
        ("extra", "names a Linear, not an nn.ModuleList or nn.Sequential"),
        (["stages.0.layers", "head"], "blocks='head' names nothing"),
    ],
)
def test_names_that_fit_no_list_are_errors_that_name_some(names, message):
    model = Pyramid()
    with pytest.raises(ValueError, match=message):
        dr2net.convert(model, blocks=names)
    assert not dr2net.chains(model)


class Own(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def test_a_container_with_a_forward_of_its_own_is_refused():
    model = nn.Sequential()
    model.blocks = Own(*[nn.Sequential(nn.Linear(4, 4)) for _ in range(3)])
    with pytest.raises(ValueError, match="names a Own with a forward of its own"):
        dr2net.convert(model, blocks="blocks")


def test_options_of_adapters_and_unknown_couplings_are_refused():
    with pytest.raises(TypeError, match="fused_attention: not an option where blocks are named"):
        dr2net.convert(network(), blocks="layers", fused_attention=True)
    with pytest.raises(ValueError, match="couplings='blocks' is unknown"):
        dr2net.convert(network(), blocks="layers", couplings="blocks")


def test_an_unknown_network_is_told_its_lists_without_an_example_too():
    with pytest.raises(TypeError, match=r"dr2net\.convert\(model, blocks='layers'\)"):
        dr2net.convert(network())


def test_a_network_without_lists_is_told_of_adapters_alone():
    with pytest.raises(TypeError, match=r"No adapter for .*Linear\. Supported families"):
        dr2net.convert(nn.Linear(2, 2))


class Forgetful(Network):
    """Draws random numbers in eval mode, too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.rand(())


def test_an_example_on_which_the_network_is_another_one_undoes_the_conversion():
    model = Forgetful()
    with pytest.raises(ValueError, match=r"At \(1, 0\) the converted Forgetful returns other"):
        dr2net.convert(model, blocks="layers", example=torch.randn(2, 5, 8))
    assert type(model.layers) is nn.ModuleList


def test_a_list_none_of_whose_blocks_runs_is_an_error():
    class Idle(Network):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

    with pytest.raises(ValueError, match="none of its blocks was called"):
        dr2net.convert(Idle(), blocks="layers", example=torch.randn(2, 5, 8))


def test_the_example_in_the_docs_runs():
    text = (Path(__file__).parents[2] / "docs/families.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    exec(compile(snippet, "docs/families.md", "exec"), {})


def test_an_adapter_that_does_not_fit_the_library_gives_way_to_whole_blocks(monkeypatch):
    def refuse(name: str) -> None:
        raise ImportError(f"{name} needs another version")

    monkeypatch.setattr("dr2net.conversion.import_module", refuse)
    monkeypatch.setattr("dr2net.conversion._adapters", {})
    plain = timm.create_model("test_vit").train()
    x = torch.randn(1, 3, 160, 160)
    with pytest.warns(UserWarning, match=r"timm_vit needs another version.*blocks=\['blocks'\]"):
        model = dr2net.convert(copy.deepcopy(plain), 1, 0, example=x)
    assert_same_bits(gradients(model, x), gradients(plain, x))
