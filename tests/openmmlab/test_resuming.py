"""``OtherBatchSizeHook``: a run goes on with other batches as if it had had them from the start."""

import uuid

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

pytest.importorskip("mmengine")
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner

from dr2net.openmmlab import OtherBatchSizeHook, ValidateResumedHook

BY_EPOCH = [
    {"type": "LinearLR", "start_factor": 0.1, "end": 2, "convert_to_iter_based": True},
    {"type": "CosineAnnealingLR", "begin": 2, "end": 6, "eta_min": 0.001},
    {"type": "LinearMomentum", "start_factor": 0.5, "end": 3},
]
BY_ITERATION = [{"type": "LinearLR", "start_factor": 0.1, "end": 10, "by_epoch": False}]
PLATEAU = [{"type": "ReduceOnPlateauLR", "monitor": "loss", "by_epoch": True}]


class Net(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, mode="loss"):
        loss = self.layer(x).square().mean()
        return {"loss": loss} if mode == "loss" else [loss]


class Rates(Hook):
    """What each iteration was trained with."""

    def __init__(self):
        self.found = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        group = runner.optim_wrapper.param_groups[0]
        self.found.append((runner.iter, group["lr"], group["momentum"]))


def run(folder, batch, epochs=6, resume=False, schedulers=BY_EPOCH, hook=True, max_iters=None):
    training = {"by_epoch": True, "max_epochs": epochs}
    if max_iters is not None:
        training = {"by_epoch": False, "max_iters": max_iters}
    runner = Runner(
        model=Net(),
        work_dir=str(folder),
        train_dataloader={
            "batch_size": batch,
            "num_workers": 0,
            "dataset": TensorDataset(torch.ones(8, 2)),
            "sampler": {"type": "InfiniteSampler" if max_iters else "DefaultSampler"},
            "collate_fn": lambda rows: {"x": torch.stack([row for (row,) in rows])},
        },
        train_cfg=training,
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}},
        param_scheduler=schedulers,
        auto_scale_lr={"enable": True, "base_batch_size": 4},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "by_epoch": max_iters is None}},
        # mmengine keeps visualizers by experiment, whose name has a resolution of 1 s.
        experiment_name=uuid.uuid4().hex,
        resume=resume,
    )
    rates = Rates()
    runner.register_hook(rates, priority="LOWEST")
    if hook:
        runner.register_hook(OtherBatchSizeHook())
    runner.register_hook(ValidateResumedHook())
    runner.train()
    return rates.found


@pytest.mark.parametrize("written_with_the_hook", [True, False])
@pytest.mark.parametrize(("former", "now"), [(1, 2), (2, 1), (4, 2)])
@pytest.mark.parametrize("epochs", [1, 3, 5])
def test_rates_and_iterations_are_those_of_the_new_batches(
    tmp_path, former, now, epochs, written_with_the_hook
):
    expected = run(tmp_path / "unbroken", now)
    run(tmp_path / "resumed", former, epochs, hook=written_with_the_hook)
    found = run(tmp_path / "resumed", now, resume=True)
    assert found == expected[-len(found) :]
    assert len(found) == (6 - epochs) * 8 // now


def test_a_run_that_is_not_changed_goes_on_as_before(tmp_path):
    expected = run(tmp_path / "unbroken", 2)
    run(tmp_path / "resumed", 2, 3)
    assert run(tmp_path / "resumed", 2, resume=True) == expected[12:]


def test_iterations_stay_iterations_where_there_are_no_epochs(tmp_path):
    expected = run(tmp_path / "unbroken", 4, schedulers=BY_ITERATION, max_iters=12)
    run(tmp_path / "resumed", 2, schedulers=BY_ITERATION, max_iters=5)
    found = run(tmp_path / "resumed", 4, schedulers=BY_ITERATION, max_iters=12, resume=True)
    assert found == expected[5:]


def test_a_schedule_that_follows_validations_is_refused(tmp_path):
    run(tmp_path, 2, 1, schedulers=PLATEAU)
    with pytest.raises(ValueError, match=r"ReduceOnPlateauLR follows validations.*as many proc"):
        run(tmp_path, 1, schedulers=PLATEAU, resume=True)
