"""The whole peak of a step by what it is made of (tools/benchmarks/selection.py)."""

import json

import pytest
import torch
from torch import nn

pytest.importorskip("timm")
pytest.importorskip("matplotlib")
from tools.benchmarks.selection import BOTH, CONVENTIONAL, PARTS, ROOT, WAYS, peak_of_step

RESULT = json.loads((ROOT / "results/selection_memory.json").read_text(encoding="utf-8"))


def test_parts_of_a_peak_are_those_of_its_moment():
    model = nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(4)])
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x = torch.randn(1, 256)

    def loss():
        return model(x).square().mean()

    loss().backward()
    optimizer.step()
    found = peak_of_step(loss, list(model.parameters()), optimizer)
    weights = 4 * 256 * 256 * 4
    assert found["weights"] == weights
    assert found["optimizer state"] == 2 * weights + 4 * 4  # and a count of steps for each
    # With one row activations are nothing beside gradients, all of which are there at the end.
    assert found["gradients"] + found["activations"] == pytest.approx(weights, rel=0.05)
    assert list(found) == list(PARTS)


def test_both_together_take_at_most_0_35_of_conventional_training():
    peaks = {way: sum(parts.values()) for way, parts in RESULT["measured"].items()}
    assert list(peaks) == list(WAYS)
    assert peaks[BOTH] <= 0.35 * peaks[CONVENTIONAL]
    assert all(peaks[BOTH] < peaks[way] for way in WAYS[:3])


def test_the_table_says_what_was_measured():
    for row, (way, parts) in zip(RESULT["rows"], RESULT["measured"].items(), strict=True):
        assert row["training"] == way
        assert row["peak (MB)"] == f"{sum(parts.values()) / 1e6:,.1f}"
        for part in PARTS:
            assert row[f"{part} (MB)"] == f"{parts[part] / 1e6:,.1f}"
