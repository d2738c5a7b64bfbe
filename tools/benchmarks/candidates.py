"""Networks of several methods on the same weights: made, run in turns, gradients compared."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

import dr2net
from tools.benchmarks.measurements import (
    gradients_of,
    in_precision,
    peak_bytes,
    relative_difference,
    seconds_of_step,
)
from tools.benchmarks.methods import Forward, Method, plain, reversible, with_lora


def share_weights(model: nn.Module) -> nn.Module:
    """A copy of the network on the same memory; what trains, and its gradients, are its own."""
    own = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, own)


def trained(network: nn.Module) -> list[Tensor]:
    """The parameters that are trained."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def loss_of(forward: Callable[[Tensor], Tensor], x: Tensor, precision: str) -> Callable[[], Tensor]:
    """A function that runs forward and returns the loss."""

    def loss() -> Tensor:
        with in_precision(precision, x.device.type):
            return forward(x).float().square().mean()

    return loss


@dataclass
class Candidate:
    """A method's network, and the function that runs it.

    Attributes:
        peaks: of the settings that were tried, in bytes.
        setting: that of the lowest.
    """

    network: nn.Module
    forward: Forward
    peaks: dict[Any, int]
    setting: Any = None


def make_candidate(
    method: Method, original: nn.Module, x: Tensor, precision: str, device: str
) -> Candidate:
    """The method's network on the weights of ``original``, in the setting with the lowest peak."""
    if not method.settings:
        network = share_weights(original)
        return Candidate(network, method.make(network), {})
    best: Candidate | None = None
    peaks: dict[Any, int] = {}
    for setting in method.settings:
        network = share_weights(original)
        candidate = Candidate(network, method.make(network, setting), peaks, setting)
        loss = loss_of(candidate.forward, x, precision)
        peaks[setting] = peak_bytes(loss, trained(network), device)["peak"]
        network.zero_grad()
        if best is None or peaks[setting] < peaks[best.setting]:
            best = candidate
    assert best is not None
    return best


def time_in_turns(
    losses: dict[str, Callable[[], Tensor]],
    networks: dict[str, nn.Module],
    device: str,
    warmup: int,
    steps: int,
) -> dict[str, list[float]]:
    """Seconds of each timed step of each method."""
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for turn in range(warmup + steps):
        for name, loss in losses.items():
            taken = seconds_of_step(loss, device)
            networks[name].zero_grad()
            if turn >= warmup:
                seconds[name].append(taken)
    return seconds


def gradient_errors(
    original: nn.Module,
    x: Tensor,
    methods: dict[str, Method],
    losses: dict[str, Callable[[], Tensor]],
    networks: dict[str, nn.Module],
) -> dict[str, dict[str, float]]:
    """Of each method: against float64 and, where it recomputes, against stored activations.

    The reference in float64 computes what the method does: the network, or the equations of a
    Dr²Net at its (α, β), with activations stored.
    """
    errors: dict[str, dict[str, float]] = {}
    for kind in dict.fromkeys(method.computes for method in methods.values()):
        reference = in_float64(original, *kind)
        exact = gradients_of(loss_of(reference, x.double(), "float64"), trained(reference))
        stored: list[Tensor] = []
        for name in (name for name, method in methods.items() if method.computes == kind):
            network, parameters = networks[name], trained(networks[name])
            found = gradients_of(losses[name], parameters)
            errors[name] = {"float64": relative_difference(found, exact)}
            if dr2net.chains(network):
                dr2net.set_reversible(network, False)
                stored = gradients_of(losses[name], parameters)
                dr2net.set_reversible(network, True)
            if stored:
                errors[name]["stored"] = relative_difference(found, stored)
            stored = stored or found  # conventional comes first of its kind
        del exact, stored
        gc.collect()
    return errors


def in_float64(
    original: nn.Module, pair: tuple[float, float], couplings: str, lora: bool
) -> nn.Module:
    """A network of float64 with activations stored, that computes what ``Method.computes`` says."""
    make = (
        plain
        if pair == (1, 0)
        else partial(
            reversible, alpha=pair[0], beta=pair[1], arithmetic="float", couplings=couplings
        )
    )
    network = copy.deepcopy(original)
    if lora:
        with_lora(network, make=make)
    else:
        make(network)
    if dr2net.chains(network):
        dr2net.set_reversible(network, False)
    return network.double()
