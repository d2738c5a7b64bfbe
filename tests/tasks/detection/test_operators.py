import sys
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("mmdet")
import tasks.detection  # noqa: F401  # isort: skip

import torch
import torchvision.ops
from mmcv.ops import RoIAlign, batched_nms, nms, sigmoid_focal_loss, soft_nms
from mmcv.ops import multi_scale_deform_attn as mmcv_attention
from mmdet.models.losses.focal_loss import FocalLoss, py_sigmoid_focal_loss
from torch.nn.functional import one_hot
from torch.utils._python_dispatch import TorchDispatchMode

from dr2net.kernels import trial
from tasks.detection import deformable_attention, operators
from tests.deformable_attention import formula, results
from tests.detectors import with_compiled, without_compiled


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


def attention_inputs(dtype=torch.float64, device="cpu", queries=3):
    """Two images, two heads of four channels; locations beyond the image too."""
    shapes = torch.tensor([[5, 7], [3, 4]], device=device)
    value = torch.randn(2, 5 * 7 + 3 * 4, 2, 4)
    locations = torch.rand(2, queries, 2, 2, 4, 2) * 1.4 - 0.2
    weights = torch.rand(2, queries, 2, 2, 4)
    tensors = (value, locations, weights)
    return shapes, *(tensor.to(device, dtype).requires_grad_() for tensor in tensors)


def by_mmcv_s_function(value, shapes, locations, weights):
    """As mmcv's module does on a GPU."""
    starts = shapes.prod(1).cumsum(0) - shapes.prod(1)
    function = mmcv_attention.MultiScaleDeformableAttnFunction
    return function.apply(value, shapes, starts, locations, weights, 64)


def on_a_cpu(*inputs):
    """As mmcv's module does on a CPU, and on a GPU for bfloat16."""
    return mmcv_attention.multi_scale_deformable_attn_pytorch(*inputs)


@pytest.fixture(params=[by_mmcv_s_function, on_a_cpu])
def attend(request):
    return request.param


@pytest.fixture
def few_at_once(monkeypatch):
    """Of 30 queries 11, as many samples of each level as there are keys."""
    monkeypatch.setattr(deformable_attention, "QUERIES", 1)


