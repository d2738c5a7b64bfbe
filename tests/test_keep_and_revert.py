"""Blocks whose activations are kept, ordinary blocks, and the way back to the original network."""

import copy

import pytest
import timm
import torch
from torch import nn

import dr2net
from dr2net import ReversibleChain
from dr2net.diagnostics import bytes_kept
from tests.toy import Block, assert_same_bits, gate, gradients, make_chain, mix

PAIRS = pytest.mark.parametrize(("alpha", "beta"), [(1, 0.1), (0.5, 0.5), (0, 1)])


def stream(*shape):
    return torch.randn(shape or (2, 5, 8), requires_grad=True)


@PAIRS
@pytest.mark.parametrize("keep", [["0"], ["1"], ["4"], ["3", "4"], ["0", "2", "4"], ["1", "3"]])
def test_kept_blocks_change_no_gradient(keep, alpha, beta):
    chain, x, shift = make_chain(alpha, beta, blocks=5, dropout=0.2), stream(), stream()
    expected = gradients(chain, x, shift, reversible=False)
    chain.keep = frozenset(keep)
    assert_same_bits(gradients(chain, x, shift), expected)


@pytest.mark.parametrize("keep", [["1"], ["0", "2"]])
@pytest.mark.parametrize("frozen", [["0"], ["0", "1"], ["1"], ["0", "1", "2"]])
def test_kept_blocks_change_no_gradient_where_parts_are_frozen(keep, frozen):
    chain, x = make_chain(dropout=0.2), stream().detach()
    for key in frozen:
        chain.get_submodule(key).requires_grad_(False)
    if len(frozen) == 3:
        x.requires_grad_()
    expected = gradients(chain, x, reversible=False)
    chain.keep = frozenset(keep)
    assert_same_bits(gradients(chain, x), expected)


def test_features_of_kept_and_rebuilt_blocks_have_their_gradients():
    found = []
    for reversible, keep in ((False, ()), (True, ()), (True, ("1",)), (True, ("0", "3"))):
        chain, x = make_chain(1, 0.1, blocks=4), stream()
        with torch.no_grad():
            for seed, parameter in enumerate(chain.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator(seed)))
            x.copy_(torch.randn(x.shape, generator=generator(0)))
        chain.reversible, chain.keep = reversible, frozenset(keep)
        first, last = chain.features(x, blocks=[1, 3])
        (first.sin().sum() + last.cos().sum()).backward()
        found.append([parameter.grad for parameter in (x, *chain.parameters())])
    for other in found[1:]:
        assert_same_bits(found[0], other)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_each_kept_block_costs_memory():
    x = stream(4, 16, 8)

    def kept(*keys):
        chain = make_chain(0, 1, blocks=4)
        chain.keep = frozenset(keys)
        return bytes_kept(lambda: chain(x))

    assert kept() < kept("3") < kept("2", "3") < kept("1", "2", "3") < kept("0", "1", "2", "3")
    chain = make_chain(0, 1, blocks=4)
    chain.reversible = False
    assert kept("0", "1", "2", "3") == bytes_kept(lambda: chain(x))


def test_a_module_that_is_not_replayed_is_found_before_and_after_a_kept_one():
    for bad in (0, 2):
        source = torch.Generator()

        def noisy(block, x, alpha):
            noise = torch.rand(1, generator=source) if block is chain[bad] else 0  # noqa: B023
            return mix(block, x, alpha) + noise

        chain = make_chain(branches=(noisy,))
        chain.keep = frozenset(["1"])
        with pytest.raises(RuntimeError, match="recomputed"):
            chain(stream()).sum().backward()


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (["blocks.1"], [1]),
        (["blocks"], [0, 1, 2, 3, 4, 5]),
        (("blocks.0", "blocks.5"), [0, 5]),
        ([], []),
    ],
)
def test_keep_names_blocks_and_what_contains_them(keep, expected):
    model = dr2net.convert(timm.create_model("test_vit", depth=6), keep=keep)
    (chain,) = dr2net.chains(model)
    assert sorted(map(int, chain.keep)) == expected
    dr2net.set_reversible(model, True)
    assert sorted(map(int, chain.keep)) == expected  # stays unless it is given
    dr2net.set_reversible(model, True, keep=())
    assert not chain.keep


def test_names_that_fit_nothing_are_refused_and_leave_the_network_as_it_was():
    network = timm.create_model("test_vit")
    for keep, message in (
        (["block"], r"keep='block' names no block.*'blocks.0'.*chains \(blocks\)"),
        (["blocks.1", "blocks.11"], "keep='blocks.11'"),
        ("blocks.1", "list or tuple"),
    ):
        with pytest.raises(ValueError, match=message):
            dr2net.convert(network, keep=keep)
        assert not dr2net.chains(network)
        assert type(network) is timm.models.VisionTransformer
        network(torch.ones(1, 3, 160, 160))


# Ordinary blocks


class Widen(nn.Module):
    def __init__(self, width, to):
        super().__init__()
        self.linear = nn.Linear(width, to)

    def forward(self, x, shift=None):
        return self.linear(x)


def make_staged(alpha, beta, dropout=0.0):
    blocks = nn.ModuleDict(
        {
            "in": Widen(8, 8),
            "a": Block(8, dropout),
            "b": Block(8, dropout),
            "wider": Widen(8, 12),
            "c": Block(12, dropout),
        }
    )
    chain = ReversibleChain(blocks, (mix, gate), ordinary=("in", "wider"))
    chain.set_coefficients(alpha, beta)
    return chain.train()


