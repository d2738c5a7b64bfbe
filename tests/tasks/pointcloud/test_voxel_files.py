import errno
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
from dr2net.openmmlab.random_state import SeededSampler
from tasks.pointcloud import RoomDataset, voxel_files
from tasks.pointcloud.room_files import find_rooms, read_room
from tasks.pointcloud.room_writing import write_room
from tasks.pointcloud.voxel_files import kept_voxels
from tasks.pointcloud.voxels import voxel_numbers
from tests.rooms import write_converted

SIZE = 0.25


@pytest.fixture(autouse=True)
def a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(voxel_files, "_tried", set())
    monkeypatch.setattr(voxel_files, "_failed", set())


@pytest.fixture
def made(monkeypatch):
    """The sizes of the clouds whose voxels were made, in the order of their making."""
    found = []
    monkeypatch.setattr(
        voxel_files,
        "voxel_numbers",
        lambda coord, size: found.append(len(coord)) or voxel_numbers(coord, size),
    )
    return found


def cloud(count=1000, seed=0):
    return np.random.default_rng(seed).uniform(0, 3, (count, 3)).astype(np.float32)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_voxels_are_made_once_and_read_from_then_on(tmp_path, made):
    coord = cloud()
    expected = voxel_numbers(coord, SIZE)
    for _ in range(3):
        found = kept_voxels(coord, SIZE, tmp_path)
        assert found.dtype == np.int32
        assert np.array_equal(found, expected)
    assert made == [1000]
    assert names(tmp_path) == ["voxels_0.25.npz"]


def test_each_size_of_a_voxel_has_its_own(tmp_path, made):
    for size in (0.25, 0.3, 0.25, 0.3):
        assert np.array_equal(kept_voxels(cloud(), size, tmp_path), voxel_numbers(cloud(), size))
    assert len(made) == 2
    assert names(tmp_path) == ["voxels_0.25.npz", "voxels_0.3.npz"]


def test_those_of_a_room_that_is_a_file_are_beside_it(tmp_path, made):
    room = tmp_path / "Area_1_office_1.ply"
    room.touch()
    for _ in range(2):
        kept_voxels(cloud(), SIZE, room)
    assert made == [1000]
    assert names(tmp_path) == ["Area_1_office_1.ply", "Area_1_office_1.ply.voxels_0.25.npz"]
    assert [found.path for found in find_rooms(tmp_path, [1])] == [room]


def test_nothing_is_kept_of_a_room_that_is_no_file(tmp_path, made):
    for room in (None, tmp_path / "absent", str(tmp_path / "absent/room")):
        kept_voxels(cloud(), SIZE, room)
    assert made == [1000] * 3
    assert names(tmp_path) == []


def test_a_room_that_has_changed_gets_others(tmp_path, made):
    kept_voxels(cloud(), SIZE, tmp_path)
    moved = cloud()
    moved[500, 1] += 1
    voxel_files._tried.clear()  # as in the next run
    for _ in range(2):
        assert np.array_equal(kept_voxels(moved, SIZE, tmp_path), voxel_numbers(moved, SIZE))
    assert made == [1000, 1000]


def test_a_pipeline_that_moves_points_first_writes_once(tmp_path, made):
    for seed in range(4):
        coord = cloud(seed=seed)
        assert np.array_equal(kept_voxels(coord, SIZE, tmp_path), voxel_numbers(coord, SIZE))
    assert len(made) == 4
    kept_voxels(cloud(seed=0), SIZE, tmp_path)
    assert len(made) == 4


@pytest.mark.parametrize(
    ("before", "kept"),
    [([], True), ([{"type": "AddHeight"}], True), ([{"type": "RotatePoints"}], False)],
    ids=["as read", "as read, with heights", "moved"],
)
def test_a_pipeline_keeps_the_voxels_of_points_as_they_were_read(tmp_path, before, kept):
    rooms = write_converted(tmp_path, points=3000)
    pipeline = [*before, {"type": "VoxelSubsample", "voxel_size": 0.1}]
    RoomDataset(data_root=str(rooms), areas=[1], pipeline=pipeline)[0]
    assert (rooms / "Area_1/office_1/voxels_0.1.npz").exists() == kept


def test_what_a_killed_process_left_long_ago_goes(tmp_path):
    old, new = (tmp_path / f"voxels_{SIZE}.npz.{name}.tmp" for name in ("old", "new"))
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (0, 0))
    kept_voxels(cloud(), SIZE, tmp_path)
    assert names(tmp_path) == [f"voxels_{SIZE}.npz", new.name]


def test_a_room_that_was_removed_is_written_again(tmp_path):
    room = read_room(write_converted(tmp_path, points=300) / "Area_1/office_1")
    folder = tmp_path / "again"
    write_room(folder, room)
    kept_voxels(room.coord, SIZE, folder)
    for file in folder.iterdir():
        if not file.name.startswith("voxels"):
            file.unlink()
    write_room(folder, room)
    assert np.array_equal(read_room(folder).coord, room.coord)
    assert not list(tmp_path.glob("*.partial"))


