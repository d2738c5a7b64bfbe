"""A chain against its reference: the same equations with activations stored, bit for bit."""

import copy
import gc
import pickle
import warnings
from contextlib import nullcontext
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import dr2net
from dr2net import ReversibleChain, residual
from dr2net.coefficients import round_coefficient
from dr2net.diagnostics import bytes_kept
from tests.toy import (
    COEFFICIENTS,
    Block,
    assert_same_bits,
    export,
    gradients,
    make_chain,
    mix,
)


def stream(*shape: int, requires_grad: bool = True) -> torch.Tensor:
    return torch.randn(*(shape or (2, 5, 8))).requires_grad_(requires_grad)


def assert_reversible_equals_stored(chain, x, *side, **options):
    assert_same_bits(
        gradients(chain, x, *side, reversible=False, **options),
        gradients(chain, x, *side, reversible=True, **options),
    )


# The equations


@pytest.mark.parametrize(("alpha", "beta"), [(1, 0.1), (0.5, 0.5), (0, 1)])
def test_forward_is_the_paper_s_recurrence(alpha, beta):
    chain = make_chain(alpha, beta).double()
    _, beta = chain.get_coefficients()
    x = stream().double()
    expected, y = x, beta * x
    for block, branch in chain.couplings():
        expected, y = branch(block, expected, alpha) + y, beta * expected
    torch.testing.assert_close(chain(x), expected, rtol=1e-6, atol=1e-6)  # the grid is 2^-32


def test_beta_zero_is_the_plain_network_bit_for_bit():
    chain = make_chain(1.0, 0.0)
    expected = x = stream()
    for block in chain:
        expected = expected + mix.__wrapped__(block, expected)
        expected = expected + torch.sigmoid(expected) * block.norm.weight
    assert torch.equal(chain(x), expected)


@pytest.mark.filterwarnings("ignore:chain. at")
@pytest.mark.parametrize("arithmetic", ["exact", "exact64", "float"])
def test_training_eval_and_no_grad_compute_the_same(arithmetic):
    chain, x = make_chain(1.0, 0.1, arithmetic=arithmetic), stream()
    trained = chain(x)
    with torch.no_grad():
        assert torch.equal(chain(x), trained)
    assert torch.equal(chain.eval()(x), trained)


def test_features_are_the_streams_after_blocks():
    chain, x = make_chain(blocks=4), stream()
    features = chain.features(x, blocks=[2, 0, 3])
    assert torch.equal(features[2], chain(x))
    assert torch.equal(features[1], chain[:1](x))
    assert torch.equal(features[0], chain[:3](x))


