import pytest
import torch
from torch import nn

from dr2net import ReversibleChain, residual
from dr2net.replay import Inventory, Settings, Snapshot, fix_settings, undo
from tests.toy import assert_same_bits, gate, gradients, make_chain, mix

CPU = torch.device("cpu")


# Random numbers


def test_backward_leaves_the_random_stream_where_stored_activations_leave_it():
    states = []
    for reversible in (False, True):
        gradients(make_chain(dropout=0.5), torch.randn(2, 5, 8), reversible=reversible)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_a_recomputation_that_fails_leaves_the_random_stream_where_it_was():
    chain = make_chain(dropout=0.5)
    loss = chain(torch.randn(2, 5, 8)).sum()
    before = torch.get_rng_state()

    def fail(*_):
        raise ZeroDivisionError

    with chain[2].second.register_forward_hook(fail), pytest.raises(ZeroDivisionError):
        loss.backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_each_step_draws_new_masks():
    chain, x = make_chain(dropout=0.5), torch.randn(2, 5, 8)
    assert not torch.equal(chain(x), chain(x))


def test_a_feature_s_own_draws_stand_between_two_modules():
    chain, x = make_chain(dropout=0.5), torch.randn(2, 5, 8, requires_grad=True)
    found = []
    for reversible in (False, True):
        chain.reversible = reversible
        torch.manual_seed(3)
        features = chain.features(x, blocks=[0, 1, 2], apply=lambda f: f * torch.rand(8))
        found.append(torch.autograd.grad(sum(f.sum() for f in features), [x, *chain.parameters()]))
    assert_same_bits(*map(list, found))


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


# Settings


def product_dtype():
    return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_autocast_is_put_back_outside_of_it():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        settings = Settings(CPU)
    changed = settings.apply()
    assert product_dtype() == torch.bfloat16
    undo(changed)
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_autocast_cache_enabled()


def test_no_autocast_is_put_back_inside_of_it():
    settings = Settings(CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        changed = settings.apply()
        assert product_dtype() == torch.float32
        undo(changed)
        assert product_dtype() == torch.bfloat16


def test_every_setting_can_be_read_and_written_for_a_cpu_and_a_gpu():
    for kind in ("cpu", "cuda"):
        settings = Settings(torch.device(kind))
        for (read, write), value in zip(settings._pairs, settings._values, strict=True):
            write(value)
            assert read() == value


def test_what_is_the_same_both_times_is_set_and_undone():
    torch.set_autocast_cache_enabled(True)
    changed = fix_settings()
    assert not torch.is_autocast_cache_enabled()
    assert fix_settings() == []
    undo(changed)
    assert torch.is_autocast_cache_enabled()


@pytest.mark.parametrize("inside", [False, True])
def test_backward_may_run_inside_or_outside_of_autocast(inside):
    found = []
    weights = make_chain().state_dict()
    for reversible in (False, True):
        chain = make_chain()
        chain.load_state_dict(weights)
        chain.reversible = reversible
        x = torch.linspace(-1, 1, 80).view(2, 5, 8).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not inside):
            loss = chain(x).sum()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            loss.backward()
        found.append(x.grad)
    assert torch.equal(*found)


# What a block holds


def block():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


CHANGES = {
    "a parameter exchanged": lambda m: setattr(m[0], "weight", nn.Parameter(torch.zeros(2, 2))),
    "a parameter taken out": lambda m: m[0]._parameters.pop("bias"),
    "a parameter set to None": lambda m: setattr(m[0], "bias", None),
    "a buffer exchanged": lambda m: setattr(m[1], "running_mean", torch.ones(2)),
    "a buffer added": lambda m: m[0].register_buffer("new", torch.ones(1)),
    "a module exchanged": lambda m: m.__setitem__(0, nn.Linear(2, 2)),
    "a module added": lambda m: m[1].add_module("new", nn.Identity()),
    "a parametrization": lambda m: nn.utils.parametrizations.weight_norm(m[0]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_an_inventory_notices(change):
    module = block()
    inventory = Inventory(module)
    assert inventory.is_current()
    change(module)
    assert not inventory.is_current()


def test_values_are_not_what_an_inventory_looks_at():
    module = block()
    inventory = Inventory(module)
    with torch.no_grad():
        module[0].weight.add_(1)
    module.eval()
    assert inventory.is_current()


def test_a_snapshot_puts_back_what_a_forward_changed():
    module, x = block(), torch.randn(4, 2)
    before = [buffer.clone() for buffer in module.buffers()]
    objects = list(module.buffers())
    snapshot = Snapshot([Inventory(module)], [gate], CPU)
    module(x)
    module[1].running_var = torch.zeros(2)
    drawn = torch.rand(3)
    snapshot.restore()
    assert all(map(torch.equal, before, module.buffers()))
    assert all(a is b for a, b in zip(objects, module.buffers(), strict=True))
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("branches", [("gate", "mix"), ("mix", "gate")])
def test_buffers_that_one_module_of_a_block_moves_are_known_of_that_module(branches):
    # The first module of a block says nothing of what its second one changes.
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(5)

    functions = {
        "gate": residual(lambda block, x: torch.sigmoid(x) * block.norm.weight[:, None]),
        "mix": residual(lambda block, x: block.norm(x)),
    }

    def build():
        chain = ReversibleChain(
            nn.Sequential(Normed(), Normed()), [functions[name] for name in branches]
        )
        chain.set_coefficients(0.875, 0.125)
        return chain.train()

    x = torch.randn(2, 5, 8, requires_grad=True)
    stored, rebuilt = build(), build()
    for _ in range(3):
        assert_same_bits(gradients(stored, x, reversible=False), gradients(rebuilt, x))
        assert_same_bits(list(stored.buffers()), list(rebuilt.buffers()))


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
def test_buffers_that_forward_leaves_alone_are_copied_in_the_first_forward_alone(mode, monkeypatch):
    chain, x = make_chain(dropout=0.1), torch.randn(2, 5, 8)
    for block in chain:  # as a Swin's attention mask
        block.register_buffer("mask", torch.zeros(12345))
    chain.train(mode != "eval")
    copied, clone = [], torch.Tensor.clone
    monkeypatch.setattr(
        torch.Tensor, "clone", lambda t, **options: copied.append(t.numel()) or clone(t, **options)
    )
    for step in range(3):
        with torch.set_grad_enabled(mode != "no_grad"):
            output = chain(x)
        if mode != "no_grad":
            output.sum().backward()
        assert (12345 in copied) == (step == 0)
        copied.clear()


def test_a_buffer_that_was_written_with_its_own_value_is_known_to_move():
    # A mean of zeros leaves a running mean of 0 as it is; that of the next module does not.
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(5)

    zeros = residual(lambda block, x: block.norm(torch.zeros_like(x)))
    shifted = residual(lambda block, x: block.norm(x + 3))

    def build():
        chain = ReversibleChain(nn.Sequential(Normed(), Normed()), (zeros, shifted))
        chain.set_coefficients(0.5, 0.5)
        return chain.train()

    x, stored, rebuilt = torch.randn(2, 5, 8, requires_grad=True), build(), build()
    for _ in range(2):
        assert_same_bits(gradients(stored, x, reversible=False), gradients(rebuilt, x))
        assert_same_bits(list(stored.buffers()), list(rebuilt.buffers()))
