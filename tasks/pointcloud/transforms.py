"""Transforms of rooms; their random numbers are those of the sampler's seed, by numpy.

A room goes through them as a dict of ``coord`` (float32 (N, 3), metres), ``color`` (float32 (N, 3),
RGB from 0 to 255), ``segment`` (int64 (N,), where there are labels) and, from ``AddHeight`` on,
``height`` (float32 (N,)), with ``name`` and ``area``. The published recipe is openpoints'
(``cfgs/s3dis/default.yaml`` of https://github.com/guochengqian/PointNeXt).
"""

# ruff: noqa: NPY002 - the samplers' seeds set numpy's global random state

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from .grouping import group_points
from .structures import PointCloudSample
from .voxel_files import kept_voxels
from .voxels import random_points

# What a room has for each of its points.
PER_POINT = ("coord", "color", "height", "segment")


def take_points(room: dict, indices: np.ndarray) -> dict:
    """Return ``room`` with the points of these indices alone, in their order."""
    return room | {key: room[key][indices] for key in PER_POINT if key in room}


@TRANSFORMS.register_module()
class AddHeight:
    """Add ``height``, the metres above the lowest point of the cloud.

    Before a crop, so that it is the height above the floor of the room.
    """

    def __call__(self, room: dict) -> dict:
        z = room["coord"][:, 2]
        return room | {"height": z - z.min()}


@TRANSFORMS.register_module()
class VoxelSubsample:
    """Keep one random point of each voxel.

    The voxels of a room are made once and kept beside it (``voxel_files``), where no transform
    before this one moves or removes points.

    Args:
        voxel_size: The edge of a voxel, metres.
    """

    def __init__(self, voxel_size: float = 0.04) -> None:
        self.voxel_size = voxel_size

    def __call__(self, room: dict) -> dict:
        is_as_read = room["coord"] is room.get("coord_as_read")
        path = room["path"] if is_as_read else None  # other voxels each time are not kept
        numbers = kept_voxels(room["coord"], self.voxel_size, path)
        return take_points(room, random_points(numbers))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.voxel_size})"


class _Crop:
    def __init__(self, num_points: int) -> None:
        if num_points < 1:
            raise ValueError(f"num_points is the size of a crop, 1 or more, got {num_points}")
        self.num_points = num_points
        self._named: set[str] = set()

    def _fill(self, room: dict, indices: np.ndarray) -> np.ndarray:
        """Repeat random ones of the indices until there are as many as a crop has."""
        missing = self.num_points - len(indices)
        if missing <= 0:
            return indices
        if len(room["coord"]) < self.num_points and room.get("name") not in self._named:
            self._named.add(room.get("name"))
            print_log(
                f"{room.get('name')} has {len(room['coord'])} points after subsampling, fewer than "
                f"the {self.num_points} of a crop: points of it are repeated. A smaller voxel_size "
                "or num_points avoids that",
                logger="current",
                level=logging.WARNING,
            )
        return np.concatenate([indices, np.random.choice(indices, missing)])

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({settings})"


@TRANSFORMS.register_module()
class SphereCrop(_Crop):
    """Keep the points that are nearest to a random one.

    A cloud with fewer points is kept whole, and random points of it are repeated; a room of which
    that is true is named in the log.

    Args:
        num_points: How many points are kept.
    """

    def __init__(self, num_points: int = 24_000) -> None:
        super().__init__(num_points)

    def __call__(self, room: dict) -> dict:
        coord = room["coord"]
        centre = coord[np.random.randint(len(coord))]
        indices = np.arange(len(coord))
        if len(coord) > self.num_points:
            distances = np.square(coord - centre).sum(axis=1)
            indices = np.argpartition(distances, self.num_points - 1)[: self.num_points]
        return take_points(room, self._fill(room, indices))


@TRANSFORMS.register_module()
class BlockCrop(_Crop):
    """Keep what stands on a square of the floor around a random point, from floor to ceiling.

    Of a block with more points, random ones are kept; of one with fewer, random ones are repeated.

    Args:
        num_points: How many points are kept.
        block_size: The edge of the square, metres.
    """

    def __init__(self, num_points: int = 24_000, block_size: float = 2.0) -> None:
        super().__init__(num_points)
        self.block_size = block_size

    def __call__(self, room: dict) -> dict:
        floor = room["coord"][:, :2]
        centre = floor[np.random.randint(len(floor))]
        within = np.flatnonzero((np.abs(floor - centre) <= self.block_size / 2).all(axis=1))
        if len(within) > self.num_points:
            within = np.random.choice(within, self.num_points, replace=False)
        return take_points(room, self._fill(room, within))


@TRANSFORMS.register_module()
class CenterOnFloor:
    """Move the origin to the mean of x and y, and to the lowest z."""

    def __call__(self, room: dict) -> dict:
        coord = room["coord"]
        origin = np.array([*coord[:, :2].mean(axis=0, dtype=np.float64), coord[:, 2].min()])
        return room | {"coord": (coord - origin).astype(np.float32)}


@TRANSFORMS.register_module()
class RotatePoints:
    """Rotate around the vertical axis by a random angle.

    Args:
        max_angle: The largest angle in either direction, degrees.
    """

    def __init__(self, max_angle: float = 180.0) -> None:
        self.max_angle = max_angle

    def __call__(self, room: dict) -> dict:
        angle = math.radians(np.random.uniform(-self.max_angle, self.max_angle))
        cosine, sine = math.cos(angle), math.sin(angle)
        turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        return room | {"coord": (room["coord"] @ turn.T).astype(np.float32)}


