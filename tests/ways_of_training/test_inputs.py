"""Inputs of every shape and layout, changes in place, and blocks that stand in two places."""

import pytest
import torch
from torch import nn

from dr2net import ReversibleChain, residual
from tests.conversion.families import converted, timm_vit
from tests.toy import Block, assert_same_bits, gate, gradients, make_chain, mix

COEFFICIENTS = pytest.mark.parametrize(("alpha", "beta"), [(1, 0.1), (0.5, 0.5), (0, 1)])


def assert_reversible_equals_stored(model, *tensors):
    assert_same_bits(gradients(model, *tensors), gradients(model, *tensors, reversible=False))


def both_ways(compute, **options):
    """What ``compute(chain)`` returns with activations stored and with them rebuilt."""
    chain, found = make_chain(1, 0.1, dropout=0.1, **options), []
    for reversible in (False, True):
        chain.reversible = reversible
        chain.zero_grad()
        torch.manual_seed(7)
        found.append(compute(chain))
    return found


# Shapes and layouts


@COEFFICIENTS
def test_sizes_that_change_from_step_to_step(alpha, beta):
    network = timm_vit(depth=2, proj_drop_rate=0.1, dynamic_img_size=True).train()
    model, original = converted(network, alpha, beta), converted(network, 1, 0)
    for shape in ((2, 3, 32, 32), (1, 3, 48, 40), (3, 3, 32, 64), (1, 3, 8, 8)):
        x = torch.randn(shape, requires_grad=True)
        assert_reversible_equals_stored(model, x)
        assert_same_bits(gradients(original, x), gradients(network, x))


@COEFFICIENTS
@pytest.mark.parametrize("batch", [0, 1])
def test_a_batch_of_one_image_or_none(batch, alpha, beta):
    network = timm_vit(depth=2, proj_drop_rate=0.1).train()
    x = torch.randn(batch, 3, 32, 32, requires_grad=True)
    assert_reversible_equals_stored(converted(network, alpha, beta), x)
    assert_same_bits(gradients(converted(network, 1, 0), x), gradients(network, x))


def test_several_sizes_forward_before_a_backward():
    def compute(chain):
        sum(chain(torch.full((n, 8), 0.1 * n)).square().sum() for n in (1, 3, 2)).backward()
        return [parameter.grad.clone() for parameter in chain.parameters()]

    assert_same_bits(*both_ways(compute))


LAYOUTS = {
    "transposed": lambda: torch.randn(8, 5, 2).transpose(0, 2),
    "every second": lambda: torch.randn(4, 5, 16)[::2, :, ::2],
    "expanded": lambda: torch.randn(1, 1, 8).expand(2, 5, 8),
    "overlapping": lambda: torch.randn(30).as_strided((2, 5, 8), (10, 2, 1)),
    "with an offset": lambda: torch.randn(81)[1:].view(2, 5, 8),
    "flipped": lambda: torch.randn(2, 5, 8).flip(1),
}


@COEFFICIENTS
@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_memory_layout(make, alpha, beta):
    base = make().detach()

    def compute(chain):
        chain.set_coefficients(alpha, beta)
        x = base.clone(memory_format=torch.preserve_format) if 0 not in base.stride() else base
        x = x.requires_grad_()
        output = chain(x)
        output.square().sum().backward()
        grads, x.grad = [x.grad, *[p.grad.clone() for p in chain.parameters()]], None
        return [output.detach(), *grads]

    assert_same_bits(*both_ways(compute))


@COEFFICIENTS
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("convolution", "memory_format"),
    [(nn.Conv2d, torch.channels_last), (nn.Conv3d, torch.channels_last_3d)],
    ids=["2d", "3d"],
)
def test_channels_last(convolution, memory_format, batch, alpha, beta):
    @residual
    def inner(block, x):
        return block[0](x)

    blocks = nn.Sequential(*[nn.Sequential(convolution(4, 4, 3, padding=1)) for _ in range(2)])
    chain = ReversibleChain(blocks, (inner,)).to(memory_format=memory_format).train()
    chain.set_coefficients(alpha, beta)
    x = torch.randn(batch, 4, *[5] * (2 + (convolution is nn.Conv3d)))
    x = x.to(memory_format=memory_format).requires_grad_()
    assert_reversible_equals_stored(chain, x)
    assert chain(x).is_contiguous(memory_format=memory_format)


@COEFFICIENTS
def test_a_single_number(alpha, beta):
    @residual
    def scaled(block, x):
        return torch.sigmoid(x) * block.norm.weight.mean()

    chain = make_chain(alpha, beta, branches=(scaled,))
    assert_reversible_equals_stored(chain, torch.tensor(0.3, requires_grad=True))


