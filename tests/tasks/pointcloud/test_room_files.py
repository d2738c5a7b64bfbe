import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmengine")
from tasks.pointcloud.class_names import CLASS_ORDERS, CLASSES
from tasks.pointcloud.room_files import BadRoomError, Room, find_rooms, read_room
from tasks.pointcloud.room_writing import write_ply, write_room

SHARED = Path(__file__).parents[4] / "shared/data/real/pointcloud"
LABELS = np.array([0, 7, 8, 9, 10, 12, 255])


def make_room(labels=LABELS, instance=True):
    random = np.random.default_rng(0)
    count = len(labels)
    return Room(
        random.uniform(20, 30, (count, 3)).astype(np.float32),
        random.integers(0, 256, (count, 3)).astype(np.uint8),
        np.asarray(labels, np.int64),
        np.arange(count) if instance else None,
    )


def assert_same(found, room):
    assert np.array_equal(found.coord, room.coord)
    assert np.array_equal(found.color, room.color)
    assert np.array_equal(found.segment, room.segment)
    assert found.coord.dtype == np.float32
    assert found.color.dtype == np.uint8
    assert found.segment.dtype == np.int64
    if found.instance is not None:
        assert np.array_equal(found.instance, room.instance)


def write_pointcept(folder, room):
    """As pointcept/datasets/preprocessing/s3dis writes them: labels (N, 1), none of classes."""
    folder.mkdir(parents=True)
    np.save(folder / "coord.npy", room.coord)
    np.save(folder / "color.npy", room.color)
    np.save(folder / "segment.npy", room.segment.astype(np.int16).reshape(-1, 1))
    np.save(folder / "instance.npy", room.instance.astype(np.int16).reshape(-1, 1))
    np.save(folder / "normal.npy", room.coord)
    return folder


