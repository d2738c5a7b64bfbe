import filecmp
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmengine")
from tasks.pointcloud.class_names import CLASSES
from tasks.pointcloud.room_files import find_rooms, read_room
from tools import prepare_pointcloud
from tools.demos.furnished_rooms import write_rooms
from tools.prepare_pointcloud import convert_room, main

HALLWAY = "Area_5/hallway_6"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two rooms an area in the raw layout, which tests must not change."""
    return write_rooms(tmp_path_factory.mktemp("raw") / "rooms", rooms=2, points=800)


@pytest.fixture(scope="module")
def converted(raw, tmp_path_factory):
    target = tmp_path_factory.mktemp("converted") / "s3dis"
    main([str(raw), str(target), "--workers", "2"])
    return target


@pytest.fixture
def write_raw(tmp_path):
    """Write a raw room of these objects, of lists of lines; return the raw folder."""

    def write(objects, room="Area_1/office_1"):
        folder = tmp_path / "raw" / room / "Annotations"
        folder.mkdir(parents=True, exist_ok=True)
        for name, lines in objects.items():
            (folder / f"{name}.txt").write_bytes(b"\n".join(lines) + b"\n")
        return tmp_path / "raw"

    return write


def convert(raw, target):
    main([str(raw), str(target), "--workers", "1"])


def tree(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def assert_same_files(one, other):
    assert tree(one) == tree(other)
    files = [name for name in tree(one) if (one / name).is_file()]
    assert filecmp.cmpfiles(one, other, files, shallow=False)[0] == files


def test_every_point_is_as_it_was_generated(raw, converted):
    places = find_rooms(converted, range(1, 7))
    assert len(places) == 12
    for place in places:
        room, start = read_room(place.path), 0
        files = sorted((raw / place.full_name / "Annotations").iterdir())
        for number, file in enumerate(files):
            lines = [line.split() for line in file.read_text().splitlines()]
            part = slice(start, start + len(lines))
            start += len(lines)
            coord = np.array([[float(word) for word in words[:3]] for words in lines], np.float32)
            color = np.array([[int(word) for word in words[3:]] for words in lines], np.uint8)
            assert np.array_equal(room.coord[part], coord)
            assert np.array_equal(room.color[part], color)
            assert (room.segment[part] == CLASSES.index(file.stem.rsplit("_", 1)[0])).all()
            assert (room.instance[part] == number).all()
        assert start == len(room.coord) == len(room.segment)


def test_files_have_the_types_that_are_documented_and_state_their_classes(raw, converted):
    folder = converted / "Area_4/office_2"
    arrays = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    assert {name: str(array.dtype) for name, array in arrays.items()} == {
        "coord": "float32",
        "color": "uint8",
        "segment": "int16",
        "instance": "int16",
    }
    assert {array.shape[1:] for array in arrays.values()} == {(3,), ()}
    said = json.loads((folder / "room.json").read_text())
    assert said["classes"] == list(CLASSES)
    files = sorted((raw / "Area_4/office_2/Annotations").iterdir())
    assert said["objects"] == [file.stem for file in files]


def test_a_second_run_keeps_what_is_there_and_adds_what_is_not(raw, converted, tmp_path, capsys):
    shutil.copytree(converted, tmp_path / "again")
    shutil.rmtree(tmp_path / "again/Area_2/office_1")
    kept = tmp_path / "again/Area_6/office_1/coord.npy"
    before = kept.stat().st_mtime_ns
    convert(raw, tmp_path / "again")
    assert "11 of 12 rooms are there already" in capsys.readouterr().out
    assert kept.stat().st_mtime_ns == before
    assert_same_files(converted, tmp_path / "again")
    convert(raw, tmp_path / "again")
    assert_same_files(converted, tmp_path / "again")


def test_what_a_killed_run_left_at_any_time_is_cleared(raw, converted, tmp_path):
    shutil.copytree(converted, tmp_path / "again")
    left = tmp_path / "again/Area_5/office_2.16587.partial"
    left.mkdir()
    (left / "coord.npy").touch()
    convert(raw, tmp_path / "again")
    assert_same_files(converted, tmp_path / "again")


@pytest.mark.parametrize("stage", ["coord", "color", "segment", "instance"])
def test_two_runs_at_once_end_with_the_same_files(raw, converted, tmp_path, monkeypatch, stage):
    target, save = tmp_path / "s3dis", np.save

    def another_run_is_sooner(file, array):
        if file.name == f"{stage}.npy":
            monkeypatch.setattr(np, "save", save)
            convert(raw, target)
        save(file, array)

    monkeypatch.setattr(np, "save", another_run_is_sooner)
    convert_room(raw / "Area_5/office_2", target / "Area_5/office_2")
    assert_same_files(converted, target)


@pytest.fixture
def start():
    """Run the converter in a process of its own, which starts at once and has what is patched."""
    processes = []

    def start(raw, target):
        arguments = [str(raw), str(target), "--workers", "2"]
        process = multiprocessing.get_context("fork").Process(target=main, args=(arguments,))
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()


def test_killed_at_random_moments_it_ends_with_the_same_files(
    raw, converted, tmp_path, start, monkeypatch
):
    save, chance = np.save, random.Random(0)
    # Rooms that take their time, so that kills meet them half written.
    monkeypatch.setattr(np, "save", lambda *args: (time.sleep(0.04), save(*args)))
    target, kills, halves = tmp_path / "s3dis", 0, 0
    while True:
        present = len(list(target.glob("Area_*/*/room.json")))
        process = start(raw, target)
        # From the first room that it adds on, at a random moment.
        while kills < 3 and process.is_alive():
            if len(list(target.glob("Area_*/*/room.json"))) > present:
                break
            time.sleep(0.002)
        if kills == 3 or not process.is_alive():
            process.join()
            break
        time.sleep(chance.uniform(0, 0.1))
        process.kill()  # the workers notice and end by themselves
        process.join()
        kills += 1
        halves += len(list(target.glob("Area_*/*.partial")))
    assert process.exitcode == 0
    assert kills > 0
    assert halves > 0
    assert_same_files(converted, target)


@pytest.mark.parametrize("content", [[], ["coord.npy"]], ids=["empty", "half copied"])
def test_a_folder_that_is_no_converted_room_is_named(raw, tmp_path, content):
    place = tmp_path / "s3dis/Area_3/office_2"
    place.mkdir(parents=True)
    for name in content:
        (place / name).touch()
    with pytest.raises(SystemExit, match=r"Area_3/office_2: not converted rooms, as .*room\.json"):
        convert(raw, tmp_path / "s3dis")


def test_the_raw_folder_is_no_target(raw):
    with pytest.raises(SystemExit, match="not converted rooms"):
        convert(raw, raw)


def test_a_raw_room_without_annotations_is_named(write_raw, tmp_path):
    raw = write_raw({"wall_1": [b"0 0 0 1 2 3"]})
    (raw / "Area_2/office_9").mkdir(parents=True)
    (raw / "Area_2/.cache").mkdir()
    with pytest.raises(SystemExit, match=r"Area_2/office_9: no folder Annotations there"):
        convert(raw, tmp_path / "s3dis")


def test_rooms_left_by_a_killed_worker_are_named_and_converted_next(
    raw, converted, tmp_path, monkeypatch
):
    def killed(folder, *_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_pointcloud, "write_room", killed)
        with pytest.raises(SystemExit, match=r"a process was killed.*left are .*Area_1/office_1"):
            convert(raw, tmp_path / "s3dis")
    convert(raw, tmp_path / "s3dis")
    assert_same_files(converted, tmp_path / "s3dis")


def test_workers_are_a_whole_number(raw, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(raw), str(tmp_path), "--workers", "0"])
    assert "'0' is not a whole number above 0" in capsys.readouterr().err


def test_workers_end_when_the_command_is_killed(raw, tmp_path, start, monkeypatch):
    def work_for_ever(*_, **__):
        (tmp_path / f"{os.getpid()}.pid").touch()
        time.sleep(600)

    monkeypatch.setattr(np, "loadtxt", work_for_ever)
    process = start(raw, tmp_path / "s3dis")
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    process.kill()
    process.join()
    while any(map(_runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(workers) == 2
    assert not any(map(_runs, workers))


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("stray", [b"\x10", b"\x00"])
def test_the_stray_character_in_hallway_6_is_repaired_and_reported(
    write_raw, tmp_path, capsys, stray
):
    lines = [b"1.0 2.0 3.0 10 20 30"] * 3 + [b"22.1 6.2 3.0 185" + stray + b"187 182"]
    raw = write_raw({"ceiling_1": lines, "wall_1": [b"0 0 0 0 0 9"]}, HALLWAY)
    convert(raw, tmp_path / "out")
    room = read_room(tmp_path / "out" / HALLWAY)
    assert len(room.coord) == 5
    assert room.color[3].tolist() == [185, 187, 182]
    out = capsys.readouterr().out
    assert f"repaired: {raw / HALLWAY}/Annotations/ceiling_1.txt, line 4: " in out
    (said,) = json.loads((tmp_path / "out" / HALLWAY / "room.json").read_text())["repairs"]
    assert "line 4" in said


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("Area_5/hallway_7", b"22.1 6.2 3.0 185\x10187 182"),
        (HALLWAY, b"22.1 6.2 3.0 18\x105 187 182"),
        (HALLWAY, b"22.1 6.2\x103.0 185 187 182"),
    ],
)
def test_another_stray_character_is_refused_by_file_and_line(write_raw, tmp_path, room, line):
    raw = write_raw({"ceiling_1": [b"1 2 3 10 20 30", line]}, room)
    with pytest.raises(SystemExit) as error:
        convert(raw, tmp_path / "out")
    assert f"{raw / room}/Annotations/ceiling_1.txt, line 2: expected" in str(error.value)
    assert not (tmp_path / "out" / room).exists()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"1 2 3 10 20", "expected the 6 numbers 'x y z r g b', found 5"),
        (b"1 2 3 10 20 30 40", "expected the 6 numbers 'x y z r g b', found 7"),
        (b"1 2 x 10 20 30", "expected 'x y z r g b'"),
        (b"1 2 3\xff 10 20 30", "expected 'x y z r g b'"),
        (b"# 2 3 10 20 30", "expected 'x y z r g b'"),
        (b"1 2 nan 10 20 30", "a number is not finite"),
        (b"1 2 inf 10 20 30", "a number is not finite"),
        (b"1 2 3 10 20 256", "colours in whole numbers from 0 to 255"),
        (b"1 2 3 -1 20 30", "colours in whole numbers from 0 to 255"),
        (b"1 2 3 0.1 0.2 0.5", "colours in whole numbers from 0 to 255"),
    ],
)
def test_a_bad_line_is_named_and_its_room_refused_while_others_are_written(
    write_raw, tmp_path, line, problem
):
    good = [b"1 2 3 10 20 30"]
    write_raw({"floor_1": good}, "Area_1/office_2")
    raw = write_raw({"floor_1": good, "wall_1": [*good, line, *good, b"1 2"]})
    with pytest.raises(SystemExit) as error:
        convert(raw, tmp_path / "out")
    file = raw / "Area_1/office_1/Annotations/wall_1.txt"
    assert f"{file}, line 2: {problem}" in str(error.value).replace("expected colours", "colours")
    assert f"{file}, line 4: " in str(error.value)
    assert "1 rooms were not written: correct these lines" in str(error.value)
    assert [path.name for path in (tmp_path / "out/Area_1").iterdir()] == ["office_2"]


def test_a_line_too_short_and_one_too_long_do_not_make_up_for_each_other(write_raw, tmp_path):
    raw = write_raw({"wall_1": [b"1 2 3 10 20", b"30 1 2 3 10 20 30"]})
    with pytest.raises(SystemExit, match="line 1: expected the 6 numbers"):
        convert(raw, tmp_path / "out")


def test_many_bad_lines_are_counted(write_raw, tmp_path):
    raw = write_raw({"wall_1": [b"1 2 3"] * 50})
    with pytest.raises(SystemExit, match="… and 30 more"):
        convert(raw, tmp_path / "out")


def test_blank_lines_spaces_and_decimals_are_no_mistakes(write_raw, tmp_path):
    lines = [b"", b" 1  2 3 10.000000 20 30 ", b"1 2 3 10 20 30\r", b"  "]
    convert(write_raw({"wall_1": lines}), tmp_path / "out")
    room = read_room(tmp_path / "out/Area_1/office_1")
    assert room.coord.tolist() == [[1, 2, 3]] * 2
    assert room.color.tolist() == [[10, 20, 30]] * 2


def test_unknown_names_become_clutter_and_are_counted(write_raw, tmp_path, capsys):
    line = [b"1 2 3 10 20 30"]
    write_raw({"stairs_1": line, "stairs_2": line, "floor_1": line}, "Area_2/hallway_1")
    raw = write_raw({"lamp_1": line, "floor_1": line, "stairs_9": line})
    convert(raw, tmp_path / "out")
    out = capsys.readouterr().out
    assert "taken for clutter: lamp, 1 objects" in out
    assert "taken for clutter: stairs, 3 objects" in out
    room = read_room(tmp_path / "out/Area_2/hallway_1")
    assert [CLASSES[label] for label in room.segment] == ["floor", "clutter", "clutter"]
    said = json.loads((tmp_path / "out/Area_2/hallway_1/room.json").read_text())
    assert said["unknown_names"] == {"stairs": ["stairs_1.txt", "stairs_2.txt"]}


def test_an_object_without_points_is_refused(write_raw, tmp_path):
    raw = write_raw({"wall_1": [b""]})
    with pytest.raises(SystemExit, match=r"wall_1\.txt holds no points"):
        convert(raw, tmp_path / "out")


def test_a_folder_without_rooms_says_what_is_expected(tmp_path):
    with pytest.raises(SystemExit, match="has no folder Area_k/ROOM/Annotations"):
        convert(tmp_path, tmp_path / "out")
