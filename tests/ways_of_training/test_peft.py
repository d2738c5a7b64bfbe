"""PEFT's LoRA on a converted ViT, converted before or after the adapters are put in."""

import copy

import pytest
import torch

import dr2net
from tests.conversion.families import IMAGES, converted, timm_vit
from tests.toy import assert_same_bits, gradients

peft = pytest.importorskip("peft")


def with_lora(model):
    torch.manual_seed(3)
    config = peft.LoraConfig(
        target_modules=["qkv", "proj", "fc1", "fc2"],
        r=4,
        lora_dropout=0.1,
        init_lora_weights=False,  # B is not zero, so that the adapters do something
    )
    return peft.get_peft_model(model, config)


def network():
    return timm_vit(depth=2, drop_path_rate=0.2).train()


def images():
    return torch.randn(IMAGES, requires_grad=True)


ORDERS = {
    "converted first": lambda model, *ab: with_lora(converted(model, *ab)),
    "wrapped first": lambda model, *ab: dr2net.convert(with_lora(copy.deepcopy(model)), *ab),
}
BOTH_ORDERS = pytest.mark.parametrize("make", ORDERS.values(), ids=ORDERS.keys())


@BOTH_ORDERS
@pytest.mark.parametrize(("alpha", "beta"), [(1, 0.1), (0.5, 0.5), (0, 1)])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_gradients_are_those_of_stored_activations(make, alpha, beta, bf16):
    model, x = make(network(), alpha, beta), images()
    assert_same_bits(
        gradients(model, x, bf16=bf16), gradients(model, x, reversible=False, bf16=bf16)
    )


@BOTH_ORDERS
def test_at_one_and_zero_it_is_the_original_network_with_lora(make):
    original, x = network(), images()
    expected = gradients(with_lora(copy.deepcopy(original)), x)
    assert_same_bits(gradients(make(original, 1, 0), x), expected)


@BOTH_ORDERS
def test_only_the_adapters_train(make):
    model = make(network(), 1, 0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(images().detach()).square().sum().backward()
    optimizer.step()
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {n for n in before if "lora_" in n and not n.endswith(".coefficients")}


@BOTH_ORDERS
def test_disabled_adapters_leave_the_converted_base(make):
    base, x = network().eval(), images()
    model = make(base, 0.5, 0.5).eval()
    with model.disable_adapter():
        assert torch.equal(model(x), converted(base, 0.5, 0.5)(x))
    assert not torch.equal(model(x), converted(base, 0.5, 0.5)(x))


@BOTH_ORDERS
def test_merged_adapters_leave_a_dr2net_without_them(make):
    base, x = network().eval(), images()
    model = make(base, 0.5, 0.5).eval()
    expected = model(x)
    merged = model.merge_and_unload()
    assert dr2net.get_coefficients(merged) == (0.5, 0.5)
    assert {n for n, _ in merged.named_parameters()} == {n for n, _ in base.named_parameters()}
    torch.testing.assert_close(merged(x), expected, rtol=1e-4, atol=1e-5)  # W + BA is rounded
    merged.train()
    assert_same_bits(gradients(merged, x), gradients(merged, x, reversible=False))


def test_saved_adapters_load_into_a_converted_base(tmp_path):
    base, x = network().eval(), images()
    model = with_lora(converted(base, 0.5, 0.5)).eval()
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(converted(base, 0.5, 0.5), tmp_path).eval()
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("pair", [(0.0, 1.0), (0.75, 0.25)])
def test_saved_adapters_bring_the_coefficients(pair, tmp_path):
    base, x = network().eval(), images()
    model = with_lora(converted(base, *pair)).eval()
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(converted(base, 0.5, 0.5), tmp_path).eval()
    assert dr2net.get_coefficients(loaded) == pair
    assert torch.equal(loaded(x), model(x))


def test_a_checkpoint_of_an_adapted_network_loads_strictly():
    base, x = network().eval(), images()
    model = with_lora(converted(base, 0.75, 0.25)).eval()
    state = model.state_dict()
    fresh = with_lora(converted(base, 0.5, 0.5)).eval()
    fresh.load_state_dict(state, strict=True)
    assert dr2net.get_coefficients(fresh) == (0.75, 0.25)
    assert torch.equal(fresh(x), model(x))


def test_a_wrapped_network_is_reverted_in_place():
    original, x = network().eval(), images()
    model = with_lora(converted(original, 1, 0)).eval()
    expected = model(x)
    assert torch.equal(dr2net.revert(model)(x), expected)
    assert not dr2net.chains(model)
