"""Rooms of S3DIS's areas, read from any of the layouts of ``room_files`` when they are needed."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from dr2net.openmmlab.random_state import sample_random_state

from .class_names import CLASSES
from .room_files import BadRoomError, find_rooms, read_room


@DATASETS.register_module()
class RoomDataset(BaseDataset):
    """The rooms of some areas; an item is one room, through the pipeline (``transforms``).

    Args:
        areas: The numbers of S3DIS's areas; or names of folders in ``data_root`` with rooms of
            whatever set, ``"."`` for ``data_root`` itself.
        loop: How many times an epoch goes through all rooms; each time other random numbers are
            drawn. (mmengine's ``RepeatDataset`` would lose the seed of the sample.)
        class_order: Whose order the labels of the files have, where they do not state it
            themselves: see ``room_files.read_room``.
        white: The number of full brightness in the files, see ``room_files.read_room``.
        colors: Whether rooms have colours; False makes all points of all rooms black.
        numbers: The labels in the files of other sets, where they do not count from 0: see
            ``room_files.read_room``.
        **kwargs: ``data_root``, ``pipeline``, ``test_mode`` and the other arguments of mmengine's
            ``BaseDataset``. ``metainfo=dict(classes=...)`` asks for labels in another order than
            ``class_names.CLASSES``, or says those of another set. With ``test_mode``, rooms may
            lack labels: they are predicted, and nothing is compared.

    Raises:
        FileNotFoundError: ``data_root`` or one of the areas is not there.
        BadRoomError: On indexing: a room is not what it should be, or has no labels in training.
    """

    METAINFO = {"classes": CLASSES}  # noqa: RUF012 - as mmengine declares it

    def __init__(
        self,
        areas: Sequence[int | str] = (1, 2, 3, 4, 6),
        loop: int = 1,
        class_order: str | None = None,
        white: float | None = None,
        colors: bool = True,
        numbers: Sequence[int] | None = None,
        **kwargs: object,
    ) -> None:
        self.areas = tuple(areas)
        self.loop = loop
        self.class_order = class_order
        self.white = white
        self.colors = colors
        self.numbers = numbers
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """List the rooms, and log how many there are; none is read yet."""
        rooms = find_rooms(self.data_root, self.areas)
        counts = Counter(room.area_name for room in rooms)
        print_log(
            f"{self.data_root}: {len(rooms)} rooms, "
            + ", ".join(f"{area} {count}" for area, count in counts.items()),
            logger="current",
        )
        if left := next(Path(self.data_root).glob("Area_*/*.partial"), None):
            print_log(
                f"{left} is of a conversion that goes on or was cut short: rooms may be missing. "
                "Run tools/prepare_pointcloud.py again",
                logger="current",
                level=logging.WARNING,
            )
        return [
            {"name": room.full_name, "area": room.area, "path": str(room.path)} for room in rooms
        ]

    def __len__(self) -> int:
        return super().__len__() * self.loop

    def __getitem__(self, index: int) -> dict:
        """Return a room after the pipeline; its random numbers are those of the sampler's seed."""
        self.full_init()
        with sample_random_state(index):
            return self.pipeline(self.read(int(index) % super().__len__()))

    def read(self, index: int) -> dict:
        """Read a room, counted without ``loop``, as the pipeline takes it."""
        info = self.get_data_info(index)
        room = read_room(
            Path(info["path"]),
            self.metainfo["classes"],
            self.class_order,
            self.white,
            colors=self.colors,
            numbers=self.numbers,
        )
        if room.segment is None and not self.test_mode:
            raise BadRoomError(
                f"{info['path']} has no labels: training needs them. Rooms without are for tests "
                "and for tools/predict.py"
            )
        labels = {} if room.segment is None else {"segment": room.segment}
        return {
            "coord": room.coord,
            "color": room.color.astype(np.float32),
            **labels,
            "name": info["name"],
            "area": info["area"],
            "path": info["path"],
            # By which VoxelSubsample tells whether points were moved before it.
            "coord_as_read": room.coord,
        }