class Results(TorchDispatchMode):
    """Notes the dtype and number of elements of every operation's results."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for one in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(one, torch.Tensor):
                self.sizes.append((one.dtype, one.numel()))
        return found


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


def test_an_attention_of_more_levels_than_there_are_is_refused():
    # Reference points of one level are broadcast over all: nothing else tells.
    attention = mmcv_attention.MultiScaleDeformableAttention(
        embed_dims=8, num_heads=2, num_levels=2, batch_first=True
    )
    with pytest.raises(ValueError, match=r"over 1 levels .* num_levels of the attention"):
        attention(
            torch.randn(1, 5, 8),
            value=torch.randn(1, 12, 8),
            reference_points=torch.rand(1, 5, 1, 2),
            spatial_shapes=torch.tensor([[3, 4]]),
            level_start_index=torch.tensor([0]),
        )


@pytest.mark.parametrize("change", ["locations", "weights", "points"])
def test_samples_of_other_levels_or_points_are_refused(change):
    shapes, value, locations, weights = attention_inputs()
    if change == "locations":
        locations = locations[:, :, :, :1]
    if change == "weights":
        weights = weights[:, :, :, :1]
    if change == "points":
        weights = weights[..., :1]
    with pytest.raises(ValueError, match=r"over 2 levels .* both"):
        deformable_attention.attend(value, shapes, locations, weights)


@without_compiled
@pytest.mark.parametrize("queries", [3, 30])
@pytest.mark.usefixtures("few_at_once")
def test_deformable_attention_is_its_formula_both_ways(attend, device, queries):
    shapes, *inputs = attention_inputs(torch.float32, device, queries)
    found = attend(inputs[0], shapes, *inputs[1:])
    direction = torch.randn_like(found)
    found = [found.detach(), *torch.autograd.grad(found, inputs, direction)]
    for one, other in zip(found, results(inputs, shapes, direction), strict=True):
        # Of float32, whose location counts by the level's size.
        torch.testing.assert_close(one.double().cpu(), other, rtol=1e-5, atol=1e-5)


@without_compiled
@pytest.mark.usefixtures("few_at_once")
def test_deformable_attention_has_the_derivatives_of_its_value(attend):
    shapes, value, *others = attention_inputs(queries=13)
    inputs = (value[:1, :, :1, :2], *(tensor[:1, :, :1] for tensor in others))
    for function in (attend, deformable_attention.attend_by_grid_sample):
        assert torch.autograd.gradcheck(lambda v, *rest, f=function: f(v, shapes, *rest), inputs)


@without_compiled
def test_how_many_queries_are_computed_at_once_makes_no_difference(monkeypatch):
    shapes, value, *others = attention_inputs(torch.float32, queries=30)
    whole = on_a_cpu(value, shapes, *others)
    monkeypatch.setattr(deformable_attention, "QUERIES", 1)
    assert torch.equal(on_a_cpu(value, shapes, *others), whole)


@without_compiled
def test_deformable_attention_is_the_same_with_and_without_gradients(attend):
    shapes, value, *others = attention_inputs(torch.float32)
    found = attend(value, shapes, *others)
    plain = deformable_attention.attend_by_grid_sample(value, shapes, *others)
    with torch.no_grad():
        assert torch.equal(attend(value, shapes, *others), found)
    assert torch.equal(plain, found)


@without_compiled
def test_deformable_attention_keeps_its_inputs_alone_for_backward(attend):
    shapes, *inputs = attention_inputs()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        attend(inputs[0], shapes, *inputs[1:])
    assert sum(tensor.numel() for tensor in kept if tensor.is_floating_point()) == sum(
        tensor.numel() for tensor in inputs
    )


@without_compiled
@pytest.mark.usefixtures("few_at_once")
def test_no_more_samples_are_there_at_once_than_keys(attend):
    shapes = torch.tensor([[20, 20]] * 4)
    value = torch.randn(1, 1600, 1, 16, requires_grad=True)
    locations = torch.rand(1, 1600, 1, 4, 2, 2, requires_grad=True)
    weights = torch.rand(1, 1600, 1, 4, 2, requires_grad=True)
    with Results() as noted:
        attend(value, shapes, locations, weights).sum().backward()
    assert max(size for _, size in noted.sizes) == value.numel()


@without_compiled
def test_deformable_attention_under_autocast_is_differentiated_as_it_was_computed(attend):
    shapes, *inputs = attention_inputs(torch.float32)
    half = inputs[0].detach().half().requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        found = attend(half, shapes, *inputs[1:])
    assert found.dtype == torch.float16
    gradients = torch.autograd.grad(found.float().square().sum(), [half, *inputs[1:]])
    reference = formula(inputs[0], shapes, *inputs[1:])
    expected = torch.autograd.grad(reference.square().sum(), inputs)
    for one, other in zip(gradients, expected, strict=True):
        # fp16 has 11 significant bits.
        assert (one - other).norm() < 1e-2 * other.norm()


@without_compiled
def test_locations_stay_in_float32_beside_values_of_bfloat16(device):
    """On a side of 200 pixels bfloat16 tells every other, or every fourth, half pixel only."""
    shapes = torch.tensor([[200, 200]], device=device)
    value = torch.rand(1, 200 * 200, 1, 1, device=device).bfloat16()
    locations = torch.rand(1, 50, 1, 1, 1, 2, device=device)
    weights = torch.ones(1, 50, 1, 1, 1, device=device)
    found = on_a_cpu(value, shapes, locations, weights)
    assert found.dtype == torch.bfloat16
    expected = formula(value.float(), shapes, locations, weights)
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=0)


@without_compiled
@pytest.mark.parametrize("shapes", [[[5, 7], [1, 1]], [[5, 7], [3, 5]]])
def test_levels_of_other_shapes_than_the_value_s_are_refused(shapes):
    _, *inputs = attention_inputs()
    with pytest.raises(ValueError, match=r"\d+ pixels, but value has 47 keys: give the height"):
        on_a_cpu(inputs[0], torch.tensor(shapes), *inputs[1:])


# Where the kernels serve


def fake_kernels(error=None, off_by=0.0):
    """The reference in the kernels' place."""

    def forward(*inputs):
        if error:
            raise error
        return deformable_attention.attend_by_grid_sample(*inputs) + off_by

    return SimpleNamespace(forward=forward, backward=deformable_attention._backward_by_grid_sample)


