"""What transformers' families share: a chain of layers that returns hidden states and attentions.

transformers records both by hooks that it leaves on the layers when one of the two is first asked
for (``transformers.utils.output_capturing``). A chain never calls its blocks, so that hidden states
are taken from the chain here, and attentions by hooks that stay no longer than the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import output_capturing

from ..chain import ReversibleChain

__all__ = ["forget_recording", "require_layers", "run_layers"]

if not hasattr(output_capturing, "selected_hidden_states"):
    raise ImportError("it needs transformers 5.23 or newer")


def require_layers(model: nn.Module, layers: nn.Module, kind: type[nn.Module]) -> None:
    """Raises ValueError unless all ``layers`` are of the class ``kind``."""
    found = {type(layer).__name__ for layer in layers.children() if type(layer) is not kind}
    if found:
        raise ValueError(
            f"transformers' {type(model).__name__} with layers {sorted(found)} has no adapter: "
            f"layers must be {kind.__name__}."
        )


def forget_recording(model: nn.Module) -> None:
    """Takes away the hooks that transformers left, which no layer of a chain may have.

    It puts them there again when it needs them, so that a reverted network records as before.
    """
    for module in model.modules():
        for number, hook in list(module._forward_hooks.items()):
            if hook.__module__ == output_capturing.__name__:
                del module._forward_hooks[number]
        module.__dict__.pop("_output_capturing_hooks_installed", None)


def run_layers(
    model: Any,
    layers: ReversibleChain,
    x: Tensor,
    *args: Any,
    norm: Callable[[Tensor], Tensor] | None = None,
    **kwargs: Any,
) -> BaseModelOutput:
    """Runs the chain ``layers`` of ``model`` on hidden states ``x`` of (batch, tokens, channels).

    Args:
        norm: makes the last hidden state of what the last layer returns.
        kwargs: go to the layers. ``output_hidden_states`` (True, or indices into ``x`` and what the
            layers return) and ``output_attentions`` among them are also heeded here, with the
            model's config as default. Each hidden state that leaves a reversible chain keeps a pair
            of streams.

    Raises:
        ValueError: attentions are asked for where backward will recompute them, so that they could
            have no gradient.
    """
    requested = kwargs.get("output_hidden_states", model.config.output_hidden_states)
    count = len(layers) + 1
    wanted = set(range(count) if requested else ())
    selected = output_capturing.selected_hidden_states(requested)
    if selected is not None:
        wanted = output_capturing.resolve_hidden_states_indices(model, selected, count)
    blocks = sorted({index - 1 for index in wanted if index > 0} | {len(layers) - 1})

    attentions = kwargs.get("output_attentions", model.config.output_attentions)
    if attentions:
        _refuse_recomputation(layers)
    recorded = model._can_record_outputs["attentions"] if attentions else ()
    with _second_outputs(layers, recorded) as weights:
        features = layers.features(x, *args, blocks=blocks, **kwargs)
    last = features[-1] if norm is None else norm(features[-1])
    states: dict[int, Any] = {0: x}
    states.update((block + 1, state) for block, state in zip(blocks, features, strict=True))
    if getattr(model.config, "tie_last_hidden_states", False):
        states[count - 1] = last
    chosen: Any = tuple(states[i] if i in wanted else None for i in range(count))
    return BaseModelOutput(
        last_hidden_state=last,
        hidden_states=chosen if requested else None,
        attentions=tuple(weights) if attentions else None,
    )


def _refuse_recomputation(layers: ReversibleChain) -> None:
    _, beta = layers.get_coefficients()
    if beta > 0 and layers.reversible and torch.is_grad_enabled():
        raise ValueError(
            "output_attentions=True with gradients on: a chain recomputes its attentions in "
            "backward, and those of forward have no gradient. Ask for them under "
            "torch.no_grad(), or call dr2net.set_reversible(model, False)."
        )


@contextmanager
def _second_outputs(module: nn.Module, kinds: Any) -> Iterator[list[Tensor]]:
    """Collects the second output, unless None, of each submodule of one of the classes."""
    found: list[Tensor] = []

    def record(_: nn.Module, inputs: tuple, outputs: tuple) -> None:
        if outputs[1] is not None:
            found.append(outputs[1])

    recorded = [part for part in module.modules() if isinstance(part, kinds)]
    handles = [part.register_forward_hook(record) for part in recorded]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
