import sys
from types import ModuleType

import pytest

pytest.importorskip("mmdet")
import tasks.detection  # noqa: F401  # isort: skip

import torch
import torchvision.ops
from mmcv.ops import RoIAlign, batched_nms, nms, sigmoid_focal_loss, soft_nms
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)
from mmdet.models.losses.focal_loss import FocalLoss, py_sigmoid_focal_loss
from torch.nn.functional import one_hot

from tasks.detection import operators
from tests.detectors import with_compiled, without_compiled


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


def attention_inputs(dtype=torch.float64, device="cpu"):
    """Two images, two heads of four channels, three queries; locations beyond the image too."""
    shapes = torch.tensor([[5, 7], [3, 4]], device=device)
    value = torch.randn(2, 5 * 7 + 3 * 4, 2, 4)
    locations = torch.rand(2, 3, 2, 2, 4, 2) * 1.4 - 0.2
    weights = torch.rand(2, 3, 2, 2, 4)
    tensors = (value, locations, weights)
    return shapes, *(tensor.to(device, dtype).requires_grad_() for tensor in tensors)


def attend(shapes, value, locations, weights):
    """As mmcv's module does on a GPU."""
    starts = shapes.prod(1).cumsum(0) - shapes.prod(1)
    return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)


def boxes_and_scores(count=200, device="cpu"):
    corner, size = torch.rand(count, 2) * 80, torch.rand(count, 2) * 40 + 1
    return torch.cat([corner, corner + size], 1).to(device), torch.rand(count).to(device)


def greedy_nms(boxes, scores, threshold, offset=0):
    """Suppression as it is defined, box by box, in float64."""
    boxes, kept = boxes.double().cpu(), []
    width_height = (boxes[:, 2:] - boxes[:, :2] + offset).prod(1)
    for index in scores.cpu().argsort(descending=True).tolist():
        for other in kept:
            lower = torch.maximum(boxes[index, :2], boxes[other, :2])
            upper = torch.minimum(boxes[index, 2:], boxes[other, 2:])
            overlap = (upper - lower + offset).clamp(min=0).prod()
            if overlap > threshold * (width_height[index] + width_height[other] - overlap):
                break
        else:
            kept.append(index)
    return kept


@without_compiled
def test_deformable_attention_has_the_value_and_gradients_of_mmcv_s_own_pytorch(device):
    shapes, *inputs = attention_inputs(torch.float32, device)
    reference = multi_scale_deformable_attn_pytorch(inputs[0], shapes, *inputs[1:])
    found = attend(shapes, *inputs)
    assert torch.equal(found, reference)
    direction = torch.randn_like(found)
    expected = torch.autograd.grad(reference, inputs, direction)
    # The very same operations; on a GPU grid_sample's gradient adds in no fixed order.
    for one, other in zip(torch.autograd.grad(found, inputs, direction), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0 if device == "cpu" else 1e-5)


@without_compiled
def test_deformable_attention_has_the_derivatives_of_its_value():
    shapes, *inputs = attention_inputs()
    assert torch.autograd.gradcheck(lambda *tensors: attend(shapes, *tensors), inputs)


@without_compiled
def test_deformable_attention_keeps_its_inputs_alone_for_backward():
    shapes, *inputs = attention_inputs()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        attend(shapes, *inputs)
    assert sum(tensor.numel() for tensor in kept if tensor.is_floating_point()) == sum(
        tensor.numel() for tensor in inputs
    )