@pytest.fixture
def try_kernels(monkeypatch):
    """Has such kernels tried on a CPU; returns what is served then, and what is said."""
    said = []
    monkeypatch.setattr(deformable_attention, "print_log", lambda text, **_: said.append(text))
    dtypes = (torch.bfloat16, torch.float32, torch.float32)

    def attempt(kernels):
        monkeypatch.setattr(deformable_attention, "import_module", lambda *_: kernels)
        found = deformable_attention._kernels_of(torch.device("cpu"), dtypes, 4, 3, False)
        return found, said

    deformable_attention._kernels_of.cache_clear()
    deformable_attention._say.cache_clear()
    yield attempt
    deformable_attention._kernels_of.cache_clear()
    deformable_attention._say.cache_clear()


@pytest.mark.parametrize("inference", [False, True])
def test_kernels_that_give_the_reference_s_results_serve(try_kernels, inference):
    kernels, state = fake_kernels(), torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    with torch.inference_mode(inference):
        assert try_kernels(kernels) == (kernels, [])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("kernels", "reason"),
    [
        (fake_kernels(off_by=0.05), "they give other results"),
        (fake_kernels(off_by=float("nan")), "they give other results"),
        (fake_kernels(ValueError("no such target")), "ValueError: no such target"),
    ],
    ids=["wrong", "NaN", "not compiled"],
)
def test_kernels_that_do_not_serve_are_said_once(try_kernels, kernels, reason):
    for _ in range(2):
        served, said = try_kernels(kernels)
        assert served is None
        assert len(said) == 1
        assert reason in said[0]


def test_without_triton_kernels_do_not_serve(try_kernels, monkeypatch):
    monkeypatch.setattr(trial, "find_spec", lambda _: None)
    served, said = try_kernels(fake_kernels())
    assert served is None
    assert "Triton is not installed" in said[0]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
)
def test_memory_that_runs_out_says_nothing_about_the_kernels(try_kernels, error):
    with pytest.raises(RuntimeError, match="out of memory"):
        try_kernels(fake_kernels(error))
    kernels = fake_kernels()
    assert try_kernels(kernels) == (kernels, [])


@without_compiled
def test_what_serves_computes_both_ways(attend, monkeypatch):
    shapes, *inputs = attention_inputs()
    calls = []

    def note(name, function):
        return lambda *args: calls.append(name) or function(*args)

    kernels = SimpleNamespace(
        **{name: note(name, function) for name, function in vars(fake_kernels()).items()}
    )
    monkeypatch.setattr(deformable_attention, "_kernels_for", lambda *_: kernels)
    attend(inputs[0], shapes, *inputs[1:]).sum().backward()
    assert calls == ["forward", "backward"]


@pytest.mark.gpu
@without_compiled
def test_on_a_gpu_the_kernels_serve():
    _, *inputs = attention_inputs(torch.float32, "cuda")
    assert deformable_attention._kernels_for(*inputs).__name__.endswith("deformable_attention")


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
def test_focal_loss_is_the_same_of_a_few_boxes_at_a_time(monkeypatch):
    logits, target = 4 * torch.randn(500, 6), torch.randint(7, (500,))
    found = []
    for losses in (2**22, 2 * 64 * 6, 1):
        monkeypatch.setattr(operators, "LOSSES", losses)
        leaf = logits.clone().requires_grad_()
        loss = sigmoid_focal_loss(leaf, target, 2.0, 0.25, None, "none")
        found.append([loss.detach(), *torch.autograd.grad(loss.sum(), leaf)])
    assert all(torch.equal(a, b) for some in found[1:] for a, b in zip(found[0], some, strict=True))


@without_compiled
def test_focal_loss_makes_no_integer_of_every_box_and_class():
    logits, target = torch.randn(50, 6, requires_grad=True), torch.randint(7, (50,))
    with Results() as noted:
        sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "sum").backward()
    assert max(size for dtype, size in noted.sizes if dtype == torch.int64) == 50
    assert max(size for _, size in noted.sizes) == 50 * 6


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
    compiled = by_mmcv_s_function(value, shapes, locations, weights)
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
    own = object()
    monkeypatch.setattr(mmcv_attention, "multi_scale_deformable_attn_pytorch", own)
    assert not operators.install()
    assert mmcv_attention.multi_scale_deformable_attn_pytorch is own
    assert not any(hasattr(compiled, name) for name in operators.OPERATORS)
