import copy

import pytest
import torch
from torch import nn

import dr2net
from dr2net import residual
from dr2net.kernels.arithmetic import ExactArithmetic
from tests.toy import gate, make_chain, mix

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


@residual
def scaled(block, x, shift=None):
    return mix.__wrapped__(block, x) * SCALE[0]


SCALE = [1.0]


@pytest.mark.parametrize("keep", [(), ("1",)])
@pytest.mark.parametrize(("alpha", "beta"), [(1, 0.1), (0, 1)])
def test_a_faithful_network_passes_and_stays_as_it_was(alpha, beta, keep):
    chain = make_chain(alpha, beta, dropout=0.5)
    model = nn.Sequential(nn.BatchNorm1d(5), chain)
    dr2net.set_reversible(model, True, keep=[f"1.{key}" for key in keep])
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    dr2net.verify(model, X)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert chain.branches == (mix, gate)
    assert chain.reversible
    assert chain.keep == set(keep)


def test_buffers_that_forward_replaces_are_put_back():
    class Decaying(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(1))

        def forward(self, x):
            self.scale = self.scale * 0.9
            return x * self.scale

    chain = make_chain()
    for block in chain:
        block.dropout = Decaying()
    dr2net.verify(chain, X)
    assert all(torch.equal(block.dropout.scale, torch.ones(1)) for block in chain)


def test_the_module_that_is_not_deterministic_is_named():
    source = torch.Generator()

    @residual
    def noisy(block, x):
        return gate.__wrapped__(block, x) + torch.rand(x.shape, generator=source)

    chain = make_chain(branches=(mix, noisy))
    with pytest.raises(RuntimeError, match=r"\(chain.0, noisy\) is not deterministic"):
        dr2net.verify(chain, X)
    assert chain.branches == (mix, noisy)
    assert chain.reversible


def test_what_runs_before_a_chain_is_told_from_its_modules():
    source = torch.Generator()
    model = nn.Sequential(nn.Linear(8, 8), make_chain())
    model[0].register_forward_hook(lambda *call: call[-1] + torch.rand(1, generator=source))
    with pytest.raises(RuntimeError, match=r"\(chain.0, mix\) was given other values.* before it"):
        dr2net.verify(model, X)


def test_the_module_that_differs_in_recomputation_alone_is_named(monkeypatch):
    calls = []

    @residual
    def faulty(block, x):
        calls.append(block)
        # The second forward's blocks are called once more, last first: fail at block 1.
        fails = len(calls) == 3 + 3 + 2
        return mix.__wrapped__(block, x) + (1e-3 if fails else 0)

    chain = make_chain(branches=(faulty,))
    with pytest.raises(RuntimeError, match=r"\(chain.1, faulty\) returned other values in recomp"):
        dr2net.verify(chain, X)


def test_a_faulty_kernel_of_the_streams_is_found(monkeypatch):
    unscale = ExactArithmetic.unscale
    monkeypatch.setattr(ExactArithmetic, "unscale", lambda *args: unscale(*args) + 1)
    chain = make_chain(blocks=2, branches=(mix,))
    with pytest.raises(RuntimeError, match=r"input of the module \(chain.1, mix\) was rebuilt"):
        dr2net.verify(chain, X)


class UnfaithfulGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * next(FACTORS)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([1, 1, 2, 2], r"first in backward is 1.second.bias.*stored agree"),
        ([1, 1, 2, 2, 3, 3], r"first in backward is 1.second.bias.*stored differ as well"),
    ],
)
def test_gradients_that_differ_are_told_from_backwards_that_always_do(factors, message):
    global FACTORS
    FACTORS = iter(factors + [1] * 10)

    @residual
    def branch(block, x):
        return UnfaithfulGradient.apply(mix.__wrapped__(block, x))

    with pytest.raises(RuntimeError, match=message):
        dr2net.verify(make_chain(blocks=2, branches=(branch,)), X)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda chain: chain.set_coefficients(1, 0), "rebuilds nothing"),
        (lambda chain: setattr(chain, "arithmetic", "float"), "gradient_error"),
        (lambda chain: chain.requires_grad_(False), "is every parameter frozen"),
    ],
)
def test_what_cannot_be_verified_is_said(change, message):
    chain = make_chain()
    change(chain)
    with pytest.raises(ValueError, match=message):
        dr2net.verify(chain, X)


def test_networks_and_steps_without_a_chain_are_refused():
    with pytest.raises(ValueError, match="convert it first"):
        dr2net.verify(nn.Linear(8, 8), X)
    model, other = make_chain(), nn.Linear(8, 8)
    with pytest.raises(ValueError, match="ran no reversible chain"):
        dr2net.verify_step(model, lambda: other(X).sum())
    with pytest.raises(ValueError, match="no floating-point tensor"):
        dr2net.verify(nn.Sequential(model, nn.Flatten(), Argmax()), X)


class Argmax(nn.Module):
    def forward(self, x):
        return x.argmax(-1)
