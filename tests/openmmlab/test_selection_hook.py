"""``ChannelSelectionHook``: one line of a config trains channels of any model's backbone."""

import uuid
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

pytest.importorskip("mmengine")
from mmengine.model import BaseModel
from mmengine.runner import Runner

import dr2net
import dr2net.openmmlab  # registers the hook
from dr2net.selection import trained_channels
from tests.selection.layers import Network

HOOK = {"type": "ChannelSelectionHook", "budget": "30%", "batches": 3, "share": 1.0}


class Classifier(BaseModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Network()
        self.neck = nn.Linear(5, 4)

    def forward(self, x, mode="loss"):
        loss = self.neck(self.backbone(x.view(-1, 3, 9, 9))).square().mean()
        return {"loss": loss} if mode == "loss" else [loss]


def run(tmp_path, hooks, epochs=2, resume=False, **options):
    runner = Runner(
        model=Classifier(),
        randomness={"seed": 0},
        work_dir=str(tmp_path),
        train_dataloader={
            "batch_size": 2,
            "num_workers": 0,
            "dataset": TensorDataset(torch.linspace(-1, 1, 4 * 243).view(4, 243).sin()),
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "collate_fn": lambda batch: {"x": torch.stack([x for (x,) in batch])},
        },
        optim_wrapper={
            "optimizer": {"type": "AdamW", "lr": 0.01},
            "paramwise_cfg": {"custom_keys": {"blocks.1": {"lr_mult": 0.5}}},
        },
        custom_hooks=hooks,
        # mmengine keeps visualizers by experiment, whose name has a resolution of 1 s.
        experiment_name=uuid.uuid4().hex,
        resume=resume,
        **{"train_cfg": {"by_epoch": True, "max_epochs": epochs}, **options},
    )
    runner.train()
    return runner


def hook_of(runner):
    (hook,) = (h for h in runner.hooks if type(h).__name__ == "ChannelSelectionHook")
    return hook


def test_channels_of_the_backbone_train_and_all_of_what_is_behind_it(tmp_path):
    before = Classifier().state_dict()
    runner = run(tmp_path, [HOOK], epochs=1)
    state = runner.model.state_dict()
    assert list(state) == list(before)
    moved = {name for name, value in state.items() if not torch.equal(value, before[name])}
    channels = hook_of(runner).selection.channels
    assert moved == {f"{name}.weight" for name, c in channels.items() if len(c)} | {
        "neck.weight",
        "neck.bias",
    }
    for name, chosen in channels.items():
        same = (state[f"{name}.weight"] == before[f"{name}.weight"]).transpose(0, 1).flatten(1)
        untouched = [c for c in range(len(same)) if c not in chosen.tolist()]
        assert same[untouched].all()


def test_settings_by_parameters_name_hold_for_the_channels(tmp_path):
    runner = run(tmp_path, [HOOK], epochs=1)
    rates = {
        id(p): group["lr"]
        for group in runner.optim_wrapper.optimizer.param_groups
        for p in group["params"]
    }
    for trained in trained_channels(runner.model):
        expected = 0.005 if "blocks.1" in trained.name else 0.01
        assert rates[id(trained.parameter)] == expected


def test_channels_are_drawn_anew_each_epoch(tmp_path):
    drawn = []
    for epochs in (1, 2, 3):
        selection = hook_of(run(tmp_path / str(epochs), [HOOK], epochs)).selection
        assert selection.epoch == epochs - 1
        drawn.append([channels.tolist() for channels in selection.channels.values()])
    assert drawn[0] != drawn[1] != drawn[2]
    held = hook_of(run(tmp_path / "held", [{**HOOK, "interval": 3}], 3)).selection
    assert [channels.tolist() for channels in held.channels.values()] == drawn[0]


@pytest.mark.parametrize("moments", ["restart", "carry"])
def test_a_resumed_run_goes_on_as_an_unbroken_one(tmp_path, moments):
    hook = {**HOOK, "moments": moments}
    unbroken = run(tmp_path / "a", [hook], epochs=3)
    run(tmp_path / "b", [hook], epochs=2)
    resumed = run(tmp_path / "b", [hook], epochs=3, resume=True)
    found, expected = resumed.model.state_dict(), unbroken.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_an_average_has_whole_weights_and_takes_the_networks_place(tmp_path):
    runner = run(tmp_path, [{"type": "EMAHook", "momentum": 0.5}, HOOK], epochs=3)
    (ema,) = (hook for hook in runner.hooks if type(hook).__name__ == "EMAHook")
    start, trained = Classifier().state_dict(), deepcopy(runner.model.state_dict())
    average = deepcopy(ema.ema_model.module.state_dict())
    assert list(average) == list(trained)
    name = "backbone.blocks.0.first.weight"
    between = sorted([start[name].ravel(), trained[name].ravel()], key=lambda value: value.sum())
    assert not torch.equal(average[name], start[name])
    assert between[0].sum() <= average[name].sum() <= between[1].sum()
    ema._swap_ema_parameters()  # as before a validation
    assert all(torch.equal(v, average[key]) for key, v in runner.model.state_dict().items())
    runner.model(torch.ones(2, 243))
    assert all(torch.equal(v, average[key]) for key, v in runner.model.state_dict().items())
    ema._swap_ema_parameters()
    assert all(torch.equal(v, trained[key]) for key, v in runner.model.state_dict().items())


def test_iterations_are_counted_where_there_are_no_epochs(tmp_path):
    by_iteration = {"train_cfg": {"by_epoch": False, "max_iters": 6}}
    with pytest.raises(ValueError, match="give it by_epoch=False, and an interval in iterations"):
        run(tmp_path, [HOOK], **by_iteration)
    runner = run(tmp_path, [{**HOOK, "by_epoch": False, "interval": 2}], **by_iteration)
    assert hook_of(runner).selection.epoch == 2


def test_a_part_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with pytest.raises(ValueError, match=r"modules='trunk'.*Its parts are .*backbone, neck"):
        run(tmp_path, [{**HOOK, "modules": "trunk"}])


def test_it_is_a_dr2net_that_trains(tmp_path):
    runner = run(tmp_path, [{"type": "VerificationHook", "interval": 1}, HOOK])
    assert dr2net.chains(runner.model)
