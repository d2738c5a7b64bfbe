"""Triton's kernels for sampling and search against PyTorch's loop, bit for bit.

Interpreted, in a process of their own, and on a GPU; and where they do not serve.
"""

import re
import warnings

import pytest
import torch

from dr2net.kernels import trial
from tests.interpreter import (
    DEVICE,
    INTERPRETED,
    outside_of_the_interpreter,
    run_in_the_interpreter,
    runs_kernels,
)
from tests.pointcloud_alone import CLOUDS, import_kernels, neighbours

triton = pytest.importorskip("triton")

GPU = torch.device("cuda")
EVERY_CLOUD = pytest.mark.parametrize("cloud", list(CLOUDS))


@pytest.fixture
def kernels():
    return import_kernels()


@pytest.fixture(autouse=True)
def all_is_tried_anew():
    neighbours._kernels_of.cache_clear()
    yield
    neighbours._kernels_of.cache_clear()


@outside_of_the_interpreter
def test_kernels_under_the_interpreter():
    run_in_the_interpreter(__file__)


@runs_kernels
@EVERY_CLOUD
@pytest.mark.parametrize(
    ("points", "count", "chunk"),
    [(1, 1, 32), (7, 7, 32), (64, 16, 32), (129, 24, 32), (60, 40, 1024)],
)
def test_sampled_points_are_those_of_the_loop(kernels, monkeypatch, cloud, points, count, chunk):
    monkeypatch.setattr(kernels, "CHUNK", chunk)
    coord = CLOUDS[cloud](points)
    found = kernels.farthest_points(coord.to(DEVICE), count).cpu()
    assert torch.equal(found, neighbours._farthest_by_loop(coord, count))


@runs_kernels
@EVERY_CLOUD
@pytest.mark.parametrize(
    ("queries", "points", "count", "block"),
    [(1, 1, 1, 32), (5, 7, 7, 32), (6, 64, 3, 32), (3, 101, 20, 64), (1, 100, 64, 256)],
)
def test_neighbours_are_those_of_all_pairs(
    kernels, monkeypatch, cloud, queries, points, count, block
):
    monkeypatch.setattr(kernels, "BLOCK", block)
    coord = CLOUDS[cloud](points)
    # Points of the cloud, among them their own neighbours, and others.
    query = torch.cat([coord[:, :queries], CLOUDS["room"](2)], dim=1)
    index, squared = kernels.nearest_points(query.to(DEVICE), coord.to(DEVICE), count)
    expected = neighbours._of_keys(neighbours._keys_of_all_pairs(query, coord, count))
    assert torch.equal(index.cpu(), expected[0])
    assert torch.equal(squared.cpu(), expected[1])


@runs_kernels
def test_clouds_that_do_not_fit_their_grid(kernels, monkeypatch):
    """Chunks of a plane, of a line, and of coordinates whose squares are beyond float32."""
    monkeypatch.setattr(kernels, "CHUNK", 32)
    plane, line, wide = (CLOUDS["room"](80) for _ in range(3))
    plane[..., 2], line[..., 1:], wide[:, ::2] = 7, -3, 1e30
    for coord in (plane, line, wide, -wide):
        found = kernels.farthest_points(coord.to(DEVICE), 30).cpu()
        assert torch.equal(found, neighbours._farthest_by_loop(coord, 30))


@runs_kernels
def test_views_are_taken(kernels):
    coord = CLOUDS["room"](60)
    view = coord.to(DEVICE).permute(2, 0, 1).contiguous().permute(1, 2, 0)
    coord = coord.to(DEVICE)
    assert torch.equal(kernels.farthest_points(view, 9), kernels.farthest_points(coord, 9))
    for one, other in zip(
        kernels.nearest_points(view[:, ::9], view, 4),
        kernels.nearest_points(coord[:, ::9].contiguous(), coord, 4),
        strict=True,
    ):
        assert torch.equal(one, other)


@runs_kernels
def test_the_check_of_a_device_finds_wrong_bits(kernels, monkeypatch):
    assert neighbours._give_the_same_bits(kernels, torch.device(DEVICE))
    right = kernels.nearest_points
    wrong = {
        "nearest_points": lambda *args: (right(*args)[0], right(*args)[1] * (1 + 2**-23)),
        "farthest_points": lambda coord, count: torch.arange(count).expand(2, -1).to(DEVICE),
    }
    for name, function in wrong.items():
        with monkeypatch.context() as context:
            context.setattr(kernels, name, function)
            assert not neighbours._give_the_same_bits(kernels, torch.device(DEVICE))


