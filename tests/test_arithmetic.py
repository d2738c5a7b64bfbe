import math

import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

from dr2net.coefficients import alpha_on_the_line, is_on_the_line, round_coefficient
from dr2net.growth import error_growth, predicted_inverse_error, stream_growth
from dr2net.kernels import arithmetic as arithmetics
from dr2net.kernels.arithmetic import ExactArithmetic, FloatArithmetic, make_arithmetic
from dr2net.streams import combined as combine_gradients

BETAS = (2.0**-8, 0.01, 0.02, 0.05, 0.1, 0.25, 0.3, 0.5, 0.6, 0.9, 0.9999, 1.0)
WORDS = (torch.int32, torch.int64)


def exact(beta: float, word: torch.dtype = torch.int32) -> ExactArithmetic:
    return ExactArithmetic(round_coefficient(beta), torch.float32, word)


def streams(word: torch.dtype) -> torch.Tensor:
    """Values of all sizes up to the arithmetic's limit, both signs, small ones complete."""
    limit = 2 ** (torch.iinfo(word).bits - 2)
    edges = torch.tensor([limit, limit - 1, 1 - limit, -limit], dtype=word)
    magnitudes = [torch.randint(-(2**k), 2**k, (200,), dtype=word) for k in (12, 16, 20, 24, 29)]
    return torch.cat([torch.arange(-700, 700, dtype=word), edges, *magnitudes])


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("beta", BETAS)
def test_scaling_is_the_floor_of_beta_x(beta, word):
    arithmetic = exact(beta, word)
    x = streams(word)
    expected = [value * arithmetic.numerator >> 16 for value in x.tolist()]
    assert arithmetic.scale(x)[0].tolist() == expected


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("beta", BETAS)
def test_unscaling_returns_the_same_bits(beta, word):
    arithmetic = exact(beta, word)
    x = streams(word)
    assert torch.equal(arithmetic.unscale(*arithmetic.scale(x)), x)


@settings(max_examples=200, deadline=None)
@given(
    numerator=st.integers(2**8, 2**16),
    values=st.lists(st.integers(-(2**30), 2**30), min_size=1, max_size=40),
)
def test_unscaling_returns_the_same_bits_at_every_beta(numerator, values):
    arithmetic = exact(numerator / 2**16)
    x = torch.tensor(values, dtype=torch.int32)
    assert torch.equal(arithmetic.unscale(*arithmetic.scale(x)), x)


@pytest.mark.parametrize("word", WORDS)
def test_unscaling_is_exact_where_division_is_a_multiplication_by_the_inverse(word, monkeypatch):
    # As CUDA divides by a scalar; its last bit may differ, which matters at multiples of n.
    monkeypatch.setattr(
        torch.Tensor, "div_", lambda self, n: self.mul_(1 / torch.tensor(n, dtype=self.dtype))
    )
    for numerator in range(256, 2**16, 37):
        arithmetic = exact(numerator / 2**16, word)
        x = streams(word)
        assert torch.equal(arithmetic.unscale(*arithmetic.scale(x)), x)


@pytest.mark.parametrize("beta", BETAS)
def test_remainders_take_the_bits_of_one_over_beta(beta):
    arithmetic = exact(beta)
    _, remainder = arithmetic.scale(torch.randint(-(2**30), 2**30, (8000,), dtype=torch.int32))
    bits = math.ceil(math.log2(math.ceil(1 / arithmetic.beta)))
    assert arithmetic.remainder_bits == bits
    assert bits == (0 if remainder is None else remainder.numel() * 8 / 8000)


def test_no_remainder_is_kept_at_beta_one():
    x = torch.arange(10, dtype=torch.int32)
    assert exact(1.0).scale(x) == (x, None)


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (3, 5, 7), (2, 1, 1)])
def test_shapes_survive_the_way_there_and_back(shape):
    arithmetic = exact(0.1)
    x = torch.randint(-(2**20), 2**20, shape, dtype=torch.int32)
    rebuilt = arithmetic.unscale(*arithmetic.scale(x))
    assert rebuilt.shape == x.shape
    assert torch.equal(rebuilt, x)


def test_a_transposed_stream_keeps_its_memory_layout():
    arithmetic = exact(0.3)
    x = torch.randint(-(2**20), 2**20, (4, 6, 5), dtype=torch.int32).transpose(1, 2)
    rebuilt = arithmetic.unscale(*arithmetic.scale(x))
    assert torch.equal(rebuilt, x)
    assert rebuilt.stride() == x.stride()
    assert arithmetic.add(x, torch.randn(4, 5, 6)).stride() == x.stride()


