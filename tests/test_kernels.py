"""Triton's kernels against PyTorch's operations, bit for bit: interpreted, and on a GPU."""

import math
import os
import subprocess
import sys

import pytest
import torch

from dr2net import kernels, streams
from dr2net.arithmetic import ExactArithmetic, FloatArithmetic, round_beta
from dr2net.streams import peak
from tests.toy import assert_same_bits, gradients, make_chain

triton = pytest.importorskip("triton")

BETAS = (1, 0.9, 0.5, 0.3, 0.25, 0.1, 0.07, 0.03, 0.01, 2**-8)  # 0 to 8 bits
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Triton chooses its interpreter when it is imported, so that it takes a process of its own.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


def runs_kernels(test):
    """Marks a test that runs in the interpreter's process and, compiled, on a GPU."""
    absent = not INTERPRETED and not torch.cuda.is_available()
    test = pytest.mark.skipif(absent, reason="needs a CUDA device, or Triton's interpreter")(test)
    return test if INTERPRETED else pytest.mark.gpu(test)


@pytest.fixture
def coupling():
    from dr2net.kernels import coupling

    return coupling


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
def test_kernels_under_the_interpreter():
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    print(finished.stdout, finished.stderr)
    assert finished.returncode == 0
    assert " passed" in finished.stdout


def make_case(beta, dtype, word, shape=(3, 5, 24), given_up=0):
    torch.manual_seed(0)
    arithmetic = ExactArithmetic(round_beta(beta), dtype, word, given_up)
    x, y = (arithmetic.encode(torch.randn(shape, device=DEVICE) * 20) for _ in range(2))
    return arithmetic, x, y, torch.randn(shape, device=DEVICE) * 3


@runs_kernels
@pytest.mark.parametrize(
    ("word", "given_up"),
    [(torch.int32, 0), (torch.int32, 3), (torch.int64, 0)],
    ids=["int32", "int32, more room", "int64"],
)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(
    ("dtype", "output"),
    [(d, d) for d in DTYPES] + [(torch.float32, torch.bfloat16)],
    ids=["float32", "bfloat16", "float16", "autocast"],
)
def test_a_coupling_there_and_back(coupling, dtype, output, beta, word, given_up):
    arithmetic, x, y, g = make_case(beta, dtype, word, given_up=given_up)
    g = g.to(output)
    new_y, remainder = arithmetic.scale(x)
    new_x = arithmetic.add(y, g)
    decoded = arithmetic.decode(new_x)
    expected = [new_x, new_y, remainder, decoded, peak(g), peak(decoded)]
    assert_same_bits(expected, list(coupling.advance(arithmetic, x, y, g, True)))
    assert coupling.advance(arithmetic, x, y, g, False)[2] is None
    rebuilt, seen = coupling.rebuild(arithmetic, new_y, remainder)
    assert_same_bits([rebuilt, seen], [x, arithmetic.decode(x)])
    assert torch.equal(coupling.subtract(arithmetic, new_x, g), y)


@runs_kernels
@pytest.mark.parametrize("shape", [(8,), (2, 8 * 256), (1, 8 * 257), (7, 8 * 33)], ids=str)
def test_any_number_of_programs(coupling, shape):
    arithmetic, x, y, g = make_case(0.1, torch.float32, torch.int32, shape)
    new_x, new_y, remainder, *_ = coupling.advance(arithmetic, x, y, g, True)
    assert_same_bits([new_x, new_y, remainder], [arithmetic.add(y, g), *arithmetic.scale(x)])
    assert torch.equal(coupling.rebuild(arithmetic, new_y, remainder)[0], x)


@runs_kernels
def test_outputs_in_another_layout(coupling):
    arithmetic, x, y, g = make_case(0.1, torch.float32, torch.int32, (2, 8, 6))
    x, y = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x, y))
    new_x, new_y, *_ = coupling.advance(arithmetic, x, y, g, True)
    assert new_x.stride() == new_y.stride() == x.stride()
    assert torch.equal(new_x, arithmetic.add(y, g))
    assert torch.equal(coupling.subtract(arithmetic, new_x, g), y)


