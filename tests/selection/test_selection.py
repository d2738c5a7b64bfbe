"""Which layers and channels are chosen, at what cost, and what is left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dr2net
from dr2net.selection.measurement import Layer, measure, preselected
from dr2net.selection.selection import draw_channels
from tests.selection.layers import Network, loss_of, select


class Small(nn.Module):
    """A convolution of 4 × 4 places, a linear layer of 16 tokens, and a classifier."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.fc1 = nn.Linear(6, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        x = torch.tanh(self.conv(x)).flatten(2).transpose(1, 2)
        return self.head(torch.tanh(self.fc1(x)).mean(1))


X = torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4)


def small_loss(model):
    return lambda: F.cross_entropy(model(X), torch.tensor([0, 1]))


def test_the_cost_of_a_channel_is_its_weights_and_its_activations():
    model = Small()
    selection = dr2net.select_channels(model, small_loss(model), selector="all", share=1.0)
    costs = {name: layer.cost for name, layer in selection.layers.items()}
    # C'·D² + H·W of each of two images, and C' + tokens, of 4 bytes each
    assert costs == {"conv": 4 * (6 * 3 * 3 + 2 * 4 * 4), "fc1": 4 * (5 + 2 * 16)}


def test_activations_under_autocast_cost_half():
    model = Small()

    def loss():
        with torch.autocast("cpu", torch.bfloat16):
            return small_loss(model)()

    selection = dr2net.select_channels(model, loss, selector="all", share=1.0)
    assert selection.layers["fc1"].cost == 4 * 5 + 2 * 2 * 16


def test_rgn_is_the_norm_of_the_gradient_by_the_cost():
    model = Small()
    plain = copy.deepcopy(model)
    selection = dr2net.select_channels(model, small_loss(model), selector="all", share=1.0)
    small_loss(plain)().backward()
    for name, layer in selection.layers.items():
        weight = plain.get_submodule(name).weight
        expected = [weight.grad[:, c].norm().item() / layer.cost for c in range(weight.shape[1])]
        torch.testing.assert_close(layer.rgn, torch.tensor(expected, dtype=torch.float64))


def test_layers_that_carry_the_share_are_kept_in_the_order_of_the_network():
    layers = {
        name: Layer(1, torch.full((2,), total / 2, dtype=torch.float64))
        for name, total in {"a": 30, "b": 3, "c": 60, "d": 7}.items()
    }
    assert list(preselected(layers, 0.6)) == ["c"]
    assert list(preselected(layers, 0.97)) == ["a", "c", "d"]
    assert list(preselected(layers, 1.0)) == ["a", "b", "c", "d"]


LAYERS = {
    "wide": Layer(100, torch.arange(40, dtype=torch.float64)),
    "narrow": Layer(10, torch.arange(100, 120, dtype=torch.float64)),
}


def test_a_uniform_draw_fills_the_budget_and_depends_on_its_seed_alone():
    first, again, other = (draw_channels(LAYERS, "uniform", 1000, s) for s in ("1", "1", "2"))
    for name, channels in first.items():
        assert torch.equal(channels, again[name])
        assert channels.tolist() == sorted(set(channels.tolist()))
    assert any(not torch.equal(first[name], other[name]) for name in first)
    used = 100 * len(first["wide"]) + 10 * len(first["narrow"])
    assert 1000 - 10 < used <= 1000


def test_uniform_draws_prefer_no_channel():
    counts = {name: torch.zeros(len(layer.rgn)) for name, layer in LAYERS.items()}
    for epoch in range(400):
        for name, channels in draw_channels(LAYERS, "uniform", 2000, f"0, {epoch}").items():
            counts[name][channels] += 1
    # About half of the channels each time: 400 draws of 0.47 scatter by 10.
    assert counts["wide"].std() < 20
    assert counts["wide"].min() > 130
    assert counts["wide"].max() < 250


def test_the_largest_are_those_of_the_largest_rgn():
    drawn = draw_channels(LAYERS, "largest", 20 * 10 + 3 * 100, "0")
    assert drawn["narrow"].tolist() == list(range(20))
    assert drawn["wide"].tolist() == [37, 38, 39]


def test_all_channels_of_the_chosen_layers_train_with_the_gradients_of_full_training():
    full, part = Network(), Network()
    selection = select(part, None, selector="all")
    loss_of(full).backward()
    loss_of(part).backward()
    assert len(selection.channels) == 10
    for name, channels in selection.channels.items():
        layer = part.get_submodule(name)
        assert channels.tolist() == list(range(layer.weight.shape[1]))
        grad = layer.weight_of_trained_channels.grad
        torch.testing.assert_close(grad, full.get_submodule(name).weight.grad)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(2000, 2000), ("2KB", 2000), ("2 KiB", 2048), ("0.002MB", 2000), ("25%", 480)],
)
def test_budgets_are_bytes_or_shares(budget, expected):
    model = Small()
    selection = dr2net.select_channels(model, small_loss(model), budget, share=0.5)
    assert selection.budget == expected  # all layers: 3 · 344 + 6 · 148 bytes = 1920
    assert selection.bytes <= expected


