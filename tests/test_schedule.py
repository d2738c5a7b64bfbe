import pytest
from torch import nn

import dr2net
from dr2net import CoefficientSchedule
from dr2net.coefficients import is_on_the_line
from dr2net.schedule import ORDERS, SHAPES
from tests.toy import make_chain


def paper_s_way(**options):
    return CoefficientSchedule(**{"alpha": (1.0, 0.0), "beta": (0.1, 1.0), **options})


# On the line


def test_without_arguments_a_point_of_the_line_is_held():
    schedule = CoefficientSchedule()
    assert {schedule.at(step) for step in (0, 1, 500, 10**6)} == {(0.875, 0.125)}


@pytest.mark.parametrize("beta", [0.1, 0.25, 1, 0])
def test_a_held_beta_has_its_alpha_on_the_line(beta):
    alpha, found = CoefficientSchedule(beta=beta).at(7)
    assert found == beta
    assert is_on_the_line(alpha, beta)


def test_a_point_off_the_line_can_be_held():
    assert CoefficientSchedule(alpha=1.0, beta=2**-6).at(3) == (1.0, 2**-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_moves_along_the_line_stay_on_it(shape):
    schedule = CoefficientSchedule(beta=(0.1, 0.5), begin=10, end=40, shape=shape)
    pairs = [schedule.at(step) for step in range(50)]
    assert all(is_on_the_line(alpha, beta) for alpha, beta in pairs)
    betas = [beta for _, beta in pairs]
    assert betas == sorted(betas)
    assert (betas[0], betas[10], betas[40], betas[49]) == (0.1, 0.1, 0.5, 0.5)


def test_a_move_along_the_line_is_linear():
    assert CoefficientSchedule(beta=(0.25, 0.75), end=4).at(1) == (0.625, 0.375)


# The paper's way


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_schedules_begin_and_end_at_their_ends_and_never_turn_back(order, shape):
    schedule = paper_s_way(begin=10, end=40, order=order, shape=shape, interval=3)
    assert schedule.at(0) == schedule.at(10) == (1.0, 0.1)
    assert schedule.at(40) == schedule.at(1000) == (0.0, 1.0)
    alphas, betas = zip(*(schedule.at(step) for step in range(50)), strict=True)
    assert list(alphas) == sorted(alphas, reverse=True)
    assert list(betas) == sorted(betas)


def test_together_moves_both_linearly():
    schedule = paper_s_way(end=10, order="together")
    assert schedule.at(5) == pytest.approx((0.5, 0.55))
    assert schedule.at(2.5) == pytest.approx((0.75, 0.325))


def test_alpha_first_moves_alpha_then_beta():
    schedule = paper_s_way(end=10, order="alpha_first")
    assert schedule.at(2.5) == pytest.approx((0.5, 0.1))
    assert schedule.at(5) == pytest.approx((0.0, 0.1))
    assert schedule.at(7.5) == pytest.approx((0.0, 0.55))


def test_beta_first_moves_beta_then_alpha():
    schedule = paper_s_way(end=10, order="beta_first")
    assert schedule.at(5) == pytest.approx((1.0, 1.0))
    assert schedule.at(7.5) == pytest.approx((0.5, 1.0))


def test_alternate_moves_one_at_a_time_in_turns_of_the_interval():
    schedule = paper_s_way(end=8, order="alternate", interval=2, beta=(0.5, 1.0))
    moves = [schedule.at(step) for step in range(9)]
    assert [alpha for alpha, _ in moves] == [1, 0.75, 0.5, 0.5, 0.5, 0.25, 0, 0, 0]
    assert [beta for _, beta in moves] == [0.5, 0.5, 0.5, 0.625, 0.75, 0.75, 0.75, 0.875, 1]


@pytest.mark.parametrize("end", [7, 9, 10, 11, 12.5])
def test_alternate_ends_in_time_when_its_turns_do_not_divide_the_steps(end):
    schedule = paper_s_way(end=end, interval=4)
    alpha, beta = schedule.at(end - 1e-9)
    assert alpha == pytest.approx(0, abs=1e-6)
    assert beta == pytest.approx(1, abs=1e-6)


def test_cosine_is_slow_at_both_ends():
    schedule = paper_s_way(end=100, order="together", shape="cosine")
    assert 1 - schedule.at(10)[0] == pytest.approx(schedule.at(90)[0])
    assert schedule.at(10)[0] > 0.97
    assert schedule.at(50)[0] == pytest.approx(0.5)


def test_step_jumps_at_equal_distances():
    schedule = paper_s_way(end=8, order="together", shape="step", jumps=2)
    assert [schedule.at(step)[0] for step in range(9)] == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0]


def test_step_jumps_on_time_where_floating_point_falls_short():
    schedule = paper_s_way(end=100, order="together", shape="step", jumps=100)
    assert schedule.at(29)[0] == pytest.approx(0.71)


def test_a_schedule_without_length_jumps_to_its_end():
    schedule = paper_s_way(begin=5, end=5)
    assert schedule.at(4) == (1.0, 0.1)
    assert schedule.at(5) == (0.0, 1.0)


def test_a_schedule_is_applied_to_every_chain_of_a_model():
    chain = make_chain()
    paper_s_way(end=10, order="together").apply(chain, 5)
    assert dr2net.get_coefficients(chain) == pytest.approx((0.5, 0.55), abs=2**-16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": (0.0, 1.0)}, "below 2"),
        ({"beta": (0.001, 1.0)}, "beta=0.001"),
        ({"alpha": (1.0, -1.0)}, "alpha=-1.0"),
        ({"begin": 10, "end": 5}, "begin ≤ end"),
        ({"begin": -1}, "0 ≤ begin"),
        ({"end": float("inf")}, "end < ∞"),
        ({"order": "random"}, "'random' is unknown"),
        ({"shape": "square"}, "'square' is unknown"),
        ({"interval": 0}, "interval=0"),
        ({"end": 10, "interval": 10}, "no turn"),
        ({"jumps": 0}, "jumps=0"),
        ({"beta": (0.1, 0.2, 0.3)}, "a first and a last"),
        ({"alpha": None, "beta": 2}, "beta=2"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        paper_s_way(**options)


def test_a_model_without_chains_is_refused():
    with pytest.raises(ValueError, match="convert it first"):
        CoefficientSchedule().apply(nn.Linear(2, 2), 0)
