"""tasks/pointcloud's modules without its package, which needs mmengine.

A machine with a GPU may have torch and Triton alone.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

package = ModuleType("pointcloud_alone")
package.__path__ = [str(Path(__file__).parents[1] / "tasks/pointcloud")]
sys.modules[package.__name__] = package

neighbours = import_module("pointcloud_alone.neighbours")


def import_kernels():
    """The kernels, which import Triton."""
    return import_module("pointcloud_alone.kernels")


# Clouds in metres: a room, a grid where most distances tie, and points at few places.
CLOUDS = {
    "room": lambda points: torch.rand(2, points, 3) * torch.tensor([8.0, 6.0, 3.0]),
    "grid": lambda points: torch.randint(0, 8, (2, points, 3)) / 4,
    "places": lambda points: torch.randint(0, 2, (2, points, 3)).float(),
    "one place": lambda points: torch.ones(2, points, 3),
}
