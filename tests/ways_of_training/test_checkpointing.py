"""torch.utils.checkpoint around a chain and inside a branch."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dr2net import residual
from tests.toy import assert_same_bits, gradients, make_chain, mix


class Around(nn.Module):
    def __init__(self, chain, use_reentrant):
        super().__init__()
        self.chain, self.use_reentrant = chain, use_reentrant

    def forward(self, *inputs):
        return checkpoint(self.chain, *inputs, use_reentrant=self.use_reentrant)


@residual
def checkpointed(block, x, shift=None):
    return checkpoint(partial(mix.__wrapped__, block), x, shift, use_reentrant=False)


@residual
def checkpointed_reentrant(block, x, shift=None):
    return checkpoint(partial(mix.__wrapped__, block), x, shift, use_reentrant=True)


def inputs(side):
    x = torch.randn(2, 5, 8, requires_grad=True)
    return (x, torch.randn(8, requires_grad=True)) if side else (x,)


SIDE = pytest.mark.parametrize("side", [False, True], ids=["", "side input"])
COEFFICIENTS = pytest.mark.parametrize(("alpha", "beta"), [(1, 0), (1, 0.1), (0, 1)])


@SIDE
@COEFFICIENTS
@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_chain_has_its_own_gradients(use_reentrant, reversible, alpha, beta, side):
    chain, tensors = make_chain(alpha, beta, dropout=0.2), inputs(side)
    expected = gradients(chain, *tensors)
    assert_same_bits(
        gradients(Around(chain, use_reentrant), *tensors, reversible=reversible), expected
    )


@SIDE
@COEFFICIENTS
@pytest.mark.parametrize("reversible", [False, True])
def test_a_checkpoint_inside_a_branch_changes_nothing(reversible, alpha, beta, side):
    chain, tensors = make_chain(alpha, beta, dropout=0.2, branches=(mix,)), inputs(side)
    expected = gradients(chain, *tensors)
    chain.branches = (checkpointed,)
    assert_same_bits(gradients(chain, *tensors, reversible=reversible), expected)


def test_a_reentrant_checkpoint_inside_a_branch_is_torch_s_error():
    chain, (x,) = make_chain(1, 0.1, branches=(checkpointed_reentrant,)), inputs(False)
    loss = chain(x).sum()
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        loss.backward()


def test_a_reentrant_checkpoint_inside_a_branch_works_with_activations_stored():
    chain, (x,) = make_chain(1, 0.1, dropout=0.2, branches=(mix,)), inputs(False)
    expected = gradients(chain, x, reversible=False)
    chain.branches = (checkpointed_reentrant,)
    assert_same_bits(gradients(chain, x, reversible=False), expected)
