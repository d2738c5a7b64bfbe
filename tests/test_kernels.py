"""Triton's kernels against PyTorch's operations, bit for bit: interpreted, and on a GPU."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dr2net import kernels
from dr2net.call import Call
from dr2net.coefficients import round_coefficient
from dr2net.kernels.arithmetic import ExactArithmetic
from tests.interpreter import (
    DEVICE,
    INTERPRETED,
    outside_of_the_interpreter,
    run_in_the_interpreter,
    runs_kernels,
)
from tests.toy import assert_same_bits, gradients, make_chain, mix

triton = pytest.importorskip("triton")

BETAS = (1, 0.9, 0.5, 0.3, 0.25, 0.1, 0.07, 0.03, 0.01, 2**-8)  # 0 to 8 bits
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def coupling():
    from dr2net.kernels import fused

    return fused


@outside_of_the_interpreter
def test_kernels_under_the_interpreter():
    run_in_the_interpreter(__file__)


def make_case(beta, dtype, word, shape=(3, 5, 24), given_up=0):
    torch.manual_seed(0)
    arithmetic = ExactArithmetic(round_coefficient(beta), dtype, word, given_up)
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
    expected = [new_x, new_y, remainder, decoded]
    (peaks,) = coupling.new_peaks(1, x.device)
    assert_same_bits(expected, list(coupling.advance(arithmetic, x, y, g, True, peaks)))
    assert peaks.view(torch.float32).tolist() == [t.abs().max().item() for t in (g, decoded)]
    assert coupling.advance(arithmetic, x, y, g, False)[2] is None
    rebuilt, seen = coupling.rebuild(arithmetic, new_y, remainder)
    assert_same_bits([rebuilt, seen], [x, arithmetic.decode(x)])
    (peaks,) = coupling.new_peaks(1, x.device)
    assert torch.equal(coupling.subtract(arithmetic, new_x, g, peaks), y)
    assert peaks.view(torch.float32)[0] == g.abs().max()


@runs_kernels
@pytest.mark.parametrize("beta", BETAS)
def test_results_written_over_streams_are_the_same(coupling, beta):
    arithmetic, x, y, g = make_case(beta, torch.float32, torch.int32)
    expected = coupling.advance(arithmetic, x, y, g, True)
    over_x, over_y = x.clone(), y.clone()
    into = over_y, None if beta == 1 else over_x
    found = coupling.advance(arithmetic, over_x, over_y, g, True, None, into)
    assert_same_bits(list(expected), list(found))
    assert found[0].data_ptr() == over_y.data_ptr()
    new_x, new_y, remainder, _ = expected
    over = new_y.clone()
    assert torch.equal(coupling.rebuild(arithmetic, over, remainder, over)[0], x)
    over = new_x.clone()
    assert torch.equal(coupling.subtract(arithmetic, over, g, None, over), y)
    assert over.data_ptr() == coupling.subtract(arithmetic, new_x, g, None, over).data_ptr()


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
    (peaks,) = coupling.new_peaks(1, x.device)
    coupling.advance(arithmetic, x, y, g, True, peaks)
    found = peaks.view(torch.float32)[0].item()
    assert math.isnan(found) if math.isnan(bad) else found == math.inf


@runs_kernels
@pytest.mark.parametrize("alpha_beta", [(1, 0.1), (0.5, 0.25), (0, 1)])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_a_chain_on_kernels_gives_the_same_bits(coupling, monkeypatch, alpha_beta, bf16):
    chain = make_chain(*alpha_beta, dropout=0.1).to(DEVICE)
    x = torch.randn(2, 5, 8, device=DEVICE, requires_grad=True)
    monkeypatch.setattr(ExactArithmetic, "kernels", lambda *_: None)
    expected = gradients(chain, x, bf16=bf16)
    used = on_kernels(monkeypatch, coupling)
    for reversible in (True, False):
        assert_same_bits(expected, gradients(chain, x, reversible=reversible, bf16=bf16))
    assert len(used) == 6 * 3 + 6  # advance, rebuild, retreat; advance


def on_kernels(monkeypatch, coupling):
    """Has chains take the kernels, in the interpreter also; returns the list of their calls."""
    used = []
    monkeypatch.setattr(ExactArithmetic, "kernels", lambda *_: used.append(1) or coupling)
    monkeypatch.setattr("dr2net.streams.has_kernels", lambda _: True)
    return used


# What launches no kernel on a GPU: allocations and views.
LAUNCHES_NOTHING = {
    "alias", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand", "new_empty",
    "permute", "select", "slice", "split", "squeeze", "t", "transpose", "unbind", "unsqueeze",
    "view", "_unsafe_view", "_reshape_alias",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Operations that launch a kernel on a GPU, but for those of modules and their gradients."""

    def __init__(self):
        super().__init__()
        self.names, self.in_module = [], False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        # Random states lie on the CPU wherever the network is.
        is_state = any(isinstance(a, torch.Tensor) and a.dtype == torch.uint8 for a in args)
        if not self.in_module and name not in LAUNCHES_NOTHING and not is_state:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@runs_kernels
@pytest.mark.parametrize("beta", [0.125, 0.1, 1])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_a_coupling_launches_three_operations_at_most_each_way(coupling, monkeypatch, beta, bf16):
    moves = on_kernels(monkeypatch, coupling)
    current = []
    # Nor what Triton's interpreter does in a kernel, which counts as one.
    def apart(original):
        def run(*args):
            current[0].in_module = True
            try:
                return original(*args)
            finally:
                current[0].in_module = False

        return run

    for name in ("__call__", "gradients"):
        monkeypatch.setattr(Call, name, apart(getattr(Call, name)))
    for name in ("advance", "rebuild", "subtract"):
        monkeypatch.setattr(coupling, name, apart(getattr(coupling, name)))

    def count(blocks):
        current[:] = [Launches()]
        # Of one module each: a parameter of two has its gradients summed, by any network.
        chain = make_chain(1 - beta, beta, blocks=blocks, branches=(mix,)).to(DEVICE)
        x = torch.randn(2, 5, 8, device=DEVICE, requires_grad=True)
        gradients(chain, x, bf16=bf16)  # what is found once
        chain.zero_grad()
        found = []
        with torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
            moves.clear()
            with Launches() as current[0]:
                output = chain(x)
            found.append([*current[0].names, *moves])
            loss = output.float().sum()
            moves.clear()
            with Launches() as current[0]:
                loss.backward()
            found.append([*current[0].names, *moves])
        return [len(way) for way in found], found

    few, _ = count(2)
    many, names = count(10)
    couplings = 8  # more
    forward, backward = ((b - a) / couplings for a, b in zip(few, many, strict=True))
    assert forward <= 3, names[0]
    assert backward <= 3, names[1]


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


def test_kernels_take_values_of_at_most_32_bits_and_something_at_all():
    exact = ExactArithmetic(0.5, torch.float32)
    assert kernels.kernels_for(exact, exact.encode(torch.randn(0)), torch.float32) is None
    assert kernels.kernels_for(exact, exact.encode(torch.randn(8)), torch.float64) is None


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
