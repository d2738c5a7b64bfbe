"""CUDA graphs: a chain refuses to be captured; modules that are graphs of their own train."""

import pytest
import torch
from torch import nn

from dr2net import ReversibleChain, residual
from tests.toy import assert_same_bits, gradients, make_chain

pytestmark = pytest.mark.gpu


def test_a_chain_in_a_captured_step_is_refused():
    chain, x = make_chain(0.875, 0.125).cuda(), torch.randn(2, 5, 8, device="cuda")
    chain(x).sum().backward()
    torch.cuda.synchronize()
    with (
        pytest.raises(RuntimeError, match=r"cannot be captured by torch.cuda.graph at beta > 0"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        chain(x)


def test_nothing_waits_for_the_device_between_the_first_coupling_and_the_optimizer():
    chain = make_chain(0.875, 0.125, dropout=0.1).cuda()
    x = torch.randn(2, 5, 8, device="cuda", requires_grad=True)
    for _ in range(2):
        chain(x).square().mean().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for beta in (0.125, 0.25):
            chain.set_coefficients(1 - beta, beta)
            chain(x).square().mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))

    def forward(self, x):
        return self.layers(x)


@residual
def run_mlp(block, x):
    return block["mlp"](x)


def test_modules_compiled_to_reduce_overhead_have_the_gradients_of_stored_activations():
    blocks = nn.Sequential(*[nn.ModuleDict({"mlp": Hidden()}) for _ in range(3)])
    chain = ReversibleChain(blocks, (run_mlp,)).cuda()
    for block in chain:
        block["mlp"].compile(mode="reduce-overhead")
    chain.set_coefficients(0.875, 0.125)
    x = torch.randn(2, 5, 8, device="cuda", requires_grad=True)
    for _ in range(3):
        found = []
        for reversible in (True, False):
            # Or the gradients of the pass before, which are held, are memory that graphs reuse.
            torch.compiler.cudagraph_mark_step_begin()
            found.append(gradients(chain, x, reversible=reversible))
        assert_same_bits(*found)

