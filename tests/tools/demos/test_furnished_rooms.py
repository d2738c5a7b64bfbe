import filecmp
import json

import numpy as np
import pytest

pytest.importorskip("mmengine")
from tasks.pointcloud.class_names import CLASSES
from tools.demos.furnished_rooms import LOOKS, STEP, draw_room, main, write_rooms
from tools.demos.generated_data import SETTINGS


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Two small rooms an area, which tests must not change."""
    return write_rooms(tmp_path_factory.mktemp("data") / "rooms", rooms=2, points=1500)


def files_below(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def draw(look="office", seed=0, points=6000):
    objects = draw_room(LOOKS[look], True, points, np.random.default_rng(seed))
    return objects, np.concatenate([points for _, points in objects])


def test_layout_is_that_of_the_raw_set(rooms):
    assert rooms.name == "Stanford3dDataset_v1.2_Aligned_Version"
    assert sorted(path.name for path in rooms.iterdir()) == [f"Area_{k}" for k in range(1, 7)]
    for area in rooms.iterdir():
        assert sorted(path.name for path in area.iterdir()) == ["office_1", "office_2"]
        for room in area.iterdir():
            assert sorted(p.name for p in room.iterdir()) == ["Annotations", f"{room.name}.txt"]
            names = {path.stem.rsplit("_", 1)[0] for path in (room / "Annotations").iterdir()}
            assert names <= set(CLASSES)


def test_lines_are_metres_to_the_millimetre_and_colours_to_255(rooms):
    for file in (rooms / "Area_3/office_2/Annotations").iterdir():
        for line in file.read_text().splitlines():
            words = line.split(" ")
            assert [len(word.partition(".")[2]) for word in words] == [3, 3, 3, 0, 0, 0]
            assert all(0 <= int(word) <= 255 for word in words[3:])


def test_the_file_of_a_room_has_the_points_of_its_objects(rooms):
    room = rooms / "Area_2/office_1"
    objects = [path.read_text() for path in (room / "Annotations").iterdir()]
    lines = sorted(line for text in objects for line in text.splitlines())
    assert sorted((room / "office_1.txt").read_text().splitlines()) == lines


def test_the_first_room_of_every_area_has_all_classes_and_others_lack_some(rooms):
    def found(number):
        return [
            {path.stem.rsplit("_", 1)[0] for path in (area / f"office_{number}").rglob("*_*.txt")}
            - {"office"}
            for area in rooms.iterdir()
        ]

    assert all(names == set(CLASSES) for names in found(1))
    assert any(names < set(CLASSES) for names in found(2))


def test_rooms_of_an_area_lie_apart(rooms):
    first, second = (
        np.loadtxt(rooms / f"Area_1/office_{number}/office_{number}.txt")[:, 0] for number in (1, 2)
    )
    assert second.min() - first.max() > STEP / 3


@pytest.mark.parametrize("look", LOOKS)
def test_things_are_where_such_things_are(look):
    objects, room = draw(look)
    height = {name: points[:, 2] for name, points in objects}
    # A door lies 0.1 m behind its wall.
    assert room[:, :3].min() > -0.11 - 5 * LOOKS[look].noise
    assert abs(height["floor"].mean()) < 0.01
    assert height["ceiling"].min() > 2.2
    assert height["ceiling"].min() > height["beam"].min() > height["table"].max()
    assert np.ptp(height["column"]) > 0.9 * np.ptp(room[:, 2])
    assert height["door"].min() < 0.1 < 0.8 < height["window"].min()


def test_walls_leave_doors_and_windows_open():
    objects, _ = draw(points=20_000)
    walls = np.concatenate([points[:, :3] for name, points in objects if name == "wall"])
    for hung in ("door", "window"):
        (points,) = (points[:, :3] for name, points in objects if name == hung)
        # The middle of it, and what is before and behind.
        low, high = np.quantile(points, (0.4, 0.6), axis=0)
        thin = np.ptp(points, axis=0).argmin()
        low[thin], high[thin] = low[thin] - 0.2, high[thin] + 0.2
        assert not ((walls > low) & (walls < high)).all(axis=1).any()


@pytest.mark.parametrize("seed", range(6))
def test_furniture_does_not_overlap(seed):
    objects, _ = draw("home", seed=seed, points=2000)  # whose points are the less noisy
    standing = [
        (points[:, :2].min(axis=0), points[:, :2].max(axis=0))
        for name, points in objects
        if name in ("table", "chair", "sofa", "bookcase", "column")
    ]
    for number, (low, high) in enumerate(standing):
        for other_low, other_high in standing[:number]:
            assert (low > other_high).any() or (high < other_low).any()


def test_about_as_many_points_as_asked_for():
    for points in (1500, 8000):
        assert 0.85 * points < len(draw(points=points)[1]) < 1.15 * points


def test_colours_hardly_tell_classes_apart():
    colors = {name: [] for name in CLASSES}
    for seed in range(40):
        for name, points in draw(seed=seed, points=1000)[0]:
            colors[name].append(points[:, 3:].mean(axis=0))
    means = np.array([np.mean(found, axis=0) for found in colors.values()])
    # Of 40 draws of what is even over 195 steps, four standard errors.
    assert np.ptp(means, axis=0).max() < 2 * 4 * 195 / 12**0.5 / 40**0.5


def test_height_tells_some_points_apart_and_not_all():
    objects, room = draw(seed=1)
    other, points = draw(seed=2)
    labels = np.repeat([CLASSES.index(name) for name, _ in objects], [len(p) for _, p in objects])
    truth = np.repeat([CLASSES.index(name) for name, _ in other], [len(p) for _, p in other])
    nearest = abs(points[::10, None, 2] - room[:, 2]).argmin(axis=1)
    right = (labels[nearest] == truth[::10]).mean()
    assert 1.5 / len(CLASSES) < right < 0.5


def test_looks_differ_in_names_measures_and_noise():
    for values in zip(*LOOKS.values(), strict=True):
        assert len(set(values)) == len(LOOKS)
    heights = {look: dict(draw(look, points=20_000)[0])["floor"][:, 2] for look in LOOKS}
    for look, height in heights.items():
        assert height.std() == pytest.approx(LOOKS[look].noise, rel=0.1)


def test_same_rooms_are_written_again_and_other_seeds_give_others(rooms, tmp_path):
    again = write_rooms(tmp_path / "again", rooms=2, points=1500)
    other = write_rooms(tmp_path / "other", rooms=2, points=1500, seed=1)
    names = files_below(rooms)
    assert names == files_below(again)
    assert filecmp.cmpfiles(rooms, again, names, shallow=False)[0] == names
    first = "Area_1/office_1/office_1.txt"
    assert (other / first).read_bytes() != (rooms / first).read_bytes()


def test_complete_rooms_are_kept_and_other_arguments_replace_them(tmp_path):
    folder = tmp_path / "rooms"
    write_rooms(folder, rooms=1, points=500)
    (folder / "marker").touch()
    write_rooms(folder, rooms=1, points=500)
    assert (folder / "marker").exists()
    main([str(folder), "--rooms", "1", "--points", "600", "--look", "home"])
    assert not (folder / "marker").exists()
    assert json.loads((folder / SETTINGS).read_text())["points"] == 600
    assert len(list(folder.glob("*/Area_*/lounge_1"))) == 6


def test_rooms_that_were_cut_short_are_not_taken_for_complete(tmp_path, monkeypatch):
    from tools.demos import furnished_rooms

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(furnished_rooms, "_write_room", stop)
        with pytest.raises(KeyboardInterrupt):
            write_rooms(tmp_path / "rooms", rooms=1, points=500)
    assert not (tmp_path / "rooms").exists()
    assert write_rooms(tmp_path / "rooms", rooms=1, points=500).is_dir()


def test_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    with pytest.raises(FileExistsError, match="mine holds something else"):
        write_rooms(tmp_path / "mine")
