"""The schedule's hook in a real Runner, with a toy network."""

import json
import sys
import uuid
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

pytest.importorskip("mmengine")
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner

import dr2net
import dr2net.openmmlab  # registers the hook
from tests.toy import make_chain

TRAINING = None  # the loop, unless it is that of epochs
PAPER = {"alpha": (1.0, 0.0), "beta": (0.1, 1.0)}


class Net(BaseModel):
    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.chain = make_chain(1.0, 0.1, blocks=2, dropout=dropout)

    def forward(self, x, mode="loss"):
        loss = self.chain(x).square().mean()
        return {"loss": loss} if mode == "loss" else [loss]


def run(
    tmp_path, epochs, *, hook=None, hooks=(), amp=False, resume=False, iterations=4, dropout=0.0
):
    optimizer = {"type": "SGD", "lr": 0.1}
    runner = Runner(
        model=Net(dropout),
        randomness={"seed": 0},
        work_dir=str(tmp_path),
        train_dataloader={
            "batch_size": 2,
            "num_workers": 0,
            "dataset": TensorDataset(torch.linspace(-1, 1, 2 * iterations * 8).view(-1, 8)),
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": lambda batch: {"x": torch.stack([x for (x,) in batch])},
        },
        train_cfg=TRAINING or {"by_epoch": True, "max_epochs": epochs},
        optim_wrapper={"type": "AmpOptimWrapper", "dtype": "bfloat16", "optimizer": optimizer}
        if amp
        else {"optimizer": optimizer},
        custom_hooks=[{"type": "CoefficientScheduleHook", **PAPER, **(hook or {"end": 4})}, *hooks],
        default_hooks={"logger": {"type": "LoggerHook", "interval": 1}},
        # mmengine keeps visualizers by experiment, whose name has a resolution of 1 s.
        experiment_name=uuid.uuid4().hex,
        resume=resume,
    )
    runner.train()
    return runner


def logged(tmp_path):
    lines = [
        line for path in sorted(tmp_path.glob("*/vis_data/scalars.json")) for line in path.open()
    ]
    return [json.loads(line) for line in lines]


def test_it_moves_the_coefficients_by_epoch_and_logs_them(tmp_path):
    runner = run(tmp_path, 5)
    entries = [entry for entry in logged(tmp_path) if "loss" in entry]
    assert [entry["alpha"] for entry in entries[::4]] == [1, 0.5, 0.5, 0, 0]
    assert [entry["beta"] for entry in entries[::4]] == pytest.approx(
        [0.1, 0.1, 0.55, 0.55, 1], abs=1e-4
    )
    assert dr2net.get_coefficients(runner.model) == (0, 1)


def test_it_moves_the_coefficients_by_iteration(tmp_path):
    run(tmp_path, 2, hook={"by_epoch": False, "end": 8, "order": "together"})
    alphas = [entry["alpha"] for entry in logged(tmp_path) if "loss" in entry]
    assert alphas == pytest.approx([1 - step / 8 for step in range(8)])


@pytest.fixture
def amp_without_gpu(monkeypatch):
    """mmengine refuses mixed precision on a CPU, where its autocast works all the same."""
    wrapper = sys.modules[AmpOptimWrapper.__module__]
    monkeypatch.setattr(wrapper, "is_cuda_available", lambda: True)
    monkeypatch.setattr(wrapper, "GradScaler", partial(torch.amp.GradScaler, device="cpu"))


@pytest.mark.usefixtures("amp_without_gpu")
def test_mixed_precision_reaches_the_recomputation(tmp_path, monkeypatch):
    dtypes = []
    monkeypatch.setattr(torch, "tanh", lambda x: dtypes.append(x.dtype) or x.sigmoid())
    run(tmp_path, 1, amp=True, iterations=1)
    assert dtypes == [torch.bfloat16] * 4  # two blocks, forward and backward


@pytest.mark.usefixtures("amp_without_gpu")
@pytest.mark.parametrize("amp", [False, True])
def test_a_resumed_run_goes_on_as_an_unbroken_one(tmp_path, amp):
    for by_epoch, end in ((True, 4), (False, 12)):
        hook = {"by_epoch": by_epoch, "end": end}
        unbroken = run(tmp_path / f"a{end}", 4, hook=hook, amp=amp)
        run(tmp_path / f"b{end}", 2, hook=hook, amp=amp)
        resumed = run(tmp_path / f"b{end}", 4, hook=hook, amp=amp, resume=True)
        for a, b in zip(unbroken.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(a, b)
        assert dr2net.get_coefficients(resumed.model) == dr2net.get_coefficients(unbroken.model)


@pytest.mark.parametrize("update_buffers", [False, True])
def test_the_averaged_model_has_the_coefficients_of_the_trained_one(tmp_path, update_buffers):
    run(tmp_path, 3, hooks=[{"type": "EMAHook", "update_buffers": update_buffers}])
    checkpoint = torch.load(tmp_path / "epoch_3.pth", weights_only=False)
    trained, averaged = Net(), Net()
    trained.load_state_dict(checkpoint["state_dict"])
    ema = checkpoint["ema_state_dict"]
    averaged.load_state_dict({k.removeprefix("module."): v for k, v in ema.items() if k != "steps"})
    assert dr2net.get_coefficients(trained) == dr2net.get_coefficients(averaged)
    assert dr2net.get_coefficients(trained) == (0.5, pytest.approx(0.55, abs=1e-4))


def test_epochs_are_not_counted_where_there_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.openmmlab.test_hook.TRAINING", {"by_epoch": False, "max_iters": 4})
    with pytest.raises(ValueError, match=r"IterBasedTrainLoop has none.*by_epoch=False"):
        run(tmp_path, 1)
    runner = run(tmp_path, 1, hook={"by_epoch": False, "end": 4})
    assert dr2net.get_coefficients(runner.model) == (0, pytest.approx(0.55, abs=1e-4))


def alphas(tmp_path):
    return [entry["alpha"] for entry in logged(tmp_path) if "loss" in entry]


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_share_follows_the_length_of_the_run(tmp_path, epochs):
    run(tmp_path, epochs, hook={"by_epoch": False, "share": 0.5, "order": "together"})
    half = 2 * epochs
    expected = [max(0, 1 - step / half) for step in range(2 * half)]
    assert alphas(tmp_path) == pytest.approx(expected, abs=2**-16)


def test_a_share_may_begin_later_and_count_epochs(tmp_path):
    run(tmp_path, 6, hook={"share": [1 / 3, 1], "order": "together"}, iterations=1)
    assert alphas(tmp_path) == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25])


