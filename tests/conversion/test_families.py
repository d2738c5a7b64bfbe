"""What every family promises, on a small network of each (tools/pages/families)."""

import copy
import pickle
from functools import cache

import pytest
import torch

pytest.importorskip("mmengine")
import dr2net
from dr2net.diagnostics import bytes_kept, gradient_error
from tests.conversion.families import converted
from tests.toy import assert_same_bits, gradients
from tools.pages.families import EXAMPLES

FAMILIES = pytest.mark.parametrize("family", list(EXAMPLES))


@pytest.fixture(autouse=True)
def few_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def built(family, depth, chance):
    if EXAMPLES[family].library == "transformers":  # 5.23 and Python 3.11, which its adapters need
        pytest.importorskip("transformers", minversion="5.23")
    torch.manual_seed(1)
    network = EXAMPLES[family].build(depth, chance)
    network.train()  # which returns nothing in some of OpenMMLab's networks
    return network


def make(family, depth=2, chance=0.0):
    x = torch.randn(EXAMPLES[family].shape, requires_grad=True)
    return copy.deepcopy(built(family, depth, chance)), x


@FAMILIES
@pytest.mark.parametrize("chance", [0.0, 0.3])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_at_one_and_zero_it_is_the_original_network_bit_for_bit(family, chance, training):
    network, x = make(family, chance=chance)
    model = converted(network, 1, 0)
    network.train(training)
    model.train(training)
    assert_same_bits(gradients(model, x), gradients(network, x))
    for name, buffer in network.named_buffers():
        assert torch.equal(model.state_dict().get(name, buffer), buffer), name


def freeze_parts(model):
    """Freezes all before the first chain and every other block: a common way of finetuning."""
    first, *_ = dr2net.chains(model)
    inside = {id(parameter) for parameter in first.parameters()}
    for parameter in model.parameters():
        if id(parameter) in inside:
            break
        parameter.requires_grad_(False)
    for chain in dr2net.chains(model):
        for block in list(chain)[::2]:
            block.requires_grad_(False)


# A pair for each of the cells that follow, so that every family and precision meets them all.
PAIRS = {
    (0.0, False): (1, 0.1),
    (0.0, True): (0.5, 0.5),
    (0.3, False): (0.3, 0.6),
    (0.3, True): (0, 1),
}


@FAMILIES
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen parts"])
@pytest.mark.parametrize("chance", [0.0, 0.3], ids=["no dropout", "dropout"])
@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("arithmetic", ["exact", "exact64", "float"])
def test_gradients_are_those_of_stored_activations(family, arithmetic, precision, chance, frozen):
    network, x = make(family, chance=chance)
    model = dr2net.convert(network, arithmetic=arithmetic)
    if precision == "bfloat16":
        model, x = model.to(torch.bfloat16), x.detach().bfloat16()
        skip_unless_it_runs(copy.deepcopy(built(family, 2, chance)).to(torch.bfloat16), x)
    if frozen:
        freeze_parts(model)
        x = x.detach()
    if arithmetic == "float":
        # The inverse in floating point is approximate: close in the precision of its streams.
        dr2net.set_coefficients(model, 0, 1)
        torch.manual_seed(2)
        limit = 1e-3 if precision == "float32" else 0.5
        assert gradient_error(model, lambda: loss_of(model, x, precision)) < limit
        return
    dr2net.set_coefficients(model, *PAIRS[chance, frozen])
    stored, rebuilt = (
        gradients(model, x, reversible=reversible, bf16=precision == "autocast")
        for reversible in (False, True)
    )
    assert_same_bits(rebuilt, stored)


@FAMILIES
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen parts"])
@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
def test_gradients_of_sliced_mlps_are_those_of_stored_activations(family, precision, frozen):
    network, x = make(family, chance=0.3)
    model = dr2net.convert(network, *PAIRS[0.3, frozen])
    # ConvNeXt's MLPs stand behind a convolution, in one module, the decoder's behind attention.
    if family in {"timm ResNet", "timm SE-ResNeXt", "timm ConvNeXt", "mmdet DINO decoder"}:
        with pytest.raises(ValueError, match="no MLP that can be sliced"):
            dr2net.slice_mlps(model, 7)
        return
    dr2net.slice_mlps(model, 7)
    assert all(chain.slicer is not None for chain in dr2net.chains(model))
    if precision == "bfloat16":
        model, x = model.to(torch.bfloat16), x.detach().bfloat16()
        skip_unless_it_runs(copy.deepcopy(built(family, 2, 0.3)).to(torch.bfloat16), x)
    if frozen:
        freeze_parts(model)
        x = x.detach()
    stored, rebuilt = (
        gradients(model, x, reversible=reversible, bf16=precision == "autocast")
        for reversible in (False, True)
    )
    assert_same_bits(rebuilt, stored)


def skip_unless_it_runs(original, x):
    try:
        original(x)
    except RuntimeError as error:
        pytest.skip(f"the library's own network does not run with such weights: {error}")


