"""``dr2net.summary``: what a converted network keeps, and where checkpointing would keep less."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch

import dr2net
from dr2net.diagnostics import bytes_kept
from tests.conversion.families import timm_vit
from tests.test_loop import inputs, looped, network


def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_bytes_are_those_that_autograd_keeps():
    model, x = dr2net.convert(timm_vit(depth=6).train()), images()
    found = dr2net.summary(model, x)
    (chain,) = found.chains
    assert (found.alpha, found.beta) == (0.875, 0.125)
    assert (chain.name, chain.blocks, chain.couplings) == ("blocks", 6, 12)
    assert found.kept == bytes_kept(partial(model, x))
    dr2net.set_reversible(model, False)
    assert found.stored == bytes_kept(partial(model, x))
    elements = 2 * 17 * 32
    assert chain.kept == 8 * elements + 12 * 3 * elements // 8
    assert chain.checkpointed == 6 * 4 * elements
    assert chain.module < chain.block < chain.stored < found.stored
    assert 0 < found.seconds_stored < 2 * found.seconds


def test_whole_blocks_are_half_the_couplings_and_keep_half_the_bits():
    x = images()
    branch, block = (
        dr2net.summary(dr2net.convert(timm_vit(depth=6).train(), couplings=kind), x).chains[0]
        for kind in ("branch", "block")
    )
    elements = 2 * 17 * 32
    assert (branch.couplings, block.couplings) == (12, 6)
    assert branch.kept - block.kept == 6 * 3 * elements // 8
    assert block.module == block.block > branch.module


def test_the_table_names_each_chain_and_those_that_do_not_pay():
    model = dr2net.convert(timm.create_model("resnet18").train())
    text = str(dr2net.summary(model, torch.randn(2, 3, 64, 64)))
    names = [chain.name for chain in dr2net.chains(model)]
    assert names == ["layer1", "layer2", "layer3", "layer4"]
    assert all(any(line.startswith(name) for line in text.splitlines()) for name in names)
    assert "Checkpointing would take less in layer1, layer2, layer3, layer4" in text
    long = dr2net.convert(timm_vit(depth=12).train())
    assert "Checkpointing would take less" not in str(dr2net.summary(long, images()))


def test_a_loop_is_summed_up_too_and_nothing_is_changed():
    model, (x, mask) = looped(make=partial(network, 6), keep=["layers.1"]), inputs()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    (chain,) = dr2net.summary(model, x, mask=mask).chains
    assert (chain.blocks, chain.couplings) == (6, 6)
    assert model.layers.keep == {"1"}
    assert model.layers.reversible
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_where_nothing_is_rebuilt_it_says_so():
    with pytest.raises(ValueError, match="At beta=0 nothing is rebuilt"):
        dr2net.summary(dr2net.convert(timm_vit(), 1, 0), images())
    with pytest.raises(ValueError, match="convert it first"):
        dr2net.summary(timm_vit(), images())
