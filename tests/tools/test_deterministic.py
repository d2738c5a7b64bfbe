"""``tools/train.py --deterministic``."""

import os
import re
import sys
import warnings

import pytest
import torch
from torch import nn

pytest.importorskip("mmcv")
import tools.train  # noqa: F401 - mends mmaction
from tools import deterministic

# What the environment says when main() first asks for a GPU, which is before anything can start it.
WHEN_CUDA_IS_ASKED_FOR = """
import os, sys, torch
from tools.train import main

def asked():
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    print("asked:", workspace, torch.cuda.is_initialized(), flush=True)
    os._exit(0)

torch.cuda.is_available = asked
main(sys.argv[1:])
"""


class Refused(torch.autograd.Function):
    """The identity; one of its two directions calls what no device has a deterministic form for."""

    @staticmethod
    def forward(ctx, x, direction):
        ctx.direction = direction
        return Refused.call(x) if direction == "forward" else x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return Refused.call(gradient), None

    @staticmethod
    def call(x):
        return x.clone().put_(torch.tensor([0]), x.view(-1)[:1])


class Guilty(nn.Module):
    def __init__(self, direction):
        super().__init__()
        self.direction = direction

    def forward(self, x):
        return nn.Identity()(Refused.apply(x, self.direction)) * 2


@pytest.fixture
def no_workspace(monkeypatch):
    monkeypatch.delenv(deterministic.WORKSPACE, raising=False)


@pytest.mark.parametrize(("given", "expected"), [(None, ":4096:8"), (":16:8", ":16:8")])
def test_the_workspace_is_chosen_before_anything_asks_for_a_gpu(
    given, expected, make_config, run_command, no_workspace, tmp_path
):
    if given:
        os.environ[deterministic.WORKSPACE] = given
    finished = run_command(
        sys.executable, "-c", WHEN_CUDA_IS_ASKED_FOR, make_config(), "--work-dir", tmp_path,
        "--deterministic",
    )  # fmt: skip
    assert f"asked: {expected} False" in finished.stdout


def test_without_the_option_the_environment_is_left_alone(
    make_config, run_command, no_workspace, tmp_path
):
    finished = run_command(
        sys.executable, "-c", WHEN_CUDA_IS_ASKED_FOR, make_config(), "--work-dir", tmp_path
    )
    assert "asked: None False" in finished.stdout


@pytest.mark.parametrize("value", [":0:0", ":4096:2:16:8", ""])
def test_a_workspace_that_is_not_deterministic_is_refused(value, monkeypatch):
    monkeypatch.setenv(deterministic.WORKSPACE, value)
    message = rf"CUBLAS_WORKSPACE_CONFIG={value},.*Set it to :4096:8 or :16:8, or leave it unset"
    with pytest.raises(ValueError, match=message):
        deterministic.choose_workspace()


def test_a_started_gpu_without_a_workspace_is_an_error(monkeypatch, no_workspace):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="Start the process with CUBLAS_WORKSPACE_CONFIG=:4096"):
        deterministic.choose_workspace()
    monkeypatch.setenv(deterministic.WORKSPACE, ":16:8")
    deterministic.choose_workspace()


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_refusal_names_the_operation_and_where_the_model_calls_it(direction):
    torch.use_deterministic_algorithms(True)
    model = nn.Sequential(nn.Linear(3, 3), Guilty(direction), nn.ReLU())
    with (
        pytest.raises(RuntimeError, match="put_ has no deterministic form") as refused,
        deterministic.explain_refusals(),
    ):
        model(torch.randn(2, 3)).sum().backward()
    place = {"forward": "call", "backward": "forward"}[direction]
    assert f"called in {place} ({__file__}, line " in str(refused.value)
    assert "Train without --deterministic, on the CPU" in str(refused.value)
    assert "put_ does not have" in str(refused.value.__cause__)
    assert not torch.is_anomaly_enabled()


def test_a_refusal_in_a_backward_within_a_backward_names_the_inner_call():
    class Recomputed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return Guilty("backward")(x)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
            with torch.enable_grad():
                output = Guilty("backward")(x)
            return torch.autograd.grad(output, x, gradient)[0]

    torch.use_deterministic_algorithms(True)
    x = torch.randn(3, requires_grad=True)
    with (
        pytest.raises(RuntimeError, match=rf"in forward \({re.escape(__file__)}, line"),
        deterministic.explain_refusals(),
    ):
        Recomputed.apply(x).sum().backward()


def test_another_error_stays_as_it_is():
    with pytest.raises(KeyError, match="another"), deterministic.explain_refusals():
        raise KeyError("another")
    memory = torch.OutOfMemoryError("out of memory")
    with pytest.raises(RuntimeError) as raised, deterministic.explain_refusals():
        raise memory
    assert raised.value is memory


def test_other_warnings_are_shown():
    with pytest.warns(UserWarning, match="something else"), deterministic.explain_refusals():
        warnings.warn("something else", stacklevel=1)


def test_training_runs_and_records_its_first_iteration_alone(
    make_config, train, tmp_path, monkeypatch
):
    from mmaction.models.backbones import VisionTransformer

    recorded, forward = [], VisionTransformer.forward

    def recording(self, x):
        recorded.append(torch.is_anomaly_enabled())
        assert torch.are_deterministic_algorithms_enabled()
        return forward(self, x)

    monkeypatch.setattr(VisionTransformer, "forward", recording)
    config = make_config("conventional_vitb_k400")
    runner = train(config, tmp_path / "run", "--deterministic", "--no-validate")
    assert runner.deterministic
    assert recorded == [True, False, False, False]


def test_a_training_that_is_refused_says_why(make_config, train, tmp_path, monkeypatch):
    from mmaction.models.heads import TimeSformerHead

    forward = TimeSformerHead.forward
    monkeypatch.setattr(
        TimeSformerHead, "forward", lambda *args, **kw: Guilty("backward")(forward(*args, **kw))
    )
    with pytest.raises(RuntimeError, match=rf"put_ has no .*{re.escape(__file__)}.*without --det"):
        train(make_config(), tmp_path / "run", "--deterministic", "--no-validate")