def test_adding_and_subtracting_a_module_output_cancel():
    arithmetic = exact(0.3)
    y, g = arithmetic.encode(torch.randn(100) * 50), torch.randn(100) * 50
    assert torch.equal(arithmetic.subtract(arithmetic.add(y, g), g), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_values_on_the_grid_are_decoded_to_themselves(dtype):
    arithmetic = make_arithmetic("exact", 1.0, dtype)
    x = (torch.arange(-128, 128) / 16).to(dtype)
    decoded = arithmetic.decode(arithmetic.encode(x))
    assert decoded.dtype == dtype
    assert torch.equal(decoded, x)


@pytest.mark.parametrize(
    ("range_bits", "limit", "limit_of_low"),
    [
        (10, 2**10, 2**10),
        (11, 2**30, 2**11),
        (13, 2**30, 2**13),
        (14, 2**30, 2**30),
        (30, 2**30, 2**30),
        (41, 2**41, 2**41),
        (100, 2**100, 2**100),
    ],
)
def test_words_have_room_for_the_range(range_bits, limit, limit_of_low):
    for dtype, precision, expected in (
        (torch.float32, None, limit),
        (torch.float32, torch.bfloat16, limit_of_low),
        (torch.float32, torch.float16, limit_of_low),
        (torch.bfloat16, None, limit_of_low),
    ):
        arithmetic = make_arithmetic("exact", 0.5, dtype, precision, range_bits)
        assert arithmetic.word == (torch.int64 if expected >= 2**30 else torch.int32)
        assert arithmetic.limit == expected
        extreme = torch.tensor([-expected, expected], dtype=dtype)
        assert torch.equal(arithmetic.decode(arithmetic.encode(extreme)), extreme)


def test_unscaling_is_exact_to_the_last_value_of_a_word_for_any_beta():
    # Also behind sums of a stream and an output, which take the bit that the limit leaves.
    ends = torch.tensor([-(2**31), 1 - 2**31, 2**31 - 2, 2**31 - 1], dtype=torch.int32)
    x = torch.cat([ends, torch.randint(-(2**31), 2**31, (2000,), dtype=torch.int32)])
    for numerator in (*range(256, 300), *torch.randint(300, 2**16, (100,)).tolist(), 65533, 65535):
        arithmetic = ExactArithmetic(numerator / 2**16, torch.float32)
        assert torch.equal(arithmetic.unscale(*arithmetic.scale(x)), x), numerator


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("beta", BETAS)
def test_unscaling_without_float64_returns_the_same_bits(beta, word, monkeypatch):
    monkeypatch.setattr(arithmetics, "_has_float64", lambda _: False)
    arithmetic, x = exact(beta, word), streams(word)
    assert torch.equal(arithmetic.unscale(*arithmetic.scale(x)), x)


@pytest.mark.parametrize("beta", [2.0**-shift for shift in range(9)])
def test_powers_of_two_are_shifts_with_the_same_remainders(beta, monkeypatch):
    arithmetic, x = exact(beta), streams(torch.int32)
    shifted = arithmetic.scale(x)
    general = exact(beta)
    vars(general)["shift"] = None  # what is cached there
    for a, b in zip(shifted, general.scale(x), strict=True):
        assert a is b or (a is not None and b is not None and torch.equal(a, b))


def test_the_line_has_no_rounding():
    for n in range(2**8, 2**16 + 1, 7):
        beta = n / 2**16
        assert alpha_on_the_line(beta) + beta == 1
        assert is_on_the_line(alpha_on_the_line(beta), beta)
        assert stream_growth(alpha_on_the_line(beta), beta) == pytest.approx(1)
    assert not is_on_the_line(1, 0.1)
    assert is_on_the_line(0.9, 0.1)


def test_words_are_wide_when_asked_for_and_for_float64():
    assert make_arithmetic("exact64", 1.0, torch.float32).word == torch.int64
    assert make_arithmetic("exact", 1.0, torch.float64).word == torch.int64


def test_growth_is_that_of_the_linear_recurrence():
    # x_i = α x_{i-1} + β x_{i-2}: its dominant root, and the smaller one's inverse.
    assert stream_growth(1, 0) == 1
    assert stream_growth(0.3, 0.7) == pytest.approx(1)
    assert stream_growth(1, 1) == pytest.approx((1 + math.sqrt(5)) / 2)
    assert error_growth(0, 1) == 1
    assert error_growth(0.5, 0.5) == pytest.approx(2)
    assert error_growth(1, 0) == math.inf


def test_predicted_error_does_not_overflow():
    assert predicted_inverse_error(1.0, 0.1, 10_000, torch.float32) > 1e200
    assert (
        predicted_inverse_error(0.0, 1.0, 10_000, torch.float32) == torch.finfo(torch.float32).eps
    )


def test_gradients_combine_with_parts_missing():
    a, b = torch.tensor([1.0]), torch.tensor([4.0])
    assert combine_gradients(a, b, 0.25) == torch.tensor([2.0])
    assert combine_gradients(None, b, 0.25) == torch.tensor([1.0])
    assert combine_gradients(a, None, 0.25) is a
    assert combine_gradients(None, None, 0.25) is None


def test_float_arithmetic_inverts_up_to_rounding():
    arithmetic = FloatArithmetic(0.25, torch.float64)
    x = torch.randn(10, dtype=torch.float64)
    torch.testing.assert_close(arithmetic.unscale(*arithmetic.scale(x)), x, rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", ["exact", "float"])
def test_in_place_is_the_same_in_the_streams_own_memory(name):
    arithmetic = make_arithmetic(name, 0.5, torch.float32)
    y, g = arithmetic.encode(torch.randn(3, 5)), torch.randn(3, 5)
    for operation in (arithmetic.add, arithmetic.subtract):
        expected, given = operation(y, g), y.clone()
        found = operation(given, g, in_place=True)
        assert torch.equal(found, expected)
