"""What a training step of the demo's networks keeps in memory, takes, and gets wrong."""

import time
import warnings
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, load_checkpoint
from torch import Tensor, nn

import dr2net

STEPS = 15


def measure(configs: dict[str, Path], data: Path, pretrained: Path) -> dict[str, dict]:
    """Measure one training step of each network, from the pretrained weights, on the same batch.

    Args:
        configs: Config file of each network, by its name; a Dr²Net is measured at both ends of its
            schedule, as ``NAME (1, 0.1)`` and ``NAME (0, 1)``.
        data: Folder of the part ``finetune`` of the motion clips.
        pretrained: The weights that the trainings start from.

    Returns:
        For each name: ``model_bytes`` and ``chain_bytes`` kept from forward to backward by the
        model's loss and by the blocks alone, ``bytes_per_element`` of the blocks' stream,
        ``seconds`` of each step, and, where the network is reversible, ``gradient_error`` and the
        ``float_gradient_error`` that it would have in float arithmetic.
    """
    networks, batch = {}, None
    for name, path in configs.items():
        config = Config.fromfile(path)
        init_default_scope(config.default_scope)
        if batch is None:
            config.train_dataloader.dataset.data_root = str(data)
            batch = next(iter(Runner.build_dataloader(config.train_dataloader, seed=0)))
        for label, ends in _points(name, config).items():
            torch.manual_seed(0)
            model = MODELS.build(config.model).train()
            load_checkpoint(model, str(pretrained), map_location="cpu", logger="silent")
            dr2net.set_coefficients(model, *ends)
            networks[label] = model
    results = {name: _memory_and_error(model, batch) for name, model in networks.items()}
    seconds = _time_steps(networks, batch)
    return {name: {**results[name], "seconds": seconds[name]} for name in networks}


def _points(name: str, config: Config) -> dict[str, tuple[float, float]]:
    hook = config.default_hooks.get("coefficients")
    if hook is None:
        return {name: (config.model.backbone.alpha, config.model.backbone.beta)}
    ends = zip(hook.alpha, hook.beta, strict=True)
    return {f"{name} ({alpha:g}, {beta:g})": (alpha, beta) for alpha, beta in ends}


def _memory_and_error(model: nn.Module, batch: dict) -> dict:
    prepared = model.data_preprocessor(batch, training=True)

    def loss() -> Tensor:
        return model.parse_losses(model(**prepared, mode="loss"))[0]

    (chain,) = dr2net.chains(model)
    _, tokens, width = model.backbone.pos_embed.shape
    stream = torch.randn(len(batch["inputs"]), tokens, width, requires_grad=True)
    chain_bytes = dr2net.diagnostics.bytes_kept(lambda: chain(stream))
    found = {
        "model_bytes": dr2net.diagnostics.bytes_kept(loss),
        "chain_bytes": chain_bytes,
        "bytes_per_element": chain_bytes / stream.numel(),
    }
    if dr2net.get_coefficients(model)[1]:
        found["gradient_error"] = dr2net.diagnostics.gradient_error(model, loss)
        used, chain.arithmetic = chain.arithmetic, "float"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that float arithmetic is not to be trusted here
            found["float_gradient_error"] = dr2net.diagnostics.gradient_error(model, loss)
        chain.arithmetic = used
    return found


def _time_steps(networks: dict[str, nn.Module], batch: dict) -> dict[str, list[float]]:
    """Seconds of forward, backward and AdamW; networks take turns, so drifts fall on all alike."""
    optimizers = {
        name: OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-6))
        for name, model in networks.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(STEPS + 1):
        for name, model in networks.items():
            start = time.perf_counter()
            model.train_step(batch, optimizers[name])
            seconds[name].append(time.perf_counter() - start)
    # The first step allocates the optimizer's state.
    return {name: taken[1:] for name, taken in seconds.items()}
