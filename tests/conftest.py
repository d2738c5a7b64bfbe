"""Fixtures and rules that every test shares."""

import os
import random
import sys
from importlib.util import find_spec
from unittest import mock

# One thread a process, and so in the processes that tests start: several workers run beside each
# other (make test), and the number of threads decides in which order sums are taken.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

THREADS = torch.get_num_threads()

if find_spec("hypothesis"):  # which make test-gpu does without
    from hypothesis import settings

    # The same cases every time; pytest --hypothesis-profile=long tries others, 50 times as many.
    settings.register_profile("repeatable", derandomize=True, database=None)
    settings.register_profile("long", max_examples=5000)
    settings.load_profile("repeatable")


def pytest_addoption(parser, pluginmanager):
    if not pluginmanager.hasplugin("timeout"):
        # pyproject.toml sets it, and what no plugin knows is an error (--strict-config).
        parser.addini("timeout", "of pytest-timeout, which is not installed")


def pytest_configure(config):
    # pytest-randomly chooses the order alone: with seeds of its own, figures differed by run.
    config.option.randomly_reset_seed = False
    # Hooks of this file itself are not called for fixtures of the whole session.
    config.pluginmanager.register(SameStartForSharedFixtures())


def forget_what_ran_before():
    """What tests leave behind, as in a process of its own: random numbers, threads and so on."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what mmengine's transforms draw from
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    if registry := sys.modules.get("mmengine.registry"):
        registry.DefaultScope._instance_dict.clear()  # it only ever adds to them
    if checkpoint := sys.modules.get("dr2net.openmmlab.checkpoint"):
        checkpoint.trust_checkpoints(False)


def pytest_collectstart():
    forget_what_ran_before()  # modules draw numbers when they are imported


class SameStartForSharedFixtures:
    """Tests that share a fixture come in any order: it is set up as if before all of them."""

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        if fixturedef.scope == "function":
            return (yield)
        forget_what_ran_before()
        with mock.patch.dict(os.environ):
            return (yield)


@pytest.fixture(autouse=True)
def same_start_for_every_test():
    """So that the order of tests makes no difference, and a failure repeats when run alone."""
    forget_what_ran_before()
    with mock.patch.dict(os.environ):  # training sets LOCAL_RANK, and more
        yield


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    no_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(no_gpu)
