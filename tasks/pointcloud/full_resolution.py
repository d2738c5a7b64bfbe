"""``type='FullResolutionSegmentor'``: any segmentor, tested on every original point by voting."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn

from .structures import NOT_FINITE, PointCloudSample
from .transforms import take_points
from .voxels import Passes, crops


@dataclass(frozen=True)
class FullResolutionTesting:
    """How a room is divided, and what is done with each part.

    Args:
        transforms: what the validation pipeline does after the subsampling, ``PackPoints`` last.
        voxel_size: the edge of a voxel, metres, as in training.
        max_points: the most points that the network is given at once, a pass of more is covered by
            overlapping spheres of so many; None for no limit.
        batch_size: passes or spheres that go through the network at once.
    """

    transforms: Sequence[dict]
    voxel_size: float = 0.04
    max_points: int | None = None
    batch_size: int = 1


# A function and not a wrapper module: the segmentor keeps its parameter names, and with them
# checkpoints, parameter-wise learning rates and everything about its training.
@MODELS.register_module()
def FullResolutionSegmentor(  # noqa: N802  (a type name to those who write configs)
    segmentor: dict[str, Any], **settings: Any
) -> nn.Module:
    """Builds ``segmentor`` and makes it test rooms at full resolution; it trains as before.

    ``test_step`` divides a room into passes, each of which has one point of every voxel, and all of
    which together have every point of the room. The class probabilities of a point are summed over
    the passes and spheres that it is in, and the largest sum is its ``pred_segment``. Where a voxel
    has far more points than others have, some get the sums of the nearest one in it, which is
    logged (``voxels.Passes``). The test pipeline ends in ``PackRoom``. Validation, ``val_step``, is
    the segmentor's own, on clouds that the pipeline has subsampled, or a test where its pipeline,
    like that of tests, ends in ``PackRoom``.

    mmengine's FSDP wrapper calls neither step; its other wrappers do.

    Args:
        segmentor: config of a registered segmentor.
        settings: those of ``FullResolutionTesting``.
    """
    testing = FullResolutionTesting(**settings)
    model = MODELS.build(segmentor)
    model.full_resolution_testing = testing
    model.__class__ = _full_resolution(type(model))
    return model


@cache
def _full_resolution(kind: type) -> type:
    # The subclass cannot be imported by name, so copies and pickles make it anew.
    def reduce(self: nn.Module, protocol: int) -> tuple:
        return _new_instance, (kind,), self.__dict__

    attributes = {
        "test_step": test_step,
        "val_step": val_step,
        "__reduce_ex__": reduce,
        "segmentor_class": kind,
    }
    return type(f"FullResolution{kind.__name__}", (kind,), attributes)


def _new_instance(kind: type) -> nn.Module:
    full_resolution = _full_resolution(kind)
    return full_resolution.__new__(full_resolution)


def test_step(self: Any, data: dict) -> list[PointCloudSample]:
    """As mmengine's method of this name, by voting.

    Args:
        data: ``inputs`` of whole rooms, as ``PackRoom`` makes them, and ``data_samples``.

    Returns:
        The data samples with ``pred_segment``, int64 (N,), and ``full_resolution=True``.

    Raises:
        ValueError: The inputs are those of another pipeline; a room is refused by the segmentor.
    """
    if "color" not in data["inputs"]:
        raise ValueError(
            "FullResolutionSegmentor subsamples rooms itself: the test pipeline is AddHeight and "
            f"PackRoom, but its inputs are {', '.join(data['inputs'])}"
        )
    samples = self.data_preprocessor.cast_data(data["data_samples"])
    for number, sample in enumerate(samples):
        room = {key: values[number].cpu().numpy() for key, values in data["inputs"].items()}
        room["name"] = sample.get("name")
        try:
            sample.pred_segment = vote(self, room).argmax(dim=0)
        except ValueError as error:  # such as too few points for the network
            raise ValueError(f"{sample.get('name')}: {error}") from error
        sample.set_metainfo({"full_resolution": True})
    return samples


def val_step(self: Any, data: dict) -> list[PointCloudSample]:
    """As ``test_step`` for whole rooms, as the segmentor's own for subsampled ones."""
    if "color" in data["inputs"]:
        return test_step(self, data)
    return self.segmentor_class.val_step(self, data)


def vote(segmentor: Any, room: dict) -> Tensor:
    """Sum the class probabilities of every point: (classes, N) float32, on the segmentor's device.

    Args:
        segmentor: One that ``FullResolutionSegmentor`` made.
        room: ``coord``, ``color`` and ``height`` as transforms take them, and ``name``.
    """
    testing = segmentor.full_resolution_testing
    pack = Compose(testing.transforms)
    passes = Passes(room["coord"], testing.voxel_size)
    if len(passes.left_out):
        print_log(
            f"{room.get('name')}: {len(passes.left_out)} points are not tested themselves but get "
            "the votes of the nearest one in their voxel that is. They are in voxels of "
            f"{testing.voxel_size} m with more than {passes.limit} points, far more than the other "
            "voxels have: often the origin, where scanners put what they have missed",
            logger="current",
            level=logging.WARNING,
        )
    views = _views(room["coord"], passes, testing)
    votes = None
    while batch := list(islice(views, testing.batch_size)):
        packed = pseudo_collate([pack(take_points(room, indices)) for indices in batch])
        packed = segmentor.data_preprocessor(packed, training=False)
        probabilities = segmentor(**packed, mode="tensor").float().softmax(dim=1)
        if votes is None:
            votes = probabilities.new_zeros(probabilities.shape[1], len(room["coord"]))
        if not probabilities.isfinite().all():
            raise ValueError(NOT_FINITE)
        for indices, part in zip(batch, probabilities, strict=True):
            votes[:, torch.from_numpy(indices).to(votes.device)] += part
    left_out, stand_ins = (
        torch.from_numpy(indices).to(votes.device)
        for indices in (passes.left_out, passes.stand_ins)
    )
    votes[:, left_out] = votes[:, stand_ins]
    return votes


def _views(
    coord: np.ndarray, passes: Passes, testing: FullResolutionTesting
) -> Iterator[np.ndarray]:
    """Indices of the points that go through the network together, of equal numbers."""
    for points in passes:
        for crop in crops(coord[points], testing.max_points or len(points)):
            yield points[crop]