@TRANSFORMS.register_module()
class ScalePoints:
    """Scale x, y and z by random factors, one each; ``height`` stays that of the room.

    Args:
        factors: The smallest and the largest.
    """

    def __init__(self, factors: Sequence[float] = (0.9, 1.1)) -> None:
        self.factors = tuple(factors)

    def __call__(self, room: dict) -> dict:
        factors = np.random.uniform(*self.factors, 3)
        return room | {"coord": (room["coord"] * factors).astype(np.float32)}


@TRANSFORMS.register_module()
class JitterPoints:
    """Move every point a little, by a normal distribution.

    Args:
        sigma: Its standard deviation, metres.
        clip: The largest move along each axis, metres.
    """

    def __init__(self, sigma: float = 0.005, clip: float = 0.02) -> None:
        self.sigma = sigma
        self.clip = clip

    def __call__(self, room: dict) -> dict:
        moves = np.clip(np.random.normal(0, self.sigma, room["coord"].shape), -self.clip, self.clip)
        return room | {"coord": (room["coord"] + moves).astype(np.float32)}


@TRANSFORMS.register_module()
class ContrastColors:
    """Stretch each channel towards the full range, blended with what it was at random.

    Args:
        prob: How likely it is done.
    """

    def __init__(self, prob: float = 0.2) -> None:
        self.prob = prob

    def __call__(self, room: dict) -> dict:
        if np.random.random() >= self.prob:
            return room
        color = room["color"]
        low, high = color.min(axis=0), color.max(axis=0)
        # A channel without contrast has none to be stretched.
        stretched = np.where(high > low, (color - low) * (255 / np.maximum(high - low, 1)), color)
        share = np.random.random()
        return room | {"color": ((1 - share) * color + share * stretched).astype(np.float32)}


@TRANSFORMS.register_module()
class JitterColors:
    """Add normal noise to the colours, within their range.

    Args:
        sigma: Its standard deviation, of 255.
        prob: How likely it is done.
    """

    def __init__(self, sigma: float = 1.275, prob: float = 0.95) -> None:
        self.sigma = sigma
        self.prob = prob

    def __call__(self, room: dict) -> dict:
        if np.random.random() >= self.prob:
            return room
        noisy = room["color"] + np.random.normal(0, self.sigma, room["color"].shape)
        return room | {"color": np.clip(noisy, 0, 255).astype(np.float32)}


@TRANSFORMS.register_module()
class DropColors:
    """Make all points black.

    Args:
        prob: How likely it is done.
    """

    def __init__(self, prob: float = 0.2) -> None:
        self.prob = prob

    def __call__(self, room: dict) -> dict:
        if np.random.random() >= self.prob:
            return room
        return room | {"color": np.zeros_like(room["color"])}


@TRANSFORMS.register_module()
class PackPoints:
    """Make of a room what a network takes: the end of a pipeline for training and validation.

    The result has ``inputs`` with ``coord``, float32 (N, 3), and ``feat``, float32 (N, 4): the
    normalised colour, then the height; and ``data_samples`` with the labels and the meta
    information.

    Args:
        mean: Of the colours, 0 to 1; by default openpoints' of S3DIS.
        std: Their standard deviation.
    """

    def __init__(
        self,
        mean: Sequence[float] = (0.5136457, 0.49523646, 0.44921124),
        std: Sequence[float] = (0.18308958, 0.18415008, 0.19252081),
    ) -> None:
        self.mean = np.array(mean)
        self.std = np.array(std)

    def __call__(self, room: dict) -> dict:
        if "height" not in room:
            raise ValueError(
                "PackPoints needs height: put dict(type='AddHeight') into the pipeline"
            )
        color = (room["color"] / 255 - self.mean) / self.std
        feat = np.column_stack([color, room["height"]]).astype(np.float32)
        coord = np.ascontiguousarray(room["coord"], np.float32)
        inputs = {"coord": torch.from_numpy(coord), "feat": torch.from_numpy(feat)}
        return {"inputs": inputs, "data_samples": _sample(room)}


@TRANSFORMS.register_module()
class GroupPoints:
    """Find the groups of ``PointViT``'s embedding in the workers: after ``PackPoints``.

    ``inputs`` gets what ``grouping.group_points`` returns. The network finds the same, bit for bit,
    where a pipeline lacks this transform; on a GPU without Triton in more time.

    Args:
        group_size: That of the network.
    """

    def __init__(self, group_size: int = 32) -> None:
        self.group_size = group_size

    def __call__(self, packed: dict) -> dict:
        if "inputs" not in packed:
            raise ValueError("GroupPoints takes what PackPoints has made: put it after PackPoints")
        groups = group_points(packed["inputs"]["coord"][None], self.group_size)
        groups = {name: values[0] for name, values in groups.items()}
        return packed | {"inputs": packed["inputs"] | groups}


@TRANSFORMS.register_module()
class PackRoom:
    """Make of a whole room what ``FullResolutionSegmentor`` tests: the end of its pipeline.

    The result has ``inputs`` with ``coord``, ``color`` and ``height``, as they are, of all points;
    and ``data_samples`` as ``PackPoints``.
    """

    def __call__(self, room: dict) -> dict:
        inputs = {
            key: torch.from_numpy(np.ascontiguousarray(room[key]))
            for key in PER_POINT
            if key in room and key != "segment"
        }
        return {"inputs": inputs, "data_samples": _sample(room)}


def _sample(room: dict) -> PointCloudSample:
    metainfo = {key: room[key] for key in ("name", "area", "path") if key in room}
    sample = PointCloudSample(metainfo=metainfo)
    if "segment" in room:
        sample.gt_segment = torch.from_numpy(np.ascontiguousarray(room["segment"], np.int64))
    return sample