def by_hand(chain, x, alpha):
    for key, block in chain.named_children():
        x = block(x) if key in chain.ordinary else gate(block, mix(block, x, alpha), alpha)
    return x


def test_ordinary_blocks_run_as_they_are():
    chain, x = make_staged(1, 0), stream()
    assert torch.equal(chain(x), by_hand(chain, x, 1))
    assert chain.features(x, blocks=[3])[0].shape == (2, 5, 12)


@PAIRS
def test_gradients_on_both_sides_of_an_ordinary_block_are_exact(alpha, beta):
    chain, x = make_staged(alpha, beta, dropout=0.2), stream()
    assert_same_bits(gradients(chain, x), gradients(chain, x, reversible=False))


def test_ordinary_blocks_are_counted_and_named_right():
    chain = make_staged(1, 0.1)
    assert len(chain) == 5
    assert chain.stretches() == [["a", "b"], ["c"]]
    assert len(chain.couplings()) == 6
    with torch.no_grad():
        chain[4].first.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"coupling 4 \(chain.c, mix\)"):
        chain(stream())


def test_ordinary_and_kept_blocks_are_shown():
    chain = make_staged(1, 0.1)
    chain.keep = frozenset(["c"])
    assert "reversible=True, ordinary=(in, wider), keep=(c)" in repr(chain)


def test_an_ordinary_block_may_be_called_alone_and_have_hooks():
    chain, calls = make_staged(1, 0.1), []
    chain[0].register_forward_hook(lambda *_: calls.append(1))
    chain(stream())
    chain[0](stream())
    assert len(calls) == 2


def test_a_slice_runs_a_part_with_the_coefficients_of_the_whole():
    chain, x = make_staged(1, 0.1), stream()
    whole = chain.features(x, blocks=[2])[0]
    assert torch.equal(chain[1:3](chain[0](x)), whole)
    part = chain[1:3]
    chain.to(torch.float64)
    chain.set_coefficients(0, 1)
    assert part.get_coefficients() == (0, 1)


def test_ordinary_names_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"ordinary=\['2'\]: no such blocks among \['0', '1'\]"):
        ReversibleChain(nn.Sequential(Block(), Block()), (mix,), ordinary=("2",))


# Reverting


def test_a_reverted_network_is_the_original_in_class_and_bits():
    network = timm.create_model("test_vit", drop_path_rate=0.2).train()
    twin, x = copy.deepcopy(network), torch.randn(2, 3, 160, 160)
    model = dr2net.convert(network, 1, 0)
    assert type(model) is not type(twin)
    assert dr2net.revert(model) is network
    assert [type(module) for module in network.modules()] == [type(m) for m in twin.modules()]
    assert list(network.state_dict()) == list(twin.state_dict())
    assert_same_bits(gradients(network, x), gradients(twin, x))
    assert not network.blocks[0]._forward_pre_hooks


def test_a_network_can_be_converted_again_after_reverting():
    network, x = timm.create_model("test_vit").train(), torch.randn(2, 3, 160, 160)
    first = gradients(dr2net.convert(network, 1, 0.1), x)
    dr2net.set_coefficients(network, 1, 0)
    dr2net.convert(dr2net.revert(network), 1, 0.1)
    assert_same_bits(gradients(network, x), first)


def test_the_mode_of_training_survives_reverting():
    network = dr2net.convert(timm.create_model("test_vit").train(), 1, 0).eval()
    assert not any(module.training for module in dr2net.revert(network).modules())


def test_a_chain_alone_reverts_to_its_container():
    blocks = dr2net.revert(make_chain(1, 0))
    assert type(blocks) is nn.Sequential
    assert len(blocks) == 3


def test_copies_revert_on_their_own():
    model = dr2net.convert(timm.create_model("test_vit"), 1, 0)
    twin = copy.deepcopy(model)
    dr2net.revert(twin)
    assert dr2net.chains(model)
    assert not dr2net.chains(twin)
    assert twin.blocks[0] is not model.blocks[0]


@pytest.mark.parametrize("pair", [(0.2, 1), (1, 0.1), (0.5, 0)])
def test_other_coefficients_cannot_be_reverted(pair):
    with pytest.raises(ValueError, match="another function than the original"):
        dr2net.revert(make_chain(*pair))


@pytest.mark.parametrize("beta", [0.125, 0.5, 1])
def test_a_network_on_the_line_ships_as_the_plain_one(beta):
    network = timm.create_model("test_vit").train()
    plain = timm.create_model("test_vit")
    x = torch.randn(2, 3, 160, 160)
    model = dr2net.convert(network, beta=beta)
    model(x).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    with pytest.warns(UserWarning, match=rf"left \(alpha, beta\) = .*{beta:g}\) .*Validate it"):
        reverted = dr2net.revert(model)
    assert type(reverted) is type(plain)
    plain.load_state_dict(reverted.state_dict(), strict=True)
    assert torch.equal(plain.eval()(x), reverted.eval()(x))


def test_the_change_of_the_function_is_measured_on_example_inputs():
    model, x = dr2net.convert(timm.create_model("test_vit").train()), torch.randn(2, 3, 160, 160)
    before = model.eval()(x).detach()
    model.train()
    with pytest.warns(UserWarning, match="change by") as said:
        plain = dr2net.revert(model, x)
    assert all(module.training for module in plain.modules())
    change = float((plain.eval()(x).detach() - before).norm() / before.norm())
    assert f"change by {change:.3g} of their norm" in str(said[0].message)


def test_networks_without_chains_cannot_be_reverted():
    with pytest.raises(ValueError, match="no reversible chains"):
        dr2net.revert(nn.Linear(2, 2))
