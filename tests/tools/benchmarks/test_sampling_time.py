import json
import statistics

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("open3d")

import torch

from tools.benchmarks import sampling_time
from tools.benchmarks.sampling_time import ROOT, make_methods

RESULT = json.loads((ROOT / "results/sampling_time.json").read_text(encoding="utf-8"))
SEARCHES = ("PyTorch, CPU", "Open3D's tree, checked, CPU")


@pytest.fixture
def methods(monkeypatch):
    monkeypatch.setattr(sampling_time, "SAMPLED", 300)
    return make_methods(torch.rand(2, 1200, 3))


def test_both_ways_of_searching_return_the_same(methods):
    plain, tree = (methods[sampling_time.SEARCH, name]() for name in SEARCHES)
    assert all(torch.equal(one, other) for one, other in zip(plain, tree, strict=True))


def test_both_ways_of_sampling_return_as_many_points(methods):
    ours, theirs = (
        methods[sampling_time.SAMPLING, f"{name}, CPU"]() for name in ("PyTorch", "Open3D")
    )
    assert ours.shape == (2, 300)
    assert [len(cloud.points) for cloud in theirs] == [300, 300]


def test_the_result_file_has_what_the_issue_asks_for():
    assert sampling_time.SAMPLING == "sampling 6,000 of 24,000 points"
    assert sampling_time.CLOUDS == 8
    timed = {(row["task"], row["method"]) for row in RESULT["rows"]}
    assert {(sampling_time.SAMPLING, f"{name}, CPU") for name in ("PyTorch", "Open3D")} <= timed


def test_the_tree_is_only_used_because_it_is_faster():
    plain, tree = (RESULT["seconds"][f"{sampling_time.SEARCH}, {name}"] for name in SEARCHES)
    assert statistics.median(tree) < min(plain)