@pytest.mark.parametrize("budget", [0, -1, True, 1.5, "", "MB", "64 apples", "0%", "64"])
def test_other_budgets_are_refused(budget):
    model = Small()
    with pytest.raises(ValueError, match=r"budget=.*'64MB'"):
        dr2net.select_channels(model, small_loss(model), budget)


def test_a_budget_too_small_for_one_channel_says_what_one_takes():
    model = Small()
    with pytest.raises(ValueError, match="takes 148 of them at least"):
        dr2net.select_channels(model, small_loss(model), 100, share=1.0)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selector": "best"}, "selector='best' is unknown: use one of uniform, largest, all"),
        ({"moments": "keep"}, "moments='keep' is unknown"),
        ({"selector": "all"}, "'all' takes no budget"),
        ({"budget": None}, "'all' takes no budget, the others do"),
        ({"share": 0}, "share=0"),
        ({"batches": 0}, "batches=0"),
        ({"always": "neck"}, "always='neck' names no parameter"),
        ({"always": ["*"]}, "has no layer to choose channels of"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    model = Small()
    with pytest.raises(ValueError, match=message):
        dr2net.select_channels(model, small_loss(model), **{"budget": "1KB", **options})


def test_measuring_leaves_gradients_flags_buffers_and_random_numbers():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 4, 1))
    model[0].bias.requires_grad_(False)
    model[3].weight.grad = marked = torch.ones_like(model[3].weight)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    measured = measure(
        model, {"0": model[0], "3": model[3]}, lambda: model(X).square().sum(), batches=2
    )
    assert torch.equal(torch.rand(1), expected)
    assert list(measured) == ["0", "3"]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True, True]
    assert model[3].weight.grad is marked
    assert model[0].weight.grad is None


def test_the_same_is_measured_with_activations_rebuilt_and_stored():
    rebuilt, stored = (select(Network(reversible)).state_dict() for reversible in (True, False))
    for name, layer in rebuilt["layers"].items():
        assert layer["cost"] == stored["layers"][name]["cost"]
        assert torch.equal(layer["rgn"], stored["layers"][name]["rgn"])


class Odd(nn.Module):
    """Layers that cannot train by channels, around one that can."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(4, 4)
        self.read = nn.Linear(4, 4)  # whose weight is used without it
        self.tied, self.tied_too = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied_too.weight = self.tied.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.grouped = nn.Conv1d(4, 4, 1, groups=2)
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.frozen(self.normed(self.tied_too(self.tied(self.plain(x)))))
        x = F.linear(x, self.read.weight)
        return self.head(self.grouped(x.unsqueeze(-1)).squeeze(-1))


def test_layers_that_cannot_train_by_channels_are_left_out():
    model = Odd()
    selection = dr2net.select_channels(
        model, lambda: model(torch.ones(3, 4)).sum(), selector="all", share=1.0
    )
    assert list(selection.channels) == ["plain"]


def test_everything_else_is_frozen_but_what_is_named():
    model = Small()
    dr2net.select_channels(model, small_loss(model), "1KB", always=["head", "*.bias"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    slices = {name for name in trained if name.endswith("weight_of_trained_channels")}
    assert trained - slices == {"head.weight", "head.bias", "conv.bias", "fc1.bias"}
    assert slices


def test_what_was_frozen_stays_frozen_and_is_not_chosen():
    model = Small()
    model.conv.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    selection = dr2net.select_channels(model, small_loss(model), "1KB")
    assert list(selection.channels) == ["fc1"]
    assert not model.head.bias.requires_grad
    assert not model.conv.weight.requires_grad


def test_the_classifier_is_timms_or_has_a_usual_name_or_has_to_be_named():
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet18", num_classes=3)
    x = torch.randn(2, 3, 32, 32)
    dr2net.select_channels(network, lambda: network(x).square().sum(), "1MB", batches=1)
    assert network.fc.weight.requires_grad
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"name it, always=.*Its parts are 0, 1"):
        dr2net.select_channels(model, lambda: model(torch.ones(4)).sum(), "1KB")
    selection = dr2net.select_channels(model, lambda: model(torch.ones(4)).sum(), "1KB", always=[])
    assert selection.channels


def test_a_network_is_selected_once():
    model = Small()
    dr2net.select_channels(model, small_loss(model), "1KB")
    with pytest.raises(ValueError, match="has a selection of channels already"):
        dr2net.select_channels(model, small_loss(model), "1KB")


def test_losses_of_another_network_or_none_are_refused():
    model, other = Small(), Small()
    with pytest.raises(ValueError, match="No linear or convolution layer gets a gradient"):
        dr2net.select_channels(model, small_loss(other), "1KB")
    with pytest.raises(ValueError, match="needs no gradient"):
        dr2net.select_channels(model, lambda: torch.ones(()), "1KB")
    with pytest.raises(FloatingPointError, match="not finite"):
        dr2net.select_channels(model, lambda: model(X * float("nan")).sum(), "1KB")


def test_summary_and_plan_say_what_trains():
    model = Network()
    x = torch.randn(2, 3, 9, 9)
    assert "input channels" not in str(dr2net.summary(model, x))
    selection = select(model)
    line = str(selection).partition(";")[0]
    assert line.endswith("of their weights")
    assert f"Of the weights, {line}." in str(dr2net.summary(model, x))
    assert f"Of the weights, {line}." in str(dr2net.plan(model, x, budget_gb=1))
