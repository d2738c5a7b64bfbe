import copy
import inspect

import pytest

pytest.importorskip("mmdet")
import tasks.detection  # noqa: F401  # isort: skip

import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from tasks.detection import many_boxes
from tests.detectors import CONFIGS, build, small_model
from tests.toy import assert_same_bits

CLASSES = 80
DENOISED = 8  # num_dn_queries of small_model


def boxes(count, side=160.0):
    corner = torch.rand(count, 2) * (side - 20)
    ends = corner + 2 + torch.rand(count, 2) * 16
    return InstanceData(
        bboxes=torch.cat([corner, ends], 1), labels=torch.randint(0, CLASSES, (count,))
    )


def batch(*counts):
    meta = {"img_shape": (160, 160), "batch_input_shape": (160, 160)}
    return [DetDataSample(metainfo=meta, gt_instances=boxes(count)) for count in counts]


def dino(**settings):
    torch.manual_seed(0)
    model = small_model("conventional_dino4scale_swint_coco")
    model.update(settings)
    return build(model)


def losses(detector, samples):
    torch.manual_seed(1)
    return detector(torch.randn(len(samples), 3, 160, 160), samples, mode="loss")


def test_up_to_the_bound_it_is_mmdetection_s_dino():
    bounded, samples = dino(), batch(DENOISED, 3)
    assert type(bounded) is many_boxes.BoundedDINO
    plain = dino(type="DINO", bbox_head={**small_head(), "type": "DINOHead"})
    plain.load_state_dict(bounded.state_dict(), strict=True)
    plain.bbox_head.assigner.match_costs = plain_costs()
    expected = losses(plain, copy.deepcopy(samples))
    found = losses(bounded, samples)
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        assert_same_bits([loss], [found[name]])


def small_head():
    return dict(small_model("conventional_dino4scale_swint_coco").bbox_head)


def costs_of_the_config():
    (cost,) = Config.fromfile(
        CONFIGS / "conventional_dino4scale_swint_coco.py"
    ).model.train_cfg.assigner.match_costs
    assert cost.type == "CostInParts"
    return cost.costs


def plain_costs():
    init_default_scope("mmdet")
    return [TASK_UTILS.build(dict(cost)) for cost in costs_of_the_config()]


def test_of_many_boxes_a_bounded_number_is_denoised_and_all_are_matched(monkeypatch):
    detector, samples = dino(), batch(50, 3)
    denoised, matched = [], []
    generate = type(detector.dn_query_generator).__call__

    def note_queries(self, samples):
        result = generate(self, samples)
        denoised.append((result[0].shape[1], result[-1]["denoised"]))
        return result

    monkeypatch.setattr(type(detector.dn_query_generator), "__call__", note_queries)
    assign = type(detector.bbox_head.assigner).assign

    def note_boxes(self, pred_instances, gt_instances, **kwargs):
        matched.append(len(gt_instances))
        return assign(self, pred_instances, gt_instances, **kwargs)

    monkeypatch.setattr(type(detector.bbox_head.assigner), "assign", note_boxes)
    found = losses(detector, samples)
    assert set(matched) == {50, 3}
    ((queries, (first, second)),) = denoised
    assert queries == 2 * DENOISED
    assert len(first) == DENOISED == len(set(first.tolist()))
    assert second == slice(None)
    assert all(loss.isfinite().all() for loss in found.values())


@pytest.mark.parametrize("counts", [(0, 50), (50, 0), (0, 0), (1, 1)])
def test_images_without_boxes_train_beside_those_with_many(counts):
    found = losses(dino(), batch(*counts))
    sum(loss.sum() for loss in found.values()).backward()
    assert all(loss.isfinite().all() for loss in found.values())


def test_the_head_serves_mmdetection_s_own_dino():
    detector = dino(type="DINO")
    assert type(detector.bbox_head) is many_boxes.BoundedDINOHead
    assert losses(detector, batch(50, 3))["dn_loss_cls"].isfinite()