# Exact gradients


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize(("alpha", "beta"), COEFFICIENTS)
def test_gradients_are_those_of_stored_activations(alpha, beta, bf16):
    chain = make_chain(alpha, beta, blocks=4, dropout=0.2)
    assert_reversible_equals_stored(chain, stream(), bf16=bf16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_gradients_are_exact_in_a_network_of_another_precision(dtype):
    chain = make_chain(1.0, 0.1).to(dtype)
    assert chain.get_coefficients() == (1.0, 6554 / 65536)
    assert_reversible_equals_stored(chain, stream().detach().to(dtype).requires_grad_())


@pytest.mark.parametrize("shape", [(1, 1, 8), (0, 5, 8), (7, 8), (8,), (2, 3, 4, 8)])
def test_gradients_are_exact_for_every_shape(shape):
    assert_reversible_equals_stored(make_chain(dropout=0.1), stream(*shape))


def test_gradients_are_exact_for_an_input_that_is_not_contiguous():
    x = torch.randn(8, 5, 2).transpose(0, 2).requires_grad_()
    assert_reversible_equals_stored(make_chain(), x)


def test_gradients_reach_side_inputs():
    x, shift = stream(), stream(8)
    assert_reversible_equals_stored(make_chain(dropout=0.1), x, shift)
    assert gradients(make_chain(), x, shift)[2].abs().sum() > 0


def test_gradients_reach_side_inputs_in_containers_and_keywords():
    @residual
    def shifted(block, x, options=None, name=""):
        return block.second(torch.tanh(block.first(x + options["shift"][0]))) * options["shift"][1]

    chain = make_chain(branches=(shifted,))
    found = []
    for reversible in (False, True):
        chain.reversible = reversible
        shift, scale = torch.ones(8, requires_grad=True), torch.ones(8, requires_grad=True)
        x = torch.full((2, 5, 8), 0.3)
        chain(x, {"shift": [shift, scale]}, name="a").sum().backward()
        found.append([shift.grad, scale.grad])
    assert_same_bits(*found)
    assert found[0][0].abs().sum() > 0


def test_gradients_are_exact_behind_a_frozen_stem():
    assert_reversible_equals_stored(make_chain(), stream(requires_grad=False))


@pytest.mark.parametrize("frozen", [[0], [0, 1], [1], [2], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("input_needs_gradient", [False, True])
def test_gradients_are_exact_with_frozen_blocks(frozen, input_needs_gradient):
    chain = make_chain(dropout=0.1)
    for index in frozen:
        chain[index].requires_grad_(False)
    if not input_needs_gradient and len(frozen) == 3:
        assert not chain(stream(requires_grad=False)).requires_grad
        return
    assert_reversible_equals_stored(chain, stream(requires_grad=input_needs_gradient))


def test_frozen_blocks_at_the_start_keep_nothing():
    chain, x = make_chain(0.5, 0.5, blocks=4), stream(requires_grad=False)
    whole = bytes_kept(lambda: chain(x))
    chain[:2].requires_grad_(False)
    assert whole - bytes_kept(lambda: chain(x)) == 4 * x.numel() / 8  # four remainders of one bit


def test_gradients_are_exact_in_channels_last_at_batch_one():
    # Strides of dimensions of size 1 choose the kernel of a convolution.
    blocks = nn.Sequential(*[nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)) for _ in range(2)])

    def inner(block, x, alpha):
        return torch.add(block[0](x), x, alpha=alpha)

    chain = ReversibleChain(blocks, (inner,)).train()
    chain.set_coefficients(0.5, 0.5)
    x = torch.randn(1, 4, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    assert_reversible_equals_stored(chain, x)
    assert torch.equal(chain.eval()(x), chain.train()(x))


def test_gradients_accumulate():
    chain, x = make_chain(dropout=0.1), stream()
    found = []
    for reversible in (False, True):
        chain.reversible = reversible
        chain.zero_grad()
        torch.manual_seed(0)
        for scale in (1.0, 2.0, 3.0):
            chain(x * scale).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in chain.parameters()])
    assert_same_bits(*found)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_several_forwards_before_a_backward(bf16):
    chain, x = make_chain(dropout=0.1), stream()
    found = []
    for reversible in (False, True):
        chain.reversible = reversible
        chain.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            losses = [chain(x * scale).float().square().sum() for scale in (1.0, 2.0, 3.0)]
        sum(losses).backward()
        found.append([parameter.grad.clone() for parameter in chain.parameters()])
    assert_same_bits(*found)


def test_autograd_grad_of_some_inputs():
    chain, x = make_chain(), stream()
    wanted = [x, chain[2].first.weight]
    found = []
    for reversible in (False, True):
        chain.reversible = reversible
        found.append(torch.autograd.grad(chain(x).square().sum(), wanted))
        found.append(torch.autograd.grad(chain(x).square().sum(), wanted[1:]))
    assert_same_bits(found[0], found[2])
    assert_same_bits(found[1], found[3])


def test_a_retained_graph_can_be_used_twice():
    chain, x = make_chain(dropout=0.1), stream()
    loss = chain(x).square().sum()
    first = torch.autograd.grad(loss, [x, *chain.parameters()], retain_graph=True)
    torch.autograd.grad(loss, [chain[2].first.weight], retain_graph=True)  # stops halfway
    assert_same_bits(first, torch.autograd.grad(loss, [x, *chain.parameters()]))


@pytest.mark.parametrize("blocks", [[0, 2], [1], [0, 1, 2, 3]])
def test_gradients_are_exact_through_features(blocks):
    chain, x = make_chain(blocks=4, dropout=0.1), stream()
    found = []
    for reversible in (False, True):
        chain.reversible = reversible
        torch.manual_seed(0)
        features = chain.features(x, blocks=blocks)
        loss = sum((index + 1) * f.square().sum() for index, f in enumerate(features))
        found.append(torch.autograd.grad(loss, [x, *chain.parameters()], allow_unused=True))
    assert_same_bits(*found)


