import pytest
import torch
from torch import nn

import dr2net
from dr2net import diagnostics, residual
from tests.toy import make_chain, mix


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


def test_reconstruction_needs_beta():
    with pytest.raises(ValueError, match="no inverse"):
        diagnostics.reconstruction_error(make_chain(1, 0), torch.ones(2, 8))


@pytest.mark.parametrize(("alpha", "beta"), [(1, 0), (1, 0.1)])
def test_check_replay_accepts_dropout(alpha, beta):
    dr2net.check_replay(make_chain(alpha, beta, dropout=0.5), torch.randn(2, 5, 8))


@pytest.mark.parametrize(("alpha", "beta"), [(1, 0), (1, 0.1)])
def test_check_replay_names_a_module_that_is_not_deterministic(alpha, beta):
    source = torch.Generator()

    @residual
    def noisy(block, x):
        return mix.__wrapped__(block, x) + torch.rand(x.shape, generator=source)

    chain = make_chain(alpha, beta, branches=(mix, noisy))
    with pytest.raises(RuntimeError, match=r"\(chain.0, noisy\) is not deterministic"):
        dr2net.check_replay(chain, torch.randn(2, 5, 8))


def test_check_replay_needs_a_chain():
    with pytest.raises(ValueError, match="no reversible chain"):
        dr2net.check_replay(nn.Linear(2, 2), torch.ones(2))
