import subprocess
import sys

import pytest
import timm
from torch import nn

import dr2net
from tests.toy import Block, gate, mix


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x):
        return self.blocks(x)


@pytest.fixture
def toy_adapter():
    @dr2net.register_adapter(Toy)
    def split(model, gated=True):
        branches = (mix, gate) if gated else (mix,)
        model.blocks = dr2net.ReversibleChain(model.blocks, branches)

    yield
    from dr2net.conversion import _adapters

    del _adapters[Toy]


def test_an_unknown_network_lists_the_families_and_shows_how_to_add_one():
    with pytest.raises(TypeError) as caught:
        dr2net.convert(nn.Linear(2, 2))
    message = str(caught.value)
    assert "timm.models.vision_transformer.VisionTransformer" in message
    assert "mmaction.models.backbones.vit_mae.VisionTransformer" in message
    assert "@register_adapter(Linear)" in message


def test_the_adapter_that_the_message_shows_works():
    with pytest.raises(TypeError) as caught:
        dr2net.convert(nn.Linear(2, 2))
    lines = str(caught.value).splitlines()
    code = "\n".join(line[4:] for line in lines if line.startswith("    "))
    code = code[code.index("from dr2net") :]
    names = {"Linear": type("Shown", (nn.Module,), {})}
    exec(code, names)  # the message's own lines
    assert "split" in names
    from dr2net.conversion import _adapters

    del _adapters[names["Linear"]]


@pytest.mark.usefixtures("toy_adapter")
def test_a_registered_adapter_serves_subclasses_and_containers():
    model = nn.Sequential(nn.Linear(8, 8), type("SubToy", (Toy,), {})())
    assert dr2net.is_convertible(model)
    assert dr2net.convert(model, 0.5, 0.5) is model
    (chain,) = dr2net.chains(model)
    assert chain.name == "1.blocks"
    assert dr2net.get_coefficients(model) == (0.5, 0.5)


@pytest.mark.usefixtures("toy_adapter")
def test_options_reach_the_adapter_and_unknown_ones_are_refused():
    assert len(dr2net.chains(dr2net.convert(Toy(), gated=False))[0].couplings()) == 2
    model = Toy()
    with pytest.raises(TypeError, match="fused: not an option for Toy, which takes gated"):
        dr2net.convert(model, fused=True)
    assert not dr2net.chains(model)


@pytest.mark.usefixtures("toy_adapter")
@pytest.mark.parametrize("bad", [{"beta": 2}, {"alpha": -1}, {"arithmetic": "fixed"}])
def test_bad_values_leave_the_network_as_it_was(bad):
    model = Toy()
    with pytest.raises(ValueError, match=next(iter(bad))):
        dr2net.convert(model, **bad)
    assert type(model.blocks) is nn.Sequential


@pytest.mark.usefixtures("toy_adapter")
def test_a_converted_network_is_not_converted_again():
    model = dr2net.convert(Toy())
    with pytest.raises(ValueError, match="converted already"):
        dr2net.convert(model)


@pytest.mark.usefixtures("toy_adapter")
def test_chains_with_different_coefficients_are_reported():
    model = dr2net.convert(nn.Sequential(Toy(), Toy()))
    dr2net.chains(model)[0].set_coefficients(0.5, 0.5)
    with pytest.raises(ValueError, match="different coefficients"):
        dr2net.get_coefficients(model)


def test_networks_without_chains_are_refused():
    for function in (dr2net.get_coefficients, lambda m: dr2net.set_reversible(m, False)):
        with pytest.raises(ValueError, match="no reversible chains"):
            function(nn.Linear(2, 2))


def test_set_reversible_reaches_every_chain():
    model = dr2net.convert(timm.create_model("test_vit"))
    dr2net.set_reversible(model, False)
    assert [chain.reversible for chain in dr2net.chains(model)] == [False]


def test_the_core_needs_torch_alone():
    code = "import sys, dr2net; print(*{'timm', 'mmengine', 'mmcv', 'mmaction'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
