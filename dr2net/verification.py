"""Is training exact? A step with activations rebuilt against one with activations stored."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .block_hooks import refuse_sharded
from .branches import Branch
from .chain import ReversibleChain
from .conversion import require_chains

__all__ = ["observed", "projection", "undisturbed", "verify", "verify_step"]


def verify(model: nn.Module, *inputs: Any, **named_inputs: Any) -> None:
    """Runs a training step of ``model(*inputs, **named_inputs)`` both ways and compares all bits.

    ``verify_step`` with a loss made of all the tensors that the model returns.
    """
    verify_step(model, lambda: projection(model(*inputs, **named_inputs)))


def verify_step(model: nn.Module, loss_function: Callable[[], Tensor]) -> None:
    """Runs a training step with activations stored and one with them rebuilt; compares all bits.

    What every module of a chain is given and returns, in forward and in recomputation, then the
    gradients of all parameters. Gradients, buffers and random streams stay as they were.

    Args:
        model: a converted network at β > 0, with exact arithmetic.
        loss_function: runs the network and returns its scalar loss.

    Raises:
        RuntimeError: they differ; names the first coupling or parameter that does, and says
            whether steps with activations stored differ from one another too.
        ValueError: the network is not one whose steps can be compared, or the step ran no chain.
    """
    found = _require_verifiable(model)
    flags = [chain.reversible for chain in found]
    try:
        stored = _run_step(model, found, loss_function, reversible=False)
        rebuilt = _run_step(model, found, loss_function, reversible=True)
        if not stored.forward:
            raise ValueError("The step ran no reversible chain: is the loss that of this network?")
        _compare_modules(stored, rebuilt)
        differing = _differing_parameters(stored, rebuilt)
        if differing:
            again = _run_step(model, found, loss_function, reversible=False)
            alone = _differing_parameters(stored, again)
            _raise_for_gradients(differing, alone)
    finally:
        for chain, flag in zip(found, flags, strict=True):
            chain.reversible = flag


@dataclass
class _Call:
    """A call of a module: fingerprints of what it was given and of what it returned."""

    coupling: str
    given: Tensor
    returned: Tensor


@dataclass
class _Step:
    """What a step did."""

    forward: list[_Call] = field(default_factory=list)
    recomputed: list[_Call] = field(default_factory=list)
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    failure: RuntimeError | None = None


def _require_verifiable(model: nn.Module) -> list[ReversibleChain]:
    found = require_chains(model)
    refuse_sharded(model.modules(), "verify the network before it is sharded.")
    rebuilding = [chain for chain in found if chain.rebuilds()]
    if not rebuilding:
        raise ValueError(
            f"{found[0].name} rebuilds nothing: set a beta above 0 first."
        )
    for chain in rebuilding:
        if chain.arithmetic == "float":
            raise ValueError(
                f"{chain.name} has arithmetic='float', whose gradients are never those of stored "
                "activations: dr2net.diagnostics.gradient_error measures by how much they differ."
            )
    return found


def _run_step(
    model: nn.Module,
    found: list[ReversibleChain],
    loss_function: Callable[[], Tensor],
    reversible: bool,
) -> _Step:
    step = _Step()
    for chain in found:
        chain.reversible = reversible
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with undisturbed(model), torch.enable_grad():
        with observed(found, partial(_recording, step.forward)):
            loss = loss_function()
        # The chains of this pass call the branches that they had in forward, so what is recomputed
        # arrives in the same list, behind the calls of forward.
        forward = len(step.forward)
        if not loss.requires_grad or not parameters:
            raise ValueError("The loss needs no gradient: is every parameter frozen?")
        try:
            grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            step.gradients = dict(zip(parameters, grads, strict=True))
        except RuntimeError as error:
            step.failure = error  # a chain's own check, which knows less of where
    step.forward, step.recomputed = step.forward[:forward], step.forward[forward:]
    return step


@contextmanager
def observed(
    found: list[ReversibleChain], observe: Callable[[ReversibleChain, str, Branch], Branch]
) -> Iterator[None]:
    """Runs ``observe(chain, key, branch)`` in place of each branch of the block ``key``."""

    def replaced(chain: ReversibleChain, branch: Branch) -> Branch:
        @wraps(branch)
        def run(block: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            key = next(key for key, other in chain._modules.items() if other is block)
            return observe(chain, key, branch)(block, x, *args, **kwargs)

        return run

    originals = [chain.branches for chain in found]
    for chain in found:
        chain.branches = tuple(replaced(chain, branch) for branch in chain.branches)
    try:
        yield
    finally:
        for chain, branches in zip(found, originals, strict=True):
            chain.branches = branches


def _recording(calls: list[_Call], chain: ReversibleChain, key: str, branch: Branch) -> Branch:
    """``branch``, which appends to ``calls`` what it is given and returns."""

    def run(block: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = branch(block, x, *args, **kwargs)
        name = f"{chain.name}.{key}, {getattr(branch, '__name__', branch)}"
        calls.append(_Call(name, _fingerprint(x), _fingerprint(output)))
        return output

    return run


def _fingerprint(tensor: Tensor) -> Tensor:
    """Two sums over the bits, one weighted by place: other values nearly always have others."""
    flat = tensor.detach().contiguous().reshape(-1)
    bits = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    bits = bits.to(torch.int64)
    places = torch.arange(1, bits.numel() + 1, device=bits.device)
    return torch.stack([bits.sum(), (bits * places).sum()])


def _compare_modules(stored: _Step, rebuilt: _Step) -> None:
    for before, now in zip(stored.forward, rebuilt.forward, strict=False):
        if before.coupling != now.coupling or not torch.equal(before.given, now.given):
            raise RuntimeError(
                f"The module ({now.coupling}) was given other values in a second forward from the "
                "same inputs and random state: what runs before it is not deterministic."
            )
        if not torch.equal(before.returned, now.returned):
            raise RuntimeError(
                f"The module ({now.coupling}) is not deterministic: in a second forward it "
                "returned other values from the same input and random state. " + _ADVICE
            )
    # A recomputation belongs to the last call of its coupling that has none yet.
    waiting = list(rebuilt.forward)
    for now in rebuilt.recomputed:
        # Of a call that is not part of the loss nothing is recomputed.
        places = [i for i, call in enumerate(waiting) if call.coupling == now.coupling]
        same = [i for i in places if torch.equal(waiting[i].given, now.given)]
        equal = [i for i in same if torch.equal(waiting[i].returned, now.returned)]
        before = waiting.pop(max(equal or same or places))
        if not torch.equal(before.given, now.given):
            raise RuntimeError(
                f"The input of the module ({now.coupling}) was rebuilt with other values than "
                "forward had, although the modules after it returned the same: a kernel of the "
                "stream arithmetic, or the memory, is at fault."
            )
        if not torch.equal(before.returned, now.returned):
            raise RuntimeError(
                f"The module ({now.coupling}) returned other values in recomputation than in "
                "forward, from the same input and random state. " + _ADVICE
            )
    for step in (stored, rebuilt):
        if step.failure is not None:
            raise step.failure


_ADVICE = (
    "Look for an own random generator, counters or state that forward changes, and for kernels "
    "that torch.use_deterministic_algorithms(True) would refuse; or keep this block's activations: "
    "dr2net.set_reversible(model, True, keep=[...])."
)


def _differing_parameters(first: _Step, second: _Step) -> list[str]:
    """Names of parameters with other gradients, those that backward reaches first in front."""
    names = list(first.gradients)[::-1]
    return [name for name in names if not _same(first.gradients[name], second.gradients[name])]


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)


def _raise_for_gradients(differing: list[str], differing_alone: list[str]) -> None:
    message = (
        f"{len(differing)} parameters have other gradients with activations rebuilt than stored, "
        f"although all modules computed the same; the first in backward is {differing[0]}. "
    )
    if differing_alone:
        message += (
            f"Two steps with activations stored differ as well (first {differing_alone[0]}): a "
            "kernel of backward is not deterministic. torch.use_deterministic_algorithms(True) "
            "names it."
        )
    else:
        message += (
            "Two steps with activations stored agree: the module's gradient depends on more than "
            "its input and parameters. Please report this."
        )
    raise RuntimeError(message)


def projection(outputs: Any) -> Tensor:
    """A scalar that every value in every floating-point tensor of ``outputs`` moves."""
    tensors = [value for value in tree_leaves(outputs) if isinstance(value, Tensor)]
    parts = [
        # Weights that differ from place to place: a plain sum is constant behind a LayerNorm.
        (tensor.float().reshape(-1) * torch.cos(_places(tensor))).sum()
        for tensor in tensors
        if tensor.is_floating_point()
    ]
    if not parts:
        raise ValueError(
            "The model returned no floating-point tensor to make a loss of: dr2net.verify_step "
            "takes a loss of your own."
        )
    return torch.stack(parts).sum()


def _places(tensor: Tensor) -> Tensor:
    return torch.arange(tensor.numel(), dtype=torch.float32, device=tensor.device)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Leaves random streams and the buffers of ``model`` as they were: to try a step out.

    Those of Python and numpy as well, from which preprocessing draws.
    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    buffers = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with ExitStack() as stack:
        for kind in {device.type for device in devices if device.type != "cpu"}:
            of_kind = [device for device in devices if device.type == kind]
            stack.enter_context(torch.random.fork_rng(of_kind, device_type=kind))
        stack.enter_context(torch.random.fork_rng([]))
        stack.callback(random.setstate, random.getstate())
        if numpy := sys.modules.get("numpy"):
            stack.callback(numpy.random.set_state, numpy.random.get_state())
        try:
            yield
        finally:
            for held, name, buffer, value in buffers:
                held[name] = buffer  # forward may have put another in its place
                if not torch.equal(buffer, value):
                    buffer.data.copy_(value)
