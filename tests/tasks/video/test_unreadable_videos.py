from types import SimpleNamespace

import pytest

pytest.importorskip("mmcv")
from tasks.video import UnreadableVideosHook  # isort: skip

from mmengine.logging import MessageHub
from mmengine.structures import BaseDataElement


@pytest.fixture
def runner(request):
    warnings = []
    return SimpleNamespace(
        message_hub=MessageHub(f"{request.node.name}"),
        logger=SimpleNamespace(warning=warnings.append),
        warnings=warnings,
    )


def batch(*messages):
    return {
        "data_samples": [
            BaseDataElement(metainfo={"unreadable_videos": list(of_sample)} if of_sample else {})
            for of_sample in messages
        ]
    }


def run_epoch(hook, runner, *batches):
    hook.before_train_epoch(runner)
    for number, data_batch in enumerate(batches):
        hook.before_train_iter(runner, number, data_batch)
    hook.after_train_epoch(runner)


def test_each_file_is_named_once(runner):
    hook = UnreadableVideosHook()
    run_epoch(hook, runner, batch(["a", "b"], ["a"]), batch(["a"]))
    run_epoch(hook, runner, batch(["a"]))
    named = [w for w in runner.warnings if w.startswith("replaced")]
    assert named == ["replaced in training: a", "replaced in training: b"]


def test_every_epoch_is_counted_for_itself(runner):
    hook = UnreadableVideosHook()
    run_epoch(hook, runner, batch(["a", "b"], ["a"]), batch(["a"]))
    run_epoch(hook, runner, batch(["a"]))
    assert [w for w in runner.warnings if "in this epoch" in w] == [
        "unreadable videos in this epoch: 2, in place of which 4 times another was taken",
        "unreadable videos in this epoch: 1, in place of which 1 times another was taken",
    ]
    assert runner.message_hub.get_scalar("train/unreadable_videos").data[0].tolist() == [3, 4, 1]


def test_nothing_is_said_where_all_can_be_read(runner):
    run_epoch(UnreadableVideosHook(), runner, batch([], []))
    assert runner.warnings == []
    assert "train/unreadable_videos" not in runner.message_hub.log_scalars


def test_files_of_other_ranks_are_named_at_the_end(runner, monkeypatch):
    monkeypatch.setattr(
        "tasks.video.unreadable_videos.all_gather_object", lambda mine: [mine, ["of rank 1"]]
    )
    run_epoch(UnreadableVideosHook(), runner, batch([]))
    assert "replaced in training: of rank 1" in runner.warnings
