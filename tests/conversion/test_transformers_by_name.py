"""Models of transformers, converted by the names of their layers, in their users' hands."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

pytest.importorskip("transformers")
import transformers

import dr2net
from tests.conversion.test_by_name import IDS, TEXT, VISION, gradients
from tests.toy import assert_same_bits

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
OPTIONS = {"attn_implementation": "eager"}  # the one that returns attentions


def vit() -> nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(**VISION, **OPTIONS))


def swin() -> nn.Module:
    config = transformers.SwinConfig(
        image_size=32, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4,
        drop_path_rate=0.0, **OPTIONS,
    )  # fmt: skip
    return transformers.SwinModel(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(num_key_value_heads=2, use_cache=False, **TEXT, **OPTIONS)
    return transformers.LlamaForCausalLM(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(**TEXT, hidden_dropout_prob=0.1, **OPTIONS)
    return transformers.BertForMaskedLM(config)


MODELS = {
    "ViT": (vit, "layers", {"pixel_values": IMAGES}),
    "Swin": (swin, "encoder.layers.*.blocks", {"pixel_values": IMAGES}),
    "Llama": (llama, "model.layers", {"input_ids": IDS, "labels": IDS}),
    "BERT": (bert, "bert.encoder.layer", {"input_ids": IDS, "labels": IDS}),
}
each = pytest.mark.parametrize("name", MODELS)


def pair(name: str, alpha: float = 0.9, beta: float = 0.1) -> tuple[nn.Module, nn.Module, dict]:
    build, blocks, inputs = MODELS[name]
    torch.manual_seed(0)
    plain = build().train()
    return plain, dr2net.convert(copy.deepcopy(plain), alpha, beta, blocks=blocks), inputs


def tensors(outputs) -> list[Tensor]:
    return [t for t in tree_leaves(outputs) if isinstance(t, Tensor)]


@each
def test_training_gives_every_parameter_the_gradient_of_stored_activations(name):
    _, model, inputs = pair(name)
    rebuilt = gradients(model, inputs)
    dr2net.set_reversible(model, False)
    assert_same_bits(rebuilt, gradients(model, inputs))
    plain, model, _ = pair(name)
    for network in (plain, model):
        torch.manual_seed(0)
        network(**inputs)[0].float().square().mean().backward()
    missing = [
        name
        for (name, a), b in zip(plain.named_parameters(), model.parameters(), strict=True)
        if (a.grad is None) != (b.grad is None)
    ]
    assert missing == []


@each
def test_hidden_states_are_those_of_the_stream_and_have_gradients(name):
    plain, model, inputs = pair(name, 1, 0)
    asked = {**inputs, "output_hidden_states": True}
    expected = plain.eval()(**asked)
    assert_same_bits(tensors(model.eval()(**asked)), tensors(expected))
    dr2net.set_coefficients(model, 0.9, 0.1)
    found = model(**asked)
    assert len(found.hidden_states) == len(expected.hidden_states)
    rebuilt = gradients(model, asked)
    dr2net.set_reversible(model, False)
    assert_same_bits(rebuilt, gradients(model, asked))


@each
def test_attentions_are_returned(name):
    plain, model, inputs = pair(name, 1, 0)
    asked = {**inputs, "output_attentions": True}
    expected = plain.eval()(**asked)
    assert_same_bits(tensors(model.eval()(**asked)), tensors(expected))
    dr2net.set_coefficients(model, 0.9, 0.1)
    with torch.no_grad():
        found = model(**asked)
    assert [a.shape for a in found.attentions] == [a.shape for a in expected.attentions]


@each
def test_gradient_checkpointing_is_said_to_be_needless_or_to_be_switched_off(name):
    _, model, inputs = pair(name)
    expected = gradients(model, inputs)
    model.gradient_checkpointing_enable()
    if name == "Swin":  # it checkpoints stages, with what stands behind their blocks
        with (
            pytest.warns(UserWarning, match="needs none"),
            pytest.raises(RuntimeError, match=r"gradient_checkpointing_disable\(\)"),
        ):
            gradients(model, inputs)
    else:
        with pytest.warns(UserWarning, match="rebuilds activations and needs none"):
            assert_same_bits(gradients(model, inputs), expected)
    model.gradient_checkpointing_disable()
    assert_same_bits(gradients(model, inputs), expected)


@each
def test_it_is_saved_loaded_and_shipped(name, tmp_path):
    plain, model, inputs = pair(name)
    expected = gradients(model, inputs)  # a forward tells the range, which is saved too
    torch.save(model.state_dict(), tmp_path / "model.pt")
    _, other, _ = pair(name, 1, 0.5)
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert dr2net.get_coefficients(other) == dr2net.get_coefficients(model)
    assert_same_bits(gradients(other, inputs), expected)
    with pytest.warns(UserWarning, match="left"):
        reverted = dr2net.revert(model)
    reverted.save_pretrained(tmp_path / "plain")
    shipped = type(plain).from_pretrained(tmp_path / "plain", **OPTIONS).train()
    assert_same_bits(gradients(shipped, inputs), gradients(reverted, inputs))