def loss_of(model, x, precision):
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        outputs = [
            value
            for value in torch.utils._pytree.tree_leaves(model(x))
            if isinstance(value, torch.Tensor)
        ]
    return sum(output.float().sin().sum() for output in outputs)


@FAMILIES
def test_every_stage_is_a_chain(family):
    model, _ = make(family)
    found = dr2net.chains(dr2net.convert(model))
    assert len(found) == EXAMPLES[family].chains
    assert all(chain.couplings() for chain in found)


@FAMILIES
def test_bytes_kept_do_not_grow_with_depth_at_zero_and_one(family):
    kept = []
    for depth in (2, 5):
        network, x = make(family, depth)
        model = dr2net.convert(network, 0, 1)
        kept.append(bytes_kept(lambda: model(x)))  # noqa: B023
        dr2net.set_reversible(model, False)
        kept.append(bytes_kept(lambda: model(x)))  # noqa: B023
    shallow, shallow_stored, deep, deep_stored = kept
    # The decoder makes places anew for each layer: 2 images, 10 queries, 2 levels, 4 numbers.
    of_its_own = 3 * 2 * 10 * 2 * 4 * 4 if family == "mmdet DINO decoder" else 0
    assert deep == shallow + of_its_own
    assert deep_stored > shallow_stored


@FAMILIES
def test_parameter_names_order_and_mode_stay(family):
    network, _ = make(family)
    names = [name for name, _ in network.named_parameters()]
    model = dr2net.convert(network)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(module.training for module in model.modules())


@FAMILIES
def test_a_pretrained_state_dict_loads_before_and_after_conversion(family):
    network, x = make(family)
    other = dr2net.convert(EXAMPLES[family].build(2, 0.0), 0.5, 0.5)
    other.train()
    other.load_state_dict(network.state_dict(), strict=True)
    assert_same_bits(gradients(converted(network, 0.5, 0.5), x), gradients(other, x))


@FAMILIES
def test_a_finetuned_state_dict_brings_its_coefficients(family):
    network, _ = make(family)
    trained, fresh = converted(network, 0.25, 0.75), converted(network, 1, 0.1)
    fresh.load_state_dict(trained.state_dict(), strict=True)
    assert dr2net.get_coefficients(fresh) == (0.25, 0.75)


@FAMILIES
def test_copies_and_pickles_run_on_their_own_weights(family):
    network, x = make(family)
    model = converted(network, 0.5, 0.5)
    before = gradients(model, x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
        twin.load_state_dict(converted(network, 0.5, 0.5).state_dict())
        with torch.no_grad():
            for chain in dr2net.chains(model):
                for parameter in chain.parameters():
                    parameter.mul_(1.5)
        assert torch.equal(gradients(twin, x)[0], before[0])
        model = twin


@FAMILIES
def test_it_reverts_to_the_original_classes(family):
    network, x = make(family)
    classes = [type(module) for module in network.modules()]
    names = list(network.state_dict())
    expected = gradients(copy.deepcopy(network), x)
    model = dr2net.revert(dr2net.convert(network, 1, 0))
    assert [type(module) for module in model.modules()] == classes
    assert list(model.state_dict()) == names
    assert_same_bits(gradients(model, x), expected)


@FAMILIES
def test_reverted_from_the_line_its_weights_are_the_library_s_own_network_s(family):
    network, x = make(family)
    plain, _ = make(family)
    model = dr2net.convert(network)  # at (7/8, 1/8)
    gradients(model, x)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    with pytest.warns(UserWarning, match=r"left \(alpha, beta\) = \(0.875, 0.125\)"):
        reverted = dr2net.revert(model)
    plain.load_state_dict(reverted.state_dict(), strict=True)
    assert_same_bits(gradients(reverted, x), gradients(plain, x))


@FAMILIES
def test_verification_passes(family):
    network, x = make(family, chance=0.3)
    dr2net.verify(dr2net.convert(network, 1, 0.1), x)


@FAMILIES
def test_a_kept_chain_has_the_same_gradients(family):
    network, x = make(family, chance=0.3)
    model = dr2net.convert(network, 1, 0.1)
    expected = gradients(model, x)
    last = dr2net.chains(model)[-1]
    dr2net.set_reversible(model, True, keep=[last.name])
    assert_same_bits(gradients(model, x), expected)


# Whole blocks as couplings


@FAMILIES
@pytest.mark.parametrize("chance", [0.0, 0.3])
def test_whole_blocks_are_couplings_too(family, chance):
    network, x = make(family, chance=chance)
    model = converted(network, 1, 0, couplings="block")
    assert {len(chain.branches) for chain in dr2net.chains(model)} == {1}
    assert_same_bits(gradients(model, x), gradients(network, x))
    dr2net.set_coefficients(model, 0.875, 0.125)
    assert_same_bits(gradients(model, x), gradients(model, x, reversible=False))