@without_compiled
def test_deformable_attention_under_autocast_is_differentiated_as_it_was_computed():
    shapes, *inputs = attention_inputs(torch.float32)
    half = inputs[0].detach().half().requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        found = attend(shapes, half, *inputs[1:])
    assert found.dtype == torch.float16
    gradients = torch.autograd.grad(found.float().square().sum(), [half, *inputs[1:]])
    reference = multi_scale_deformable_attn_pytorch(inputs[0], shapes, *inputs[1:])
    expected = torch.autograd.grad(reference.square().sum(), inputs)
    for one, other in zip(gradients, expected, strict=True):
        # fp16 has 11 significant bits.
        assert (one - other).norm() < 1e-2 * other.norm()


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.5, 0.6)])
@without_compiled
def test_focal_loss_is_mmdetection_s_own(gamma, alpha, device):
    logits = (4 * torch.randn(50, 6)).to(device).requires_grad_()
    target = torch.randint(7, (50,)).to(device)  # 6 is background
    found = sigmoid_focal_loss(logits, target, gamma, alpha, None, "none")
    of_class = one_hot(target, 7)[:, :6]
    reference = py_sigmoid_focal_loss(logits, of_class, gamma=gamma, alpha=alpha, reduction="none")
    assert torch.equal(found, reference)
    direction = torch.randn_like(found)
    one, other = (torch.autograd.grad(loss, logits, direction)[0] for loss in (found, reference))
    # Rounded once more: the direction is multiplied last.
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@without_compiled
def test_focal_loss_weighs_a_box_by_its_class():
    logits, target = torch.randn(20, 4, requires_grad=True), torch.randint(4, (20,))
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0])
    plain = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "none") * weight[target, None]
    found = sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, "sum")
    assert torch.equal(found, plain.sum())
    one, other = (torch.autograd.grad(loss, logits)[0] for loss in (found, plain.sum()))
    torch.testing.assert_close(one, other)


@pytest.mark.gpu
def test_mmdetection_s_focal_loss_is_the_same_on_a_gpu():
    logits, target = torch.randn(50, 6), torch.randint(7, (50,))
    losses = [FocalLoss()(logits.to(device), target.to(device)) for device in ("cpu", "cuda")]
    torch.testing.assert_close(losses[0], losses[1].cpu())


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("offset", [0, 1])
def test_nms_is_greedy_suppression(threshold, offset, device):
    boxes, scores = boxes_and_scores(device=device)
    detections, kept = nms(boxes, scores, threshold, offset=offset)
    assert kept.tolist() == greedy_nms(boxes, scores, threshold, offset)
    assert 20 < len(kept) < 200
    assert torch.equal(detections, torch.cat([boxes, scores[:, None]], 1)[kept])


def test_nms_of_pixels_differs_from_nms_of_ends():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 4]])  # IoU 0.5, and 0.6 in pixels
    scores = torch.tensor([0.9, 0.8])
    counts = [len(nms(boxes, scores, 0.55, offset=offset)[1]) for offset in (0, 1)]
    assert counts == [2, 1]


def test_nms_leaves_out_low_scores_and_stops_at_the_limit():
    boxes, scores = boxes_and_scores()
    kept = nms(boxes, scores, 0.5)[1]
    high = nms(boxes, scores, 0.5, score_threshold=0.6, max_num=5)[1]
    assert high.tolist() == [i for i in kept.tolist() if scores[i] > 0.6][:5]


@without_compiled
def test_nms_takes_scores_of_another_dtype_and_no_boxes():
    boxes, scores = boxes_and_scores()
    halves = scores.half()
    assert nms(boxes, halves, 0.5)[1].tolist() == nms(boxes, halves.float(), 0.5)[1].tolist()
    assert nms(boxes[:0], scores[:0], 0.5)[1].tolist() == []


@pytest.mark.parametrize("split_at", [10, 10000])
def test_batched_nms_is_torchvision_s(split_at, device):
    boxes, scores = boxes_and_scores(device=device)
    classes = torch.randint(3, (200,)).to(device)
    config = {"type": "nms", "iou_threshold": 0.4, "split_thr": split_at}
    _, kept = batched_nms(boxes, scores, classes, config)
    assert kept.tolist() == torchvision.ops.batched_nms(boxes, scores, classes, 0.4).tolist()


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_roi_align_is_torchvision_s(aligned, sampling_ratio, device):
    features = torch.randn(2, 3, 12, 16).to(device).requires_grad_()
    boxes = boxes_and_scores(20, device)[0]
    rois = torch.cat([torch.randint(2, (20, 1)).to(boxes), boxes], 1)
    results = []
    for use_torchvision in (False, True):
        align = RoIAlign((3, 4), 0.125, sampling_ratio, "avg", aligned, use_torchvision)
        output = align(features, rois)
        results.append((output, *torch.autograd.grad(output.square().sum(), features)))
    torch.testing.assert_close(results[0], results[1])