def test_a_damaged_file_is_made_anew(tmp_path, made):
    coord = cloud(60)
    expected = voxel_numbers(coord, SIZE)
    kept_voxels(coord, SIZE, tmp_path)
    file = tmp_path / "voxels_0.25.npz"
    whole = file.read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 7)]
    for place in range(len(whole)):
        damaged.append(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
    for content in damaged:
        file.write_bytes(content)
        assert np.array_equal(kept_voxels(coord, SIZE, tmp_path), expected)
    assert len(made) > len(damaged) / 2
    file.write_bytes(whole[:-30])
    voxel_files._tried.clear()
    kept_voxels(coord, SIZE, tmp_path)
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, made, monkeypatch):
    said = []
    monkeypatch.setattr(voxel_files, "print_log", lambda text, **options: said.append(text))

    def refuse(self, *_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "open", refuse)
    for name in ("one", "two", "one"):
        (tmp_path / name).mkdir(exist_ok=True)
        found = kept_voxels(cloud(), SIZE, tmp_path / name)
        assert np.array_equal(found, voxel_numbers(cloud(), SIZE))
    assert len(made) == 3
    (message,) = said
    assert message.startswith(f"{tmp_path}/one/voxels_0.25.npz cannot be written (Read-only file")


def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    kept_voxels(cloud(), SIZE, tmp_path)
    before = (tmp_path / "voxels_0.25.npz").read_bytes()

    def interrupted(stream, **_):
        stream.write(before[:100])
        raise KeyboardInterrupt

    voxel_files._tried.clear()
    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kept_voxels(cloud(seed=1), SIZE, tmp_path)
    assert names(tmp_path) == ["voxels_0.25.npz"]
    assert (tmp_path / "voxels_0.25.npz").read_bytes() == before


def test_a_process_that_writes_meanwhile_is_not_disturbed(tmp_path, made, monkeypatch):
    write = np.savez

    def write_while_another_does(stream, **content):
        monkeypatch.setattr(np, "savez", write)
        voxel_files._tried.clear()  # as in the other process
        kept_voxels(cloud(), SIZE, tmp_path)
        stream.write(b"half of it")
        stream.flush()
        assert np.array_equal(kept_voxels(cloud(), SIZE, tmp_path), voxel_numbers(cloud(), SIZE))
        assert made == [1000, 1000]  # by each process, and read by the last line
        stream.seek(0)
        write(stream, **content)

    monkeypatch.setattr(np, "savez", write_while_another_does)
    for _ in range(2):
        kept_voxels(cloud(), SIZE, tmp_path)
    assert made == [1000, 1000]
    assert names(tmp_path) == ["voxels_0.25.npz"]


def write_again_and_again(room, seeds):
    for turn in range(10**6):
        coord = cloud(20_000, seeds[turn % len(seeds)])
        voxel_files._tried.clear()
        if not np.array_equal(kept_voxels(coord, SIZE, room), voxel_numbers(coord, SIZE)):
            os._exit(1)


def test_processes_that_write_at_once_and_are_killed_leave_a_whole_file(tmp_path):
    context = multiprocessing.get_context("fork")
    file, chance = tmp_path / "voxels_0.25.npz", random.Random(0)
    for _ in range(5):
        writers = [
            context.Process(target=write_again_and_again, args=(tmp_path, seeds), daemon=True)
            for seeds in ((0, 1), (1, 2))
        ]
        for writer in writers:
            writer.start()
        time.sleep(0.3 + chance.random() / 5)
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
            assert writer.exitcode == -signal.SIGKILL  # until then, what it read was right
        with np.load(file) as content:
            numbers = content["numbers"]
        expected = [voxel_numbers(cloud(20_000, seed), SIZE) for seed in (0, 1, 2)]
        assert any(np.array_equal(numbers, one) for one in expected)


def epoch(root, number):
    pipeline = [
        {"type": "AddHeight"},
        {"type": "VoxelSubsample", "voxel_size": 0.1},
        {"type": "SphereCrop", "num_points": 200},
        {"type": "ScalePoints"},
        {"type": "PackPoints"},
    ]
    dataset = RoomDataset(data_root=str(root), areas=[1], loop=2, pipeline=pipeline)
    sampler = SeededSampler(dataset, seed=3)
    sampler.set_epoch(number)
    items = [dataset[index] for index in sampler]
    return torch.stack([torch.cat(list(item["inputs"].values()), dim=1) for item in items])


def test_epochs_are_the_same_with_the_file_and_without(tmp_path, made, monkeypatch):
    rooms = write_converted(tmp_path, points=3000)
    with monkeypatch.context() as context:
        context.setattr(voxel_files, "_write_once", lambda *_: None)
        expected = [epoch(rooms, number) for number in (0, 1)]
    assert len(made) == 4
    assert not torch.equal(*expected)
    made.clear()
    assert torch.equal(epoch(rooms, 0), expected[0])
    assert torch.equal(epoch(rooms, 1), expected[1])
    assert len(made) == 1
    # A copy keeps them, and the room is read as before.
    copy = shutil.copytree(rooms / "Area_1/office_1", tmp_path / "copy")
    coord = read_room(copy).coord
    kept_voxels(coord, 0.1, copy)
    assert len(made) == 1
    assert [room.name for room in find_rooms(rooms, [1])] == ["office_1"]
