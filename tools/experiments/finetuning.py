"""One run of the study: a network finetuned one way, on one draw of a set, at one learning rate."""

from __future__ import annotations

import hashlib
import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dr2net
from tools.benchmarks.measurements import in_precision
from tools.experiments.image_sets import ImageSet, Part, as_input, emoji, fashion_mnist
from tools.experiments.pretrained import dinov2_small
from tools.experiments.ways import WAYS, Way, parameter_groups, prepare, select


@dataclass(frozen=True)
class Recipe:
    """What all ways of a study have in common.

    AdamW with a linear warm-up and a cosine to 0; images are turned over at random.

    Args:
        title: What is finetuned on what.
        draw: The set, by seed and numbers of images to train on, to validate on and to test on.
        numbers: These numbers.
        classes: Of the set.
        size: Pixels of a side of the network's input.
        steps, batch: Of a run.
        flips: Dimensions of the image that are turned over, each with probability ½.
        head_rate: Learning rate of a new head.
        precision: Of the network's modules: bfloat16 is by autocast.
        searching_seeds: How many of the seeds, the first ones, choose the learning rate.
    """

    title: str
    draw: Callable[[int, int, int, int], ImageSet]
    numbers: tuple[int, int, int]
    classes: int
    size: int
    steps: int
    batch: int
    flips: tuple[int, ...]
    head_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.05
    largest_gradient: float = 1.0
    precision: str = "float32"
    searching_seeds: int = 5


FASHION = Recipe(
    title="DINOv2 ViT-S/14 on 200 images of Fashion-MNIST",
    draw=fashion_mnist,
    numbers=(200, 200, 500),
    classes=10,
    size=42,
    steps=60,
    batch=16,
    flips=(-1,),
)
EMOJI = replace(
    FASHION,
    title="DINOv2 ViT-S/14 on 300 of Noto's emoji",
    draw=emoji,
    numbers=(300, 200, 500),
    classes=6,
    steps=80,
)
# Hours a way on a CPU.
ON_A_GPU: dict[str, Any] = {
    "size": 98,
    "batch": 64,
    "precision": "bfloat16",
    "searching_seeds": 3,
}
RECIPES = {
    "fashion": FASHION,
    "emoji": EMOJI,
    "fashion_1000": replace(
        FASHION,
        title="DINOv2 ViT-S/14 on 1,000 images of Fashion-MNIST",
        numbers=(1000, 500, 2000),
        steps=160,
        **ON_A_GPU,
    ),
    "emoji_400": replace(
        EMOJI,
        title="DINOv2 ViT-S/14 on 400 of Noto's emoji",
        numbers=(400, 150, 500),
        steps=100,
        **ON_A_GPU,
    ),
}


def finetune(recipe: Recipe, way_name: str, rate: float, seed: int, device: str = "cpu") -> dict:
    """Finetune, validate and test.

    Args:
        recipe: The study's.
        way_name: One of ``WAYS``.
        rate: Learning rate of what is not a new head.
        seed: Of the images drawn, of the new weights, and of the order and turns of the images.
        device: Where.

    Returns:
        ``validation`` and ``test`` in percent, ``plain`` and ``plain validation`` where the weights
        can be put back into the plain network, the ``loss`` of the last steps, the ``weights`` as
        a digest, ``seconds``, and the name of a GPU. Accuracies of a network that is not finite
        any more are those of its outputs as they are; ``loss`` is NaN then.
    """
    torch.set_num_threads(1)
    if device != "cpu":  # on which sums have no order of their own, so that twins can be compared
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # which takes time alone
    warnings.filterwarnings("ignore", message=".*gradients cannot be trusted")
    way = WAYS[way_name]
    images = recipe.draw(seed, *recipe.numbers)
    torch.manual_seed(seed)
    model = dinov2_small(recipe.size, recipe.classes, way.pretrained)
    model, schedule = prepare(way, model, recipe.steps)
    model = model.to(device)
    start = time.perf_counter()
    losses = _train(recipe, model, schedule, images.train, way, rate, seed, device)
    model.eval()
    found = {
        "way": way_name,
        "rate": rate,
        "seed": seed,
        "validation": accuracy(model, images.validation, recipe, device),
        "test": accuracy(model, images.test, recipe, device),
        "loss": sum(losses[-10:]) / len(losses[-10:]),
        "weights": digest(model),
        "seconds": round(time.perf_counter() - start, 2),
    }
    if device != "cpu":
        found["gpu"] = torch.cuda.get_device_name(device)
    if way.ends_on_the_line:
        dr2net.set_coefficients(model, 1.0, 0.0)
        found["plain validation"] = accuracy(model, images.validation, recipe, device)
        found["plain"] = accuracy(model, images.test, recipe, device)
    return found


def _train(
    recipe: Recipe,
    model: nn.Module,
    schedule: dr2net.CoefficientSchedule | None,
    part: Part,
    way: Way,
    rate: float,
    seed: int,
    device: str,
) -> list[float]:
    inputs, labels = as_input(part.images.to(device), recipe.size), part.labels.to(device)

    def loss_of_batch(drawn: torch.Generator) -> Tensor:
        chosen = torch.randint(len(part), (recipe.batch,), generator=drawn)
        batch = inputs[chosen.to(device)]
        for dimension in recipe.flips:
            turned = torch.rand(recipe.batch, 1, 1, 1, generator=drawn) < 0.5
            batch = torch.where(turned.to(device), batch.flip(dimension), batch)
        with in_precision(recipe.precision, device):
            return F.cross_entropy(model(batch), labels[chosen.to(device)])

    # Of draws of its own, so that all ways see the same batches.
    measured_on = torch.Generator().manual_seed(seed + 1)
    selection = select(way, model, partial(loss_of_batch, measured_on), seed)
    head_rate = rate if way.trained == "head" else recipe.head_rate
    groups = list(parameter_groups(model, rate, head_rate))
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=True)
    epoch = math.ceil(len(part) / recipe.batch)  # steps
    drawn = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(recipe.steps):
        warm = min(1.0, (step + 1) / (recipe.warmup * recipe.steps))
        share = warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        for group, highest in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = highest * share
        if schedule is not None:
            schedule.apply(model, step)
        if selection is not None and step % epoch == 0:
            selection.draw(step // epoch, optimizer)
        loss = loss_of_batch(drawn)
        optimizer.zero_grad()
        loss.backward()
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, recipe.largest_gradient)
        optimizer.step()
        losses.append(loss.item())
    # So that evaluation is where the schedule ends.
    if schedule is not None:
        schedule.apply(model, recipe.steps)
    return losses


@torch.no_grad()
def accuracy(model: nn.Module, part: Part, recipe: Recipe, device: str) -> float:
    """Return the top-1 accuracy in percent."""
    right = 0
    for images, labels in zip(part.images.split(100), part.labels.split(100), strict=True):
        with in_precision(recipe.precision, device):
            outputs = model(as_input(images.to(device), recipe.size))
        right += int((outputs.argmax(1).cpu() == labels).sum())
    return 100 * right / len(part)


def digest(model: nn.Module) -> str:
    """Return what tells whether two networks have the same trained weights, to the last bit."""
    found = hashlib.sha256()
    for parameter in model.parameters():
        found.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
