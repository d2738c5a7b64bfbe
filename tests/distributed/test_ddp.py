"""DistributedDataParallel around a converted network, with gloo in two processes."""

from __future__ import annotations

import warnings
from collections import Counter
from copy import deepcopy

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from dr2net import optimizers, residual
from tests.distributed.networks import loss_of, make_batch, make_network
from tests.distributed.processes import run_in_processes
from tests.toy import assert_same_bits, make_chain

STATIC = {"find_unused_parameters": False, "static_graph": True}


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def backward_of_both_ranks(network: nn.Module, name: str, micro_batches: int) -> list[dict]:
    """The gradients of each rank's batches, each computed in this process alone."""
    found = []
    for rank in range(2):
        alone = deepcopy(network)
        for step in range(micro_batches):
            loss_of(alone, make_batch(name, rank, step), seed=rank).backward()
        found.append(gradients(alone))
    return found


def ddp_and_average(
    name: str,
    options: dict,
    coefficients: tuple = (1, 0.1),
    frozen: tuple = (),
    micro_batches: int = 1,
) -> tuple[dict, dict]:
    """Gradients by DDP, and the average over the ranks of the gradients without it."""
    network = make_network(name, *coefficients)
    for parameter_name, parameter in network.named_parameters():
        parameter.requires_grad_(not parameter_name.startswith(frozen or ("nothing",)))
    one, other = backward_of_both_ranks(network, name, micro_batches)
    rank = distributed.get_rank()
    model = DistributedDataParallel(network, **options)
    # static_graph acts from the second backward on, and the first must not be under no_sync.
    loss_of(model, make_batch(name, rank), seed=rank).backward()
    model.zero_grad()
    for step in range(micro_batches - 1):
        with model.no_sync():
            loss_of(model, make_batch(name, rank, step), seed=rank).backward()
    loss_of(model, make_batch(name, rank, micro_batches - 1), seed=rank).backward()
    average = {key: None if grad is None else (grad + other[key]) / 2 for key, grad in one.items()}
    return gradients(network), average