@pytest.mark.gpu
@EVERY_CLOUD
def test_crops_of_24000_points_on_a_gpu(kernels, cloud):
    coord = CLOUDS[cloud](24_000)
    sample = neighbours._farthest_by_loop(coord, 6000)
    assert torch.equal(kernels.farthest_points(coord.cuda(), 6000).cpu(), sample)
    query = neighbours.gather_points(coord, sample[:, ::10])
    expected = neighbours._of_keys(neighbours._keys_of_all_pairs(query, coord, 32))
    found = kernels.nearest_points(query.cuda(), coord.cuda(), 32)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.cpu(), other)


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled in the interpreter's process")
@pytest.mark.parametrize("name", ["_place", "_sample", "_search"])
@pytest.mark.parametrize(("width", "ones"), [(2, False), (2, True), (32, False), (256, False)])
def test_kernels_compile_for_a_gpu_without_one(kernels, name, width, ones):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(kernels, name)
    constants = {"block": kernels.CHUNK, "width": width}
    if ones:  # which Triton takes for constants
        constants |= dict.fromkeys(("points", "chunks", "count", "queries"), 1)
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    types = {key: "*fp32" if key.endswith("_at") else "i32" for key in kernel.arg_names}
    whole = {"order_at": "*i64", "found_at": "*i64", "index_at": "*i64", "places_at": "*i32"}
    types |= {key: value for key, value in whole.items() if key in types}
    source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    options = {"enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.asm["cubin"]
    # A fused multiplication and addition would be rounded once.
    assert not re.search(r"\bfma\.", compiled.asm["ptx"])


class Launched:
    """Stands for a kernel, and has the options of its launches."""

    def __init__(self):
        self.options = []

    def __getitem__(self, grid):
        return lambda *_, **options: self.options.append(options)


def test_distances_are_launched_without_fusion(kernels, monkeypatch):
    launched = {name: Launched() for name in ("_place", "_sample", "_search")}
    for name, kernel in launched.items():
        monkeypatch.setattr(kernels, name, kernel)
    coord = CLOUDS["room"](50)
    kernels.farthest_points(coord, 5)
    kernels.nearest_points(coord, coord, 5)
    assert [len(kernel.options) for kernel in launched.values()] == [1, 1, 1]
    for name in ("_sample", "_search"):
        assert launched[name].options[0]["enable_fp_fusion"] is False


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_kernels_are_given_float32_where_they_serve(monkeypatch, dtype):
    calls = []

    class Serving:
        @staticmethod
        def farthest_points(coord, count):
            calls.append(coord.dtype)
            return "sample"

        @staticmethod
        def nearest_points(query, coord, count):
            calls.extend([query.dtype, coord.dtype])
            return "neighbours"

    monkeypatch.setattr(neighbours, "_kernels", lambda _: Serving)
    coord = CLOUDS["grid"](50).to(dtype)
    assert neighbours.farthest_points(coord, 5) == "sample"
    assert neighbours.nearest_points(coord, coord, 5) == "neighbours"
    assert calls == [torch.float32] * 3
    with pytest.raises(ValueError, match="60 points were asked for"):
        neighbours.farthest_points(coord, 60)
    coord[0, 3] = torch.nan
    with pytest.raises(ValueError, match="point 3 of cloud 0"):
        neighbours.nearest_points(coord, coord, 5)


def test_a_cpu_asks_for_no_kernels():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert neighbours._kernels(torch.device("cpu")) is None
    assert not said


def failing(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize(
    ("module", "name", "function", "reason"),
    [
        (trial, "find_spec", lambda _: None, "Triton is not installed"),
        (neighbours, "import_module", failing(ImportError("no ptxas")), "ImportError: no ptxas"),
        (neighbours, "_give_the_same_bits", lambda *_: False, "cuda: they give other results"),
    ],
)
def test_why_kernels_do_not_serve_is_said_once(monkeypatch, module, name, function, reason):
    monkeypatch.setattr(module, name, function)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert [neighbours._kernels(GPU) for _ in range(3)] == [None] * 3
    (message,) = said
    assert reason in str(message.message)
    assert "GroupPoints at the end of the pipeline" in str(message.message)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
)
def test_a_device_without_memory_is_asked_again(monkeypatch, error):
    monkeypatch.setattr(neighbours, "_give_the_same_bits", failing(error))
    with pytest.raises(RuntimeError, match="out of memory"):
        neighbours._kernels(GPU)
    monkeypatch.setattr(neighbours, "_give_the_same_bits", lambda *_: True)
    assert neighbours._kernels(GPU) is import_kernels()
