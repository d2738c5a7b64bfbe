"""Networks of transformers as folders: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["NAME", "build", "is_of", "load", "save", "save_config", "usage"]

NAME = "transformers"


def is_of(model: nn.Module) -> bool:
    """Whether it is a ``PreTrainedModel``."""
    return hasattr(model, "save_pretrained") and hasattr(model, "config")


def save(model: Any, folder: Path) -> None:
    """Writes both files."""
    model.save_pretrained(folder)


def save_config(model: Any, folder: Path) -> None:
    """Writes ``config.json`` alone."""
    model.config.architectures = [_original(model)]
    model.config.save_pretrained(folder)


def load(folder: Path) -> Any:
    """The network of both files."""
    return _class_of(folder).from_pretrained(folder)


def build(folder: Path) -> Any:
    """The network that ``config.json`` describes, with random weights."""
    import transformers

    return _class_of(folder)(transformers.AutoConfig.from_pretrained(folder))


def usage(model: nn.Module, name: str) -> str:
    """How the folder is loaded."""
    kind = _original(model)
    return f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained("{name}")'


def _original(model: nn.Module) -> str:
    kind: Any = type(model)
    return getattr(kind, "_original_class", kind).__name__


def _class_of(folder: Path) -> Any:
    import transformers

    (name,) = transformers.AutoConfig.from_pretrained(folder).architectures
    return getattr(transformers, name)
