"""Triton's kernels of deformable attention against its formula: interpreted, and on a GPU."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from tests.deformable_attention import results
from tests.interpreter import (
    DEVICE,
    INTERPRETED,
    outside_of_the_interpreter,
    run_in_the_interpreter,
    runs_kernels,
)

triton = pytest.importorskip("triton")

FILE = Path(__file__).parents[3] / "tasks/detection/kernels/deformable_attention.py"
DINO = [(25, 42), (13, 21), (7, 11), (4, 6), (2, 3)]  # of 800 × 1333 pixels, an eighth a side
# Values, and then locations and weights.
DTYPES = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "autocast": (torch.bfloat16, torch.float32),
}


@pytest.fixture(autouse=True)
def scope_of_mmdetection():
    """Not needed here: machines with a GPU often lack mmdetection."""


@pytest.fixture(scope="module")
def kernels():
    """The kernels' file by its path, since the package ``tasks.detection`` needs mmdetection."""
    spec = importlib.util.spec_from_file_location("attention_kernels", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def long_programs(kernels, monkeypatch):
    """The interpreter takes its time by program, not by what each computes."""
    if INTERPRETED:
        monkeypatch.setattr(kernels, "ELEMENTS", 4096)


@pytest.fixture(params=[False, True], ids=["atomic", "deterministic"])
def deterministic(request):
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


@outside_of_the_interpreter
def test_kernels_under_the_interpreter():
    run_in_the_interpreter(__file__)


def make_case(shapes, batch=2, queries=9, heads=2, channels=8, points=2, dtypes="float32"):
    """Value, locations (some outside) and weights; the levels' shapes; the output's gradient."""
    of_values, of_others = DTYPES[dtypes]
    shapes = torch.tensor(shapes, device=DEVICE).view(-1, 2)
    keys, levels = int(shapes.prod(1).sum()), len(shapes)
    value = torch.randn(batch, keys, heads, channels).to(DEVICE, of_values)
    locations = torch.rand(batch, queries, heads, levels, points, 2) * 1.4 - 0.2
    weights = torch.rand(batch, queries, heads, levels, points)
    grad_output = torch.randn(batch, queries, heads * channels).to(DEVICE, of_values)
    others = [tensor.to(DEVICE, of_others) for tensor in (locations, weights)]
    return [value, *others], shapes, grad_output


def run(kernels, inputs, shapes, grad_output):
    """As ``results``, by the kernels."""
    value, *others = inputs
    output = kernels.forward(value, shapes, *others)
    # What is there before makes no difference.
    gradients = [torch.full_like(tensor, math.nan) for tensor in inputs]
    kernels.backward(value, shapes, *others, grad_output, *gradients)
    return [output, *gradients]


def assert_agree(found, expected, rounding=1e-5):
    """Equal within float32's errors, by the largest element, and one rounding to the dtype.

    A location's own rounding counts by the level's size, so that 1e-5 is 170 times float32's.
    """
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        bound = (torch.finfo(one.dtype).eps + rounding) * other[other.isfinite()].abs().max()
        one = one.double().cpu()
        torch.testing.assert_close(one, other, rtol=0, atol=bound.item(), equal_nan=True)


CASES = {
    "one of each": {"shapes": [(3, 5)], "batch": 1, "queries": 1, "heads": 1, "points": 1},
    "odd": {"shapes": [(5, 7), (1, 4), (6, 1)], "channels": 5, "points": 3, "heads": 3},
    "wide heads": {"shapes": [(4, 6)], "channels": 160, "heads": 1, "queries": 3},
    "many queries": {"shapes": [(5, 7)], "batch": 3, "queries": 70, "channels": 4},
}


@runs_kernels
@pytest.mark.parametrize(
    ("case", "dtypes"),
    [(case, "float32") for case in CASES] + [("odd", dtypes) for dtypes in list(DTYPES)[1:]],
)
def test_both_ways_are_the_formula_s(kernels, case, dtypes):
    case = make_case(**CASES[case], dtypes=dtypes)
    found = run(kernels, *case)
    assert [tensor.dtype for tensor in found] == [case[2].dtype, *(t.dtype for t in case[0])]
    assert_agree(found, results(*case))


@runs_kernels
@pytest.mark.usefixtures("long_programs")
@pytest.mark.parametrize("dtypes", ["float32", "autocast"])
def test_levels_of_dino_s_five_scales(kernels, dtypes):
    case = make_case(DINO, queries=40, channels=32, points=4, dtypes=dtypes)
    assert_agree(run(kernels, *case), results(*case))


# Of sides that are powers of two, so that float32 has the very places.
EDGES = [-1e9, -2.0, -0.125, -0.0625, 0.0, 0.0625, 0.125, 0.5, 0.9375, 1.0, 1.0625, 1.5, 1e9]


@runs_kernels
@pytest.mark.usefixtures("long_programs")
def test_locations_on_edges_of_pixels_and_outside(kernels, deterministic):
    inputs, shapes, grad_output = make_case([(8, 8), (4, 8)], queries=len(EDGES) ** 2)
    inputs[1][:] = torch.cartesian_prod(*2 * [torch.tensor(EDGES)])[None, :, None, None, None]
    expected = results(inputs, shapes, grad_output)
    assert_agree(run(kernels, inputs, shapes, grad_output), expected)
    assert (expected[0] == 0).all(2).any()


def guarded(tensor, filler):
    """A copy of ``tensor`` amid as many elements of ``filler`` at either end, and all of it."""
    around = torch.stack([torch.full_like(tensor, filler), tensor, torch.full_like(tensor, filler)])
    return around[1], around


@runs_kernels
@pytest.mark.usefixtures("long_programs")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38, -1e20])
def test_a_location_that_is_no_place_reads_and_writes_nothing_elsewhere(
    kernels, bad, deterministic
):
    inputs, shapes, grad_output = make_case([(5, 7), (3, 4)])
    inputs[1][0, 2, 0, 0, 1, 0] = inputs[1][1, 5, 1, 1, 0, 1] = bad
    expected = results(inputs, shapes, grad_output)
    inputs[0], _ = guarded(inputs[0], math.nan)
    grad_value, around = guarded(torch.zeros_like(inputs[0]), 7.0)
    others = [torch.empty_like(tensor) for tensor in inputs[1:]]
    found = kernels.forward(inputs[0], shapes, *inputs[1:])
    kernels.backward(inputs[0], shapes, *inputs[1:], grad_output, grad_value, *others)
    assert (around[::2] == 7).all()
    if bad == 3e38:  # infinite in float32 once it is counted in pixels
        assert not found[0, 2, :8].isfinite().any()
        return
    assert_agree([found, grad_value, *others], expected)
    # NaN is not lost, nor does it spread.
    assert found.isnan().sum() == (0 if bad == -1e20 else 2 * 8)