def test_a_loss_on_an_early_feature_alone():
    chain, x = make_chain(blocks=4), stream()
    found = []
    for reversible in (False, True):
        chain.reversible = reversible
        early = chain.features(x, blocks=[1, 3])[0]
        found.append(torch.autograd.grad(early.sum(), [x, chain[0].first.weight]))
    assert_same_bits(*found)


def test_blocks_that_share_parameters():
    block = Block()
    chain = ReversibleChain(nn.Sequential(block, Block()), (mix,))
    chain.add_module("2", block)
    chain.set_coefficients(0.5, 0.5)
    assert_reversible_equals_stored(chain.train(), stream())


def test_two_chains_in_a_row():
    model = nn.Sequential(make_chain(1, 0.1), nn.Linear(8, 8), make_chain(0.3, 0.7))
    assert_reversible_equals_stored(model, stream())


def test_float_arithmetic_passes_gradcheck_in_float64():
    chain = make_chain(0.3, 0.75, blocks=2, arithmetic="float").double()
    x, shift = torch.randn(2, 8).double().requires_grad_(), torch.randn(8).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *inputs: chain(*inputs), (x, shift))


def test_gradient_hooks_fire_once_per_parameter():
    chain, calls = make_chain(), []
    for parameter in chain.parameters():
        parameter.register_post_accumulate_grad_hook(calls.append)
    chain(stream()).sum().backward()
    assert sorted(map(id, calls)) == sorted(map(id, chain.parameters()))


def test_tensor_hooks_on_parameters_see_the_gradient_once():
    chain, x = make_chain(), stream()
    parameter, calls = chain[0].first.weight, []
    parameter.register_hook(lambda grad: calls.append(grad) or grad * 0.1)
    torch.autograd.graph.register_multi_grad_hook([*chain.parameters()], calls.append)
    assert_reversible_equals_stored(chain, x)
    assert len(calls) == 4


def test_running_statistics_move_once():
    @residual
    def normalised(block, x):
        return block.norm(x)

    def build():
        torch.manual_seed(0)
        blocks = nn.Sequential(*[nn.Sequential() for _ in range(2)])
        for block in blocks:
            block.norm = nn.BatchNorm1d(5)
        chain = ReversibleChain(blocks, (normalised,))
        chain.set_coefficients(0.5, 0.5)
        return chain.train()

    x, chains = stream(), [build(), build()]
    assert_same_bits(*[gradients(chain, x, reversible=i == 1) for i, chain in enumerate(chains)])
    assert_same_bits(*[[*chain.buffers()] for chain in chains])
    assert chains[1][0].norm.num_batches_tracked == 1


def test_parameters_used_directly_in_the_same_autocast_region_keep_their_gradient():
    # A weight cast without gradients and cached would lose it for whoever uses it next.
    chain, x = make_chain(), stream()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chain(x)
        output = chain[0].first(x)
    output.float().sum().backward()
    assert chain[0].first.weight.grad.abs().sum() > 0


# Memory


@pytest.mark.parametrize(
    ("alpha", "beta", "bits"), [(0, 1, 0), (0.5, 0.5, 1), (1, 0.25, 2), (1, 0.1, 4), (1, 0.01, 7)]
)
def test_a_chain_keeps_its_last_streams_and_the_remainders(alpha, beta, bits):
    chain, x = make_chain(alpha, beta, blocks=2), stream(4, 16, 8)
    expected = 8 * x.numel() + 4 * bits * x.numel() // 8
    assert bytes_kept(lambda: chain(x)) == expected


def test_bytes_kept_do_not_grow_with_depth_at_beta_one():
    x = stream(4, 16, 8)
    assert len({bytes_kept(lambda: make_chain(0, 1, blocks=n)(x)) for n in (1, 4, 16)}) == 1  # noqa: B023