@runs_kernels
def test_halves_round_to_even(coupling):
    arithmetic, x, y, _ = make_case(1, torch.float32, torch.int32, (8,))
    g = (torch.arange(-4, 4, device=DEVICE) + 0.5) * 2.0**-20
    assert torch.equal(coupling.advance(arithmetic, x, y, g, True)[0], arithmetic.add(y, g))


@runs_kernels
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_peak_tells_nan_and_infinity(coupling, bad):
    arithmetic, x, y, g = make_case(0.1, torch.float32, torch.int32)
    g[1, 2, 3] = bad
    found = coupling.advance(arithmetic, x, y, g, True)[4]
    assert torch.equal(found, peak(g)) or (math.isnan(bad) and found.isnan())


@runs_kernels
@pytest.mark.parametrize("alpha_beta", [(1, 0.1), (0.5, 0.25), (0, 1)])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_a_chain_on_kernels_gives_the_same_bits(coupling, monkeypatch, alpha_beta, bf16):
    chain = make_chain(*alpha_beta, dropout=0.1).to(DEVICE)
    x = torch.randn(2, 5, 8, device=DEVICE, requires_grad=True)
    monkeypatch.setattr(streams, "kernels_for", lambda *_: None)
    expected = gradients(chain, x, bf16=bf16)
    used = []

    def always(*_):
        used.append(1)
        return coupling

    monkeypatch.setattr(streams, "kernels_for", always)
    for reversible in (True, False):
        assert_same_bits(expected, gradients(chain, x, reversible=reversible, bf16=bf16))
    assert len(used) == 6 * 3 + 6  # forward, rebuild, retreat; forward


@runs_kernels
@pytest.mark.parametrize(
    ("dtype", "output"), [(d, d) for d in DTYPES] + [(torch.float32, torch.bfloat16)], ids=str
)
def test_the_check_of_a_device_finds_wrong_bits(coupling, monkeypatch, dtype, output):
    device = torch.device(DEVICE)
    torch.set_default_dtype(torch.float64)
    try:
        assert kernels.gives_reference_bits(coupling, device, dtype, output)
        right = coupling.subtract
        monkeypatch.setattr(coupling, "subtract", lambda *args: right(*args) + 1)
        assert not kernels.gives_reference_bits(coupling, device, dtype, output)
    finally:
        torch.set_default_dtype(torch.float32)


def test_kernels_serve_exact_arithmetic_on_a_gpu_alone():
    exact = ExactArithmetic(0.5, torch.float32)
    assert kernels.kernels_for(exact, exact.encode(torch.randn(8))) is None
    assert kernels.kernels_for(FloatArithmetic(0.5, torch.float32), torch.randn(8)) is None


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled in the interpreter's process")
@pytest.mark.parametrize("word", ["i32", "i64"])
@pytest.mark.parametrize("bits", [0, 1, 7, 8])
def test_kernels_compile_for_a_gpu_without_one(coupling, bits, word):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def compile_for_gpu(kernel, tensors, **constants):
        types = tensors | dict.fromkeys(constants, "constexpr")
        types = {name: types.get(name, "i32") for name in kernel.arg_names}
        source = ASTSource(kernel, types, constexprs=constants)
        return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]

    streams = dict.fromkeys(("x_at", "y_at", "new_x_at", "new_y_at"), f"*{word}")
    others = {"g_at": "*bf16", "decoded_at": "*bf16", "packed_at": "*u8", "peaks_at": "*i32"}
    for name in ("_advance", "_rebuild", "_subtract"):
        kernel = getattr(coupling, name)
        constants = {"one": 2.0**20, "bits": bits, "keeps": bits > 0, "block": 256}
        wanted = {key: value for key, value in constants.items() if key in kernel.arg_names}
        tensors = {k: v for k, v in (streams | others).items() if k in kernel.arg_names}
        assert compile_for_gpu(kernel, tensors, **wanted)
