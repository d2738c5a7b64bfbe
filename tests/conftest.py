"""Fixtures and rules that every test shares."""

import pytest
import torch
from hypothesis import settings

# The same cases every time; pytest --hypothesis-profile=long tries others, 50 times as many.
settings.register_profile("repeatable", derandomize=True, database=None)
settings.register_profile("long", max_examples=5000)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def fixed_random_state():
    """Start every test from the same random state, so that a failure repeats when run alone."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    no_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(no_gpu)
