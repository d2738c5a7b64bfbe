"""dr2net in environments that hold nothing but what torch, or torch and timm, require.

The environment is a new venv whose site-packages holds links to the installed files of just those
distributions: made in seconds, without a network.
"""

import os
import re
import subprocess
import venv
from importlib.metadata import distribution, distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What tests, tasks and OpenMMLab need, and the core must not.
OTHERS = [
    "cv2",
    "decord",
    "hypothesis",
    "importlib_metadata",
    "matplotlib",
    "mmaction",
    "mmcv",
    "mmdet",
    "mmengine",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "peft",
    "pytest",
    "scipy",
    "tensorboard",
    "transformers",
]

TORCH_ALONE = """
import torch
from torch import nn
import dr2net

@dr2net.residual
def mlp(block, x):
    return block[1](torch.relu(block[0](x)))

torch.manual_seed(0)
blocks = [nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)) for _ in range(3)]
model = dr2net.ReversibleChain(nn.Sequential(*blocks), (mlp,))
model.set_coefficients(1, 0.1)
images = torch.randn(2, 8)
"""

TORCH_AND_TIMM = """
import timm
import torch
import dr2net

torch.manual_seed(0)
model = timm.create_model(
    "vit_tiny_patch16_224", img_size=32, depth=2, proj_drop_rate=0.1, num_classes=5
)
dr2net.convert(model, alpha=1.0, beta=0.1)
images = torch.randn(2, 3, 32, 32)
"""

STEP_BOTH_WAYS = """
found = []
for reversible in (False, True):
    dr2net.set_reversible(model.train(), reversible)
    torch.manual_seed(1)
    loss = model(images).square().mean()
    parameters = list(model.parameters())
    found.append([loss.detach(), *torch.autograd.grad(loss, parameters)])
assert all(map(torch.equal, *found))
optimizer = torch.optim.AdamW(parameters)
model(images).square().mean().backward()
optimizer.step()

from importlib.util import find_spec
assert "site-packages" in dr2net.__file__
there = [name for name in others if find_spec(name)]
assert not there, there
"""


def required(names):
    """Names of the distributions ``names`` and of all that they require without extras."""
    requirements = pytest.importorskip("packaging.requirements")
    found, waiting = {}, list(names)
    while waiting:
        one = distribution(waiting.pop())
        key = re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()
        if key in found:
            continue
        found[key] = one
        for line in one.requires or ():
            requirement = requirements.Requirement(line)
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return list(found.values())


def clean_environment(folder, *names, with_dr2net=True):
    """Makes a venv with ``names``, what they require, and this dr2net; returns its python."""
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    for one in required(names):
        for top in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
            link = packages / top
            if not link.is_symlink() and not top.endswith(".pth"):
                link.symlink_to(Path(one.locate_file(top)))
    if with_dr2net:
        (packages / "dr2net").symlink_to(ROOT / "dr2net")
    return folder / "bin" / "python"


@pytest.mark.parametrize(
    ("names", "others", "script"),
    [
        (("torch",), [*OTHERS, "numpy", "timm", "torchvision"], TORCH_ALONE),
        (("torch", "timm"), OTHERS, TORCH_AND_TIMM),
    ],
    ids=["torch", "torch and timm"],
)
def test_it_imports_converts_and_trains(names, others, script, tmp_path):
    if any(not present(name) for name in names):
        pytest.skip(f"needs {' and '.join(names)}, installed by pip")
    python = clean_environment(tmp_path / "venv", *names)
    code = f"others = {others}\n{script}{STEP_BOTH_WAYS}"
    run = subprocess.run(
        [python, "-I", "-W", "error:::dr2net", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_tests_that_need_a_gpu_are_found_where_little_is_installed(tmp_path):
    # "make test-gpu": without a GPU, each is skipped with a reason, and none is an error.
    names = ("torch", "triton", "timm", "numpy", "pytest")
    if any(not present(name) for name in names):
        pytest.skip(f"needs {', '.join(names)}, installed by pip")
    python = clean_environment(tmp_path / "venv", *names)
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    run = subprocess.run(
        [python, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"= \d{3,} skipped, \d+ deselected in ", run.stdout), run.stdout
    for file in ("test_kernels", "test_replay", "test_neighbours", "test_measurements"):
        assert re.search(rf"SKIPPED .*{file}\.py:\d+: needs a CUDA device", run.stdout), file


def present(name):
    return any(one.metadata["Name"] == name for one in distributions())


def test_the_environment_lacks_what_this_one_has(tmp_path):
    # So that the tests above mean something.
    python = clean_environment(tmp_path / "venv", "packaging")
    for name, expected in (("packaging", 0), ("pytest", 1), ("dr2net", 1)):
        run = subprocess.run(
            [python, "-I", "-c", f"import {name}"], capture_output=True, check=False
        )
        assert run.returncode == expected, name
