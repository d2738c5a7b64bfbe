"""What a training step of the demos' networks keeps in memory, takes, and gets wrong."""

import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, load_checkpoint
from torch import Tensor, nn

import dr2net
from dr2net.diagnostics import bytes_kept, gradient_error
from tools.benchmarks.measurements import peak_bytes

# What a table can show of ``measure``'s results, by the heading of the column.
COLUMNS: dict[str, Callable[[dict], str]] = {
    "peak of a step (MB)": lambda found: f"{found['peak_bytes'] / 1e6:.1f}",
    "kept, model (MB)": lambda found: f"{found['model_bytes'] / 1e6:.1f}",
    "kept, backbone (MB)": lambda found: f"{found['backbone_bytes'] / 1e6:.1f}",
    "seconds per step": lambda found: f"{statistics.median(found['seconds']):.3f}",
    "gradient error": lambda found: f"{found.get('gradient_error', 0):.2g}",
}


def describe(measured: list[dict], columns: Iterable[str]) -> dict[str, str]:
    """Return the cells of a way, measured at one pair of coefficients or at both ends."""
    return {column: " → ".join(dict.fromkeys(map(COLUMNS[column], measured))) for column in columns}


def measure(
    configs: dict[str, Path], settings: dict[str, str], steps: int
) -> dict[str, list[dict]]:
    """Measure one training step of each network, from the pretrained weights, on the same batch.

    Args:
        configs: Config file of each network, by its name.
        settings: What is changed of each config: where the data is, and ``load_from``, the weights
            that the trainings start from.
        steps: How many steps are timed.

    Returns:
        For each name a list, of one measurement or, where the coefficients move, of those at both
        ends of the schedule. A measurement has ``point``, the coefficients (α, β); ``peak_bytes``,
        what a step takes at most beyond weights and gradients; ``model_bytes``, ``backbone_bytes``
        and ``chain_bytes`` kept from forward to backward by the model's loss, by the backbone and
        by the blocks alone, ``bytes_per_element`` of the blocks' streams, ``seconds`` of each step,
        and, where the network is reversible, ``gradient_error`` and the ``float_gradient_error``
        that it would have in float arithmetic.
    """
    networks: dict[str, list[nn.Module]] = {}
    batch = None
    for name, path in configs.items():
        config = Config.fromfile(path)
        config.merge_from_dict(settings)
        init_default_scope(config.default_scope)
        if batch is None:
            batch = next(iter(Runner.build_dataloader(config.train_dataloader, seed=0)))
        networks[name] = []
        for point in _points(config):
            torch.manual_seed(0)
            model = MODELS.build(config.model).train()
            load_checkpoint(model, config.load_from, map_location="cpu", logger="silent")
            if point is not None:
                dr2net.set_coefficients(model, *point)
            networks[name].append(model)
    results = {
        name: [_memory_and_error(model, batch) for model in models]
        for name, models in networks.items()
    }
    every = [model for models in networks.values() for model in models]
    seconds = iter(_time_steps(every, batch, steps))
    return {
        name: [found | {"seconds": next(seconds)} for found in of_way]
        for name, of_way in results.items()
    }


def _points(config: Config) -> list[tuple[float, float] | None]:
    """Return the coefficients to measure at; None for those of the config."""
    hook = config.default_hooks.get("coefficients", {})
    if "alpha" not in hook:
        return [None]
    return list(zip(hook.alpha, hook.beta, strict=True))


def _memory_and_error(model: nn.Module, batch: dict) -> dict:
    prepared = model.data_preprocessor(batch, training=True)

    def loss() -> Tensor:
        return model.parse_losses(model(**prepared, mode="loss"))[0]

    chains = dr2net.chains(model)
    backbone, *calls = _record_calls([model.backbone, *chains], loss)
    chain_bytes = sum(map(bytes_kept, calls))
    elements = sum(call.args[0].numel() for call in calls)
    point = dr2net.get_coefficients(model)
    found = {
        "point": point,
        "peak_bytes": peak_bytes(loss, list(model.parameters()), "cpu")["peak"],
        "model_bytes": bytes_kept(loss),
        "backbone_bytes": bytes_kept(backbone),
        "chain_bytes": chain_bytes,
        "bytes_per_element": chain_bytes / elements,
    }
    model.zero_grad()
    if point[1]:
        found["gradient_error"] = gradient_error(model, loss)
        used = [chain.arithmetic for chain in chains]
        for chain in chains:
            chain.arithmetic = "float"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that float arithmetic is not to be trusted here
            found["float_gradient_error"] = gradient_error(model, loss)
        for chain, arithmetic in zip(chains, used, strict=True):
            chain.arithmetic = arithmetic
    return found


def _record_calls(modules: list[nn.Module], function: Callable[[], Any]) -> list[partial]:
    """Return the call of each module in ``function()``, which can be made again by itself."""
    calls = {}

    def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
        calls[module] = partial(module, *map(_as_leaf, args), **kwargs)

    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules]
    function()
    for hook in hooks:
        hook.remove()
    return [calls[module] for module in modules]


def _as_leaf(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return value.detach().requires_grad_(value.requires_grad)


def _time_steps(networks: list[nn.Module], batch: dict, steps: int) -> list[list[float]]:
    """Seconds of forward, backward and AdamW; networks take turns, so drifts fall on all alike."""
    optimizers = [
        OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-6)) for model in networks
    ]
    seconds: list[list[float]] = [[] for _ in networks]
    for _ in range(steps + 1):
        for model, optimizer, taken in zip(networks, optimizers, seconds, strict=True):
            start = time.perf_counter()
            model.train_step(batch, optimizer)
            taken.append(time.perf_counter() - start)
    # The first step allocates the optimizer's state.
    return [taken[1:] for taken in seconds]