def test_the_turns_of_a_share_fit_into_a_run_of_an_iteration(tmp_path):
    run(tmp_path, 1, hook={"by_epoch": False, "share": 1 / 3}, iterations=1)
    (log,) = tmp_path.glob("*/*.log")
    assert "The run ends after 1 iterations, and (α, β) move until 2" in log.read_text()


def test_a_run_that_ends_before_its_schedule_says_so(tmp_path):
    run(tmp_path / "short", 3, hook={"end": 8}, iterations=1)
    (log,) = tmp_path.glob("short/*/*.log")
    assert (
        "ends after 3 epochs, and (α, β) move until 8: it ends at (α, β) = (0." in log.read_text()
    )
    run(tmp_path / "long", 3, hook={"end": 3}, iterations=1)
    (log,) = tmp_path.glob("long/*/*.log")
    assert "move until" not in log.read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0.5, "end": 4}, "share=0.5 and end=4: give one of the two"),
        ({"share": 0}, "share=0: give the part"),
        ({"share": 1.5}, "share=1.5: give the part"),
        ({"share": (0.5, 0.2)}, "give the part"),
    ],
)
def test_shares_that_are_none_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dr2net.openmmlab.CoefficientScheduleHook(**PAPER, **settings)


def test_without_arguments_it_holds_a_point_of_the_line(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.openmmlab.test_hook.PAPER", {})
    runner = run(tmp_path, 2, hook={"by_epoch": True})
    entries = [entry for entry in logged(tmp_path) if "loss" in entry]
    assert {(entry["alpha"], entry["beta"]) for entry in entries} == {(0.875, 0.125)}
    assert dr2net.get_coefficients(runner.model) == (0.875, 0.125)
    assert all("skipped_steps" not in entry for entry in entries)


def test_skipped_steps_are_counted_in_the_log(tmp_path, monkeypatch):
    counts = iter([5, 5, 6, 8, 8])  # of the process: before the run, and after each iteration

    class Counted:
        def __getitem__(self, _):
            return next(counts)

    monkeypatch.setattr("dr2net.openmmlab.hook.skipped_steps", Counted())
    run(tmp_path, 1)
    found = [entry.get("skipped_steps") for entry in logged(tmp_path) if "loss" in entry]
    assert found[0] is None
    assert found[-1] == 3


def test_lists_are_taken_for_pairs(tmp_path):
    runner = run(tmp_path, 1, hook={"alpha": [0.5, 0.5], "beta": [0.5, 0.5], "end": 4})
    assert dr2net.get_coefficients(runner.model) == (0.5, 0.5)


def test_a_model_without_chains_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.openmmlab.test_hook.make_chain", lambda *_, **__: nn.Linear(8, 8))
    with pytest.raises(ValueError, match="convert it first"):
        run(tmp_path, 1)


VERIFICATION = {"type": "VerificationHook", "interval": 3}


def test_verification_changes_nothing_in_a_run(tmp_path):
    plain = run(tmp_path / "plain", 2, dropout=0.2)
    verified = run(tmp_path / "verified", 2, hooks=[VERIFICATION], dropout=0.2)
    for a, b in zip(plain.model.parameters(), verified.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(plain.model.parameters()), next(Net().parameters()))


def test_verification_runs_at_the_start_and_at_every_interval(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("dr2net.openmmlab.hook.verify_step", lambda *_: calls.append(1))
    run(tmp_path, 2, hooks=[VERIFICATION])
    assert len(calls) == 3  # at the iterations 0, 3 and 6 of 8


def test_verification_stops_a_run_with_a_module_that_is_not_deterministic(tmp_path, monkeypatch):
    tanh, source = torch.tanh, torch.Generator()
    monkeypatch.setattr(torch, "tanh", lambda x: tanh(x) + torch.rand(1, generator=source))
    with pytest.raises(RuntimeError, match=r"iteration 0: The module \(chain.0, mix\) is not det"):
        run(tmp_path, 1, hooks=[VERIFICATION])


def test_verification_needs_a_positive_interval():
    with pytest.raises(ValueError, match="interval=0"):
        dr2net.openmmlab.VerificationHook(interval=0)