@without_compiled
def test_roi_align_of_maxima_says_what_it_needs():
    with pytest.raises(RuntimeError, match="pool_mode='max' needs mmcv's compiled operators"):
        RoIAlign(2, pool_mode="max")(torch.randn(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]))


@without_compiled
def test_an_operator_without_a_body_says_what_is_missing():
    with pytest.raises(RuntimeError, match=r"'softnms' was called.*without compiled operators"):
        soft_nms(*boxes_and_scores())


@pytest.mark.parametrize("name", ["nms", "roi_align_forward"])
@with_compiled
def test_bodies_are_as_compiled_ones_on_any_device(name, device):
    boxes, scores = boxes_and_scores(device=device)
    compiled = getattr(sys.modules["mmcv._ext"], name)
    if name == "nms":
        options = {"iou_threshold": 0.5, "offset": 1}
        found = [body(boxes, scores, **options) for body in (operators.nms, compiled)]
    else:
        found = []
        features = torch.randn(1, 3, 12, 16).to(device)
        rois = torch.cat([torch.zeros_like(scores)[:, None], boxes], 1)
        for body in (operators.roi_align_forward, compiled):
            output, none = features.new_zeros(200, 3, 2, 2), features.new_zeros(0)
            body(
                features,
                rois,
                output,
                none,
                none,
                aligned_height=2,
                aligned_width=2,
                spatial_scale=0.125,
                sampling_ratio=0,
                pool_mode=1,
                aligned=True,
            )
            found.append(output)
    torch.testing.assert_close(*found)


@pytest.mark.gpu
@with_compiled
def test_deformable_attention_is_as_the_compiled_one():
    shapes, *inputs = attention_inputs(torch.float32, "cuda")
    starts = shapes.prod(1).cumsum(0) - shapes.prod(1)
    value, locations, weights = inputs
    compiled = attend(shapes, *inputs)
    gradients = torch.autograd.grad(compiled, inputs, torch.ones_like(compiled))
    arguments = (value, shapes, starts, locations, weights)
    with torch.no_grad():
        torch.testing.assert_close(operators.ms_deform_attn_forward(*arguments, 64), compiled)
    found = [torch.empty_like(tensor) for tensor in inputs]
    operators.ms_deform_attn_backward(*arguments, torch.ones_like(compiled), *found, 64)
    torch.testing.assert_close(found, list(gradients), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@with_compiled
def test_focal_loss_is_as_the_compiled_one():
    logits = torch.randn(50, 6, device="cuda", requires_grad=True)
    target, none = torch.randint(7, (50,), device="cuda"), logits.new_empty(0)
    compiled = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "none")
    (gradient,) = torch.autograd.grad(compiled.sum(), logits)
    output, grad_input = torch.empty_like(compiled), torch.empty_like(compiled)
    with torch.no_grad():
        operators.sigmoid_focal_loss_forward(logits, target, none, output, 2.0, 0.25)
        operators.sigmoid_focal_loss_backward(logits, target, none, grad_input, 2.0, 0.25)
    torch.testing.assert_close(output, compiled.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grad_input, gradient, rtol=1e-4, atol=1e-6)


@without_compiled
def test_the_log_says_once_that_operators_are_replaced(monkeypatch):
    said = []
    monkeypatch.setattr(operators, "print_log", lambda text, **_: said.append(text))
    operators._announce.cache_clear()
    for _ in range(2):
        nms(*boxes_and_scores(), 0.5)
    assert len(said) == 1
    assert all(name in said[0] for name in operators.OPERATORS)


def test_compiled_operators_stay_where_they_are_there(monkeypatch):
    compiled = ModuleType("mmcv._ext")
    monkeypatch.setitem(sys.modules, "mmcv._ext", compiled)
    assert not operators.install()
    assert not any(hasattr(compiled, name) for name in operators.OPERATORS)
