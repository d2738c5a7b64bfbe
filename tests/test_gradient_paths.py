"""Gradients that take unusual ways into, through and out of a chain: right, or an error."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

import dr2net
from dr2net import ReversibleChain, residual
from dr2net.diagnostics import bytes_kept
from tests.toy import Block, assert_same_bits, gate, gradients, make_chain, mix

WEIGHTS = torch.linspace(-1, 2, 8)


def stream(requires_grad=True):
    return torch.randn(2, 5, 8, requires_grad=requires_grad)


def both_ways(step, chain):
    """What ``step(chain)`` returns with activations stored and with them rebuilt."""
    found = []
    for reversible in (False, True):
        chain.reversible = reversible
        chain.zero_grad()
        found.append(step(chain))
    return found


@residual
def queries_and_keys(block, x, q=None, k=None):
    return block.second(torch.tanh(block.first(block.norm(x) + q))) * torch.sigmoid(k)


def test_a_tensor_given_twice_beside_x():
    x, position = stream(), stream()

    def step(chain):
        chain(x, position, position).mul(WEIGHTS).sum().backward()
        grads = [x.grad, position.grad]
        x.grad = position.grad = None
        return grads

    assert_same_bits(*both_ways(step, make_chain(blocks=4, branches=(queries_and_keys,))))


def test_x_itself_given_beside_x():
    x = stream()

    def step(chain):
        chain(x, x, x).mul(WEIGHTS).sum().backward()
        grads = [x.grad]
        x.grad = None
        return grads

    assert_same_bits(*both_ways(step, make_chain(blocks=4, branches=(queries_and_keys,))))


class Offset(nn.Module):
    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.randn(5, 8))


@residual
def offset(block, x):
    return block.offset


@pytest.mark.parametrize("alpha", [0, 0.5])
def test_a_branch_that_returns_a_parameter(alpha):
    chain = ReversibleChain(nn.Sequential(Offset(), Offset(), Offset()), (offset,)).train()
    chain.set_coefficients(alpha, 1 - alpha)
    x = torch.randn(5, 8, requires_grad=True)
    rebuilt, stored = gradients(chain, x), gradients(chain, x, reversible=False)
    assert rebuilt[-1].abs().sum() > 0  # of the last block
    assert_same_bits(rebuilt, stored)


def test_a_hidden_leaf_returned_as_it_is():
    hidden = torch.randn(5, 8, requires_grad=True)
    chain = ReversibleChain(nn.Sequential(Offset()), (residual(lambda block, x: hidden),)).train()
    chain.set_coefficients(0, 1)
    with pytest.raises(RuntimeError, match="gradient would be lost"):
        chain(torch.randn(5, 8, requires_grad=True))


@pytest.mark.parametrize("made", [lambda w: w.T, lambda w: w.T * 0.5, lambda w: w.exp().T])
def test_parameters_of_functional_call_made_of_each_other(made):
    weight = torch.randn(16, 8)

    def step(chain):
        leaf = weight.clone().requires_grad_()
        parameters = {"0.first.weight": leaf, "0.second.weight": made(leaf)}
        functional_call(chain, parameters, (x,)).mul(WEIGHTS).sum().backward()
        return [leaf.grad, *(p.grad for p in chain.parameters())]

    x = stream(requires_grad=False)
    # A leaf that is used twice in a coupling has its parts summed in another order.
    for a, b in zip(*both_ways(step, make_chain()), strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        assert (a is None) == (b is None)


@pytest.mark.parametrize("part", ["norm", "first", "second"])
def test_a_loss_on_tensors_from_inside_a_block_has_its_gradients(part):
    # By the graph of the first run, which the tensor itself keeps alive.
    def step(chain):
        recorded = []
        module = getattr(chain[1], part)
        with module.register_forward_hook(lambda _, inputs, __: recorded.append(inputs[0])):
            output = chain(X)
        (output.sum() + recorded[0].square().sum()).backward()
        return [parameter.grad.clone() for parameter in chain.parameters()]

    chain = make_chain(1, 0.1)
    for a, b in zip(*both_ways(step, chain), strict=True):
        # The two losses' parts are summed in another order.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert chain[0].norm.weight.grad.abs().sum() > 0


def test_tensors_from_inside_a_kept_block_can():
    found = []
    for reversible in (False, True):
        chain, recorded = make_chain(1, 0.1), []
        chain.load_state_dict(make_chain_state)
        chain.reversible, chain.keep = reversible, frozenset(["1"])
        chain[1].norm.register_forward_hook(lambda *call: recorded.append(call[1][0]))  # noqa: B023
        (chain(X).sum() + recorded[0].square().sum()).backward()
        found.append([parameter.grad for parameter in chain.parameters()])
    assert_same_bits(*found)


make_chain_state = make_chain(1, 0.1).state_dict()
X = torch.randn(2, 5, 8)


def test_an_optimizer_may_step_as_soon_as_a_gradient_is_there():
    results = []
    for reversible in (False, True):
        chain = make_chain(1, 0.1)
        chain.load_state_dict(make_chain_state)
        chain.reversible = reversible

        def step(parameter):
            with torch.no_grad():
                parameter.sub_(parameter.grad, alpha=0.1)
            parameter.grad = None

        for parameter in chain.parameters():
            if parameter is not chain[0].norm.weight:  # which both branches use
                parameter.register_post_accumulate_grad_hook(step)
        chain(X).mul(WEIGHTS).sum().backward()
        results.append([parameter.detach() for parameter in chain.parameters()])
    assert_same_bits(*results)


# Containers


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_on_the_container_are_refused(kind):
    blocks = nn.Sequential(Block(), Block())
    getattr(blocks, f"register_{kind}_hook")(lambda *_: None)
    with pytest.raises(ValueError, match="Sequential of blocks has hooks"):
        ReversibleChain(blocks, (mix,))


def test_parameters_of_the_container_are_refused():
    blocks = nn.Sequential(Block())
    blocks.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"\['scale'\]"):
        ReversibleChain(blocks, (mix,))


# Coefficients that others write


def test_coefficients_written_without_a_new_version_are_used():
    chain, other = make_chain(1, 0.1), make_chain(0, 1)
    chain.load_state_dict(make_chain_state)
    chain.coefficients.data.copy_(other.coefficients)
    assert chain.get_coefficients() == (0, 1)
    other.load_state_dict({k: v for k, v in make_chain_state.items() if k != "coefficients"})
    assert torch.equal(chain(X), other(X))


def test_coefficients_survive_the_meta_device():
    chain = make_chain(0.25, 0.75).to("meta").to_empty(device="cpu")
    assert chain.get_coefficients() == (0.25, 0.75)


# verify and plan


def test_a_frozen_chain_in_eval_mode_keeps_nothing():
    model = nn.Sequential(make_chain(1, 0.1), make_chain(1, 0.1))
    model[0].eval().requires_grad_(False)
    dr2net.verify(model, X)
    plan = dr2net.plan(model, X, budget_gb=1)
    assert plan.keep[-3:] == ("1.0", "1.1", "1.2")
    model[0].requires_grad_(True)
    assert bytes_kept(lambda: model(X)) > plan.kept_if_rebuilt


def test_gradients_that_are_nan_both_ways_are_equal():
    chain = make_chain()
    dr2net.verify_step(chain, lambda: chain(X).sum() * float("nan"))


def test_a_call_that_is_no_part_of_the_loss():
    chain = make_chain()
    dr2net.verify_step(chain, lambda: chain(X).sum() + chain(2 * X).detach().sum())


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_random_numbers_of_python_and_numpy_are_as_if_not_tried_out(draw):
    chain = make_chain()

    def model(x):
        return chain(x * draw())

    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    dr2net.verify_step(chain, lambda: model(X).sum())
    assert random.getstate() == states[0]
    assert all(map(np.array_equal, np.random.get_state(), states[1]))  # noqa: NPY002


def test_networks_without_anything_to_train_are_not_planned():
    with pytest.raises(ValueError, match="every parameter is frozen"):
        dr2net.plan(make_chain().requires_grad_(False), X, budget_gb=1)


def test_tracing_is_refused():
    with pytest.raises(RuntimeError, match=r"cannot be traced.*dynamo=True"):
        torch.jit.trace(make_chain().eval(), X)


def test_a_parameter_of_two_branches_is_stepped_after_both():
    chain = make_chain(branches=(mix, gate))
    twin = copy.deepcopy(chain)
    twin.reversible = False
    for model in (chain, twin):
        calls = []
        model[0].norm.weight.register_post_accumulate_grad_hook(calls.append)
        model(X).sum().backward()
        assert len(calls) == 1
    assert torch.equal(chain[0].norm.weight.grad, twin[0].norm.weight.grad)


def test_an_expanded_buffer_is_left_alone():
    chain, x = make_chain(), stream()
    for block in chain:
        block.register_buffer("scale", torch.ones(1).expand(8))
    assert_same_bits(gradients(chain, x), gradients(chain, x, reversible=False))


@residual
def propagate(block, x, adjacency):
    return torch.stack([adjacency @ sample for sample in mix.__wrapped__(block, x)])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", ["to_sparse_coo", "to_sparse_csr"])
@pytest.mark.parametrize("trained", [False, True])
def test_a_sparse_matrix_beside_x(layout, trained):
    x, adjacency = stream(), getattr(torch.eye(5).roll(1, 0), layout)()
    adjacency.requires_grad_(trained)

    def step(chain):
        chain(x, adjacency).square().mean().backward()
        grads = [parameter.grad for parameter in chain.parameters()]
        if trained:
            grads.append(adjacency.grad.to_dense())
            adjacency.grad = None
        return grads

    assert_same_bits(*both_ways(step, make_chain(branches=(propagate,))))


def test_replicas_of_data_parallel_are_refused():
    replica = make_chain()._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match="use DistributedDataParallel"):
        replica(stream())


@pytest.mark.parametrize("benchmark", [False, True])
def test_algorithms_are_not_chosen_by_trial_in_a_chain(monkeypatch, benchmark):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
    seen = []

    @residual
    def looking(block, x):
        seen.append(torch.backends.cudnn.benchmark)
        return mix.__wrapped__(block, x)

    make_chain(branches=(looking,))(stream()).sum().backward()
    assert seen == [False] * 6
    assert torch.backends.cudnn.benchmark == benchmark
