import pytest
import torch
from torch import nn

import dr2net
from dr2net.diagnostics import bytes_kept
from tests.toy import make_chain

X = torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(0))


def model_of(*depths, dropout=0.1):
    chains = [make_chain(1, 0.1, blocks=depth, dropout=dropout) for depth in depths]
    return nn.Sequential(nn.Linear(8, 8), *chains)


def kept(model):
    return bytes_kept(lambda: model(X))


def stored(model):
    dr2net.set_reversible(model, False)
    found = kept(model)
    dr2net.set_reversible(model, True)
    return found


def test_a_large_budget_keeps_everything_and_predicts_what_that_takes():
    model = model_of(3)
    plan = dr2net.plan(model, X, budget_gb=1)
    assert plan.fits
    assert plan.keep == ("1.0", "1.1", "1.2")
    assert plan.transient == 0
    assert plan.kept == plan.kept_if_stored == stored(model)
    assert plan.kept_if_rebuilt == kept(model)
    assert plan.seconds == plan.seconds_if_stored < plan.seconds_if_rebuilt


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_plan_fills_its_budget_and_no_more(share):
    model = model_of(6)
    low, high = kept(model), stored(model)
    largest = dr2net.plan(model, X, budget_gb=1e-9).transient
    budget = low + largest + share * (high - low - largest)
    plan = dr2net.plan(model, X, budget_gb=budget / 1e9)
    assert plan.fits
    dr2net.set_reversible(model, True, keep=plan.keep)
    assert kept(model) == plan.kept <= budget
    # The last blocks, and no other one would have fitted.
    number = len(plan.keep)
    assert plan.keep == tuple(f"1.{key}" for key in range(6 - number, 6))
    dr2net.set_reversible(model, True, keep=(f"1.{5 - number}", *plan.keep))
    assert kept(model) + plan.transient > budget


def test_a_budget_below_what_a_reversible_network_takes_is_reported():
    plan = dr2net.plan(model_of(2), X, budget_gb=1e-6)
    assert not plan.fits
    assert plan.keep == ()
    assert "does not fit, even with nothing stored" in str(plan)


def test_the_summary_names_the_blocks_and_the_figures():
    model = model_of(2)
    lines = str(dr2net.plan(model, X, budget_gb=1)).splitlines()
    assert lines[0].endswith("GB of 1.000 GB: fits.")
    assert lines[1] == "Stored: 2 of 2 blocks (1.0, 1.1)."
    assert [line.split()[0] for line in lines[3:]] == ["nothing", "this", "all"]


def test_several_chains_are_planned_together():
    model = model_of(2, 2)
    plan = dr2net.plan(model, X, budget_gb=1)
    assert plan.keep == ("1.0", "1.1", "2.0", "2.1")
    assert plan.kept == stored(model)


def test_planning_leaves_the_network_as_it_was():
    model = model_of(3)
    dr2net.set_reversible(model, True, keep=["1.1"])
    (chain,) = dr2net.chains(model)
    branches, state = chain.branches, torch.get_rng_state()
    dr2net.plan(model, X, budget_gb=1)
    assert (chain.keep, chain.reversible, chain.branches) == ({"1"}, True, branches)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("budget", [0, -1, float("nan")])
def test_budgets_that_are_none_are_refused(budget):
    with pytest.raises(ValueError, match="budget_gb"):
        dr2net.plan(model_of(1), X, budget_gb=budget)


@pytest.mark.parametrize("model", [nn.Linear(8, 8), make_chain(1, 0)])
def test_networks_with_nothing_to_plan_are_refused(model):
    with pytest.raises(ValueError, match="Nothing to plan"):
        dr2net.plan(model, X, budget_gb=1)
