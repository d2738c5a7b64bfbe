"""Processes choose alike and train alike; what they cannot do says so."""

from __future__ import annotations

import re

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import dr2net
from tests.distributed.processes import SHARDS_ON_CPU, run_in_processes
from tests.selection.layers import Network, loss_of


def select(model, rank):
    return dr2net.select_channels(
        model, lambda: loss_of(model, rank), "30%", batches=1, share=0.9, moments="carry"
    )


def train():
    """The channels of two epochs and the weights behind them, by a batch of its own in each."""
    rank, model = distributed.get_rank(), Network()
    selection = select(model, rank)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    drawn = []
    for epoch in range(2):
        selection.draw(epoch, optimizer)
        ddp = DistributedDataParallel(model)
        drawn.append(selection.channels)
        for step in range(2):
            loss_of(ddp, 4 * epoch + 2 * step + rank).backward()
            optimizer.step()
            optimizer.zero_grad()
    return drawn, model.state_dict(), selection.state_dict()


def train_alone(state):
    """The same in one process, with the mean of both batches."""
    model = Network()
    selection = dr2net.Selection(model, state)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    for epoch in range(2):
        selection.draw(epoch, optimizer)
        for step in range(2):
            for rank in range(2):
                (loss_of(model, 4 * epoch + 2 * step + rank) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.state_dict()


def test_processes_draw_the_same_channels_and_share_their_gradients():
    (drawn, weights, state), (drawn_too, weights_too, state_too) = run_in_processes(2, train)
    for first, second in zip(drawn, drawn_too, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    for name, layer in state["layers"].items():
        assert torch.equal(layer["rgn"], state_too["layers"][name]["rgn"])
    assert all(torch.equal(value, weights_too[name]) for name, value in weights.items())
    alone = train_alone({**state, "epoch": 0})
    for name, value in alone.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-4)


def messages():
    """What is said of networks that are wrapped, drawn anew in DDP, and sharded."""
    found = []

    def note(function):
        try:
            function()
        except (RuntimeError, ValueError) as error:
            found.append(str(error))
        else:
            found.append("nothing was raised")

    model = Network()
    note(lambda: select(DistributedDataParallel(model), 0))
    selection = select(model, 0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    ddp = DistributedDataParallel(model)
    loss_of(ddp).backward()
    selection.draw(1, optimizer)
    note(lambda: loss_of(ddp))

    sharded = Network()
    fully_shard(sharded)
    note(lambda: select(sharded, 0))
    late = Network()
    select(late, 0)
    for block in late.blocks:
        fully_shard(block)
    fully_shard(late)
    note(lambda: loss_of(late))
    return found


@pytest.mark.skipif(
    not SHARDS_ON_CPU, reason="FSDP2 of this PyTorch needs GPUs, one for each process"
)
def test_what_cannot_work_says_so():
    expected = (
        "choose channels of model.module, and wrap it afterwards",
        "wrap the network anew after each draw",
        "FSDP2 cannot train a part of a weight: use DDP",
        r"exchanged for another tensor, by fully_shard \(FSDP2\)",
    )
    for found in run_in_processes(2, messages):
        for message, pattern in zip(found, expected, strict=True):
            assert re.search(pattern, message)
