"""What a user can measure of a converted network: memory, exactness and determinism."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from .arithmetic import error_growth, predicted_inverse_error, stream_growth
from .chain import ReversibleChain
from .conversion import chains, set_reversible
from .replay import run_recorded, run_replayed
from .streams import Branch

__all__ = [
    "bytes_kept",
    "check_replay",
    "error_growth",
    "gradient_error",
    "predicted_inverse_error",
    "reconstruction_error",
    "stream_growth",
]


def bytes_kept(function: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for backward after ``function()``: activations and remainders.

    Counted by storage, so that a tensor saved twice counts once; parameters do not count. Random
    states, about 5 kB for each module that draws random numbers, are not tensors of autograd and
    do not count either.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function()
    total = sum(storage.nbytes() for storage in kept.values())
    del output  # kept the graph, and so the storages' addresses, until here
    return total


def gradient_error(model: nn.Module, loss_function: Callable[[], Tensor]) -> float:
    """Relative L2 difference of the parameter gradients, reversible against stored; 0 if equal.

    Args:
        model: a converted network in training mode; it is left reversible.
        loss_function: runs the network and returns its scalar loss. Both calls start from the
            same random state.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    devices = {parameter.device for parameter in parameters if parameter.device.type != "cpu"}
    gradients = []
    for reversible in (False, True):
        set_reversible(model, reversible)
        with torch.random.fork_rng(devices):
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
    if chain.get_coefficients()[1] == 0:
        raise ValueError("At beta=0 a chain has no inverse: set a beta from 2^-8 to 1 first.")
    if chain.ordinary:
        raise ValueError(f"{chain.name} has ordinary blocks: give a slice of it without them.")
    with torch.no_grad():
        this_pass = chain.start_pass(list(chain._modules), x, args, kwargs)
        start, _ = this_pass.start(x)
        value = start
        kept = []
        for index in range(len(this_pass.couplings)):
            run = partial(this_pass.call, index, value, this_pass.side)
            output, state = run_recorded(run, this_pass.device)
            value, _, remainder = this_pass.advance(output, keep_remainder=True)
            kept.append((state, remainder))
        for index in reversed(range(len(kept))):
            state, remainder = kept[index]
            assert this_pass.y is not None
            stream = this_pass.arithmetic.unscale(this_pass.y, remainder)
            value = this_pass.arithmetic.decode(stream)
            run = partial(this_pass.call, index, value, this_pass.side)
            this_pass.retreat(index, stream, run_replayed(run, this_pass.device, state, []))
    error, size = (tensor.double().norm().item() for tensor in (value - start, start))
    return error / size if size else error


def check_replay(model: nn.Module, *inputs: Any, **named_inputs: Any) -> None:
    """Runs ``model(*inputs, **named_inputs)``, each module of its chains twice, and compares.

    Leaves buffers and random streams as after a call without gradients.

    Raises:
        RuntimeError: a module returned other bits the second time, from the same input, random
            state and autocast state; names the first one.
        ValueError: the network has no chains, or the call reached none.
    """
    found = chains(model)
    originals = [chain.branches for chain in found]
    checked: list[str] = []
    try:
        for chain in found:
            chain.branches = tuple(_run_twice(chain, b, checked) for b in chain.branches)
        with torch.no_grad():
            model(*inputs, **named_inputs)
    finally:
        for chain, branches in zip(found, originals, strict=True):
            chain.branches = branches
    if not checked:
        raise ValueError("The call reached no reversible chain: is the model converted?")


def _run_twice(chain: ReversibleChain, branch: Branch, checked: list[str]) -> Branch:
    """``branch``, compared with a replay of itself; adds its name to ``checked``."""

    @wraps(branch)
    def run(block: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        function = partial(branch, block, x, *args, **kwargs)
        first, state = run_recorded(function, x.device)
        second = run_replayed(function, x.device, state, block.buffers())
        key = next(key for key, other in chain.named_children() if other is block)
        checked.append(f"{chain.name}.{key}, {getattr(branch, '__name__', branch)}")
        if not torch.equal(first, second):
            error = (first - second).abs().max().item()
            raise RuntimeError(
                f"The module ({checked[-1]}) is not deterministic: run twice from the same input "
                f"and random state, its outputs differ by up to {error:.3g}. Look for an own "
                "random generator, counters or state that forward changes, and for kernels that "
                "torch.use_deterministic_algorithms(True) would refuse."
            )
        return first

    return run
