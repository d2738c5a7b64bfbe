"""What a config's loaders read, from within the datasets that wrap others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["innermost", "of_the_test"]


def innermost(loader: Mapping[str, Any] | None) -> Iterator[Any]:
    """Yield the configs of the datasets of a loader that read data, first to last."""
    found = [(loader or {}).get("dataset")]
    while found:
        dataset = found.pop(0)
        if not isinstance(dataset, Mapping):
            continue
        inside = [dataset.get("dataset"), *(dataset.get("datasets") or [])]
        if any(inside):
            found[:0] = inside
        else:
            yield dataset


def of_the_test(loader: Mapping[str, Any] | None) -> Any:
    """The first dataset of a test that says how it is read, by a ``pipeline``.

    Raises:
        ValueError: None does.
    """
    for dataset in innermost(loader):
        if dataset.get("pipeline"):
            return dataset
    raise ValueError(
        "the config's test_dataloader has no dataset with a pipeline, which says how inputs are "
        "read: give one"
    )
