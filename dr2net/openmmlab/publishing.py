"""A checkpoint of OpenMMLab becomes that of the plain model, which loads without dr2net."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine import registry
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from ..publishing.card import file_hash, write_card
from ..publishing.folders import new_folder
from ..publishing.line import refuse_no_plain_network
from .checkpoint import coefficients_in, read_checkpoint

__all__ = ["plain_settings", "publish_checkpoint"]

# Types that build what they hold and change how it runs, but none of its parameters' names.
WRAPPERS = {"Dr2NetBackbone": "backbone"}
OURS = ("dr2net.", "tasks.")
USAGE = """\
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint

config = Config.fromfile("{config}")
init_default_scope(config.default_scope)
model = MODELS.build(config.model)  # {needs}
load_checkpoint(model, "{weights}", strict=True)"""


def publish_checkpoint(
    config: Config,
    checkpoint: str | os.PathLike,
    folder: str | os.PathLike,
    name: str,
    card: Mapping[str, str] | None = None,
    wrappers: Mapping[str, str] = WRAPPERS,
) -> Path:
    """Writes ``NAME-HASH.pth``, ``NAME.py`` and a model card to ``folder``, which it makes.

    The weights are those under the model's own names, without optimizer and coefficients; they are
    loaded into the plain model by ``strict=True`` before the folder is there. The config builds the
    model; it has the pipeline of tests as well, where that is the library's own.

    Args:
        config: that the checkpoint was trained with.
        wrappers: from types of the config that are left out to the key of what they hold.
        card: as in ``dr2net.publish``.

    Returns:
        The file of the weights.

    Raises:
        ValueError: the checkpoint is of a Dr²Net off the line α = 1 − β or at β > 1/2, or of
            another model.
        FileExistsError: the folder holds something.
    """
    found = read_checkpoint(checkpoint, "cpu")
    state: dict[str, Any] = found.get("state_dict", found)
    pairs = coefficients_in(state)
    for pair in pairs.values():
        refuse_no_plain_network(*pair)
    weights = {key: tensor for key, tensor in state.items() if key not in pairs}
    scope, own = config.get("default_scope", "mmengine"), _own_types()
    settings = plain_settings(config.model.to_dict(), wrappers)
    if _types(settings.get("train_cfg")) & own:  # which a test does without
        settings["train_cfg"] = None
    init_default_scope(scope)
    model = MODELS.build(settings)
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint} is not of the model of the config: {error}") from error
    kinds = sorted(_types(settings) & own)
    plain: dict[str, Any] = {"default_scope": scope, "model": settings}
    if kinds:
        plain["custom_imports"] = config.get("custom_imports")
    if "test_dataloader" in config and not _types(config.test_dataloader) & own:
        plain["test_dataloader"] = config.test_dataloader
    meta = {key: found["meta"][key] for key in ("dataset_meta",) if key in found.get("meta", {})}
    with new_folder(folder) as draft:
        path = draft / f"{name}.pth"
        torch.save({"meta": meta, "state_dict": weights}, path)
        path = path.rename(path.with_name(f"{name}-{file_hash(path)[:8]}.pth"))
        Config(plain).dump(draft / f"{name}.py")
        usage = USAGE.format(
            needs=f"needs dr2net, for {', '.join(kinds)}" if kinds else "without dr2net",
            config=f"{name}.py",
            weights=path.name,
        )
        last = next(iter(pairs.values()), None)
        write_card(draft, name, scope, last, usage, path, card or {})
    return Path(folder) / path.name


def plain_settings(model: Any, wrappers: Mapping[str, str] = WRAPPERS) -> Any:
    """A model's config without the types that only wrap what they hold."""
    if isinstance(model, Mapping):
        held = wrappers.get(str(model.get("type")).rpartition(".")[2])
        if held is not None:
            return plain_settings(model[held], wrappers)
        return {key: plain_settings(value, wrappers) for key, value in model.items()}
    if isinstance(model, (list, tuple)):
        return type(model)(plain_settings(value, wrappers) for value in model)
    return model


def _types(settings: Any) -> set[str]:
    if isinstance(settings, Mapping):
        own = {str(settings["type"]).rpartition(".")[2]} if "type" in settings else set()
        return own.union(*map(_types, settings.values()))
    if isinstance(settings, (list, tuple)):
        return set().union(*map(_types, settings))
    return set()


def _own_types() -> set[str]:
    """Names that this project has registered, in mmengine's registries or in those below."""
    waiting = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
    found: set[str] = set()
    for each in waiting:
        own = each.module_dict.items()
        found.update(name for name, kind in own if kind.__module__.startswith(OURS))
        waiting += each.children.values()
    return found
