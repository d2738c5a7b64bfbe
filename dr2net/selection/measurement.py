"""What training an input channel costs, and what it brings: relative gradient norms (RGN).

TraDy (arXiv 2510.19675): the cost of input channel c of a layer is its weights plus its
activations, C'·D² + H·W; its RGN is ‖∂L/∂W_c‖ / cost; a layer's is the sum over its channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ..block_hooks import several_processes
from ..verification import undisturbed

__all__ = ["Layer", "measure", "preselected", "selectable_layers"]

# Classes with a forward of their own that computes what their base class does.
SAME_FORWARD = {
    "mmcv.cnn.bricks.wrappers.Conv2d",
    "mmcv.cnn.bricks.wrappers.Conv3d",
    "mmcv.cnn.bricks.wrappers.Linear",
}


@dataclass(frozen=True)
class Layer:
    """What was measured of a layer.

    Attributes:
        cost: bytes of one input channel: of its weights, and of its values in one batch.
        rgn: of each input channel, (channels,) float64 on the CPU.
    """

    cost: int
    rgn: Tensor


def selectable_layers(model: nn.Module, always: set[Tensor]) -> dict[str, nn.Module]:
    """Linear and convolution layers of one group whose weight is trained and is theirs alone.

    Args:
        always: parameters that train whole.
    """
    counts: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    return {
        name: module
        for name, module in model.named_modules()
        if _is_plain(module)
        and (weight := module._parameters.get("weight")) is not None
        and weight.requires_grad
        and weight not in always
        and counts[id(weight)] == 1
    }


def _is_plain(module: nn.Module) -> bool:
    """Whether it computes as PyTorch's linear or convolution layer does, in one group."""
    kind: Any = type(module)
    if "forward" in module.__dict__:
        return False
    known = f"{kind.__module__}.{kind.__qualname__}" in SAME_FORWARD
    if isinstance(module, nn.Linear):
        return known or kind.forward is nn.Linear.forward
    for base in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if isinstance(module, base):
            same = kind.forward is base.forward and kind._conv_forward is base._conv_forward
            return module.groups == 1 and (known or same)
    return False


def measure(
    model: nn.Module,
    layers: dict[str, nn.Module],
    loss_function: Callable[[], Tensor],
    batches: int,
) -> dict[str, Layer]:
    """Costs and RGN of the ``layers``, means over ``batches`` calls; the model stays as it was.

    Takes the memory of one layer's weight gradient at a time. Where several processes train, they
    measure their own batches, and all get the same means.

    Raises:
        FloatingPointError: a gradient is not finite.
        ValueError: no layer gets a gradient.
    """
    weights: dict[str, Any] = {name: layer.weight for name, layer in layers.items()}
    norms = {name: torch.zeros(w.shape[1], dtype=torch.float64) for name, w in weights.items()}
    bytes_of_input = dict.fromkeys(layers, 0)

    def count(name: str, _: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        if torch._C._current_graph_task_id() < 0:  # not when backward runs it again
            x = args[0] if args else kwargs["input"]
            values = x.numel() // weights[name].shape[1]
            bytes_of_input[name] += values * output.element_size()

    def take(name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        others = [dim for dim in range(weight.ndim) if dim != 1]
        precision = torch.promote_types(weight.dtype, torch.float32)
        norms[name] += torch.linalg.vector_norm(weight.grad, dim=others, dtype=precision).cpu()
        weight.grad = None

    handles = [
        layer.register_forward_hook(partial(count, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    handles += [
        weight.register_post_accumulate_grad_hook(partial(take, name))
        for name, weight in weights.items()
    ]
    try:
        with _training_alone(model, list(weights.values())), undisturbed(model):
            for _ in range(batches):
                with torch.enable_grad():
                    loss = loss_function()
                if not loss.requires_grad:
                    raise ValueError(
                        "The loss of loss_function needs no gradient: is it that of this network?"
                    )
                loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    found = torch.cat([*norms.values(), torch.tensor(list(bytes_of_input.values())).double()])
    found = _mean_over_processes(found / batches, next(iter(weights.values())).device)
    if not found.isfinite().all():
        raise FloatingPointError(
            "The gradients of loss_function are not finite: look for NaN in the batch, or autocast "
            "to bfloat16 instead of float16."
        )
    parts = found.split([*map(len, norms.values()), len(layers)])
    result = {}
    for name, norm, values in zip(layers, parts, parts[-1].tolist(), strict=False):
        cost = weights[name][:, 0].numel() * weights[name].element_size() + round(values)
        # Weights that no forward of the layer has used, as those that others read, are not ours.
        if values > 0 and norm.any():
            result[name] = Layer(cost, norm / cost)
    if not result:
        raise ValueError(
            "No linear or convolution layer gets a gradient by loss_function: is its loss that of "
            "this network?"
        )
    return result


def preselected(layers: dict[str, Layer], share: float) -> dict[str, Layer]:
    """The layers of the largest RGN that carry ``share`` of its sum, in the network's order."""
    totals = {name: layer.rgn.sum().item() for name, layer in layers.items()}
    wanted, carried, kept = share * sum(totals.values()), 0.0, set()
    for name in sorted(totals, key=lambda name: -totals[name]):
        if carried >= wanted and share < 1:  # of 1, none is left out for rounding
            break
        carried += totals[name]
        kept.add(name)
    return {name: layer for name, layer in layers.items() if name in kept}


@contextmanager
def _training_alone(model: nn.Module, weights: list[Tensor]) -> Iterator[None]:
    """Has no other parameter get a gradient, and keeps those that the weights have."""
    parameters = list(model.parameters())
    before = [(p.requires_grad, p.grad) for p in parameters]
    kept = set(map(id, weights))
    try:
        for parameter in parameters:
            parameter.requires_grad_(id(parameter) in kept)
            if id(parameter) in kept:
                parameter.grad = None
        yield
    finally:
        for parameter, (trains, grad) in zip(parameters, before, strict=True):
            parameter.requires_grad_(trains)
            parameter.grad = grad


def _mean_over_processes(values: Tensor, device: torch.device) -> Tensor:
    """The same bits in every process, which draw channels by them."""
    if not several_processes():
        return values
    shared = values.to(device)
    distributed.all_reduce(shared)
    distributed.broadcast(shared, src=0)
    return shared.cpu() / distributed.get_world_size()
