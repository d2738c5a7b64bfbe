import filecmp

import numpy as np
import pytest

pytest.importorskip("mmengine")
pytest.importorskip("decord")
import tasks.video.localization  # noqa: F401  # isort: skip

import decord

from tasks.video.localization.annotations import clean, read_classes, read_database
from tools.demos import motion_videos
from tools.demos.motion_videos import ACTION, CLASSES, FRAMES_PER_SECOND, LENGTH, PAUSE, draw_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A small set, which tests must not change."""
    folder = tmp_path_factory.mktemp("data") / "motion_videos"
    motion_videos.write_data_set(folder, shrink=100)
    return folder


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_actions_are_in_order_apart_and_within_the_video(seed):
    frames, actions = draw_video(np.random.default_rng(seed))
    seconds = len(frames) / FRAMES_PER_SECOND
    assert LENGTH[0] <= seconds <= LENGTH[1]
    ends = np.array([action["segment"] for action in actions])
    lengths, pauses = ends[:, 1] - ends[:, 0], ends[1:, 0] - ends[:-1, 1]
    rounded = 0.11
    for found, (low, high) in ((lengths, ACTION), (pauses, PAUSE)):
        assert low - rounded < found.min() <= found.max() < high + rounded
    assert ends[0, 0] > 1
    assert ends[-1, 1] <= seconds
    assert len(actions) >= 5


def test_classes_come_equally_often():
    actions = [draw_video(np.random.default_rng(seed))[1] for seed in range(20)]
    labels = [action["label"] for of_video in actions for action in of_video]
    counts = [labels.count(name) for name in CLASSES]
    assert min(counts) > 0.6 * max(counts)


def test_pixels_change_in_actions_and_rest_in_pauses():
    frames, actions = draw_video(np.random.default_rng(5))
    changes = np.abs(np.diff(frames.astype(int), axis=0)).max(axis=(1, 2, 3))
    first, second = (action["segment"] for action in actions[:2])

    def during(start, end):
        # Changes between frames that are both within.
        return changes[int(np.ceil(start * FRAMES_PER_SECOND)) : int(end * FRAMES_PER_SECOND)]

    assert during(*first).min() > 20
    assert during(first[1], second[0]).max() == 0


@pytest.mark.parametrize(
    ("label", "halfway", "whole"),
    [("right_then_left", (1, 0), (0, 0)), ("down_then_right", (0, 1), (1, 1))],
)
def test_the_object_moves_as_the_class_says(label, halfway, whole):
    actions = [{"label": label, "segment": [1.0, 3.0]}]
    way = motion_videos._way(actions, 5 * FRAMES_PER_SECOND)
    assert np.allclose(way[: FRAMES_PER_SECOND + 1], 0)
    assert np.allclose(way[2 * FRAMES_PER_SECOND], halfway)
    assert np.allclose(way[3 * FRAMES_PER_SECOND :], whole)


def test_object_and_ground_are_of_one_kind_of_texture_but_for_its_brightness(monkeypatch):
    pasted = []
    monkeypatch.setattr(
        motion_videos, "paste", lambda ground, *rest: pasted.append((ground, rest[0])) or ground
    )
    kinds = []
    for seed in range(30):
        pasted.clear()
        draw_video(np.random.default_rng(seed))
        kinds.append([(image.mean(), image.std()) for image in pasted[0]])
    ground, texture = np.array(kinds).mean(axis=0)
    brighter = np.array([motion_videos.BRIGHTER, 0])
    assert texture == pytest.approx(ground + brighter, abs=0.02)


def test_files_are_as_annotated(videos):
    folder = videos / "finetune"
    classes = read_classes(folder / "classes.txt")
    database, findings = clean(read_database(folder / "annotations.json"), classes)
    assert not findings
    assert {entry["subset"] for entry in database.values()} == {"training", "validation"}
    for name, entry in database.items():
        reader = decord.VideoReader(str(folder / f"videos/{name}.mp4"))
        assert len(reader) / reader.get_avg_fps() == pytest.approx(entry["duration"])


def test_clips_are_of_motions_that_the_videos_do_not_show(videos):
    names = {path.name for path in (videos / "pretrain/videos_train").iterdir()}
    assert len(names) == 8
    assert not names & set(CLASSES)


def test_the_same_files_come_again(videos, tmp_path):
    motion_videos.write_data_set(tmp_path / "again", shrink=100)
    files = [path.relative_to(videos) for path in videos.rglob("*") if path.is_file()]
    _, different, missing = filecmp.cmpfiles(videos, tmp_path / "again", files, shallow=False)
    assert not different + missing
