"""torch.compile around a converted network and inside it: the gradients of stored activations."""

import shutil

import pytest
import torch
from torch import nn

import dr2net
from tests.conversion.families import IMAGES, converted, timm_vit
from tests.toy import assert_same_bits, gradients, make_chain

AOT = "aot_eager"  # traces and partitions like inductor, then runs eager kernels
BACKENDS = [
    AOT,
    pytest.param(
        "inductor",
        marks=pytest.mark.skipif(
            not (shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")),
            reason="needs a C++ compiler",
        ),
    ),
]


@pytest.fixture(autouse=True)
def no_compiled_code_of_other_tests():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def dropping_vit(**options):
    return timm_vit(depth=2, proj_drop_rate=0.1, drop_path_rate=0.2, **options).train()


def images(*shape):
    return torch.randn(shape or IMAGES, requires_grad=True)


def assert_reversible_equals_stored(model, x):
    assert_same_bits(gradients(model, x), gradients(model, x, reversible=False))


@pytest.mark.parametrize(("alpha", "beta"), [(1, 0.1), (0.5, 0.5), (0, 1)])
def test_a_compiled_model_has_the_gradients_of_the_eager_one(alpha, beta):
    model, x = converted(dropping_vit(), alpha, beta), images()
    expected = gradients(model, x)
    compiled = torch.compile(model, backend=AOT)
    assert_same_bits(gradients(compiled, x), expected)
    assert_same_bits(gradients(compiled, x, reversible=False), expected)


def test_a_compiled_model_is_the_original_network_at_one_and_zero():
    network, x = dropping_vit(), images()
    assert_same_bits(
        gradients(torch.compile(converted(network, 1, 0), backend="eager"), x),
        gradients(network, x),
    )


def test_a_compiled_chain_follows_the_coefficients_and_the_mode():
    chain, x = make_chain(1, 0, dropout=0.1), torch.randn(2, 5, 8, requires_grad=True)
    compiled = torch.compile(chain, backend="eager")
    for alpha, beta in ((1, 0), (1, 0.1), (0.5, 0.5), (1, 0)):
        chain.set_coefficients(alpha, beta)
        for training in (True, False):
            chain.train(training)
            expected = gradients(chain, x)
            assert_same_bits(gradients(compiled, x), expected)


def test_a_compiled_network_can_be_converted_after_it_has_run():
    network, x = dropping_vit(), images()
    compiled = torch.compile(network, backend="eager")
    compiled(x)
    expected = gradients(converted(network, 1, 0.1), x)
    dr2net.convert(compiled, 1, 0.1)
    assert_same_bits(gradients(compiled, x), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_modules_train_as_with_activations_stored(backend):
    model, x = converted(dropping_vit(), 1, 0.1), images()
    eager = gradients(model, x)
    for block in model.blocks:
        block.mlp.compile(backend=backend)
        if backend == AOT:  # inductor takes its seconds
            block.attn = torch.compile(block.attn, backend=backend)
    assert_reversible_equals_stored(model, x)
    assert_same_bits(gradients(model.eval(), x), gradients(model.eval(), x, reversible=False))
    if backend == AOT:
        assert_same_bits(gradients(model.train(), x), eager)


def test_compiled_modules_stay_compiled_within_a_compiled_model():
    model, x, compilations = converted(dropping_vit(), 1, 0.1), images(), []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    for block in model.blocks:
        block.mlp.compile(backend=backend)
    compiled = torch.compile(model, backend="eager")
    assert_reversible_equals_stored(compiled, x)
    assert compilations


def test_compiled_branches_train_as_with_activations_stored_while_coefficients_move():
    chain, x = make_chain(dropout=0.1), torch.randn(2, 5, 8, requires_grad=True)
    chain.branches = tuple(torch.compile(branch, backend=AOT) for branch in chain.branches)
    for alpha, beta in ((1, 0.1), (0.9, 0.1), (0.9, 0.2), (0, 1)):
        chain.set_coefficients(alpha, beta)
        assert_reversible_equals_stored(chain, x)


@pytest.mark.parametrize("dynamic", [None, False, True])
def test_compiled_modules_take_sizes_that_change_from_step_to_step(dynamic):
    model = converted(dropping_vit(dynamic_img_size=True), 1, 0.1)
    for block in model.blocks:
        block.mlp.compile(backend=AOT, dynamic=dynamic)
    for batch, size in ((2, 32), (3, 48), (1, 32), (2, 64)):
        assert_reversible_equals_stored(model, images(batch, 3, size, size))


def test_a_step_under_bf16_autocast_with_compiled_modules():
    model, x = converted(dropping_vit(), 1, 0.1), images()
    for block in model.blocks:
        block.mlp.compile(backend=AOT)
    assert_same_bits(
        gradients(model, x, bf16=True), gradients(model, x, bf16=True, reversible=False)
    )


def test_a_step_with_its_backward_can_be_compiled():
    # Without the optimizer's step, whose compiled form rounds otherwise for any network.
    model, x = nn.Sequential(nn.Linear(8, 8), make_chain(1, 0.1, dropout=0.1)), torch.randn(2, 8)

    def step():
        torch.manual_seed(0)
        loss = model(x).square().mean()
        loss.backward()
        grads = [loss.detach(), *[parameter.grad for parameter in model.parameters()]]
        model.zero_grad()
        return grads

    assert_same_bits(torch.compile(step, backend="eager")(), step())


def test_a_compiled_backward():
    chain, x = make_chain(1, 0.1, dropout=0.1), torch.randn(2, 5, 8, requires_grad=True)
    expected = gradients(chain, x)
    with torch._dynamo.config.patch(compiled_autograd=True):
        compiled = torch.compile(chain, backend="eager")
        for reversible in (False, True):
            assert_same_bits(gradients(compiled, x, reversible=reversible), expected)


def test_fullgraph_says_what_to_compile_instead():
    compiled = torch.compile(make_chain(), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compile their modules"):
        compiled(torch.randn(2, 8))
