"""Gives one network methods that call its chain, where its class loops over blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn

__all__ = ["replace_methods", "restore_methods"]

Methods = tuple[Callable[..., Any], ...]
Settings = tuple[tuple[str, Any], ...]
"""Names and values of attributes of the subclass."""


def replace_methods(
    network: nn.Module, family: Any, *methods: Callable[..., Any], **settings: Any
) -> None:
    """Makes ``network`` an instance of a subclass of its class with ``methods`` and ``settings``.

    A method that a class derived from ``family`` has overridden stays: only its author knows what
    it does. If it runs the blocks one by one, they refuse with a message.
    """
    original: Any = type(network)
    network.__class__ = _subclass(original, family, methods, tuple(settings.items()))


def restore_methods(network: Any) -> None:
    """Undoes ``replace_methods``."""
    original = getattr(type(network), "_original_class", None)
    if original is not None:
        network.__class__ = original


@cache
def _subclass(network: Any, family: Any, methods: Methods, settings: Settings = ()) -> Any:
    inherited = {
        method.__name__: method
        for method in methods
        if getattr(network, method.__name__) is getattr(family, method.__name__)
    }

    # The subclass cannot be imported by name, so copies and pickles make it anew.
    def reduce(self: nn.Module, protocol: int) -> tuple:
        return _new_instance, (network, family, methods, settings), self.__getstate__()

    attributes = {
        **inherited,
        **dict(settings),
        "_original_class": network,
        "__reduce_ex__": reduce,
        "__module__": network.__module__,
    }
    return type(f"Dr2Net{network.__name__}", (network,), attributes)


def _new_instance(network: Any, family: Any, methods: Methods, settings: Settings = ()) -> Any:
    subclass = _subclass(network, family, methods, settings)
    return subclass.__new__(subclass)
