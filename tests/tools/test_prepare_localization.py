import json

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
import tasks.video.localization  # noqa: F401  # isort: skip

from tasks.video.localization import BadAnnotationError
from tests.video_clips import write_clip
from tools.prepare_localization import main


def entry(*labels, subset="training", duration=4.0):
    annotations = [{"label": label, "segment": [0, 1]} for label in labels]
    return {"subset": subset, "duration": duration, "annotations": annotations}


@pytest.fixture
def write(tmp_path):
    def write(**database):
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps({"database": database}))
        (tmp_path / "classes.txt").write_text("jump\nrun\n")
        return path

    return write


def test_classes_are_all_labels_sorted(write, tmp_path):
    path = write(a=entry("run", "Ambiguous"), b=entry("jump", "run"))
    assert main(["classes", str(path), str(tmp_path / "found.txt")]) == 0
    assert (tmp_path / "found.txt").read_text() == "jump\nrun\n"


def check(path, *arguments):
    return main(["check", str(path), "--classes", str(path.parent / "classes.txt"), *arguments])


def test_a_good_set_is_counted(write, capsys):
    path = write(a=entry("run", "jump"), b=entry("run", subset="validation"))
    assert check(path) == 0
    assert "2 videos (1 of training, 1 of validation), 3 actions of 2 cl" in capsys.readouterr().out


def test_bad_annotations_are_named(write, capsys):
    assert check(write(a=entry("run", "swim"))) == 1
    assert "video a, annotation 1: label 'swim' is no class" in capsys.readouterr().out


def test_videos_that_cannot_be_used_are_named_and_listed(write, tmp_path, capsys):
    path = write(good=entry("run"), short=entry("run"), missing=entry("run"), damaged=entry("run"))
    for name, frames in (("good", 100), ("short", 50), ("damaged", 100)):
        write_clip(tmp_path / f"videos/{name}.mp4", frames=frames)
    damaged = tmp_path / "videos/damaged.mp4"
    damaged.write_bytes(damaged.read_bytes()[:500])
    found = tmp_path / "blocked.txt"
    assert check(path, "--videos", str(tmp_path / "videos"), "--unreadable", str(found)) == 1
    shown = capsys.readouterr().out
    assert "short.mp4: it has 2.0 s, and its annotations are of 4.0 s" in shown
    assert "missing.mp4: there is no such file" in shown
    assert found.read_text().split() == ["short", "missing", "damaged"]
    # and the list is one to leave out
    assert check(path, "--videos", str(tmp_path / "videos"), "--block-list", str(found)) == 0


def test_a_small_set_has_so_many_videos_of_each_subset(write, tmp_path):
    path = write(
        a=entry("jump"), b=entry("run", "jump"), c=entry("run"), d=entry("run", subset="validation")
    )
    target = tmp_path / "small.json"
    main(["small", str(path), str(target), "--videos", "1", "--labels", "run"])
    small = json.loads(target.read_text())["database"]
    assert list(small) == ["b", "d"]
    assert [annotation["label"] for annotation in small["b"]["annotations"]] == ["run"]


def test_a_label_of_no_video_is_named(write, tmp_path):
    with pytest.raises(BadAnnotationError, match="no video has the labels swim"):
        main(["small", str(write(a=entry("run"))), str(tmp_path / "x"), "--labels", "swim"])
