import copy

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
import tasks.video.localization  # noqa: F401  # isort: skip

import torch
from mmaction.structures import ActionDataSample
from mmengine.structures import InstanceData

import dr2net
from tests.localization import FRAMES, VIT, build_localizer

DR2NET = {"type": "Dr2NetBackbone", "backbone": VIT}


def sample(valid_frames=FRAMES):
    """A window of 8 s from second 1 on."""
    found = ActionDataSample(
        metainfo={
            "video_id": "a",
            "duration": 20.0,
            "start": 1.0,
            "frame_seconds": 0.25,
            "valid_frames": valid_frames,
            "num_frames": FRAMES,
        }
    )
    found.gt_instances = InstanceData(
        segments=torch.tensor([[1.5, 3.0], [2.0, 7.5]]), labels=torch.tensor([0, 2])
    )
    return found


INPUTS = torch.randn(2, 8, 3, 4, 32, 32)
SAMPLES = [sample(), sample(valid_frames=20)]


def build(backbone, **options):
    torch.manual_seed(0)
    return build_localizer(backbone, **options).train()


def gradients(model):
    model.zero_grad()
    model.head.normalizer.fill_(100)
    torch.manual_seed(1)  # of stochastic depth
    sum(model(INPUTS, SAMPLES, mode="loss").values()).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize("chunks_at_once", [None, 3])
@pytest.mark.parametrize("coefficients", [(0.875, 0.125), (1.0, 0.1), (0.0, 1.0)])
def test_gradients_rebuilt_and_stored_are_the_same_bits(coefficients, chunks_at_once):
    alpha, beta = coefficients
    backbone = {**DR2NET, "alpha": alpha, "beta": beta}
    model = build(backbone, chunks_at_once=chunks_at_once)
    rebuilt = gradients(model)
    dr2net.set_reversible(model, False)
    assert_equal(rebuilt, gradients(model))


def test_at_1_0_it_is_the_conventional_model():
    conventional = build(VIT)
    assert_equal(gradients(build({**DR2NET, "alpha": 1.0, "beta": 0.0})), gradients(conventional))


def test_checkpointed_it_has_the_same_gradients():
    assert_equal(gradients(build({**VIT, "with_cp": True})), gradients(build(VIT)))


def without_depth_drawn(backbone):
    """Stochastic depth draws in another order where chunks run in groups."""
    if "backbone" in backbone:
        return {**backbone, "backbone": {**backbone["backbone"], "drop_path_rate": 0.0}}
    return {**backbone, "drop_path_rate": 0.0}


@pytest.mark.parametrize("backbone", [VIT, DR2NET], ids=["conventional", "dr2net"])
@pytest.mark.parametrize("chunks_at_once", [1, 3, 16, 100])
def test_chunks_in_groups_and_whole_windows_agree(backbone, chunks_at_once):
    backbone = without_depth_drawn(backbone)
    whole, grouped = build(backbone), build(backbone, chunks_at_once=chunks_at_once)
    assert torch.equal(whole.extract(INPUTS), grouped.extract(INPUTS))
    expected = gradients(whole)
    for name, gradient in gradients(grouped).items():
        # Weights' gradients are summed over chunks in another order.
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)


def test_features_keep_the_order_of_chunks_and_of_windows():
    model = build(VIT).eval()
    with torch.no_grad():
        features = model.extract(INPUTS)
        joined = torch.cat([model.backbone(chunk[None]).mean((-2, -1)) for chunk in INPUTS[1]], 2)
    expected = torch.nn.functional.interpolate(joined, size=FRAMES, mode="linear")
    torch.testing.assert_close(features[1:], expected)


def test_predictions_are_seconds_of_the_video():
    model = build(VIT, score_threshold=0.0, max_per_window=50).eval()
    with torch.no_grad():
        found = [s.pred_instances for s in model(INPUTS, [sample(), sample(20)], mode="predict")]
    for instances in found:
        assert len(instances) == 50
        assert instances.scores.tolist() == sorted(instances.scores.tolist(), reverse=True)
        assert (instances.segments >= 0).all()
        assert (instances.segments <= 20).all()
        assert (instances.segments[:, 1] >= instances.segments[:, 0]).all()
        assert set(instances.labels.tolist()) <= {0, 1, 2}


def test_what_the_head_finds_at_a_position_is_found_at_its_second(monkeypatch):
    model = build(VIT, score_threshold=0.5)

    def head(features, masks):
        logits = torch.full((1, 3, 2), -9.0)
        logits[0, 1, 1] = 9
        return logits, torch.tensor([[[0.0, 1.0], [4.0, 12.0], [0.0, 90.0]]]), None

    monkeypatch.setattr(model.head, "forward", head)
    (found,) = model._predict([], [torch.ones(1, 3, dtype=torch.bool)], [sample()])
    assert found.pred_instances.segments.tolist() == [[1 + 4 * 0.25, 1 + 12 * 0.25]]
    assert found.pred_instances.labels.tolist() == [1]


def test_padding_is_not_predicted():
    model = build(VIT, score_threshold=0.0).eval()
    masks = model.masks(INPUTS, SAMPLES)
    assert masks.sum(1).tolist() == [32, 20]
    with torch.no_grad():
        _, found = model(INPUTS, [sample(), sample(20)], mode="predict")
    # 20, 10, 5 and 3 positions of 3 classes
    assert len(found.pred_instances) == 3 * (20 + 10 + 5 + 3)


def test_every_parameter_is_trained():
    assert all(gradient is not None for gradient in gradients(build(DR2NET)).values())


def test_a_copy_is_independent():
    model = build({**VIT, "with_cp": True})
    expected = gradients(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_equal(gradients(copied), expected)


@pytest.mark.parametrize("number", [0, -1])
def test_groups_without_chunks_are_refused(number):
    with pytest.raises(ValueError, match="chunks_at_once is at least 1 or None"):
        build(VIT, chunks_at_once=number)


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="mode is 'loss', 'predict' or 'tensor', got 'train'"):
        build(VIT)(INPUTS, SAMPLES, mode="train")
