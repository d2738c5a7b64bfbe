"""Finetuned networks as folders: for the library that they came from, or as Dr²Nets.

    dr2net.publish(model, "my_vit", card={"data": "...", "metric": "..."})
    timm.create_model("local-dir:my_vit", pretrained=True)  # without dr2net

    dr2net.publish(model, "my_dr2net", reversible=True)
    dr2net.from_pretrained("my_dr2net")

Checkpoints of OpenMMLab: ``dr2net.openmmlab.publishing``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..branches import whole
from ..conversion import chains, convert, get_coefficients, revert
from ..loop import LoopedChain
from . import timm_folder, transformers_folder
from .card import write_card, write_results
from .folders import new_folder
from .line import refuse_no_plain_network

__all__ = ["from_pretrained", "publish"]

SETTINGS, WEIGHTS = "dr2net.json", "dr2net.safetensors"
LIBRARIES = {"timm": timm_folder, "transformers": transformers_folder}


def publish(
    model: nn.Module,
    folder: str | os.PathLike,
    reversible: bool = False,
    card: Mapping[str, str] | None = None,
    results: Sequence[tuple[str, str, float]] = (),
) -> Path:
    """Writes a network of timm or transformers to a folder; the network stays as it is.

    The plain network is what ``revert`` makes of a copy, under its library's own names, for
    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` or ``from_pretrained("FOLDER")``. It
    is loaded from there and compared, tensor by tensor, before the folder gets its name. So is the
    Dr²Net.

    Args:
        model: a converted network, or a plain one.
        folder: to be made; must not be there, or be empty.
        reversible: write the Dr²Net instead, for ``dr2net.from_pretrained``; timm and transformers
            refuse to load it.
        card: what the model card says, by the keys of ``card.ENTRIES``: ``data``, ``recipe``,
            ``metric``, ``memory``, ``licence``.
        results: for the Hub's leaderboards: the name of a dataset there, a task of it and a figure
            each, as ``card.write_results`` takes them.

    Returns:
        The folder.

    Raises:
        ValueError: the network is off the line α = 1 − β, or at β > 1/2, where its weights are no
            plain network's; or it has no chains, with ``reversible``; or the folder would load as
            another network; or ``results`` are none that the Hub reads.
        TypeError: the network is of another library.
        FileExistsError: the folder holds something.
    """
    folder, library = Path(folder), _library_of(model)
    name = folder.resolve().name  # of "." too
    pair = get_coefficients(model) if chains(model) else None
    if pair is not None and not reversible:
        refuse_no_plain_network(*pair)
    with new_folder(folder) as draft:
        if reversible:
            _write_dr2net(library, model, draft)
            _compare(model, from_pretrained(draft))
            usage = f'import dr2net\n\nmodel = dr2net.from_pretrained("{name}")'
            weights = draft / WEIGHTS
        else:
            plain = model if pair is None else revert(deepcopy(model))
            library.save(plain, draft)
            _compare(plain, library.load(draft))
            usage, weights = library.usage(plain, name), draft / "model.safetensors"
        write_card(draft, name, library.NAME, pair, usage, weights, card or {})
        write_results(draft, results)
    return folder


def from_pretrained(folder: str | os.PathLike) -> nn.Module:
    """Loads a Dr²Net that ``publish(..., reversible=True)`` has written; it is in eval mode.

    Raises:
        FileNotFoundError: the folder holds none; a plain network is loaded by its own library.
        ValueError: a file is damaged, or the weights do not fit the network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(
            f"{folder} holds no {SETTINGS}, which dr2net.publish(model, folder, reversible=True) "
            "writes. A plain network is loaded by its own library, then dr2net.convert."
        )
    for name in ("config.json", SETTINGS):
        try:
            settings = json.loads((folder / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{folder / name} is damaged: {error}. Copy it again.") from error
    try:
        state = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged: {error}. Copy it again.") from error
    model: nn.Module = LIBRARIES[settings.pop("library")].build(folder)
    convert(model, **settings)
    try:
        model.load_state_dict(state, strict=True, assign=True)  # in the precision of the file
    except RuntimeError as error:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit the network that config.json describes: {error}"
        ) from error
    return model.eval()


def _library_of(model: nn.Module) -> ModuleType:
    for library in LIBRARIES.values():
        if library.is_of(model):
            return library
    raise TypeError(
        f"A {type(model).__name__} is no whole network of {' or '.join(LIBRARIES)}. Save the "
        "state_dict of dr2net.revert(model) for others; for OpenMMLab's checkpoints there is "
        "tools/publish.py."
    )


def _write_dr2net(library: ModuleType, model: nn.Module, folder: Path) -> None:
    from safetensors.torch import save_file

    alpha, beta = get_coefficients(model)
    found = chains(model)
    looped = [isinstance(chain, LoopedChain) for chain in found]
    ways = {(chain.arithmetic, chain.branches == (whole,)) for chain in found}
    if len({*looped}) > 1 or len(ways) > 1:
        raise ValueError(
            "Some chains stand for a family's blocks and some for lists that were named, or they "
            "differ in arithmetic or couplings: only networks that one dr2net.convert has made are "
            "published as Dr²Nets."
        )
    settings = {
        "library": library.NAME,
        "alpha": alpha,
        "beta": beta,
        "arithmetic": found[0].arithmetic,
        "blocks": [chain.name for chain in found] if all(looped) else None,
        "couplings": "block" if found[0].branches == (whole,) else "branch",
    }
    library.save_config(model, folder)
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _compare(model: nn.Module, loaded: nn.Module) -> None:
    """Raises ValueError unless both hold the same tensors under the same names."""
    wanted: dict[str, Any] = model.state_dict()
    found: dict[str, Any] = loaded.state_dict()
    other = [
        name
        for name in sorted(wanted.keys() | found.keys())
        if name not in wanted
        or name not in found
        or wanted[name].dtype != found[name].dtype
        or not torch.equal(wanted[name].cpu(), found[name].cpu())
    ]
    if other:
        raise ValueError(
            f"The folder would load as another network: {len(other)} tensors differ, {other[0]} "
            "among them. Build the network by its library's own factory (timm.create_model, "
            "from_pretrained), which notes how it was built, and keep its precision."
        )
