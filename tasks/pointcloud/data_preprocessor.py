"""Puts the clouds of a batch on the device and stacks them."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS

__all__ = ["PointCloudDataPreprocessor"]


@MODELS.register_module()
class PointCloudDataPreprocessor(BaseDataPreprocessor):
    """Stacks clouds of one size; ``coord`` becomes (clouds, points, 3), ``feat`` alike."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Returns ``data`` on the device, stacked.

        Args:
            data: ``inputs``, a dict of the lists ``coord`` (points, 3) and ``feat`` (points,
                channels), and ``data_samples``.

        Raises:
            ValueError: the clouds have different numbers of points.
        """
        data = self.cast_data(data)
        coords = data["inputs"]["coord"]
        if len({len(coord) for coord in coords}) > 1:
            names = [sample.get("name", "unnamed") for sample in data["data_samples"]]
            sizes = ", ".join(f"{n} {len(c)}" for n, c in zip(names, coords, strict=True))
            raise ValueError(
                f"the clouds of a batch differ in their number of points ({sizes}): crop them to "
                "one number in the pipeline, or use batch_size=1."
            )
        stacked = {name: torch.stack(list(values)) for name, values in data["inputs"].items()}
        return {**data, "inputs": stacked}
