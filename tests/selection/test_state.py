"""What is saved, copied, drawn anew and taken back, and what optimizers hold of it."""

from __future__ import annotations

import io
from copy import deepcopy

import pytest
import torch
from torch import nn

import dr2net
from dr2net.selection import trained_channels
from dr2net.selection.trained_channels import SLICE
from tests.selection.layers import Network, images, loss_of, select


def adamw(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)


def step(model, optimizer, number=0):
    loss_of(model, number).backward()
    optimizer.step()
    optimizer.zero_grad()


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_state_dict_has_the_librarys_names_and_the_trained_values():
    model, plain = Network(), Network()
    before = model.state_dict()
    select(model)
    assert_same(before, model.state_dict())
    optimizer = adamw(model)
    step(model, optimizer)
    state = model.state_dict()
    assert list(state) == list(before)
    for trained in trained_channels(model):
        weight = state[f"{trained.name}.weight"]
        assert torch.equal(weight[:, trained.channels], trained.parameter)
    plain.load_state_dict(state)
    x = images()
    model.eval()
    plain.eval()
    assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize("assign", [False, True])
def test_a_plain_state_dict_loads(assign):
    model, other = Network(), Network()
    select(model)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    state = {key: value.clone() for key, value in other.state_dict().items()}
    assert model.load_state_dict(state, assign=assign) == ([], [])
    assert_same(model.state_dict(), state)
    assert torch.equal(model(images()), other(images()))
    loss_of(model).backward()
    assert all(trained.parameter.grad is not None for trained in trained_channels(model))


@pytest.mark.parametrize("moments", ["restart", "carry"])
def test_a_resumed_training_goes_on_as_an_unbroken_one(moments):
    def epoch(model, selection, optimizer, number):
        selection.draw(number, optimizer)
        for i in range(2):
            step(model, optimizer, 2 * number + i)

    model = Network()
    selection = select(model, moments=moments)
    optimizer = adamw(model)
    for number in range(2):
        epoch(model, selection, optimizer, number)
    torch.save(
        [model.state_dict(), selection.state_dict(), optimizer.state_dict()], f := io.BytesIO()
    )
    epoch(model, selection, optimizer, 2)

    f.seek(0)
    weights, drawn, moments_of = torch.load(f, weights_only=True)
    resumed = Network()
    selection_too = dr2net.Selection(resumed, drawn)
    resumed.load_state_dict(weights)
    optimizer_too = adamw(resumed)
    optimizer_too.load_state_dict(moments_of)
    epoch(resumed, selection_too, optimizer_too, 2)
    assert_same(resumed.state_dict(), model.state_dict())


def test_draws_follow_from_the_epoch_and_keep_the_budget():
    model = Network()
    selection = select(model, "20%")
    optimizer = adamw(model)
    drawn = []
    for epoch in (0, 1, 2, 1):
        selection.draw(epoch, optimizer)
        assert selection.bytes <= selection.budget
        drawn.append({name: channels.tolist() for name, channels in selection.channels.items()})
        step(model, optimizer, epoch)
    assert drawn[1] == drawn[3]
    assert drawn[0] != drawn[1] != drawn[2]


def test_channels_that_are_the_same_keep_their_parameters():
    model = Network()
    selection = select(model, selector="largest")
    before = list(model.parameters())
    selection.draw(1)
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))


def test_a_draw_exchanges_the_parameters_in_their_groups():
    model = Network()
    selection = select(model, "20%")
    slices = [trained.parameter for trained in trained_channels(model)]
    groups = [{"params": slices[:3], "lr": 0.1}, {"params": slices[3:], "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    step(model, optimizer)
    selection.draw(1, optimizer)
    now = [trained.parameter for trained in trained_channels(model)]
    assert [p for group in optimizer.param_groups for p in group["params"]] == now
    assert len(optimizer.param_groups[0]["params"]) == 3
    assert sum(a is b for a, b in zip(slices, now, strict=True)) < 3  # of the same channels


def test_moments_restart_or_are_carried_over():
    for moments in ("restart", "carry"):
        model = Network()
        selection = select(model, moments=moments)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, 0.9)
        step(model, optimizer)
        before = {
            t.name: (t.channels.tolist(), optimizer.state[t.parameter]["momentum_buffer"])
            for t in trained_channels(model)
        }
        selection.draw(1, optimizer)
        for trained in trained_channels(model):
            state = optimizer.state.get(trained.parameter, {})
            if moments == "restart":
                assert not state
                continue
            old, buffer = before[trained.name]
            for place, channel in enumerate(trained.channels.tolist()):
                found = state["momentum_buffer"][:, place]
                if channel in old:
                    assert torch.equal(found, buffer[:, old.index(channel)])
                else:
                    assert not found.any()
        step(model, optimizer, 1)


def test_an_optimizer_that_was_made_before_trains_the_channels():
    model, other = Network(), Network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    select(model, optimizer=optimizer)
    select(other)
    step(model, optimizer)
    step(other, adamw(other))
    assert_same(model.state_dict(), other.state_dict())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    moments = sum(state["exp_avg"].numel() for state in optimizer.state.values())
    assert moments == trained


def test_an_optimizer_of_other_parameters_is_refused():
    model = Network()
    stranger = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match=r"No optimizer given trains the channels of stem"):
        select(model, optimizer=stranger)
    assert not any(trained_channels(model))
    selection = select(model, "20%")
    with pytest.raises(ValueError, match=r"made of model.parameters\(\) after select_channels"):
        selection.draw(1)