# Blocks


@COEFFICIENTS
@pytest.mark.parametrize("branches", [(mix,), (mix, gate)], ids=["one", "two"])
def test_a_chain_of_one_block(branches, alpha, beta):
    chain = make_chain(alpha, beta, blocks=1, dropout=0.1, branches=branches)
    assert_reversible_equals_stored(chain, torch.randn(2, 5, 8, requires_grad=True))


def test_a_chain_of_no_blocks_is_the_identity():
    x = torch.randn(2, 8)
    assert make_chain(blocks=0)(x) is x


def chain_of(blocks, alpha, beta):
    chain = ReversibleChain(nn.Sequential(*blocks), (mix, gate)).train()
    chain.set_coefficients(alpha, beta)
    return chain


SHARING = {
    "two chains of the same blocks": lambda a, b, *ab: [chain_of([a, b], *ab) for _ in "12"],
    "two chains with one block in common": lambda a, b, *ab: [
        chain_of([a, b], *ab),
        chain_of([a], *ab),
    ],
    "a block twice in a chain": lambda a, b, *ab: [chain_of([a, b, a], *ab)],
    "a block twice in a row": lambda a, b, *ab: [chain_of([a, a, b], *ab)],
    "a chain twice": lambda a, b, *ab: [chain_of([a, b], *ab)] * 2,
}


@COEFFICIENTS
@pytest.mark.parametrize("make", SHARING.values(), ids=SHARING.keys())
def test_shared_parameters_get_the_gradients_of_all_their_places(make, alpha, beta):
    model = nn.Sequential(*make(Block(dropout=0.1), Block(dropout=0.1), alpha, beta))
    assert_reversible_equals_stored(model, torch.randn(2, 5, 8, requires_grad=True))


def test_weights_tied_between_blocks():
    chain = make_chain(1, 0.1, dropout=0.1)
    chain[2].first.weight = chain[0].first.weight
    assert_reversible_equals_stored(chain, torch.randn(2, 5, 8, requires_grad=True))


# Changes in place


CHANGES = {
    "add_": lambda x: x.add_(1),
    "mul_": lambda x: x.mul_(2),
    "relu_": torch.relu_,
    "fill_": lambda x: x.detach().fill_(0.5),
}
EVERY_CHANGE = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())


@EVERY_CHANGE
def test_an_output_changed_in_place_before_backward(change):
    x = torch.randn(2, 5, 8)

    def compute(chain):
        start = x.clone().requires_grad_()
        output = chain(start)
        change(output)
        (output * torch.linspace(-1, 2, 8)).sum().backward()
        return [start.grad, *[parameter.grad.clone() for parameter in chain.parameters()]]

    assert_same_bits(*both_ways(compute))


@EVERY_CHANGE
def test_a_feature_changed_in_place_does_not_reach_the_chain(change):
    chain, x, found = make_chain(1, 0.1, dropout=0.1), torch.randn(2, 5, 8), []
    for run in (lambda feature: feature, change):
        chain.zero_grad()
        torch.manual_seed(7)
        early, late = chain.features(x, blocks=[0, 2])
        run(early)
        late.square().sum().backward()
        found.append([late.detach(), *[p.grad.clone() for p in chain.parameters()]])
    assert_same_bits(*found)


@EVERY_CHANGE
def test_an_input_changed_in_place_after_forward(change):
    x = torch.randn(2, 5, 8)

    def compute(chain):
        start = x.clone().requires_grad_()
        given = start * 1
        output = chain(given)
        change(given)
        output.square().sum().backward()
        return [start.grad, *[parameter.grad.clone() for parameter in chain.parameters()]]

    assert_same_bits(*both_ways(compute))


@EVERY_CHANGE
def test_a_side_input_changed_in_place_after_forward_is_autograd_s_error(change):
    shift = torch.ones(8)
    chain = make_chain(1, 0.1)
    loss = chain(torch.randn(2, 5, 8), shift).sum()
    change(shift)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_branch_that_changes_what_it_made_in_place():
    @residual
    def in_place(block, x):
        return block.second(torch.relu_(block.first(x).add_(1)))

    chain = make_chain(1, 0.1, branches=(in_place,))
    assert_reversible_equals_stored(chain, torch.randn(2, 5, 8, requires_grad=True))


def test_a_branch_that_changes_its_input_in_place_is_refused():
    @residual
    def in_place(block, x):
        return block.second(block.first(x.add_(1)))

    with pytest.raises(RuntimeError, match=r"in_place\) changed its input"):
        make_chain(1, 0.1, branches=(in_place,))(torch.randn(2, 5, 8, requires_grad=True))