def test_saved_tensor_hooks_see_what_is_kept_and_may_move_it():
    chain, x = make_chain(1, 0.1), stream()
    plain = gradients(chain, x)
    with torch.autograd.graph.save_on_cpu():
        assert_same_bits(plain, gradients(chain, x))


@pytest.mark.parametrize("alpha_beta", [(0, 1), (1, 0.1)])
def test_what_saved_tensor_hooks_return_is_laid_out_as_before(alpha_beta):
    seen = []

    @residual
    def inner(block, x, side):
        seen.append((x.stride(), side.stride()))
        return block[0](x + side)

    blocks = nn.Sequential(*[nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)) for _ in range(3)])
    chain = ReversibleChain(blocks, (inner,)).train()
    chain.set_coefficients(*alpha_beta)
    x, side = torch.randn(2, 2, 4, 6, 6).to(memory_format=torch.channels_last_3d).unbind()
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    side = side.permute(0, 1, 3, 2).requires_grad_()
    expected = torch.autograd.grad(chain(x, side).square().sum(), (x, side))
    # As save_on_cpu(pin_memory=True) does.
    pack = partial(torch.clone, memory_format=torch.contiguous_format)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
        loss = chain(x, side).square().sum()
    assert_same_bits(expected, torch.autograd.grad(loss, (x, side)))
    assert len(set(seen)) == 1


def test_a_stream_is_contiguous_whatever_the_input_is():
    # Patch embeddings return permuted tensors, on which norms and products are slow.
    seen = []

    @residual
    def inner(block, x):
        seen.append(x.is_contiguous())
        return block.first(x)[..., :8]

    chain = make_chain(branches=(inner,))
    x = torch.randn(4, 8, 5).mT.requires_grad_()
    assert chain(x).is_contiguous()
    assert_reversible_equals_stored(chain, x)
    assert all(seen)


@pytest.mark.parametrize("around", [nullcontext, torch.autograd.graph.save_on_cpu])
@pytest.mark.parametrize("alpha_beta", [(0, 1), (1, 0.1)])
def test_nothing_stays_alive_after_a_step(alpha_beta, around):
    chain, x = make_chain(*alpha_beta, dropout=0.1), stream()

    def step():
        chain.zero_grad()
        with around():
            loss = chain(x).square().sum()
        loss.backward()
        del loss
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    gc.disable()  # what a cycle holds would be freed late, or never where autograd is part of it
    try:
        step()
        assert step() == step()
    finally:
        gc.enable()


# Coefficients as state


def test_coefficients_are_saved_and_restored():
    source, target = make_chain(0.7, 0.3), make_chain(1.0, 0.0)
    target.load_state_dict(source.state_dict())
    assert target.get_coefficients() == source.get_coefficients() == (45875 / 65536, 19661 / 65536)


def test_a_pretrained_state_dict_without_coefficients_loads_strictly():
    pretrained = nn.Sequential(*[Block() for _ in range(3)]).state_dict()
    keys = list(pretrained)
    chain = make_chain(0.7, 0.3)
    assert chain.load_state_dict(pretrained, strict=True).missing_keys == []
    assert list(pretrained) == keys
    assert chain.get_coefficients()[0] == round_coefficient(0.7)
    assert set(dict(chain.named_parameters())) == set(keys)


def test_precision_changes_leave_coefficients_alone():
    chain = make_chain(0.7, 0.1)
    before = chain.get_coefficients()
    assert chain.half().bfloat16().double().get_coefficients() == before


@pytest.mark.parametrize("alpha", [1, 0.9, 0.7, 0.3, 1 / 3, 0.25, 0.15, 0.1, 1e-3 / 7, 0])
@pytest.mark.parametrize("beta", [1, 0.1, 2**-8, 0])
def test_coefficients_are_given_back_as_multiples_of_two_to_the_minus_16(alpha, beta):
    found = make_chain(alpha, beta).get_coefficients()
    assert found == (round_coefficient(alpha), round_coefficient(beta))
    assert all(abs(a - b) <= 2**-17 for a, b in zip(found, (alpha, beta), strict=True))


def test_coefficients_survive_a_mean_over_many_processes():
    chain = make_chain(1.0, 1.0)
    chain.coefficients.mul_(500).div_(500, rounding_mode="trunc")
    assert chain.get_coefficients() == (1.0, 1.0)