@runs_kernels
@pytest.mark.parametrize("shapes", [[(5, 7), (300, 4)], [(1, 2**40)], [(50, 0)], [(2**40, 7)]])
def test_shapes_that_say_more_than_there_is_read_and_write_nothing_elsewhere(kernels, shapes):
    inputs, _, grad_output = make_case([(5, 7), (3, 4)], points=4)
    shapes = torch.tensor(shapes, device=DEVICE)
    inputs[1], inputs[2] = (tensor[:, :, :, : len(shapes)] for tensor in inputs[1:])
    inputs[0], _ = guarded(inputs[0], math.nan)
    grad_value, around = guarded(torch.zeros_like(inputs[0]), 7.0)
    others = [torch.empty_like(tensor) for tensor in inputs[1:]]
    assert kernels.forward(inputs[0], shapes, *inputs[1:]).isfinite().all()
    kernels.backward(inputs[0], shapes, *inputs[1:], grad_output, grad_value, *others)
    assert (around[::2] == 7).all()


@runs_kernels
@pytest.mark.usefixtures("long_programs")
def test_deterministic_sums_do_not_depend_on_the_order(kernels):
    inputs, shapes, grad_output = make_case([(2, 2)], queries=60)
    order = torch.randperm(60)
    again = [inputs[0], *(tensor[:, order] for tensor in inputs[1:])]

    def of_value(inputs, grad_output):
        return run(kernels, inputs, shapes, grad_output)[1]

    torch.use_deterministic_algorithms(True)
    try:
        found = of_value(inputs, grad_output)
        assert torch.equal(found, of_value(inputs, grad_output))
        assert torch.equal(found, of_value(again, grad_output[:, order]))
    finally:
        torch.use_deterministic_algorithms(False)
    assert not torch.equal(found, of_value(again, grad_output[:, order]))


