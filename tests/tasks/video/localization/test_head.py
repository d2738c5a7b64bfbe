import math

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
import tasks.video.localization  # noqa: F401  # isort: skip

import torch

from tasks.video.localization import ActionFormerHead
from tasks.video.localization.head import assign, diou_loss, focal_loss

RANGES = ((0, 4), (4, 8), (8, 1000))


@pytest.fixture
def head():
    return ActionFormerHead(3, channels=8, ranges=RANGES)


def found_by(head, segments, labels, radius=1.5):
    """(level, position) to (classes, segment) of the points that are to find something."""
    points = head.points([16, 8, 4])
    targets = assign(points, torch.tensor(segments), torch.tensor(labels), 3, radius)
    result = {}
    for number in targets.classes.any(1).nonzero().flatten().tolist():
        place = int(points.stride[number]).bit_length() - 1, int(points.time[number])
        classes = targets.classes[number].nonzero().flatten().tolist()
        result[place] = classes, targets.segments[number].tolist()
    return result


class TestAssignment:
    def test_points_near_the_middle_of_the_level_of_the_length_find_it(self, head):
        found = found_by(head, [[2.0, 7.0]], [1])
        # Farther ends of the finest level's points are at most 4 away; 4.5 ± 1.5 strides.
        assert found == {(0, place): ([1], [2, 7]) for place in (4, 5)} | {
            # Those of the second are at least 4 away; the reach of 3 ends with the action.
            (1, 6): ([1], [2, 7])
        }

    def test_points_on_an_end_are_outside(self, head):
        assert set(found_by(head, [[4.0, 6.0]], [0])) == {(0, 5)}

    def test_of_several_the_shortest_counts(self, head):
        found = found_by(head, [[2.0, 8.0], [4.0, 7.0]], [0, 2])
        assert found[0, 5] == ([2], [4, 7])

    def test_classes_of_equal_length_count_together(self, head):
        found = found_by(head, [[4.0, 7.0], [4.0, 7.0], [4.0, 7.0]], [0, 2, 2])
        assert found[0, 5][0] == [0, 2]

    def test_no_action_is_nothing_to_find(self, head):
        points = head.points([16, 8, 4])
        none = assign(points, torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), 3, 1.5)
        assert none.classes.sum() == 0
        assert torch.isfinite(none.segments).all()


class TestLosses:
    @pytest.mark.parametrize(
        ("found", "wanted", "expected"),
        [
            ([2, 6], [2, 6], 0),
            ([0, 4], [2, 6], 1 - 2 / 6 + (2 / 6) ** 2),
            ([0, 1], [3, 4], 1 + (3 / 4) ** 2),
            ([5, 5], [5, 5], 1),
        ],
    )
    def test_diou(self, found, wanted, expected):
        loss = diou_loss(torch.tensor(found).float(), torch.tensor(wanted).float())
        assert loss.item() == pytest.approx(expected, abs=1e-6)

    def test_focal(self):
        score = 0.8
        logit = torch.tensor(math.log(score / (1 - score)))
        assert focal_loss(logit, torch.tensor(1.0)).item() == pytest.approx(
            0.25 * 0.2**2 * -math.log(0.8), rel=1e-5
        )
        assert focal_loss(logit, torch.tensor(0.0)).item() == pytest.approx(
            0.75 * 0.8**2 * -math.log(0.2), rel=1e-5
        )


def random_levels():
    features = [torch.randn(2, 8, count) for count in (16, 8, 4)]
    masks = [torch.ones(2, count, dtype=torch.bool) for count in (16, 8, 4)]
    return features, masks


def test_segments_lie_around_their_points(head):
    logits, segments, points = head(*random_levels())
    assert logits.shape == (2, 28, 3)
    assert (segments[..., 0] <= points.time).all()
    assert (segments[..., 1] >= points.time).all()


def test_all_classes_begin_at_the_prior(head):
    features, masks = random_levels()
    logits, _, _ = head([x * 0 for x in features], masks)
    assert logits.sigmoid().mean().item() == pytest.approx(0.01)


def test_losses_are_divided_by_a_running_mean_of_positive_points(head):
    levels = random_levels()
    actions = [torch.tensor([[2.0, 7.0]]), torch.zeros(0, 2)]
    labels = [torch.tensor([1]), torch.zeros(0, dtype=torch.long)]
    head.train()
    losses = head.loss(*levels, actions, labels)
    assert head.normalizer.item() == pytest.approx(0.9 * 100 + 0.1 * 3)
    head.eval()
    alone = head.loss(*levels, actions, labels)
    for name, loss in losses.items():
        assert loss.item() * 90.3 == pytest.approx(alone[name].item() * 3, rel=1e-5)


def test_padding_makes_no_loss(head):
    features, masks = random_levels()
    actions, labels = [torch.tensor([[2.0, 7.0]])] * 2, [torch.tensor([1])] * 2
    head.eval()
    for mask in masks:
        mask[1] = False
    padded = head.loss(features, masks, actions, labels)
    alone = head.loss([x[:1] for x in features], [m[:1] for m in masks], actions[:1], labels[:1])
    for name, loss in padded.items():
        assert loss.item() == pytest.approx(alone[name].item(), rel=1e-5)


def test_a_window_without_actions_trains_regression_on_nothing(head):
    none = [torch.zeros(0, 2)] * 2, [torch.zeros(0, dtype=torch.long)] * 2
    losses = head.loss(*random_levels(), *none)
    assert losses["loss_reg"] == 0
    assert losses["loss_cls"] > 0


def test_levels_and_ranges_have_to_agree(head):
    features, masks = random_levels()
    with pytest.raises(ValueError, match="2 levels of features for 3 ranges"):
        head(features[:2], masks[:2])