def write_mmdetection3d(root, name, room):
    for folder in ("points", "semantic_mask", "instance_mask"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    np.hstack([room.coord, room.color.astype(np.float32)]).tofile(root / f"points/{name}.bin")
    room.segment.tofile(root / f"semantic_mask/{name}.bin")
    room.instance.tofile(root / f"instance_mask/{name}.bin")
    return root / f"points/{name}.bin"


def write_las(file, room, color_factor=257, labels="label"):
    import laspy

    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales, header.offsets = np.full(3, 1e-6), np.zeros(3)
    if labels not in ("classification", None):
        header.add_extra_dim(laspy.ExtraBytesParams(labels, np.uint8))
    las = laspy.LasData(header)
    las.xyz = room.coord.astype(np.float64)
    las.red, las.green, las.blue = (room.color.astype(np.uint16) * color_factor).T
    if labels is not None:
        las[labels] = room.segment if labels != "classification" else room.segment % 32
    las.write(file)


def write_open3d(file, room, labels="class", floats=False):
    import open3d

    cloud = open3d.t.geometry.PointCloud(room.coord)
    cloud.point.colors = (room.color / 255).astype(np.float32) if floats else room.color
    if labels is not None:
        cloud.point[labels] = room.segment.astype(np.int32).reshape(-1, 1)
    assert open3d.t.io.write_point_cloud(str(file), cloud)


class TestLayouts:
    def test_our_folders_come_back_as_they_were(self, tmp_path):
        room = make_room()
        write_room(tmp_path / "office_1", room)
        assert_same(read_room(tmp_path / "office_1"), room)

    def test_pointcepts(self, tmp_path):
        room = make_room()
        folder = write_pointcept(tmp_path / "office_1", room)
        assert_same(read_room(folder, class_order="pointcept"), room)

    def test_mmdetection3ds(self, tmp_path):
        room = make_room()
        file = write_mmdetection3d(tmp_path, "Area_1_office_1", room)
        assert_same(read_room(file, class_order="mmdetection3d"), room)

    def test_our_ply_files_come_back_and_state_their_classes(self, tmp_path):
        room = make_room(instance=False)
        write_ply(tmp_path / "room.ply", room.coord, room.color, room.segment)
        assert_same(read_room(tmp_path / "room.ply"), room)
        header = (tmp_path / "room.ply").read_bytes().split(b"end_header")[0].decode()
        assert f"\ncomment classes {' '.join(CLASSES)}\n" in header
        assert [path.name for path in tmp_path.iterdir()] == ["room.ply"]

    @pytest.mark.parametrize("end", ["ply", "pcd"])
    @pytest.mark.parametrize("labels", ["class", "label"])
    def test_those_that_open3d_reads(self, tmp_path, end, labels):
        room = make_room()
        write_open3d(tmp_path / f"room.{end}", room, labels)
        assert_same(read_room(tmp_path / f"room.{end}", class_order="pointnet"), room)

    def test_ply_with_colours_from_0_to_1(self, tmp_path):
        room = make_room()
        write_open3d(tmp_path / "room.ply", room, floats=True)
        assert_same(read_room(tmp_path / "room.ply", class_order="pointnet"), room)

    @pytest.mark.parametrize("labels", ["label", "segment", "classification"])
    def test_las(self, tmp_path, labels):
        room = make_room(LABELS[:6])
        write_las(tmp_path / "room.las", room, labels=labels)
        found = read_room(tmp_path / "room.las", class_order="pointnet")
        assert np.abs(found.coord - room.coord).max() < 2e-6
        assert np.array_equal(found.color, room.color)
        assert np.array_equal(found.segment, room.segment)

    def test_las_of_georeferenced_points_keeps_millimetres(self, tmp_path):
        room = make_room(LABELS[:6])
        moved = room.coord.astype(np.float64) + np.array([500_000, 5_400_000, 0])

        import laspy

        header = laspy.LasHeader(point_format=3, version="1.2")
        header.scales, header.offsets = np.full(3, 1e-4), np.floor(moved.min(axis=0))
        las = laspy.LasData(header)
        las.xyz = moved
        las.red, las.green, las.blue = (room.color.astype(np.uint16) * 257).T
        las.write(tmp_path / "room.las")
        found = read_room(tmp_path / "room.las")
        apart, expected = found.coord - found.coord[0], room.coord - room.coord[0]
        assert np.abs(apart - expected).max() < 2e-4
        assert found.segment is None

    def test_files_without_labels_are_read_without(self, tmp_path):
        room = make_room()
        write_open3d(tmp_path / "room.ply", room, labels=None)
        write_las(tmp_path / "room.las", room, labels=None)
        assert read_room(tmp_path / "room.ply").segment is None
        assert read_room(tmp_path / "room.las").segment is None

    def test_labels_can_be_left_out(self, tmp_path):
        folder = write_pointcept(tmp_path / "office_1", make_room())
        assert read_room(folder, labels=False).segment is None

    def test_a_real_room_of_mmdetection3d(self, tmp_path):
        if not SHARED.is_dir():
            pytest.skip(f"no real rooms in {SHARED}")
        for folder, part in (("points", "points"), ("semantic_mask", "semantic")):
            (tmp_path / folder).mkdir()
            source = SHARED / f"s3dis_Area_1_office_2_{part}.bin"
            (tmp_path / folder / "Area_1_office_2.bin").symlink_to(source)
        (place,) = find_rooms(tmp_path, [1])
        assert (place.area, place.name) == (1, "office_2")
        room = read_room(place.path, class_order="mmdetection3d")
        assert len(room.coord) == len(room.segment) == 100
        assert np.ptp(room.coord, axis=0).max() < 20
        assert room.color.max() > 100
        assert set(room.segment) <= set(range(13))


class TestClassOrder:
    def test_labels_are_renumbered_to_the_order_asked_for(self, tmp_path):
        folder = write_pointcept(tmp_path / "office_1", make_room(np.arange(13)))
        found = read_room(folder, class_order="openpoints")
        names = [CLASSES[label] for label in found.segment]
        assert tuple(names) == CLASS_ORDERS["openpoints"]

    def test_ignored_points_stay_ignored_however_they_are_marked(self, tmp_path):
        folder = write_pointcept(tmp_path / "office_1", make_room([0, 255, -1]))
        assert read_room(folder, class_order="openpoints").segment.tolist() == [0, 255, 255]

    def test_files_that_do_not_state_it_need_it_said(self, tmp_path):
        folder = write_pointcept(tmp_path / "office_1", make_room())
        with pytest.raises(BadRoomError, match=r"office_1 does not say .* one of pointnet, mmdet"):
            read_room(folder)

    @pytest.mark.parametrize("kind", ["folder", "ply"])
    def test_a_stated_order_other_than_asked_for_is_an_error_with_the_remedy(self, tmp_path, kind):
        room, order = make_room(), CLASS_ORDERS["openpoints"]
        path = tmp_path / ("room.ply" if kind == "ply" else "room")
        if kind == "ply":
            write_ply(path, room.coord, room.color, room.segment, order)
        else:
            write_room(path, room, order)
        with pytest.raises(BadRoomError, match="say class_order='openpoints' in the config"):
            read_room(path)
        found = read_room(path, class_order="openpoints")
        assert found.segment.tolist() == [0, 8, 7, 10, 9, 12, 255]
        assert read_room(path, order).segment.tolist() == LABELS.tolist()

    def test_a_config_that_contradicts_the_file_is_an_error(self, tmp_path):
        write_room(tmp_path / "room", make_room())
        with pytest.raises(BadRoomError, match="leave class_order out, or correct it"):
            read_room(tmp_path / "room", class_order="kpconv")

    def test_classes_of_another_set_are_an_error(self, tmp_path):
        write_room(tmp_path / "room", make_room([0, 1]), ["wall", "bathtub"])
        with pytest.raises(BadRoomError, match="the order wall, bathtub, wanted is the order of"):
            read_room(tmp_path / "room")

    def test_an_unknown_name_of_an_order_is_an_error(self, tmp_path):
        folder = write_pointcept(tmp_path / "office_1", make_room())
        with pytest.raises(ValueError, match=r"class_order is one of pointnet, .* got 'scannet'"):
            read_room(folder, class_order="scannet")


class TestBadInput:
    @pytest.fixture
    def folder(self, tmp_path):
        write_room(tmp_path / "office_1", make_room())
        return tmp_path / "office_1"

    @pytest.mark.parametrize("text", ["", '{"classes"', "{}", "[]"])
    def test_a_statement_that_says_no_classes(self, folder, text):
        (folder / "room.json").write_text(text)
        with pytest.raises(BadRoomError, match=r"room\.json does not say its classes"):
            read_room(folder)

    @pytest.mark.parametrize("content", [b"", b"LASF", b"LASF" + bytes(500)])
    def test_a_damaged_las_file(self, tmp_path, content):
        pytest.importorskip("laspy")
        (tmp_path / "room.las").write_bytes(content)
        with pytest.raises(BadRoomError, match=r"room\.las cannot be read by laspy"):
            read_room(tmp_path / "room.las", class_order="pointcept")

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_coordinates_that_are_not_finite(self, folder, value):
        coord = np.load(folder / "coord.npy")
        coord[2:4, 1] = value
        np.save(folder / "coord.npy", coord)
        with pytest.raises(BadRoomError, match=r"office_1: 2 of 7 points .*NaN.* is point 2, \["):
            read_room(folder)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_colours_from_0_to_1(self, folder, dtype):
        color = np.load(folder / "color.npy")
        np.save(folder / "color.npy", (color / 255).astype(dtype))
        with pytest.raises(BadRoomError, match=r"office_1: colours from .* say white=1 in the con"):
            read_room(folder)
        assert np.array_equal(read_room(folder, white=1).color, color)

    def test_colours_above_their_range(self, folder):
        with pytest.raises(BadRoomError, match=r"expected 0 to 1\. If full brightness is another"):
            read_room(folder, white=1)

    @pytest.mark.parametrize("value", [-3, 300, np.nan])
    def test_colours_out_of_range(self, folder, value):
        color = np.load(folder / "color.npy").astype(np.float32)
        color[3, 1] = value
        np.save(folder / "color.npy", color)
        with pytest.raises(BadRoomError, match="expected 0 to 255"):
            read_room(folder)

    def test_las_colours_of_8_bits(self, tmp_path):
        room = make_room()
        write_las(tmp_path / "room.las", room, color_factor=1, labels=None)
        with pytest.raises(BadRoomError, match="say white=255 in the config"):
            read_room(tmp_path / "room.las")
        found = read_room(tmp_path / "room.las", white=255)
        assert np.array_equal(found.color, room.color)

    @pytest.mark.parametrize(("label", "shown"), [(13, "13"), (-2, "-2"), (254, "254")])
    def test_labels_out_of_range(self, folder, label, shown):
        np.save(folder / "segment.npy", np.array([0, 1, label, label, 4, 5, 6], np.int16))
        with pytest.raises(
            BadRoomError, match=rf"office_1: 2 of 7 labels are out of range: {shown}\. .* 0 to 12"
        ):
            read_room(folder)

    def test_labels_that_are_not_whole(self, folder):
        np.save(folder / "segment.npy", np.array([0, 1, 2.5, 3, 4, 5, 6]))
        with pytest.raises(BadRoomError, match=r"1 of 7 labels are out of range: 2\.5"):
            read_room(folder)

    @pytest.mark.parametrize("name", ["color", "segment", "instance"])
    def test_files_of_different_rooms(self, folder, name):
        np.save(folder / f"{name}.npy", np.load(folder / f"{name}.npy")[:-1])
        with pytest.raises(
            BadRoomError, match=r"office_1: 7 points and 6 .* do not belong together"
        ):
            read_room(folder)

    @pytest.mark.parametrize("name", ["coord", "color", "segment"])
    def test_a_file_that_was_cut_short(self, folder, name):
        content = (folder / f"{name}.npy").read_bytes()
        (folder / f"{name}.npy").write_bytes(content[:-3])
        with pytest.raises(BadRoomError, match=rf"{name}\.npy is not a whole \.npy file"):
            read_room(folder)

    @pytest.mark.parametrize("name", ["coord", "color"])
    def test_a_missing_file(self, folder, name):
        (folder / f"{name}.npy").unlink()
        with pytest.raises(FileNotFoundError, match=rf"{name}\.npy does not exist"):
            read_room(folder)

    def test_a_bin_file_that_was_cut_short(self, tmp_path):
        file = write_mmdetection3d(tmp_path, "Area_1_office_1", make_room())
        file.write_bytes(file.read_bytes()[:-4])
        with pytest.raises(BadRoomError, match=r"office_1\.bin holds 41 float32 numbers, which is"):
            read_room(file)

    def test_an_empty_room(self, tmp_path):
        file = write_mmdetection3d(tmp_path, "Area_1_office_1", make_room())
        for folder in ("points", "semantic_mask", "instance_mask"):
            (tmp_path / folder / "Area_1_office_1.bin").write_bytes(b"")
        with pytest.raises(BadRoomError, match="holds no points"):
            read_room(file)

    def test_a_ply_that_is_none(self, tmp_path):
        (tmp_path / "room.ply").write_bytes(b"nonsense")
        with pytest.raises(BadRoomError, match=r"room\.ply cannot be read by Open3D"):
            read_room(tmp_path / "room.ply")

    def test_several_properties_that_may_be_labels(self, tmp_path):
        import open3d

        room = make_room()
        cloud = open3d.t.geometry.PointCloud(room.coord)
        cloud.point.colors = room.color
        for name in ("class", "label"):
            cloud.point[name] = room.segment.astype(np.int32).reshape(-1, 1)
        open3d.t.io.write_point_cloud(str(tmp_path / "room.ply"), cloud)
        with pytest.raises(BadRoomError, match="may be its labels, class and label: remove"):
            read_room(tmp_path / "room.ply", class_order="pointnet")

    def test_a_file_without_colours(self, tmp_path):
        import open3d

        cloud = open3d.t.geometry.PointCloud(make_room().coord)
        open3d.t.io.write_point_cloud(str(tmp_path / "room.ply"), cloud)
        with pytest.raises(BadRoomError, match=r"room\.ply has no colours"):
            read_room(tmp_path / "room.ply")


class TestFinding:
    def test_rooms_of_the_areas_in_the_order_of_their_names(self, tmp_path):
        for name in ("Area_5/office_2", "Area_5/hallway_6", "Area_1/WC_1", "Area_2/storage_1"):
            write_room(tmp_path / name, make_room())
        names = [place.full_name for place in find_rooms(tmp_path, [5, 1])]
        assert names == ["Area_1/WC_1", "Area_5/hallway_6", "Area_5/office_2"]

    def test_layouts_may_be_mixed(self, tmp_path):
        room = make_room()
        write_room(tmp_path / "Area_1/office_1", room)
        write_mmdetection3d(tmp_path, "Area_1_office_2", room)
        write_ply(tmp_path / "Area_1/office_3.ply", room.coord, room.color, room.segment)
        write_open3d(tmp_path / "Area_1_office_4.pcd", room)
        places = find_rooms(tmp_path, [1])
        assert [place.name for place in places] == [f"office_{n}" for n in range(1, 5)]
        for place in places:
            assert len(read_room(place.path, class_order="pointcept").coord) == 7

    def test_missing_areas_are_named_with_those_that_are_there(self, tmp_path):
        write_room(tmp_path / "Area_1/office_1", make_room())
        with pytest.raises(FileNotFoundError, match=r"no room of Area_5, Area_6, it has Area_1\."):
            find_rooms(tmp_path, [1, 5, 6])

    def test_a_missing_folder_says_what_is_expected(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere does not exist.*prepare_pointcloud"):
            find_rooms(tmp_path / "nowhere", [1])

    def test_a_room_that_is_there_twice(self, tmp_path):
        room = make_room()
        write_room(tmp_path / "Area_1/office_1", room)
        write_ply(tmp_path / "Area_1/office_1.ply", room.coord, room.color, room.segment)
        with pytest.raises(BadRoomError, match="Area_1/office_1 is there twice"):
            find_rooms(tmp_path, [1])

    def test_a_room_that_lacks_a_file_is_found_and_named(self, tmp_path):
        write_room(tmp_path / "Area_1/office_1", make_room())
        (tmp_path / "Area_1/office_1/coord.npy").unlink()
        (place,) = find_rooms(tmp_path, [1])
        with pytest.raises(FileNotFoundError, match=r"office_1/coord\.npy does not exist"):
            read_room(place.path)

    def test_a_room_that_is_being_converted_is_none(self, tmp_path):
        write_room(tmp_path / "Area_1/office_1", make_room())
        (tmp_path / "Area_1/office_1").rename(tmp_path / "Area_1/office_2.123.partial")
        with pytest.raises(FileNotFoundError, match="it has no area"):
            find_rooms(tmp_path, [1])


class TestWriting:
    def test_a_folder_of_something_else_is_an_error(self, tmp_path):
        (tmp_path / "room").mkdir()
        (tmp_path / "room/notes.txt").touch()
        with pytest.raises(OSError, match="not empty"):
            write_room(tmp_path / "room", make_room())
        assert [path.name for path in (tmp_path / "room").iterdir()] == ["notes.txt"]

    def test_a_room_that_is_there_is_left_as_it_is(self, tmp_path):
        write_room(tmp_path / "room", make_room())
        before = (tmp_path / "room/segment.npy").read_bytes()
        write_room(tmp_path / "room", make_room([1, 2]))
        assert (tmp_path / "room/segment.npy").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["room"]

    @pytest.mark.parametrize("place", [(json, "dumps"), (Path, "rename")])
    def test_a_room_appears_whole_or_not_at_all(self, tmp_path, monkeypatch, place):
        def stop(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(*place, stop)
            with pytest.raises(KeyboardInterrupt):
                write_room(tmp_path / "room", make_room())
        assert not (tmp_path / "room").exists()
        write_room(tmp_path / "room", make_room())
        assert_same(read_room(tmp_path / "room"), make_room())

    def test_a_ply_file_appears_whole_or_not_at_all(self, tmp_path, monkeypatch):
        room = make_room()
        write_ply(tmp_path / "room.ply", room.coord, room.color, room.segment)
        before = (tmp_path / "room.ply").read_bytes()

        def stop(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "write_bytes", stop)
        with pytest.raises(KeyboardInterrupt):
            write_ply(tmp_path / "room.ply", room.coord[:3], room.color[:3], room.segment[:3])
        assert (tmp_path / "room.ply").read_bytes() == before

    def test_more_objects_than_int16_counts_are_an_error(self, tmp_path):
        room = make_room([0, 1])
        room.instance[1] = 40_000
        with pytest.raises(ValueError, match="40000 objects"):
            write_room(tmp_path / "room", room)