@runs_kernels
@pytest.mark.usefixtures("long_programs")
@pytest.mark.parametrize("size", [1e-30, 1e-8, 1.0, 1e8, 1e18])
def test_deterministic_sums_of_any_size(kernels, size):
    """Of all queries at one pixel, so that the sum comes near to what is representable."""
    inputs, shapes, grad_output = make_case([(4, 4)], queries=100, points=2)
    inputs[1].fill_(0.375)  # the centre of pixel (1, 1)
    inputs[2].fill_(size)
    grad_output.fill_(-size)
    torch.use_deterministic_algorithms(True)
    try:
        found = run(kernels, inputs, shapes, grad_output)[1].view(2, 4, 4, 2, 8)
    finally:
        torch.use_deterministic_algorithms(False)
    expected = torch.zeros_like(found)
    expected[:, 1, 1] = -(torch.tensor(size).double() ** 2) * 200
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@runs_kernels
@pytest.mark.usefixtures("long_programs")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("where", ["gradient", "weight"])
def test_a_gradient_that_is_not_finite_does_not_become_a_number(kernels, bad, where, deterministic):
    inputs, shapes, grad_output = make_case([(5, 7), (3, 4)])
    inputs[1].clamp_(0.15, 0.85)
    grad_output[1, 3, 4] = inputs[2][1, 3, 0, 1, 1] = 2.0
    (grad_output if where == "gradient" else inputs[2])[1, 3] = bad
    found = run(kernels, inputs, shapes, grad_output)
    # In float32, where 3e38 · 2 is infinite too.
    for one, other in zip(found, results(inputs, shapes, grad_output), strict=True):
        broken = ~other.float().isfinite()
        assert not one.cpu()[broken].isfinite().any()
    assert not found[1].isfinite().all()


@runs_kernels
def test_tensors_that_are_not_contiguous(kernels, deterministic):
    inputs, shapes, grad_output = make_case([(5, 7), (3, 4)])
    expected = run(kernels, inputs, shapes, grad_output)

    def strided(tensor):
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)

    found = run(
        kernels, [strided(t) for t in inputs], shapes.T.contiguous().T, strided(grad_output)
    )
    assert not found[1].is_contiguous()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other) or not deterministic
        torch.testing.assert_close(one, other)


@runs_kernels
@pytest.mark.parametrize("empty", ["batch", "queries", "points", "channels"])
def test_nothing_to_attend_to_or_by(kernels, empty, deterministic):
    inputs, shapes, grad_output = make_case([(5, 7), (3, 4)], **{empty: 0})
    output, *gradients = run(kernels, inputs, shapes, grad_output)
    assert output.shape == grad_output.shape
    assert not output.any()
    assert [tensor.shape for tensor in gradients] == [tensor.shape for tensor in inputs]
    assert not any(tensor.any() for tensor in gradients)


@runs_kernels
def test_more_elements_than_32_bits_count(kernels):
    """Of a value written at few pixels and read at no others, so that it fills no CPU's memory."""
    height, width = 2**15, 2**14 + 1
    value = torch.empty(1, height * width + 1, 2, 2, dtype=torch.float16, device=DEVICE)
    assert value.numel() > 2**31
    shapes = torch.tensor([(height, width), (1, 1)], device=DEVICE)
    far = (height - 1) * width + 2
    value[:, far - 1 : far + 2] = 3.0  # float32 has the place of its column not quite
    value[:, -1] = 5.0
    locations = torch.tensor([[2.5 / width, 1 - 0.5 / height], [0.5, 0.5]], device=DEVICE)
    locations = locations.expand(1, 1, 2, 2, 2)[:, :, :, :, None]
    weights = torch.ones(1, 1, 2, 2, 1, device=DEVICE)
    output = kernels.forward(value, shapes, locations, weights)
    torch.testing.assert_close(output, torch.full_like(output, 3.0 + 5.0))
    if not INTERPRETED:  # as many gradients are written
        gradients = [torch.empty_like(tensor) for tensor in (value, locations, weights)]
        kernels.backward(value, shapes, locations, weights, torch.ones_like(output), *gradients)
        found = gradients[0][0, [far, -1]]
        torch.testing.assert_close(found, torch.ones_like(found))
        assert gradients[0].sum(dtype=torch.float32).item() == pytest.approx(2 * 4, abs=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="on a CPU nothing is waited for")
def test_the_host_waits_for_nothing(kernels, deterministic):
    case = make_case([(5, 7), (3, 4)])
    expected = run(kernels, *case)  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = run(kernels, *case)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled in the interpreter's process")
@pytest.mark.parametrize("fixed", [False, True], ids=["atomic", "deterministic"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_kernels_compile_for_a_gpu_without_one(kernels, dtype, fixed):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {"points": 4, "channels": 24, "lanes": 32, "block": 4}
    tensors = {
        "shapes_at": "*i64",
        "locations_at": "*fp32",
        "weights_at": "*fp32",
        "grad_locations_at": "*fp32",
        "grad_weights_at": "*fp32",
        "grad_value_at": "*i64" if fixed else "*fp32",
        "scale_at": "*fp64",
    } | dict.fromkeys(("value_at", "output_at", "grad_output_at"), f"*{dtype}")
    if not fixed:
        constants["scale_at"] = None
    for kernel in (kernels._forward, kernels._backward):
        wanted = {key: value for key, value in constants.items() if key in kernel.arg_names}
        types = {
            name: "constexpr" if name in wanted else tensors.get(name, "i32")
            for name in kernel.arg_names
        }
        source = ASTSource(kernel, types, constexprs=wanted)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
