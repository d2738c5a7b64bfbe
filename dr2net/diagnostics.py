"""What a user can measure of a converted network: memory and exactness."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .block_hooks import refuse_sharded
from .chain import ReversibleChain
from .conversion import set_reversible
from .growth import error_growth, predicted_inverse_error, stream_growth
from .replay import Inventory, Settings
from .verification import undisturbed

__all__ = [
    "bytes_kept",
    "error_growth",
    "gradient_error",
    "predicted_inverse_error",
    "reconstruction_error",
    "stream_growth",
]


def bytes_kept(function: Callable[[], Any], besides: Sequence[Tensor] = ()) -> int:
    """Bytes that autograd keeps for backward after ``function()``: activations and remainders.

    Counted by storage, so that a tensor saved twice counts once; parameters do not count. Random
    states, about 5 kB for each module that draws random numbers, are not tensors of autograd and
    do not count either, nor does what belongs to the tensors ``besides``.
    """
    kept: dict[int, torch.UntypedStorage] = {}
    others = {tensor.untyped_storage().data_ptr() for tensor in besides}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function()
    total = sum(storage.nbytes() for place, storage in kept.items() if place not in others)
    del output  # kept the graph, and so the storages' addresses, until here
    return total


def gradient_error(model: nn.Module, loss_function: Callable[[], Tensor]) -> float:
    """Relative L2 difference of the parameter gradients, reversible against stored; 0 if equal.

    Args:
        model: a converted network; it is left reversible.
        loss_function: runs the network and returns its scalar loss. Both calls start from the
            same random state.
    """
    refuse_sharded(model.modules(), "measure the network before it is sharded.")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = []
    for reversible in (False, True):
        set_reversible(model, reversible)
        with undisturbed(model):
            found = torch.autograd.grad(loss_function(), parameters, allow_unused=True)
        gradients.append([grad.double() for grad in found if grad is not None])
    stored, rebuilt = gradients
    squares = [
        ((a - b).square().sum(), a.square().sum()) for a, b in zip(stored, rebuilt, strict=True)
    ]
    difference, size = (sum(column).item() for column in zip(*squares, strict=True))
    return math.sqrt(difference / size) if size else math.sqrt(difference)


def reconstruction_error(chain: ReversibleChain, x: Tensor, *args: Any, **kwargs: Any) -> float:
    """Relative L2 error of x_0 after the chain has gone forward and back; 0 in exact arithmetic.

    Args:
        chain: a chain with β > 0.
        x: its input, and ``args``, ``kwargs`` its side inputs.
    """
    alpha, beta = chain.get_coefficients()
    if beta == 0:
        raise ValueError("At beta=0 a chain has no inverse: set a beta from 2^-8 to 1 first.")
    if chain.ordinary:
        raise ValueError(f"{chain.name} has ordinary blocks: give a slice of it without them.")
    this_pass = chain.make_pass(list(chain._modules), alpha, beta, x, args, kwargs)
    streams, settings = this_pass.streams, Settings(x.device)
    side = this_pass.calls[0].arguments.side
    start = value = streams.start(x.detach())
    remainders = []
    with torch.enable_grad():
        for call in this_pass.calls:
            output = call.first(value, side, Inventory(call.block), settings)
            value, remainder = streams.advance(output, keep_remainder=True)
            remainders.append(remainder)
    for call in reversed(this_pass.calls):
        before, value = streams.rebuild(remainders.pop())
        with call.put_back() as parameters:
            output, _ = call.again([value, *side], parameters, None)
        streams.retreat(before, output)
    error, size = (tensor.double().norm().item() for tensor in (value - start, start))
    return error / size if size else error
