"""Gradient modes, torch.func, torch.autograd's tools and hooks."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

import dr2net
from tests.conversion.families import IMAGES, converted, timm_vit
from tests.toy import assert_same_bits, gradients, make_chain


def stream():
    return torch.randn(2, 5, 8, requires_grad=True)


def both_ways(compute, dropout=0.1):
    """What ``compute(chain)`` returns with activations stored and with them rebuilt."""
    chain, found = make_chain(1, 0.1, dropout=dropout), []
    for reversible in (False, True):
        chain.reversible = reversible
        chain.zero_grad()
        torch.manual_seed(7)
        found.append(compute(chain))
    return found


# Gradient modes


def test_set_grad_enabled_decides_whether_there_are_gradients():
    chain, x = make_chain(), stream()
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            output = chain(x)
        assert output.requires_grad == enabled
        assert torch.equal(output, chain(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_outputs_are_the_same_without_gradients(mode):
    model, x = converted(timm_vit(depth=2).train(), 1, 0.1), torch.randn(IMAGES)
    expected = model(x)
    for training in (True, False):
        with mode():
            assert torch.equal(model.train(training)(x), expected)


def test_backward_may_run_under_no_grad():
    def compute(chain):
        loss = chain(torch.ones(2, 5, 8)).square().sum()
        with torch.no_grad():
            loss.backward()
        return [parameter.grad.clone() for parameter in chain.parameters()]

    assert_same_bits(*both_ways(compute))


def test_backward_under_inference_mode_is_refused():
    loss = make_chain()(stream()).sum()
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"under torch.inference_mode"):
        loss.backward()


def test_a_network_converted_and_set_in_inference_mode_trains():
    network, x = timm_vit(depth=2).train(), torch.randn(IMAGES)
    with torch.inference_mode():
        model = dr2net.convert(network, 1, 0.1)
        model(x)
    dr2net.set_coefficients(model, 0.5, 0.5)
    model(x)
    with torch.inference_mode():
        dr2net.set_coefficients(model, 0.25, 0.75)
    assert dr2net.get_coefficients(model) == (0.25, 0.75)
    expected = gradients(converted(dr2net_free(model), 0.25, 0.75), x)
    assert_same_bits(gradients(model, x), expected)


def dr2net_free(model):
    plain = timm_vit(depth=2).train()
    plain.load_state_dict(
        {name: value for name, value in model.state_dict().items() if "coefficients" not in name}
    )
    return plain


def test_a_network_built_in_inference_mode_runs_there_and_follows_its_coefficients():
    with torch.inference_mode():
        model = dr2net.convert(timm_vit(depth=2), 1, 0.1).eval()
        x = torch.randn(IMAGES)
        first = model(x)
        dr2net.set_coefficients(model, 0.5, 0.5)
        assert dr2net.get_coefficients(model) == (0.5, 0.5)
        assert not torch.equal(model(x), first)


def test_a_network_built_in_inference_mode_is_refused_by_torch_in_training():
    with torch.inference_mode():
        model = dr2net.convert(timm_vit(depth=2), 1, 0.1)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        model.train()(torch.randn(IMAGES))


def test_an_input_of_inference_mode_trains_the_chain():
    with torch.inference_mode():
        x = torch.randn(2, 5, 8)

    def compute(chain):
        chain(x).square().sum().backward()
        return [parameter.grad.clone() for parameter in chain.parameters()]

    assert_same_bits(*both_ways(compute))


@pytest.mark.parametrize("backward_inside", [False, True])
def test_backward_in_another_training_mode_than_forward_is_noticed(backward_inside):
    chain = make_chain(1, 0.1, dropout=0.5)
    loss = chain(stream()).sum()
    if backward_inside:
        loss.backward()
        return
    chain.eval()
    with pytest.raises(RuntimeError, match="recomputed in backward"):
        loss.backward()


# torch.func


def given_parameters(chain):
    return {
        name: (parameter.detach() + 0.1).requires_grad_()
        for name, parameter in chain.named_parameters()
    }


def test_functional_call_has_gradients_of_the_given_parameters():
    x = torch.randn(2, 5, 8)

    def compute(chain):
        parameters = given_parameters(chain)
        functional_call(chain, parameters, (x,)).square().sum().backward()
        assert all(parameter.grad is None for parameter in chain.parameters())
        return [parameter.grad for parameter in parameters.values()]

    stored, rebuilt = both_ways(compute)
    assert_same_bits(stored, rebuilt)
    assert all(grad.abs().sum() > 0 for grad in rebuilt if grad is not None)


def test_functional_call_with_backward_inside():
    class Step(nn.Module):
        def __init__(self, chain):
            super().__init__()
            self.chain = chain

        def forward(self, x):
            self.chain(x).square().sum().backward()

    x = torch.randn(2, 5, 8)

    def compute(chain):
        parameters = given_parameters(chain)
        named = {f"chain.{name}": parameter for name, parameter in parameters.items()}
        functional_call(Step(chain), named, (x,))
        return [parameter.grad for parameter in parameters.values()]

    assert_same_bits(*both_ways(compute))


def test_functional_call_with_computed_parameters_reaches_what_they_come_from():
    x = torch.randn(2, 5, 8)

    def compute(chain):
        scale = torch.tensor(1.1, requires_grad=True)
        parameters = {name: value * scale for name, value in chain.named_parameters()}
        functional_call(chain, parameters, (x,)).square().sum().backward()
        return [scale.grad, *[parameter.grad for parameter in chain.parameters()]]

    assert_same_bits(*both_ways(compute))


def test_calls_with_other_parameters_leave_the_chain_s_own_in_place():
    chain, x = make_chain(1, 0.1), torch.randn(2, 5, 8)
    own = dict(chain.named_parameters())
    first, second = given_parameters(chain), given_parameters(chain)
    losses = [functional_call(chain, given, (x,)).sum() for given in (first, second)]
    sum(losses).backward()
    assert all(now is own[name] for name, now in chain.named_parameters())
    assert list(own) == [name for name, _ in chain.named_parameters()]
    assert_same_bits(
        [parameter.grad for parameter in first.values()],
        [parameter.grad for parameter in second.values()],
    )


def test_a_parameter_replaced_before_backward_gets_no_gradient_and_stays():
    x = torch.randn(2, 5, 8)

    def compute(chain):
        old = chain[1].first.weight
        loss = chain(x).square().sum()
        chain[1].first.weight = new = nn.Parameter(old.detach() + 1)
        loss.backward()
        assert chain[1].first.weight is new
        assert new.grad is None
        chain[1].first.weight = old
        return [parameter.grad.clone() for parameter in chain.parameters()]

    assert_same_bits(*both_ways(compute))


TRANSFORMS = {
    "grad": lambda function, x: torch.func.grad(lambda x: function(x).sum())(x),
    "vmap": lambda function, x: torch.func.vmap(function)(x),
    "jvp": lambda function, x: torch.func.jvp(function, (x,), (x,)),
    "vjp": lambda function, x: torch.func.vjp(function, x),
    "jacrev": lambda function, x: torch.func.jacrev(function)(x),
}
EVERY_TRANSFORM = pytest.mark.parametrize("run", TRANSFORMS.values(), ids=TRANSFORMS.keys())


@EVERY_TRANSFORM
@pytest.mark.parametrize("reversible", [False, True])
def test_function_transforms_are_refused(run, reversible):
    chain = make_chain(1, 0.1)
    chain.reversible = reversible
    with pytest.raises(RuntimeError, match=r"chain does not run inside torch.func's .*grads_batch"):
        run(chain, torch.randn(2, 8))


@EVERY_TRANSFORM
def test_function_transforms_run_at_beta_zero(run):
    run(make_chain(1, 0), torch.randn(2, 8))


def test_forward_mode_differentiation_is_torch_s_error():
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="forward mode AD"),
    ):
        make_chain(1, 0.1)(torch.autograd.forward_ad.make_dual(torch.ones(2, 8), torch.ones(2, 8)))


# torch.autograd's tools


def test_batched_gradients():
    x, vectors = stream(), torch.randn(3, 2, 5, 8)

    def compute(chain):
        grads = torch.autograd.grad(chain(x), x, vectors, is_grads_batched=True)
        return list(grads)

    stored, rebuilt = both_ways(compute, dropout=0.0)
    torch.testing.assert_close(rebuilt, stored)  # vmap may choose other kernels
    with pytest.raises(RuntimeError, match="random operations inside of vmap"):
        both_ways(compute, dropout=0.1)


@pytest.mark.parametrize("vectorize", [False, True])
def test_a_jacobian(vectorize):
    x = torch.randn(2, 8)

    def compute(chain):
        return [torch.autograd.functional.jacobian(chain.eval(), x, vectorize=vectorize)]

    assert_same_bits(*both_ways(compute))


def test_gradients_of_some_parameters_with_the_graph_kept():
    x = torch.randn(2, 5, 8)

    def compute(chain):
        loss = chain(x).square().sum()
        wanted = [chain[0].first.weight, chain[2].second.bias]
        first = torch.autograd.grad(loss, wanted, retain_graph=True)
        second = torch.autograd.grad(loss, wanted[1:], retain_graph=True)
        third = torch.autograd.grad(loss, list(chain.parameters()))
        return [*first, *second, *third]

    assert_same_bits(*both_ways(compute))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomaly_mode():
    def compute(chain):
        with torch.autograd.detect_anomaly():
            return gradients(chain, torch.ones(2, 5, 8), reversible=chain.reversible)

    assert_same_bits(*both_ways(compute))


@pytest.mark.parametrize("pin_memory", [False])
def test_saving_on_the_cpu(pin_memory):
    def compute(chain):
        with torch.autograd.graph.save_on_cpu(pin_memory=pin_memory):
            chain(torch.ones(2, 5, 8)).square().sum().backward()
        return [parameter.grad.clone() for parameter in chain.parameters()]

    assert_same_bits(*both_ways(compute))


# Hooks


def test_forward_hooks_on_submodules_also_run_in_the_recomputation():
    def compute(chain):
        calls = []
        with chain[0].first.register_forward_hook(lambda *_: calls.append(0)):
            chain(torch.ones(2, 5, 8)).sum().backward()
        return len(calls)

    assert both_ways(compute) == [1, 2]


def test_backward_hooks_on_submodules_run_once():
    calls = []

    def compute(chain):
        with chain[0].first.register_full_backward_hook(lambda *grads: calls.append(grads[2][0])):
            chain(torch.ones(2, 5, 8)).square().sum().backward()

    both_ways(compute)
    assert len(calls) == 2
    assert torch.equal(*calls)


def test_a_forward_hook_that_changes_an_output_changes_it_both_times():
    def compute(chain):
        with chain[0].first.register_forward_hook(lambda module, inputs, output: output * 2):
            chain(torch.ones(2, 5, 8)).square().sum().backward()
        return [parameter.grad.clone() for parameter in chain.parameters()]

    assert_same_bits(*both_ways(compute))


def test_gradient_hooks_on_parameters_change_the_gradient_once():
    def compute(chain):
        for parameter in chain.parameters():
            handles.append(parameter.register_hook(lambda grad: grad * 3))
        chain(torch.ones(2, 5, 8)).square().sum().backward()
        while handles:
            handles.pop().remove()
        return [parameter.grad.clone() for parameter in chain.parameters()]

    handles = []
    assert_same_bits(*both_ways(compute))