def assert_same_gradients(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    differing = [
        name
        for name, grad in found.items()
        if (grad is None) != (expected[name] is None)
        or (grad is not None and not torch.equal(grad, expected[name]))
    ]
    assert not differing


@pytest.mark.parametrize("name", ["toy", "timm"])
@pytest.mark.parametrize(
    "options",
    [STATIC, {"find_unused_parameters": False, "gradient_as_bucket_view": True}],
    ids=["static graph", "bucket views"],
)
def test_gradients_are_the_average_over_the_processes(name, options):
    for found, expected in run_in_processes(2, ddp_and_average, name, options):
        assert_same_gradients(found, expected)


@pytest.mark.parametrize("options", [{}, STATIC], ids=["dynamic graph", "static graph"])
def test_gradients_are_accumulated_under_no_sync(options):
    args = ("toy", options, (0.5, 0.25), (), 3)
    for found, expected in run_in_processes(2, ddp_and_average, *args):
        assert_same_gradients(found, expected)


@pytest.mark.parametrize("frozen", [("embed", "blocks.0", "blocks.1"), ("blocks.2", "norm")])
def test_frozen_parts_need_no_search_for_unused_parameters(frozen):
    args = ("toy", STATIC, (1, 0.1), frozen)
    for found, expected in run_in_processes(2, ddp_and_average, *args):
        assert [name for name, grad in found.items() if grad is None] == [
            name for name in found if name.startswith(frozen)
        ]
        assert_same_gradients(found, expected)


def count_hooks() -> Counter:
    network = make_network("toy", 1, 0.1)
    counts: Counter = Counter()
    for name, parameter in network.named_parameters():
        parameter.register_hook(lambda _, name=name: counts.update([name]))
        parameter.register_post_accumulate_grad_hook(
            lambda _, name=name: counts.update([f"{name}, accumulated"])
        )
    model = DistributedDataParallel(network, **STATIC)
    for _ in range(3):
        loss_of(model, make_batch("toy", distributed.get_rank()), seed=0).backward()
    return counts


def test_hooks_on_parameters_fire_once_per_backward():
    names = [name for name, _ in make_network("toy", 1, 0.1).named_parameters()]
    expected = Counter({f"{n}{kind}": 3 for n in names for kind in ("", ", accumulated")})
    assert run_in_processes(2, count_hooks) == [expected, expected]


def with_unused_parameter(reversible: bool, find_unused: bool) -> tuple[str, list[str]]:
    """What DDP says in the second iteration, and the names of the parameters without gradient."""
    network = make_network("toy", 0.5, 0.25, reversible)
    network.blocks[1].spare = nn.Parameter(torch.ones(8))
    model = DistributedDataParallel(network, find_unused_parameters=find_unused)
    message = ""
    try:
        for step in range(2):
            model.zero_grad()
            loss_of(model, make_batch("toy", distributed.get_rank(), step), seed=0).backward()
    except RuntimeError as error:
        message = str(error)
    return message, [name for name, grad in gradients(network).items() if grad is None]


@pytest.mark.parametrize("reversible", [True, False])
def test_unused_parameters_are_reported_as_for_an_ordinary_network(reversible):
    for message, _ in run_in_processes(2, with_unused_parameter, reversible, False):
        assert "Expected to have finished reduction in the prior iteration" in message


@pytest.mark.parametrize("reversible", [True, False])
def test_unused_parameters_that_are_searched_for_get_no_gradient(reversible):
    for message, without in run_in_processes(2, with_unused_parameter, reversible, True):
        assert message == ""
        assert without == ["blocks.1.spare"]


class SynchronisedNorm(nn.Module):
    """BatchNorm over the batches of all processes, as SyncBN on GPUs; eager sums on a CPU."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("running_mean", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        sums = torch.stack([rows.sum(0), rows.square().sum(0)])
        count = len(rows)
        if distributed.is_initialized():
            sums, count = all_reduce(sums), count * distributed.get_world_size()
        mean, square = sums / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, 0.1)
        return (x - mean) * (square - mean.square() + 1e-5).rsqrt() * self.weight


@residual
def mix_synchronised(block: nn.Module, x: Tensor) -> Tensor:
    return block.second(torch.tanh(block.first(block.norm(x))))


def synchronised_chain(reversible: bool) -> nn.Module:
    torch.manual_seed(3)
    chain = make_chain(1, 0.1, branches=(mix_synchronised,))
    for block in chain:
        block.norm = SynchronisedNorm(8)
    chain.reversible = reversible
    return chain


def train_synchronised(reversible: bool) -> tuple[list[Tensor], list[Tensor]]:
    chain = synchronised_chain(reversible)
    model = DistributedDataParallel(chain, broadcast_buffers=False, **STATIC)
    loss_of(model, make_batch("toy", distributed.get_rank()), seed=0).backward()
    return [p.grad for p in chain.parameters()], [b.clone() for b in chain.buffers()]


def test_a_norm_synchronised_over_processes_is_recomputed_right():
    rebuilt, stored = (run_in_processes(2, train_synchronised, kind) for kind in (True, False))
    for (grads, buffers), (stored_grads, stored_buffers) in zip(rebuilt, stored, strict=True):
        assert_same_bits(grads, stored_grads)
        assert_same_bits(buffers, stored_buffers)  # the running mean moved once

    chain = synchronised_chain(reversible=False)
    loss_of(chain, torch.cat([make_batch("toy", rank) for rank in range(2)]), seed=0).backward()
    for grad, joined in zip(rebuilt[0][0], chain.parameters(), strict=True):
        # Sums over a batch in another order, 30 rows of order 1.
        torch.testing.assert_close(grad, joined.grad, rtol=1e-4, atol=1e-5)


def with_overflow_on_one_rank(kind: str) -> tuple[list[bool], int]:
    """Whether the parameters changed in each of three steps, and how many steps were skipped."""
    rank = distributed.get_rank()
    network = make_network("toy", 0.875, 0.125)
    model = DistributedDataParallel(network, **STATIC)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    bias = network.blocks[1].second.bias
    changed, before_all = [], optimizers.skipped_steps[0]
    for step in range(3):
        if rank == 1 and step == 1:
            handle = network.blocks[1].second.register_forward_hook(
                lambda *call: call[-1] * {"fp16 overflow": torch.inf, "range": 1e5}[kind]
            )
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss_of(model, make_batch("toy", rank, step), seed=rank).backward()
            optimizer.step()
        now = [parameter.detach() for parameter in model.parameters()]
        changed.append(not all(map(torch.equal, before, now)))
        if rank == 1 and step == 1:
            handle.remove()
    assert bias.isfinite().all()
    return changed, optimizers.skipped_steps[0] - before_all


@pytest.mark.parametrize("kind", ["fp16 overflow", "range"])
def test_what_goes_wrong_on_one_process_is_skipped_on_all(kind):
    expected = [True, False, True], 1
    assert run_in_processes(2, with_overflow_on_one_rank, kind) == [expected, expected]
