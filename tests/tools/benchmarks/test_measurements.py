"""What the benchmark measures a training step with (tools/benchmarks/measurements.py)."""

from pathlib import Path

import pytest
import torch

from tools.benchmarks import measurements

MEBI = 2**20


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_bytes_are_those_of_the_tensors(device):
    weight = torch.ones(MEBI // 4, device=device, requires_grad=True)

    def loss():
        doubled = weight * 2  # 1 MiB, kept by sin
        return (doubled.sin() * 3).sum()

    small = 64 if device == "cpu" else 2048  # a GPU's are multiples of 512 bytes
    found = measurements.peak_bytes(loss, [weight], device)
    assert found["kept"] == pytest.approx(MEBI, abs=small)
    # What is kept, the gradient that sin's backward is given, the cosine, and their product.
    assert found["peak"] == pytest.approx(4 * MEBI, abs=small)
    if device == "cpu":
        assert measurements.kept_bytes(loss) == found["kept"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_the_peak_of_the_process_is_seen():
    weight = torch.ones(16 * MEBI, requires_grad=True)
    found = measurements.process_peak(lambda: (weight * 2).sin().sum())
    assert 2 * 64 * MEBI < found < 6 * 64 * MEBI


def test_the_largest_batch_fits_and_one_more_does_not():
    def peak(batch):
        return 1000 + 70 * batch

    batch = measurements.largest_batch(5000, 300, {2: peak(2), 4: peak(4)})
    assert 300 + peak(batch) <= 5000 < 300 + peak(batch + 1)
    assert measurements.largest_batch(900, 300, {2: peak(2), 4: peak(4)}) == 0


def test_differences_are_relative():
    reference = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    found = [torch.tensor([3.0, 0.0]), torch.tensor([4.5])]
    assert measurements.relative_difference(found, reference) == pytest.approx(0.1)


def test_growth_is_the_power():
    sizes = [1, 10, 100]
    assert measurements.growth_exponent(sizes, [3.0, 3.0, 3.0]) == pytest.approx(0)
    assert measurements.growth_exponent(sizes, [2.0, 200.0, 2e4]) == pytest.approx(2)


def test_few_and_many_values_have_quartiles():
    assert measurements.quartiles([1.0]) == "1.00"
    assert measurements.quartiles([1, 2, 3, 4, 5], digits=1) == "3.0 (2.0 to 4.0)"
