"""What a trained channel takes, and what the others do not."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from dr2net.diagnostics import bytes_kept
from dr2net.selection.trained_channels import TrainedChannels

LAYERS = [
    (lambda: nn.Linear(64, 32), (2, 50, 64)),
    (lambda: nn.Conv2d(64, 32, 3, padding=1), (2, 64, 5, 10)),
]


@pytest.mark.parametrize(("make", "shape"), LAYERS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_layer_keeps_the_chosen_channels_of_its_input_alone(make, shape, autocast):
    layer = make()
    TrainedChannels(layer, "layer", torch.tensor([3, 8, 9]))
    x = torch.randn(shape)

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return layer(x)

    # x needs no gradient, so that the weight, cast or not, is not needed either.
    assert bytes_kept(run) == 100 * 3 * (2 if autocast else 4)


def test_gradient_and_moments_have_the_size_of_the_slice():
    layer = nn.Linear(64, 32)
    layer.bias.requires_grad_(False)
    TrainedChannels(layer, "layer", torch.tensor([3, 8, 9]))
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad])
    layer(torch.randn(5, 64)).sum().backward()
    optimizer.step()
    grads = [p.grad for p in layer.parameters() if p.grad is not None]
    assert [grad.shape for grad in grads] == [(32, 3)]
    (state,) = optimizer.state.values()
    assert {key: value.numel() for key, value in state.items()} == {
        "step": 1,
        "exp_avg": 96,
        "exp_avg_sq": 96,
    }


def test_without_gradients_nothing_is_kept():
    layer = nn.Linear(64, 32)
    TrainedChannels(layer, "layer", torch.tensor([3, 8, 9]))
    with torch.no_grad():
        assert bytes_kept(partial(layer, torch.randn(5, 64))) == 0


def test_a_step_as_a_dr2net_with_a_tenth_of_the_channels_takes_less_than_either_alone():
    pytest.importorskip("timm")
    pytest.importorskip("matplotlib")
    from tools.benchmarks.selection import BOTH, CHANNELS, CONVENTIONAL, DR2NET, measure

    found = measure("vit_tiny", 96, 0, 16, ways=(CONVENTIONAL, DR2NET, CHANNELS, BOTH))
    peaks = {way: sum(parts.values()) for way, parts in found.items()}
    assert peaks[BOTH] < min(peaks[DR2NET], peaks[CHANNELS])
    assert max(peaks[DR2NET], peaks[CHANNELS]) < peaks[CONVENTIONAL]
    assert found[BOTH]["gradients"] < 0.2 * found[CONVENTIONAL]["weights"]
    assert found[BOTH]["optimizer state"] < 0.15 * found[CONVENTIONAL]["optimizer state"]
    assert found[BOTH]["activations"] < found[DR2NET]["activations"]