class InData(torch.optim.Optimizer):
    """Writes through .data, which raises no version, as optimizers with kernels of their own do."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(parameter.grad, alpha=-0.1)


@pytest.mark.parametrize("way", ["fused", "data", "by hand"])
def test_every_way_of_stepping_reaches_the_weight(way):
    model = Network()
    select(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    loss_of(model).backward()
    if way == "by hand":
        with torch.no_grad():
            for parameter in trained:
                parameter -= 0.1 * parameter.grad
        model(images())
    else:
        optimizer = InData(trained) if way == "data" else torch.optim.AdamW(trained, fused=True)
        optimizer.step()
    for one in trained_channels(model):
        assert torch.equal(one.layer.weight[:, one.channels], one.parameter)


def test_optimizers_may_step_within_backward():
    expected, model = Network(), Network()
    select(expected)
    select(model)
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        optimizer = torch.optim.SGD([parameter], lr=0.1)

        def take(parameter, optimizer=optimizer):
            optimizer.step()
            optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(take)
    optimizer = torch.optim.SGD([p for p in expected.parameters() if p.requires_grad], lr=0.1)
    for number in range(2):
        loss_of(model, number).backward()
        step(expected, optimizer, number)
    assert_same(model.state_dict(), expected.state_dict())


@pytest.mark.parametrize("reversible", [True, False])
def test_a_step_between_forward_and_backward_is_an_error(reversible):
    model = Network(reversible)
    select(model)
    loss = loss_of(model)
    with torch.no_grad():
        for trained in trained_channels(model):
            trained.parameter.mul_(2)
    loss_of(model)  # writes them into the weights
    with pytest.raises(RuntimeError, match=r"changed between forward|modified by an inplace"):
        loss.backward()


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_train_by_themselves_and_follow_a_draw(way):
    model = Network()
    selection = select(model)
    if way == "deepcopy":
        copy = deepcopy(model)
    else:
        torch.save(model, f := io.BytesIO())
        f.seek(0)
        copy = torch.load(f, weights_only=False)
    step(model, adamw(model))
    before = deepcopy(copy.state_dict())
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
    step(
        copy, torch.optim.AdamW([p for p in copy.parameters() if p.requires_grad], 0.01, fused=True)
    )
    for one in trained_channels(copy):
        assert torch.equal(one.layer.weight[:, one.channels], one.parameter)
    selection.draw(1, adamw(model))
    selection.apply_to(copy)
    shapes = [[p.shape for p in network.parameters()] for network in (model, copy)]
    assert shapes[0] == shapes[1]
    for one, other in zip(trained_channels(model), trained_channels(copy), strict=True):
        assert torch.equal(one.channels, other.channels)


def test_an_average_of_the_parameters_is_that_of_whole_weights():
    model = Network()
    select(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer, states = adamw(model), []
    for number in range(2):
        step(model, optimizer, number)
        average.update_parameters(model)
        states.append(deepcopy(model.state_dict()))
    for key, value in average.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (states[0][key] + states[1][key]) / 2)


def test_removing_leaves_the_plain_network_with_the_trained_weights():
    model = Network()
    model.blocks[0].first.bias.requires_grad_(False)
    selection = select(model)
    step(model, adamw(model))
    state = deepcopy(model.state_dict())
    selection.remove()
    assert_same(model.state_dict(), state)
    plain = Network()
    assert [name for name, _ in model.named_parameters()] == [
        n for n, _ in plain.named_parameters()
    ]
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["blocks.0.first.bias"]
    assert not any(module._forward_hooks for module in model.modules())
    plain.load_state_dict(state)
    loss_of(plain).backward()
    loss_of(model).backward()
    assert torch.equal(model.stem.weight.grad, plain.stem.weight.grad)
    select(model)


def test_a_state_of_another_network_is_refused():
    state = select(Network()).state_dict()
    with pytest.raises(ValueError, match="this Linear has not: give the network"):
        dr2net.Selection(nn.Linear(2, 2), {**state, "always": []})


def test_conversion_and_its_undoing_keep_the_selection():
    timm = pytest.importorskip("timm")
    model = timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
    )
    x = torch.randn(2, 3, 16, 16)
    selection = dr2net.select_channels(model, lambda: model(x).square().sum(), "30%", batches=1)
    dr2net.convert(model.train())
    dr2net.verify(model, x)
    with pytest.warns(UserWarning, match="left"):
        dr2net.revert(model)
    optimizer = adamw(model)
    selection.draw(1, optimizer)
    model(x).square().sum().backward()
    assert all(trained.parameter.grad is not None for trained in trained_channels(model))


def test_parameters_exchanged_for_others_are_refused():
    model = Network()
    select(model)
    given = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    assert any(name.endswith(SLICE) for name in given)
    with pytest.raises(RuntimeError, match="exchanged for another tensor, by fully_shard"):
        torch.func.functional_call(model, given, (images(),))


def test_lora_trains_beside_channels_where_it_is_named():
    peft = pytest.importorskip("peft")
    model = Network()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["second"]))

    def loss():
        return adapted(images()).square().sum()

    # The base is frozen, and stays so: what is left to choose channels of are the adapters.
    with pytest.raises(ValueError, match="no layer to choose channels of"):
        dr2net.select_channels(adapted, loss, "1KB", always=["*lora_*"])
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_("first" in name or "lora_" in name)
    selection = dr2net.select_channels(adapted, loss, "1KB", always=["*lora_*"])
    assert all(name.endswith(".first") for name in selection.channels)
    loss().backward()
    with_gradient = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert {name.split(".")[-2] for name in with_gradient if "lora_" in name} == {"default"}
    assert any(name.endswith(SLICE) for name in with_gradient)
    keys = [key for key in adapted.state_dict() if SLICE in key]
    assert not keys
