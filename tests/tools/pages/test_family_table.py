import json

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")
import dr2net
from dr2net.conversion import FAMILIES
from tools.pages.families import EXAMPLES, Example
from tools.pages.family_table import ROOT, describe, registered_name

RESULT = json.loads((ROOT / "results/families.json").read_text(encoding="utf-8"))


def test_every_registered_family_has_an_example():
    names = {registered_name(example.build(2, 0.0)) for example in EXAMPLES.values()}
    assert names == set(FAMILIES)


def test_the_table_has_every_family_and_all_are_equal():
    assert [row["family"] for row in RESULT["rows"]] == list(EXAMPLES)
    for row in RESULT["rows"]:
        assert row["equal at (1, 0)"] == row["equal at (1, 0.1)"] == "yes", row["family"]


@pytest.mark.parametrize("family", ["timm ViT", "timm ResNet", "mmdet Swin"])
def test_the_table_says_what_is_measured(family):
    (row,) = (row for row in RESULT["rows"] if row["family"] == family)
    assert describe(family, EXAMPLES[family]) == row


def test_a_network_that_is_not_equal_is_seen():
    class Broken(dr2net.conversion.ReversibleChain):
        pass

    def build(depth, chance):
        network = EXAMPLES["timm ViT"].build(depth, chance)
        source = torch.Generator()
        network.norm.register_forward_hook(lambda *c: c[-1] + torch.rand(1, generator=source))
        return network

    assert describe("x", Example("x", build, (2, 3, 32, 32)))["equal at (1, 0)"] == "NO"


def test_networks_of_no_family_are_refused():
    with pytest.raises(LookupError, match="no part of this Linear"):
        registered_name(nn.Linear(1, 1))
