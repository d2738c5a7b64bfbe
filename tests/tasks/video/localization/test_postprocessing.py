import math

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
import tasks.video.localization  # noqa: F401  # isort: skip

import torch
from mmengine.structures import InstanceData

from tasks.video.localization.postprocessing import merge_windows, soft_nms, vote


def overlap(a, b):
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / max(a[1] - a[0] + b[1] - b[0] - shared, 1e-6)


def one_by_one(segments, scores, groups, sigma, min_score):
    """Soft-NMS from its definition: index to lowered score."""
    left, kept = dict(enumerate(scores)), {}
    while left and max(left.values()) >= min_score:
        best = max(left, key=left.get)
        kept[best] = left.pop(best)
        for other in left:
            if groups[other] == groups[best]:
                left[other] *= math.exp(-(overlap(segments[best], segments[other]) ** 2) / sigma)
    return kept


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("number_of_groups", [1, 4])
def test_soft_nms_is_its_definition(seed, number_of_groups):
    torch.manual_seed(seed)
    starts = torch.rand(60) * 20
    segments = torch.stack([starts, starts + torch.rand(60) * 10], 1)
    segments[::7, 1] = segments[::7, 0]  # of no length
    scores, groups = torch.rand(60), torch.randint(number_of_groups, (60,))
    kept, lowered = soft_nms(segments, scores, groups, sigma=0.5, min_score=0.05)
    expected = one_by_one(segments.tolist(), scores.tolist(), groups.tolist(), 0.5, 0.05)
    assert set(kept.tolist()) == set(expected)
    assert lowered.tolist() == pytest.approx([expected[i] for i in kept.tolist()], rel=1e-5)
    assert lowered.tolist() == sorted(lowered.tolist(), reverse=True)


def test_a_repeated_segment_is_lowered_and_another_class_is_not():
    segments, scores = torch.tensor([[0.0, 1.0]] * 3), torch.tensor([0.9, 0.8, 0.7])
    kept, lowered = soft_nms(segments, scores, torch.tensor([0, 0, 1]), sigma=0.5)
    assert kept.tolist() == [0, 2, 1]
    assert lowered.tolist() == pytest.approx([0.9, 0.7, 0.8 * math.exp(-2)])


def test_as_many_are_kept_as_asked_for():
    segments = torch.arange(10.0)[:, None] * 10 + torch.tensor([0.0, 1.0])
    kept, _ = soft_nms(segments, torch.linspace(0.1, 1, 10), max_kept=3)
    assert kept.tolist() == [9, 8, 7]


def test_nothing_is_nothing():
    kept, lowered = soft_nms(torch.zeros(0, 2), torch.zeros(0))
    assert len(kept) == len(lowered) == 0
    kept, lowered = soft_nms(torch.tensor([[0.0, 1.0]]), torch.tensor([1e-4]), min_score=1e-3)
    assert len(kept) == len(lowered) == 0


def test_sigma_has_to_be_above_0():
    with pytest.raises(ValueError, match="sigma has to be above 0, got 0"):
        soft_nms(torch.zeros(1, 2), torch.ones(1), sigma=0)


def test_votes_count_by_score():
    segments = torch.tensor([[0.0, 10.0], [1.0, 11.0], [50.0, 60.0]])
    voted = vote(segments[:1], segments, torch.tensor([0.9, 0.3, 0.9]), threshold=0.7)
    assert voted.tolist() == [pytest.approx([0.25, 10.25])]


def test_a_segment_of_no_length_stays_where_it_is():
    segments = torch.tensor([[3.0, 3.0]])
    assert torch.equal(vote(segments, segments, torch.ones(1), 0.5), segments)


def windows(*predictions):
    segments, scores, labels = map(torch.tensor, zip(*predictions, strict=True))
    return InstanceData(segments=segments, scores=scores, labels=labels)


def test_windows_of_a_video_suppress_each_other():
    first = windows(([0.0, 10.0], 0.9, 1), ([0.0, 10.0], 0.5, 0))
    second = windows(([0.0, 10.0], 0.8, 1))
    found = merge_windows([first, second], sigma=0.1, min_score=0.01)
    assert found.labels.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])


def test_without_classes_the_ends_are_voted_for():
    found = merge_windows(
        [windows(([0.0, 10.0], 0.6, 0), ([1.0, 11.0], 0.6, 0))],
        sigma=0.1,
        by_class=False,
        voting=0.7,
        max_per_video=1,
    )
    assert found.segments.tolist() == [pytest.approx([0.5, 10.5])]


def test_voting_with_classes_is_refused():
    with pytest.raises(ValueError, match="set by_class=False"):
        merge_windows([windows(([0.0, 1.0], 0.5, 0))], voting=0.9)
