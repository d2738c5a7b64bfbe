import pytest

pytest.importorskip("mmengine")
from scipy import stats

from tools.demos.table import DIFFERENCE, difference, make_rows, paired_difference, spread

ONE, OTHER = [0.80, 0.84, 0.79, 0.90], [0.82, 0.85, 0.84, 0.93]


def test_difference_is_paired_by_seed_with_student_s_interval():
    mean, half = paired_difference(ONE, OTHER)
    expected = stats.ttest_rel(ONE, OTHER).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((expected.low, expected.high))


def test_one_seed_has_a_difference_without_interval():
    assert paired_difference([0.5], [0.75]) == (-0.25, None)
    assert difference([0.5], [0.75]) == "−25.0"


def test_equal_differences_have_an_interval_of_no_width():
    assert difference([0.5, 0.75], [0.25, 0.5]) == "+25.0 (+25.0 to +25.0)"


def test_spread_is_mean_lowest_and_highest_in_per_cent():
    assert spread([0.5, 0.2, 0.8]) == "50.0 (20.0 to 80.0)"


def test_rows_have_the_difference_after_the_first_figure_and_the_measured_columns():
    figures = {
        "conventional": {"mIoU": [0.5, 0.6], "OA": [0.9, 0.9]},
        "checkpointed": {"mIoU": [0.5, 0.6], "OA": [0.9, 0.9]},
        "Dr²Net": {"mIoU": [0.4, 0.5], "OA": [0.8, 0.8]},
    }
    measured = {name: [{"peak_bytes": 2e6}, {"peak_bytes": 1e6}] for name in figures}
    labels = {"mIoU (%)": "mIoU", "OA (%)": "OA"}
    columns = ["peak of a step (MB)"]
    rows = make_rows(figures, measured, labels, columns, "conventional", "checkpointed")
    assert list(rows[0]) == ["finetuning", "mIoU (%)", DIFFERENCE, "OA (%)", *columns]
    assert [row[DIFFERENCE] for row in rows[:2]] == ["0", "0, the same weights"]
    assert rows[2] == {
        "finetuning": "Dr²Net",
        "mIoU (%)": "45.0 (40.0 to 50.0)",
        DIFFERENCE: "−10.0 (−10.0 to −10.0)",
        "OA (%)": "80.0 (80.0 to 80.0)",
        "peak of a step (MB)": "2.0 → 1.0",
    }
