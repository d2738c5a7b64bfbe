import pytest
import torch

from dr2net import residual
from dr2net.replay import AutocastState, run_recorded, run_replayed
from tests.toy import gradients, make_chain, mix

CPU = torch.device("cpu")


def test_a_replay_draws_the_same_numbers():
    first, state = run_recorded(lambda: torch.rand(3), CPU)
    torch.rand(5)
    assert torch.equal(run_replayed(lambda: torch.rand(3), CPU, state, []), first)


def test_a_replay_leaves_the_random_stream_where_it_was():
    _, state = run_recorded(lambda: torch.rand(3), CPU)
    before = torch.get_rng_state()
    run_replayed(lambda: torch.rand(3), CPU, state, [])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_failing_replay_leaves_the_random_stream_where_it_was():
    _, state = run_recorded(lambda: torch.rand(3), CPU)
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        run_replayed(lambda: torch.rand(3) / (1 // 0), CPU, state, [])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_module_that_draws_nothing_keeps_no_state():
    assert run_recorded(lambda: torch.ones(3), CPU)[1] is None


def test_backward_leaves_the_random_stream_where_stored_activations_leave_it():
    states = []
    for reversible in (False, True):
        gradients(make_chain(dropout=0.5), torch.randn(2, 5, 8), reversible=reversible)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_each_step_draws_new_masks():
    chain, x = make_chain(dropout=0.5), torch.randn(2, 5, 8)
    assert not torch.equal(chain(x), chain(x))


def test_autocast_is_replayed_outside_of_it():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = AutocastState("cpu")
    with state.replayed():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


def test_no_autocast_is_replayed_inside_of_it():
    state = AutocastState("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16), state.replayed():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("inside", [False, True])
def test_backward_may_run_inside_or_outside_of_autocast(inside):
    found = []
    for reversible in (False, True):
        chain = make_chain()
        torch.manual_seed(0)
        chain.load_state_dict(make_chain().state_dict())
        chain.reversible = reversible
        x = torch.linspace(-1, 1, 80).view(2, 5, 8).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not inside):
            loss = chain(x).sum()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            loss.backward()
        found.append(x.grad)
    assert torch.equal(*found)


@pytest.mark.gpu
def test_random_numbers_of_a_gpu_are_replayed():
    @residual
    def noisy(block, x):
        return mix.__wrapped__(block, x) + torch.rand_like(x) + torch.rand(()).item()

    found = []
    for reversible in (False, True):
        torch.manual_seed(0)
        chain = make_chain(branches=(noisy,)).cuda()
        found.append(gradients(chain, torch.ones(2, 5, 8, device="cuda"), reversible=reversible))
    assert all(a is None or torch.equal(a, b) for a, b in zip(*found, strict=True))