def test_copies_and_pickles_are_independent_and_equal():
    chain, x = make_chain(0.7, 0.3), stream()
    for twin in (copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))):
        assert_same_bits(gradients(chain, x), gradients(twin, x))
        assert not {id(p) for p in chain.parameters()} & {id(p) for p in twin.parameters()}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_are_exported_at_once(copied):
    twin = copied(make_chain(0.7, 0.3)).eval()
    x = stream().detach()
    assert torch.equal(export(twin, (x,)).module()(x), twin(x))


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_averaged_model_follows_the_coefficients(use_buffers):
    chain = make_chain(1.0, 0.1)
    averaged = AveragedModel(chain, use_buffers=use_buffers)
    chain.set_coefficients(0.0, 1.0)
    averaged.update_parameters(chain)
    assert averaged.module.get_coefficients() == (0.0, 1.0)


def test_a_slice_is_a_chain_of_the_same_blocks():
    chain = make_chain(0.7, 0.3)
    part = chain[1:]
    assert list(part.state_dict())[1:] == [k for k in chain.state_dict() if k[0] in "12"]
    assert part[0] is chain[1]
    assert part.get_coefficients() == chain.get_coefficients()
    assert [len(chain), len(part), chain[-1]] == [3, 2, list(chain)[2]]


# Bad input: every message names the chain, the coupling and what to do


@pytest.mark.parametrize(("alpha", "beta"), [(1, 0.001), (1, 1.5), (1, -0.1), (1, float("nan"))])
def test_beta_out_of_range_is_refused(alpha, beta):
    with pytest.raises(ValueError, match=r"use 0 .*or a value from 2\^-8"):
        make_chain().set_coefficients(alpha, beta)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), float("inf")])
def test_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(ValueError, match="use a value from 0 to 1"):
        make_chain().set_coefficients(alpha, 0.5)


