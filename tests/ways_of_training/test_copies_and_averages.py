"""Copies, pickles and averages of a converted network, in this process and in a new one."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import dr2net
from tests.conversion.families import IMAGES, converted, timm_vit
from tests.toy import assert_same_bits, gradients

ROOT = Path(__file__).parents[2]


def vit(alpha=1, beta=0.1):
    return converted(timm_vit(depth=2, proj_drop_rate=0.1).train(), alpha, beta)


def images():
    return torch.randn(IMAGES, requires_grad=True)


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_and_loaded,
}


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES.keys())
def test_a_copy_between_forward_and_backward_trains_on_its_own(make_copy):
    model, x = vit(), images()
    loss = model(x).square().sum()
    twin = make_copy(model)
    loss.backward()  # the copy has not disturbed it
    later = make_copy(model)
    expected = gradients(model, x)
    for other in (twin, later):
        assert_same_bits(gradients(other, x), expected)
        dr2net.set_coefficients(other, 0, 1)
    assert dr2net.get_coefficients(model) == (1, 6554 / 65536)


def test_a_whole_model_file_is_read_by_a_new_process(tmp_path):
    model, x = vit(0.5, 0.5), images()
    torch.save((model, x, gradients(model, x)), tmp_path / "model.pth")
    script = f"""
import sys, torch
model, x, expected = torch.load({str(tmp_path / "model.pth")!r}, weights_only=False)
import dr2net
assert dr2net.get_coefficients(model) == (0.5, 0.5)
from tests.toy import assert_same_bits, gradients
torch.set_num_threads({torch.get_num_threads()})
assert_same_bits(gradients(model, x), expected)
assert_same_bits(gradients(model, x, reversible=False), expected)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


AVERAGES = {
    "AveragedModel": lambda model: AveragedModel(model),
    "AveragedModel, EMA": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    "ModelEmaV3": lambda model: ModelEmaV3(model, decay=0.9),
    "ModelEmaV3, no buffers": lambda model: ModelEmaV3(model, decay=0.9, exclude_buffers=True),
}
AVERAGES_OF_BUFFERS = {
    "AveragedModel": lambda model: AveragedModel(model, use_buffers=True),
    "AveragedModel, EMA": lambda model: AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True
    ),
    "ModelEmaV2": lambda model: ModelEmaV2(model, decay=0.5),
}


def averaged_twice(model, average):
    update = getattr(average, "update_parameters", None) or average.update
    for coefficients in ((0.5, 0.5), (0.25, 0.75)):
        dr2net.set_coefficients(model, *coefficients)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        update(model)
    return average.module


@pytest.mark.parametrize("make", AVERAGES.values(), ids=AVERAGES.keys())
def test_an_average_over_parameters_has_the_model_s_coefficients(make):
    model = vit()
    module = averaged_twice(model, make(model))
    assert dr2net.get_coefficients(module) == (0.25, 0.75)


@pytest.mark.parametrize("make", AVERAGES_OF_BUFFERS.values(), ids=AVERAGES_OF_BUFFERS.keys())
def test_an_average_over_buffers_averages_the_coefficients(make):
    model = vit()
    alpha, beta = dr2net.get_coefficients(averaged_twice(model, make(model)))
    assert 0.25 < alpha < 1
    assert 0.1 < beta < 0.75


@pytest.mark.parametrize("make", [*AVERAGES.values(), *AVERAGES_OF_BUFFERS.values()])
def test_an_average_runs_and_trains_like_any_dr2net(make):
    model, x = vit(), images()
    module = averaged_twice(model, make(model)).train().requires_grad_()
    assert_same_bits(gradients(module, x), gradients(module, x, reversible=False))
