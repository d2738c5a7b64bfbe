"""Networks in other precisions, autocast and gradient scaling."""

import pytest
import torch

import dr2net
from dr2net import residual
from tests.conversion.families import IMAGES, converted, timm_vit
from tests.toy import Block, assert_same_bits, gradients, make_chain, mix

PRECISIONS = {
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
}
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def network():
    return timm_vit(depth=2, proj_drop_rate=0.1, drop_path_rate=0.2).train()


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("cast", PRECISIONS.values(), ids=PRECISIONS.keys())
def test_a_network_cast_before_or_after_conversion_trains_exactly(cast, order):
    original = network()
    model = (
        converted(cast(original), 1, 0.1)
        if order == "before"
        else cast(converted(original, 1, 0.1))
    )
    x = torch.randn(IMAGES).to(next(model.parameters()).dtype).requires_grad_()
    assert_same_bits(gradients(model, x), gradients(model, x, reversible=False))
    assert dr2net.get_coefficients(model) == (1, 6554 / 65536)


@pytest.mark.parametrize("cast", PRECISIONS.values(), ids=PRECISIONS.keys())
def test_a_cast_network_is_the_original_at_one_and_zero(cast):
    original = cast(network())
    x = torch.randn(IMAGES).to(next(original.parameters()).dtype).requires_grad_()
    assert_same_bits(gradients(converted(original, 1, 0), x), gradients(original, x))


def scaled_gradients(model, x, scaler, dtype):
    torch.manual_seed(5)
    model.zero_grad()
    with torch.autocast("cpu", dtype=dtype):
        loss = model(x).float().square().mean()
    scaler.scale(loss).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@HALVES
@pytest.mark.parametrize(("alpha", "beta"), [(1, 0.1), (0.5, 0.5), (0, 1)])
def test_scaled_gradients_under_autocast_are_those_of_stored_activations(dtype, alpha, beta):
    model, x = converted(network(), alpha, beta), torch.randn(IMAGES)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    found = []
    for reversible in (False, True):
        dr2net.set_reversible(model, reversible)
        found.append(scaled_gradients(model, x, scaler, dtype))
    assert_same_bits(*found)


@HALVES
def test_autocast_is_the_original_at_one_and_zero(dtype):
    original, x = network(), torch.randn(IMAGES)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    expected = scaled_gradients(original, x, scaler, dtype)
    assert_same_bits(scaled_gradients(converted(original, 1, 0), x, scaler, dtype), expected)


@pytest.mark.parametrize("reversible", [False, True])
def test_a_gradient_scaler_skips_steps_whose_gradients_overflow(reversible):
    model, x = converted(network(), 1, 0.1), torch.randn(IMAGES)
    dr2net.set_reversible(model, reversible)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-30)
    changed = []
    for _ in range(2):
        before = [parameter.clone() for parameter in model.parameters()]
        scaled_gradients(model, x, scaler, torch.float16)
        scaler.step(optimizer)
        scaler.update()
        now = list(model.parameters())
        assert all(parameter.isfinite().all() for parameter in now)
        changed.append(not all(map(torch.equal, before, now)))
    assert changed == [False, True]
    assert scaler.get_scale() == 2.0**10


def test_an_overflow_in_forward_is_an_error_after_which_training_goes_on():
    # A smaller scale would not help here: a scaler's skipped steps are for gradients alone.
    @residual
    def hot(block, x):
        return mix.__wrapped__(block, x) * block.gain

    def make(block):
        block.gain = 1.0
        return block

    chain = make_chain(1, 0.1, dropout=0.1, branches=(hot,))
    for block in chain:
        make(block)
    x = torch.randn(2, 5, 8)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    expected = scaled_gradients(chain, x, scaler, torch.float16)
    chain[1].gain = 1e8
    with pytest.raises(FloatingPointError, match=r"coupling 1 .*bfloat16 instead of float16"):
        scaled_gradients(chain, x, scaler, torch.float16)
    chain[1].gain = 1.0
    assert_same_bits(scaled_gradients(chain, x, scaler, torch.float16), expected)


def test_clipped_and_unscaled_gradients_are_those_of_stored_activations():
    chain, x, found = make_chain(1, 0.1, dropout=0.1), torch.randn(2, 5, 8), []
    for reversible in (False, True):
        chain.reversible = reversible
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        optimizer = torch.optim.SGD(chain.parameters(), lr=0.01)
        scaled_gradients(chain, x, scaler, torch.float16)
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(chain.parameters(), 0.1)
        found.append([norm, *[parameter.grad.clone() for parameter in chain.parameters()]])
    assert_same_bits(*found)


def test_blocks_of_mixed_precision_train_exactly():
    class Bf16Block(Block):
        pass

    @residual
    def low(block, x):
        return mix.__wrapped__(block, x.to(block.first.weight.dtype)).to(x.dtype)

    chain = make_chain(1, 0.1, dropout=0.1, branches=(low,))
    chain[1].to(torch.bfloat16)
    x = torch.randn(2, 5, 8, requires_grad=True)
    assert_same_bits(gradients(chain, x), gradients(chain, x, reversible=False))
