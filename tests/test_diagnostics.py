import pytest
import torch
from torch import nn

from dr2net import ReversibleChain, diagnostics
from tests.toy import Block, make_chain, mix


def test_bytes_kept_counts_a_tensor_once_and_no_parameters():
    layer, x = nn.Linear(4, 4), torch.randn(8, 4)
    assert diagnostics.bytes_kept(lambda: layer(x) + layer(x)) == 8 * 4 * 4
    assert diagnostics.bytes_kept(lambda: x.clone().requires_grad_().exp()) == 8 * 4 * 4


def test_gradient_error_is_zero_in_exact_arithmetic_and_not_in_float():
    x = torch.randn(2, 5, 8)
    for arithmetic, low, high in (("exact", 0, 0), ("float", 1e-12, 1e-2)):
        chain = make_chain(0.5, 0.5, dropout=0.2, arithmetic=arithmetic)
        error = diagnostics.gradient_error(chain, lambda: chain(x).square().sum())  # noqa: B023
        assert low <= error <= high


def test_gradient_error_leaves_the_random_stream_alone():
    chain, before = make_chain(dropout=0.2), torch.get_rng_state()
    diagnostics.gradient_error(chain, lambda: chain(torch.ones(2, 8)).sum())
    assert torch.equal(torch.get_rng_state(), before)


def test_reconstruction_is_exact_in_exact_arithmetic_and_grows_in_float():
    x = torch.randn(2, 5, 8)
    assert diagnostics.reconstruction_error(make_chain(1, 0.1, dropout=0.2), x) == 0
    errors = [
        diagnostics.reconstruction_error(make_chain(0.5, 0.5, blocks, arithmetic="float"), x)
        for blocks in (2, 6)
    ]
    assert 0 < errors[0] < errors[1]


def test_reconstruction_leaves_the_gradient_mode_alone():
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            diagnostics.reconstruction_error(make_chain(0.5, 0.5), torch.randn(2, 5, 8))
            assert torch.is_grad_enabled() == enabled


def test_reconstruction_needs_beta():
    with pytest.raises(ValueError, match="no inverse"):
        diagnostics.reconstruction_error(make_chain(1, 0), torch.ones(2, 8))


def test_reconstruction_of_a_chain_with_ordinary_blocks_is_refused():
    chain = ReversibleChain(nn.Sequential(Block(), nn.Linear(8, 8)), (mix,), ordinary=("1",))
    chain.set_coefficients(1, 0.1)
    with pytest.raises(ValueError, match="ordinary blocks"):
        diagnostics.reconstruction_error(chain, torch.ones(2, 8))
    assert diagnostics.reconstruction_error(chain[:1], torch.ones(2, 8)) == 0