def test_targets_are_those_of_the_boxes_that_were_denoised():
    detector, samples = dino(), batch(50, 3)
    *_, meta = detector.dn_query_generator(samples)
    labels, _, targets, *_ = detector.bbox_head.get_dn_targets(
        [s.gt_instances for s in samples], [s.metainfo for s in samples], meta
    )
    taken = meta["denoised"][0]
    truth = samples[0].gt_instances
    labels, targets = labels[0][: len(taken)], targets[0][: len(taken)]
    assert torch.equal(labels, truth.labels[taken])
    centres = (truth.bboxes[taken, :2] + truth.bboxes[taken, 2:]) / 2 / 160
    assert torch.allclose(targets[:, :2], centres)


def test_other_boxes_are_denoised_each_time():
    generator, samples = dino().dn_query_generator, batch(50)
    first, second = (generator(samples)[-1]["denoised"][0] for _ in range(2))
    assert not torch.equal(first, second)


def test_a_head_that_does_not_know_the_bound_is_refused():
    model = small_model("conventional_dino4scale_swint_coco")
    model.bbox_head.type = "DINOHead"
    init_default_scope("mmdet")
    with pytest.raises(ValueError, match="type='BoundedDINOHead'"):
        MODELS.build(model)


@pytest.mark.parametrize("pairs", [1, 7 * 60, 10**6])
def test_costs_in_parts_are_the_costs(pairs):
    torch.manual_seed(0)
    predictions = InstanceData(
        bboxes=boxes(60).bboxes, scores=torch.randn(60, CLASSES, requires_grad=True)
    )
    truth, meta = boxes(40), {"img_shape": (160, 160)}
    each = [cost(predictions, truth, img_meta=meta) for cost in plain_costs()]
    in_parts = many_boxes.CostInParts(costs_of_the_config(), pairs_at_once=pairs)
    found = in_parts(pred_instances=predictions, gt_instances=truth, img_meta=meta)
    assert torch.equal(found, torch.stack(each).sum(0))
    assert not found.requires_grad


@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
@pytest.mark.parametrize("count", [0, 1, 9, 40])
def test_overlaps_in_parts_are_the_overlaps(count, mode, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(many_boxes, "PAIRS_AT_ONCE", 8 * 50)
    few, many = boxes(count).bboxes, boxes(50).bboxes
    expected = TASK_UTILS.build({"type": "BboxOverlaps2D"})(few, many, mode)
    assert torch.equal(many_boxes.OverlapsInParts()(few, many, mode), expected)
    aligned = many_boxes.OverlapsInParts()(many, many, mode, is_aligned=True)
    assert aligned.shape == (50,)


def test_retinanet_assigns_the_same_anchors_in_parts(monkeypatch):
    torch.manual_seed(0)
    init_default_scope("mmdet")
    config = Config.fromfile(CONFIGS / "conventional_retinanet_swint_coco.py").model
    settings = config.train_cfg.assigner
    assert settings.iou_calculator.type == "OverlapsInParts"
    monkeypatch.setattr(many_boxes, "PAIRS_AT_ONCE", 1000)
    anchors, truth = InstanceData(priors=boxes(300).bboxes), boxes(700)
    in_parts = TASK_UTILS.build(settings).assign(anchors, truth)
    plain = {k: v for k, v in settings.items() if k not in ("iou_calculator", "gpu_assign_thr")}
    expected = TASK_UTILS.build(plain).assign(anchors, truth)
    for name in ("gt_inds", "max_overlaps", "labels"):
        assert torch.equal(getattr(in_parts, name), getattr(expected, name))


def test_mmdetection_s_call_is_the_one_that_is_bounded():
    # The generator is made one of ours by its class: what it is built with must stay all it needs.
    own = set(vars(many_boxes.BoundedCdnQueryGenerator))
    assert "__init__" not in own
    assert list(inspect.signature(many_boxes.CdnQueryGenerator.__call__).parameters) == [
        "self",
        "batch_data_samples",
    ]
