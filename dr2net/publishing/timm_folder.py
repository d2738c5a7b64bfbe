"""Networks of timm as folders: ``config.json`` and ``model.safetensors``, as timm writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["NAME", "build", "is_of", "load", "save", "save_config", "usage"]

NAME = "timm"


def is_of(model: nn.Module) -> bool:
    """Whether ``timm.create_model`` has made it."""
    return hasattr(model, "pretrained_cfg") and type(model).__module__.startswith("timm.")


def save(model: nn.Module, folder: Path) -> None:
    """Writes both files."""
    import timm.models

    timm.models.save_for_hf(model, str(folder), safe_serialization=True)


def save_config(model: nn.Module, folder: Path) -> None:
    """Writes ``config.json`` alone."""
    import timm.models._hub

    timm.models._hub.save_config_for_hf(model, str(folder / "config.json"))


def load(folder: Path) -> Any:
    """The network of both files."""
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True)


def build(folder: Path) -> Any:
    """The network that ``config.json`` describes, with random weights."""
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=False)


def usage(model: nn.Module, name: str) -> str:
    """How the folder is loaded."""
    return f'import timm\n\nmodel = timm.create_model("local-dir:{name}", pretrained=True)'
