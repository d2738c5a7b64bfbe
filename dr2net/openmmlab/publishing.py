"""A checkpoint of OpenMMLab becomes that of the plain model, which loads without dr2net."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine import registry
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from ..publishing.card import file_hash, write_card, write_results
from ..publishing.folders import new_folder
from ..publishing.line import refuse_no_plain_network
from .checkpoint import coefficients_in, read_checkpoint
from .loaders import of_the_test
from .network_files import OURS, copy_network, files_of

__all__ = ["plain_settings", "publish_checkpoint"]

# Types that build what they hold and change how it runs, but none of its parameters' names.
WRAPPERS = {"Dr2NetBackbone": "backbone"}
USAGE = """\
{path}from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint

config = Config.fromfile("{config}")
init_default_scope(config.default_scope)
model = MODELS.build(config.model)  # {needs}
load_checkpoint(model, "{weights}", strict=True)"""

SEARCH = """\
import sys

sys.path.insert(0, ".")  # this folder, of which the config imports {package}
"""


def publish_checkpoint(
    config: Config,
    checkpoint: str | os.PathLike,
    folder: str | os.PathLike,
    name: str,
    card: Mapping[str, str] | None = None,
    wrappers: Mapping[str, str] = WRAPPERS,
    results: Sequence[tuple[str, str, float]] = (),
) -> Path:
    """Writes ``NAME-HASH.pth``, ``NAME.py`` and a model card to ``folder``, which it makes.

    The weights are those under the model's own names, without optimizer and coefficients; they are
    loaded into the plain model by ``strict=True`` before the folder is there. The config builds the
    model; it has what the library's inferencers need as well, the pipeline of tests and a
    visualizer, where these are the library's own or only add to them. A network of this project's
    files gets these beside it, where they do without dr2net (``network_files``).

    Args:
        config: that the checkpoint was trained with.
        wrappers: from types of the config that are left out to the key of what they hold.
        card, results: as in ``dr2net.publish``.

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
    if _types(settings.get("train_cfg")) & own.keys():  # which a test does without
        settings["train_cfg"] = None
    init_default_scope(scope)
    model = MODELS.build(deepcopy(settings))  # DINO writes into its settings
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint} is not of the model of the config: {error}") from error
    kinds = {name: own[name].__module__ for name in _types(settings) & own.keys()}
    kinds |= {  # that the config does not name
        name: kind.__module__ for name, kind in own.items() if kind in map(type, model.modules())
    }
    files = files_of(kinds.values()) if kinds else None
    plain: dict[str, Any] = {"default_scope": scope, "model": settings}
    imports = (config.get("custom_imports") or {}).get("imports") or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    if not kinds or files is not None:  # those of others alone
        imports = [module for module in imports if module.partition(".")[0] not in OURS]
    plain |= _for_inferencers(config, own)
    meta = {key: found["meta"][key] for key in ("dataset_meta",) if key in found.get("meta", {})}
    with new_folder(folder) as draft:
        path = draft / f"{name}.pth"
        torch.save({"meta": meta, "state_dict": weights}, path)
        path = path.rename(path.with_name(f"{name}-{file_hash(path)[:8]}.pth"))
        needs, search = "without dr2net", ""
        if files is not None:
            imports.append(copy_network(kinds, files, draft))
            search = SEARCH.format(package=imports[-1])
        elif kinds:
            needs = f"needs dr2net, for {', '.join(sorted(kinds))}"
        if imports:
            asked = config.get("custom_imports") or {}
            may_fail = asked.get("allow_failed_imports", False) if not kinds else False
            plain["custom_imports"] = {"imports": imports, "allow_failed_imports": may_fail}
        Config(plain).dump(draft / f"{name}.py")
        usage = USAGE.format(
            path=search,
            needs=needs,
            config=f"{name}.py",
            weights=path.name,
        )
        last = next(iter(pairs.values()), None)
        write_card(draft, name, scope, last, usage, path, card or {})
        write_results(draft, results)
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


def _for_inferencers(config: Config, own: Mapping[str, Any]) -> dict[str, Any]:
    """What a library's inferencers look for in a config, in the library's own types, or nothing.

    The types of this project that only add to one of the library's give way to it.
    """
    if "test_dataloader" not in config:
        return {}
    loader: Mapping[str, Any] = config.test_dataloader
    if _types(loader) & own.keys():
        try:
            dataset = of_the_test(loader)
            steps = [_in_types_of_the_library(step, own) for step in dataset["pipeline"]]
        except ValueError:
            return {}
        kind = _of_the_library(dataset, own)  # of which mmdetection's inferencer takes the colours
        loader = {"dataset": {**({"type": kind} if kind else {}), "pipeline": steps}}
    visualizer = config.get("visualizer") or {}
    if not visualizer or _types(visualizer) & own.keys():
        return {"test_dataloader": loader}
    return {"test_dataloader": loader, "visualizer": {"type": visualizer["type"]}}


def _in_types_of_the_library(settings: Any, own: Mapping[str, Any]) -> Any:
    """Settings whose types, and those of what they hold, are the library's.

    Raises:
        ValueError: One of this project's inherits none of the library's.
    """
    if isinstance(settings, (list, tuple)):
        return type(settings)(_in_types_of_the_library(value, own) for value in settings)
    if not isinstance(settings, Mapping):
        return settings
    found = {key: _in_types_of_the_library(value, own) for key, value in settings.items()}
    if isinstance(settings.get("type"), str):
        found["type"] = _of_the_library(settings, own)
        if found["type"] is None:
            raise ValueError(f"{settings['type']} is of no library's kind")
    return found


def _of_the_library(settings: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """The type of ``settings``, or of one of this project the registered class that it inherits.

    None where there is none.
    """
    kind = own.get(str(settings["type"]).rpartition(".")[2])
    if kind is None:
        return settings["type"]
    registered = {found: name for name, found in _registered() if found not in own.values()}
    bases = kind.__mro__ if isinstance(kind, type) else ()
    return next((registered[base] for base in bases if base in registered), None)


def _own_types() -> dict[str, Any]:
    """What this project has registered in any registry, by name."""
    return {name: kind for name, kind in _registered() if kind.__module__.partition(".")[0] in OURS}


def _registered() -> Iterator[tuple[str, Any]]:
    """What mmengine's registries hold, and those below them."""
    waiting = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
    for each in waiting:
        yield from each.module_dict.items()
        waiting += each.children.values()