def faulty(change):
    """A chain whose second block's module is ``change`` of a good one's output."""

    @residual
    def branch(block, x):
        output = mix.__wrapped__(block, x)
        return change(output) if block.faulty else output

    chain = make_chain(branches=(branch,))
    for index, block in enumerate(chain):
        block.faulty = index == 1
    return chain


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("arithmetic", ["exact", "float"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore:chain. at")
def test_nan_and_infinity_name_the_coupling(value, arithmetic, training):
    chain = faulty(lambda output: output + value).train(training)
    chain.arithmetic = arithmetic
    with pytest.raises(FloatingPointError, match=r"coupling 1 \(chain.1, branch\)"):
        chain(stream())


def test_nan_in_the_input_is_named():
    with pytest.raises(FloatingPointError, match="input of chain"):
        make_chain()(stream() * float("nan"))


# Values beyond the range of 32-bit words


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("size", [1025.0, 5000.0, 1e12, 1e15])
def test_values_beyond_the_word_train_exactly_and_are_said_once(size, bf16):
    chain = faulty(lambda output: output + size)
    with pytest.warns(UserWarning, match=r"at coupling 1 \(chain.1, branch\).*64-bit") as said:
        first = gradients(chain, stream(), bf16=bf16)
    assert len(said) == 1
    assert all(grad is None or grad.isfinite().all() for grad in first[1:])
    assert_reversible_equals_stored(chain, stream(), bf16=bf16)


def test_the_first_forward_beyond_the_range_is_like_those_after_it():
    chain, x = faulty(lambda output: output + 5000.0), stream()
    with pytest.warns(UserWarning, match="A stream reached"):
        first = gradients(chain, x)
    assert_same_bits(first, gradients(chain, x))


def test_a_forward_that_runs_again_draws_and_counts_as_if_it_had_run_once():
    def build():
        torch.manual_seed(1)
        chain = make_chain(1, 0.1, dropout=0.5)
        for block in chain:
            block.dropout = nn.Sequential(block.dropout, Scaled())
        return chain

    ready, fresh, x = build(), build(), stream()
    ready.guard.range_bits = 13
    expected = gradients(ready, x)
    with pytest.warns(UserWarning, match="A stream reached"):
        assert_same_bits(gradients(fresh, x), expected)
    assert [block.dropout[1].calls for block in fresh] == [1, 1, 1]


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return x * 5000.0


def test_the_range_travels_with_the_state_dict():
    chain, twin = (faulty(lambda output: output + 5000.0) for _ in range(2))
    with pytest.warns(UserWarning, match="A stream reached"):
        expected = gradients(chain, X)
    twin.load_state_dict(chain.state_dict())
    assert_same_bits(gradients(twin, X), expected)  # without a warning
    assert twin.guard.range_bits == chain.guard.range_bits == 13


X = torch.randn(2, 5, 8)


def test_a_range_is_widened_before_it_is_used_up():
    gain = [100.0]
    chain = faulty(lambda output: output * 0 + gain[0])
    chain.set_coefficients(0.875, 0.125)
    gradients(chain, X)
    assert chain.make_arithmetic(0.125, X).word == torch.int32
    gain[0] = 800.0
    with pytest.warns(UserWarning, match=r"of a range of ±1024"):
        gradients(chain, X)
    assert chain.make_arithmetic(0.125, X).word == torch.int64


def test_low_precision_gives_up_fraction_bits_before_it_takes_wide_words():
    chain, x = faulty(lambda output: output * 0 + 5000.0), X.bfloat16()
    chain.to(torch.bfloat16)
    with pytest.warns(UserWarning, match="A stream reached"):
        chain(x)
    arithmetic = chain.make_arithmetic(0.25, x)
    assert (arithmetic.word, arithmetic.fraction_bits) == (torch.int32, 17)
    assert_reversible_equals_stored(chain, x)


@pytest.mark.parametrize("beta", [0.05, 0.125, 0.25, 0.5, 0.9, 1])
def test_streams_do_not_grow_on_the_line_at_any_depth(beta):
    chain = make_chain(1 - beta, beta, blocks=48)
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.mul_(0.1)
    assert_reversible_equals_stored(chain, stream())
    assert chain.make_arithmetic(beta, stream()).word == torch.int32


def test_streams_that_grow_off_the_line_have_their_range():
    chain = make_chain(1, 1, blocks=12)  # in which a stream grows 10^5-fold
    with pytest.warns(UserWarning, match="A stream reached"):
        chain(stream())
    assert_reversible_equals_stored(chain, stream())


@pytest.mark.parametrize("beta", [0.05, 0.125, 0.5, 1])
@pytest.mark.parametrize("outlier", ["bias", "channel"])
@pytest.mark.filterwarnings("ignore:A stream reached")
def test_massive_activations_of_pretrained_networks_train_exactly(outlier, beta):
    model = timm.create_model("test_vit", depth=4, img_size=32).train()
    with torch.no_grad():
        if outlier == "bias":
            model.blocks[3].mlp.fc2.bias[7] = 300
        else:
            model.pos_embed[..., 5] = 5000
    dr2net.convert(model, beta=beta)
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    assert_same_bits(gradients(model, x), gradients(model, x, reversible=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(3):
        model(x).square().mean().backward()
        optimizer.step()


def test_wide_words_hold_what_narrow_ones_do_not():
    chain = faulty(lambda output: output * 0 + 5000.0)
    chain.arithmetic = "exact64"
    assert_reversible_equals_stored(chain, stream())


@pytest.mark.parametrize("arithmetic", ["exact", "float"])
@pytest.mark.parametrize("alpha", [0, 1])
@pytest.mark.parametrize("size", [1, 7])  # the first would be broadcast
def test_a_module_that_changes_the_shape_is_named(arithmetic, alpha, size):
    chain = faulty(lambda output: output[..., :size])
    chain.arithmetic = arithmetic
    chain.set_coefficients(alpha, 1)
    with pytest.raises(
        ValueError, match=r"coupling 1 \(chain.1, branch\): .*\(2, 5, 8\).*\(2, 5, "
    ):
        chain(stream())


def test_a_module_that_returns_no_tensor_is_named():
    def pair(block, x, alpha):
        return x, x

    with pytest.raises(ValueError, match=r"coupling 0 \(chain.0, pair\): .* made tuple"):
        make_chain(branches=(pair,))(stream())


def test_a_module_that_is_not_deterministic_is_named_in_backward():
    source = torch.Generator().manual_seed(0)
    chain = faulty(lambda output: output + torch.rand(output.shape, generator=source))
    loss = chain(stream()).sum()
    with pytest.raises(RuntimeError, match=r"coupling 1 \(chain.1, branch\).*set_reversible"):
        loss.backward()


def test_a_module_that_moves_values_around_is_noticed():
    source = torch.Generator().manual_seed(0)
    chain = faulty(lambda output: output[:, torch.randperm(5, generator=source)])
    loss = chain(stream()).sum()
    with pytest.raises(RuntimeError, match="recomputed in backward"):
        loss.backward()


def test_an_unfaithful_module_above_a_feature_is_noticed():
    source = torch.Generator().manual_seed(0)
    chain = faulty(lambda output: output + torch.rand(output.shape, generator=source))
    loss = sum(f.sum() for f in chain.features(stream(), blocks=[0, 2]))
    with pytest.raises(RuntimeError, match="recomputed in backward"):
        loss.backward()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_hidden_tensor_whose_gradient_would_be_lost_is_refused(frozen):
    shift = torch.ones(8, requires_grad=True)

    @residual
    def shifted(block, x):
        return block.second(block.first(x)) + 2 * shift

    chain = make_chain(branches=(shifted,)).requires_grad_(not frozen)
    with pytest.raises(
        RuntimeError, match=r"coupling 0 \(chain.0, shifted\).*gradient would be lost"
    ):
        chain(stream(requires_grad=False))


def test_a_double_backward_is_refused_and_works_stored():
    chain, x = make_chain(), stream()
    with pytest.raises(RuntimeError, match=r"no second derivative.*set_reversible"):
        torch.autograd.grad(chain(x).square().sum(), x, create_graph=True)
    chain.reversible = False
    (grad,) = torch.autograd.grad(chain(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert chain[0].first.weight.grad.abs().sum() > 0


def test_an_optimizer_step_between_forward_and_backward_is_refused():
    chain = make_chain()
    loss = chain(stream()).sum()
    with torch.no_grad():
        chain[1].first.weight.mul_(1.1)
    with pytest.raises(RuntimeError, match=r"coupling 2 \(chain.1, mix\).*optimizer"):
        loss.backward()


def test_a_block_called_alone_refuses():
    with pytest.raises(RuntimeError, match="call the chain"):
        make_chain()[0](stream())


def test_a_block_with_hooks_is_refused():
    block = Block()
    block.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"'0' \(Block\) of chain has hooks"):
        ReversibleChain(nn.Sequential(block), (mix,))


def test_a_hook_added_later_is_refused():
    chain = make_chain()
    chain[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"'1' \(Block\) of chain has hooks"):
        chain(stream())


def test_a_refused_block_leaves_the_others_as_they_were():
    blocks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    blocks[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="has hooks"):
        ReversibleChain(blocks, (mix,))
    blocks(stream())


def test_a_chain_on_the_meta_device_can_be_printed():
    assert "meta" in repr(make_chain().to("meta"))


def test_an_integer_input_is_refused():
    with pytest.raises(ValueError, match="int64"):
        make_chain()(torch.zeros(2, 8, dtype=torch.long))


def test_float_arithmetic_warns_where_the_inverse_cannot_be_trusted():
    chain = make_chain(1.0, 0.1, blocks=12, arithmetic="float")
    with pytest.warns(UserWarning, match=r"chain: at .*by 10.9 at each of 24 .*arithmetic='exact'"):
        chain(stream())
    for trusted in ((0.0, 1.0), (0.3, 0.75)):
        chain.set_coefficients(*trusted)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            chain(stream())


def test_float_arithmetic_warns_earlier_under_autocast():
    chain = make_chain(0.3, 0.75, blocks=12, arithmetic="float")
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.warns(UserWarning, match="bfloat16"):
        chain(stream())


def test_an_unknown_arithmetic_is_refused():
    chain = make_chain()
    chain.arithmetic = "exakt"
    with pytest.raises(ValueError, match="'exakt' is unknown"):
        chain(stream())


def test_public_names_are_there():
    assert all(hasattr(dr2net, name) for name in dr2net.__all__)
