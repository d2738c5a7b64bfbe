"""Every model that timm registers and an adapter knows: ``tools/pages/timm_models.py``."""

import pytest
import torch

from dr2net.conversion import FAMILIES
from tools.pages.timm_models import (
    PAGE,
    check_all,
    convert_at_full_size,
    draw_page,
    supported_models,
)

TIMM = [path for path in FAMILIES if path.startswith("timm.")]


@pytest.fixture(scope="module")
def outcomes():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield check_all(supported_models())
    torch.set_num_threads(threads)


@pytest.mark.parametrize("family", TIMM)
def test_each_registered_model_is_the_original_at_one_and_zero_and_exact_elsewhere(
    family, outcomes
):
    of_family = [(model.name, out) for model, out in outcomes if model.family == family]
    assert of_family
    wrong = [
        name
        for name, out in of_family
        if not out.refusal and not (out.original_at_one_zero and out.reversible_as_stored)
    ]
    assert not wrong


def test_only_networks_without_a_block_that_keeps_its_shape_are_refused(outcomes):
    refused = {model.name: out.refusal for model, out in outcomes if out.refusal}
    assert set(refused) == {"resnest14d", "resnet14t"}
    assert all("no block that keeps the shape" in refusal for refusal in refused.values())


def test_the_page_is_what_the_tool_writes(outcomes):
    assert PAGE.read_text(encoding="utf-8") == draw_page(outcomes), (
        "run python tools/pages/timm_models.py"
    )


@pytest.mark.slow
def test_models_of_full_size_have_the_chains_of_reduced_ones(outcomes):
    for model, outcome in outcomes:
        full = convert_at_full_size(model)
        assert (full.chains, full.branches, full.refusal) == (
            outcome.chains,
            outcome.branches,
            outcome.refusal,
        ), model.name
