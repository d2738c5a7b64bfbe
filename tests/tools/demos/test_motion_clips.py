import filecmp
import json
import multiprocessing

import numpy as np
import pytest

pytest.importorskip("decord")
import decord

from tools.demos import motion_clips
from tools.demos.generated_data import SETTINGS
from tools.demos.motion_clips import GROUNDS, class_names, draw_clip, write_data_set

PARTS = ["pretrain", "finetune"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A small set of clips, which tests must not change."""
    folder = tmp_path_factory.mktemp("data") / "motion"
    write_data_set(folder, shrink=40)
    return folder


@pytest.mark.parametrize("part", PARTS)
def test_first_frame_does_not_depend_on_the_class(part):
    first = [draw_clip(name, GROUNDS[part], np.random.default_rng(3))[0] for name in class_names()]
    assert all(np.array_equal(frame, first[0]) for frame in first)


def test_every_frame_is_the_first_frame_of_some_clip_of_every_class(monkeypatch):
    # Without the ground the object alone is left; a motion must do no more than move it around the
    # joined edges, by a way that depends on the class and the speed but not on where it starts.
    places = []
    monkeypatch.setattr(
        motion_clips, "paste", lambda ground, texture, mask, x, y: places.append((x, y)) or ground
    )
    ways = []
    for name in class_names():
        for seed in (1, 2):
            places.clear()
            draw_clip(name, 0.3, np.random.default_rng(seed))
            way = np.array(places) - places[0]
            ways.append(way / abs(way).max())
    for one, other in zip(ways[::2], ways[1::2], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_classes_are_all_different():
    assert len(set(class_names())) == len(class_names()) == 12


def test_ground_to_finetune_on_is_brighter():
    means = [
        np.mean([draw_clip("right_then_up", GROUNDS[part], random)[0] for _ in range(20)])
        for part, random in zip(PARTS, np.random.default_rng(0).spawn(2), strict=True)
    ]
    # The object covers a part of a frame.
    assert 0.7 < (means[1] - means[0]) / (255 * (GROUNDS["finetune"] - GROUNDS["pretrain"])) < 1


def test_object_moves_as_the_class_says(monkeypatch):
    places = []
    monkeypatch.setattr(
        motion_clips, "paste", lambda ground, texture, mask, x, y: places.append((x, y)) or ground
    )
    draw_clip("right_then_up", 0.3, np.random.default_rng(0))
    steps = np.diff(places, axis=0)
    half = len(steps) // 2
    assert (steps[:half, 0] > 0.1).all()
    assert (abs(steps[:half, 1]) < 1e-9).all()
    assert (steps[half + 1 :, 1] < -0.1).all()
    assert (abs(steps[half + 1 :, 0]) < 1e-9).all()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_lists_name_videos_that_decode_to_what_was_drawn(clips, part, split):
    lines = (clips / part / f"{split}_list_videos.txt").read_text().splitlines()
    path, label = lines[-1].rsplit(" ", 1)
    assert path.startswith(class_names()[int(label)])
    frames = decord.VideoReader(str(clips / part / f"videos_{split}" / path))
    assert len(frames) == motion_clips.FRAMES
    assert frames[0].shape == (motion_clips.SIDE, motion_clips.SIDE, 3)
    number = int(path[-8:-4])
    splits = ["train", "val"]
    key = [motion_clips.SEED, PARTS.index(part), splits.index(split), int(label), number]
    drawn = draw_clip(class_names()[int(label)], GROUNDS[part], np.random.default_rng(key))
    error = np.abs(frames[:].asnumpy().astype(float) - drawn).mean()
    assert error < 10  # of 255, the loss of the codec; two different clips differ by 40


def test_same_set_is_written_again(clips, tmp_path):
    write_data_set(tmp_path / "again", shrink=40)
    comparison = filecmp.dircmp(clips, tmp_path / "again")
    pending = [comparison]
    while pending:
        part = pending.pop()
        assert part.left_only == part.right_only == part.diff_files == []
        pending += part.subdirs.values()


def test_complete_set_is_kept_and_other_settings_replace_it(tmp_path):
    folder = tmp_path / "motion"
    write_data_set(folder, shrink=80)
    marker = folder / "marker"
    marker.touch()
    write_data_set(folder, shrink=80)
    assert marker.exists()
    write_data_set(folder, shrink=40)
    assert not marker.exists()
    settings = json.loads((folder / SETTINGS).read_text())
    wanted = motion_clips.CLIPS_PER_CLASS["pretrain"]["train"] // 40
    assert settings["clips_per_class"]["pretrain"]["train"] == wanted


def test_set_that_is_cut_short_is_not_taken_for_complete(tmp_path, monkeypatch):
    folder = tmp_path / "motion"
    monkeypatch.setattr(motion_clips, "write_video", _fail_at_the_third(motion_clips.write_video))
    with pytest.raises(KeyboardInterrupt):
        write_data_set(folder, shrink=80)
    assert not folder.exists()
    monkeypatch.undo()
    write_data_set(folder, shrink=80)
    assert (folder / "finetune/val_list_videos.txt").exists()


def _fail_at_the_third(write):
    calls = []

    def fail(path, frames):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(path, frames)

    return fail


def test_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/settings.json").write_text("{}")
    with pytest.raises(FileExistsError, match="mine holds something else"):
        write_data_set(tmp_path / "mine", shrink=80)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["settings.json"]


def test_a_damaged_note_of_the_settings_has_the_set_written_anew(tmp_path, capsys):
    folder = tmp_path / "motion"
    write_data_set(folder, shrink=80)
    settings = (folder / SETTINGS).read_text()
    (folder / SETTINGS).write_text(settings[:20])
    write_data_set(folder, shrink=80)
    assert (folder / SETTINGS).read_text() == settings
    assert "written anew" in capsys.readouterr().out


def test_a_set_that_is_there_may_be_read_only(tmp_path, monkeypatch):
    write_data_set(tmp_path / "motion", shrink=80)
    monkeypatch.setattr("tools.demos.generated_data.FileLock", None)
    write_data_set(tmp_path / "motion", shrink=80)


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "motion").mkdir()
    write_data_set(tmp_path / "motion", shrink=80)
    assert (tmp_path / "motion" / SETTINGS).is_file()


def test_of_two_at_once_one_writes_and_the_other_waits(tmp_path):
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=write_data_set, args=(tmp_path / "motion", 40)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "motion" / SETTINGS).is_file()
    assert not (tmp_path / "motion.partial").exists()
