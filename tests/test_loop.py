"""Chains whose blocks the network's own loop calls: gradients are those of stored activations."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from collections import namedtuple
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dr2net
from dr2net import optimizers
from dr2net.diagnostics import bytes_kept
from tests.toy import assert_same_bits

POINTS = [(0.875, 0.125), (1, 0.1), (0.5, 0.5), (0, 1)]
WIDTH = 8

Returned = namedtuple("Returned", ["stream", "weights"])


class Block(nn.Module):
    """Has arguments of its own, draws random numbers, and returns a tuple."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.2)

    def forward(self, stream: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> tuple:
        added = self.dropout(self.linear(self.norm(stream))) * scale
        return stream + (added if mask is None else added * mask), None


class Network(nn.Module):
    def __init__(self, count: int = 4, kind: type[nn.Module] = Block):
        super().__init__()
        self.layers = nn.ModuleList(kind() for _ in range(count))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, collect: bool = False) -> Tensor:
        collected = []
        for number, layer in enumerate(self.layers):
            own = mask if number % 2 else None
            x = layer(x, own, scale=1 + number / 8)[0]
            collected.append(x)
        x = self.head(x)
        return x + sum(c.mean(-1, keepdim=True) for c in collected) if collect else x


def network(count: int = 4, kind: type[nn.Module] = Block, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(count, kind).train()


def looped(alpha: float = 0.875, beta: float = 0.125, make=network, **options) -> nn.Module:
    return dr2net.convert(make(), alpha, beta, blocks="layers", **options)


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x, mask = torch.randn(2, 5, WIDTH), torch.rand(2, 5, 1)
    return x.requires_grad_(), mask.requires_grad_()


def step(model: nn.Module, reversible: bool, *args, run=None, autocast=False, **kwargs) -> list:
    """The output and all gradients of a training step."""
    if dr2net.chains(model):
        dr2net.set_reversible(model, reversible)
    args = args or inputs()
    leaves = [t for t in (*args, *model.parameters()) if t.requires_grad]
    for leaf in leaves:
        leaf.grad = None
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = (model if run is None else run)(*args, **kwargs)
    loss = (output.float() * torch.linspace(-1, 2, output.numel()).view(output.shape)).sum()
    loss.backward()
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def assert_exact(model: nn.Module, *args, **kwargs) -> None:
    stored = step(model, False, *args, **kwargs)
    assert_same_bits(step(model, True, *args, **kwargs), stored)
    assert any(grad is not None and grad.any() for grad in stored[1:])


# Exactness


@pytest.mark.parametrize("collect", [False, True])
@pytest.mark.parametrize("point", POINTS)
def test_gradients_are_those_of_stored_activations(point, collect):
    assert_exact(looped(*point), collect=collect)


@pytest.mark.parametrize("point", POINTS)
def test_gradients_in_autocast_and_of_a_network_in_bfloat16(point):
    assert_exact(looped(*point), autocast=True)
    low = looped(*point).bfloat16()
    assert_exact(low, *(t.detach().bfloat16().requires_grad_() for t in inputs()))


def test_at_one_and_zero_it_is_the_original_and_at_the_line_near_it():
    plain = network()
    model = looped(1, 0)
    assert_same_bits(step(model, True), step(plain, True))
    dr2net.set_coefficients(model, 1 - 2**-8, 2**-8)
    out, expected = step(model, True)[0], step(plain, True)[0]
    assert 0 < (out - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("kept", [["layers.0"], ["layers.1", "layers.2"], ["layers.3"], ["layers"]])
def test_kept_blocks(kept):
    assert_exact(looped(keep=kept))


@pytest.mark.parametrize("frozen", [[0], [0, 1], [2], [0, 1, 2, 3]])
def test_frozen_blocks(frozen):
    model = looped()
    for number in frozen:
        model.layers[number].requires_grad_(False)
    x, mask = inputs()
    assert_exact(model, x.detach(), mask.detach())


class Named(Block):
    def forward(self, stream: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Returned:
        return Returned(super().forward(stream, mask, scale)[0], None)


class Listed(Block):
    def forward(self, stream: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> list:
        return [super().forward(stream, mask, scale)[0], "something"]


@pytest.mark.parametrize("kind", [Named, Listed])
def test_what_blocks_return_keeps_its_kind(kind):
    model = looped(make=partial(network, kind=kind))
    assert_exact(model)
    returned = model.layers[0](inputs()[0])
    assert type(returned) is type(network(kind=kind).layers[0](inputs()[0]))
    assert returned[1] == (None if kind is Named else "something")


def test_the_stream_by_name():
    model = looped()

    def run(x, mask):
        for layer in model.layers:
            x = layer(mask=mask, stream=x)[0]
        return model.head(x)

    assert_exact(model, run=run)


def test_a_block_that_is_called_again_and_again():
    model = looped(make=partial(network, 1))

    def run(x, mask):
        for number in range(5):
            x = model.layers[0](x, mask, number / 4)[0]
        return model.head(x)

    assert_exact(model, run=run)


def test_two_streams_through_the_same_blocks_in_turn():
    model = looped()

    def run(x, mask):
        a, b = x, 2 * x
        for layer in model.layers:
            a, b = layer(a)[0], layer(b, mask)[0]
        return model.head(a * b)

    assert_exact(model, run=run)


def test_blocks_that_are_skipped_or_run_in_another_order():
    model = looped()

    def run(x, mask):
        for number in (0, 3, 1):
            x = model.layers[number](x, mask)[0]
        return model.head(x)

    assert_exact(model, run=run)


def test_slices_of_the_list_and_two_forwards_before_one_backward():
    model = looped()

    def run(x, mask):
        for layer in model.layers[:3]:
            x = layer(x, mask)[0]
        first = x
        for layer in model.layers:
            x = layer(x * 0.5, mask)[0] if layer is model.layers[0] else layer(x, mask)[0]
        return model.head(first + x)

    assert_exact(model, run=run)


def test_draws_and_settings_of_the_loop_between_blocks():
    model = looped()

    def run(x, mask):
        noise = 0
        for number, layer in enumerate(model.layers):
            with torch.autocast("cpu", torch.bfloat16, enabled=number % 2 == 0):
                x = layer(x, mask)[0]
            noise = noise + torch.rand(())
        return model.head(x) * noise

    assert_exact(model, run=run)


def test_a_sequential_is_called_as_a_whole_or_block_by_block():
    class Simple(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[0]

    torch.manual_seed(0)
    plain = nn.Sequential()
    plain.layers = nn.Sequential(*[Simple() for _ in range(4)])
    model = dr2net.convert(plain.train(), blocks="layers")
    x, _ = inputs()

    def loop(x):
        for layer in model.layers:
            x = layer(x)
        return x

    assert_exact(model, x)
    assert_exact(model, x, run=loop)
    assert_same_bits(step(model, True, x), step(model, True, x, run=loop))


# Where a row ends


def test_a_loop_that_stops_early():
    model = looped()

    def run(x, mask):
        for layer in list(model.layers)[:2]:
            x = layer(x, mask)[0]
        return model.head(x)

    assert_exact(model, run=run)


def test_the_streams_of_a_loop_that_stopped_early_go_with_its_graph():
    model = looped()
    x, mask = inputs()
    y = model.layers[1](model.layers[0](x, mask)[0], mask)[0]
    this_pass = model.layers.under_way[y].this_pass
    y.sum().backward(retain_graph=True)
    first = x.grad.clone()
    assert this_pass.streams.x is not None
    y.sum().backward()
    assert this_pass.streams.x is None
    assert torch.equal(x.grad, 2 * first)


def test_the_last_pair_of_streams_goes_with_its_graph():
    model = looped()
    loss = model(*inputs()).sum()
    (row,) = model.layers.under_way.values()
    row = weakref.ref(row)
    assert row().pair is not None
    loss.backward()
    assert row() is None
    assert not model.layers.under_way


def test_an_x_that_is_taken_out_while_the_rest_has_no_part_in_the_loss():
    model = looped()

    def run(x, mask):
        taken = None
        for number, layer in enumerate(model.layers):
            x = layer(x, mask)[0]
            taken = x if number == 2 else taken
        return model.head(taken)

    stored = step(model, False, run=run)
    with pytest.raises(RuntimeError, match=r"layers\.2.* taken out of the loop.* run this step"):
        step(model, True, run=run)
    assert_same_bits(step(model, True, run=run), stored)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_stream_that_changes_between_blocks_begins_a_new_row_and_is_said(inplace):
    model = looped()

    def run(x, mask):
        for layer in model.layers:
            x = layer(x, mask)[0]
            x = x.add_(0.5) if inplace else x + 0.5
        return model.head(x)

    with pytest.warns(UserWarning, match=r"Network called block '1' of layers with another tensor"):
        stored = step(model, False, run=run)
    assert_same_bits(step(model, True, run=run), stored)


def test_what_is_kept_does_not_grow_with_the_blocks_but_for_remainders():
    x, mask = inputs()
    kept = []
    for count in (3, 9):
        model = looped(0, 1, partial(network, count))
        kept.append(bytes_kept(partial(model, x, mask), [mask]))
    assert kept[0] == kept[1]
    assert 5 * kept[1] < bytes_kept(lambda: network(9)(x, mask), [mask])


def test_without_gradients_and_in_eval_mode_it_is_the_same_function():
    model = looped().eval()
    x, mask = inputs()
    with torch.no_grad():
        expected = model(x, mask)
    assert torch.equal(model(x, mask), expected)
    assert torch.equal(model(x, mask), expected)  # in words whose range is known


# Range


@pytest.mark.filterwarnings("ignore:A stream reached")
@pytest.mark.parametrize("size", [5e3, 1e8])
@pytest.mark.parametrize("point", POINTS)
def test_outliers_of_a_pretrained_network_train_exactly(size, point):
    model = looped(*point)
    with torch.no_grad():
        model.layers[1].linear.bias[3] = size
    assert_exact(model, *inputs())
    assert model.layers.guard.range_bits > size.bit_length() if isinstance(size, int) else True
    assert_exact(model)
    assert 2.0**model.layers.guard.range_bits > size


def test_a_jump_in_one_step_is_skipped_and_the_next_one_is_exact():
    model = looped()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step(model, True)
    with torch.no_grad():
        model.layers[1].linear.bias[3] = 5e3
    before, skipped = copy.deepcopy(model.state_dict()), optimizers.skipped_steps[0]
    with pytest.warns(UserWarning, match="A stream reached"):
        output = model(*inputs())
    assert output.isnan().all()
    output.sum().backward()
    with pytest.warns(UserWarning, match="A step was skipped"):
        optimizer.step()
    assert optimizers.skipped_steps[0] == skipped + 1
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if "coefficients" not in k)
    assert_exact(model)


def test_values_that_are_not_finite_name_the_block():
    model = looped()
    with torch.no_grad():
        model.layers[2].linear.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"NaN or infinity at coupling 2 \(layers\.2"):
        model(*inputs())


# What is refused


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_around_blocks_is_said_to_be_needless(use_reentrant):
    model = looped()

    def run(x, mask, call=lambda layer, *args: layer(*args)):
        for layer in model.layers:
            x = call(layer, x, mask)[0]
        return model.head(x)

    checkpointed = partial(run, call=partial(checkpoint, use_reentrant=use_reentrant))
    # Reentrant ones run forward without gradients, and each block in backward by itself.
    expected = step(model, False, run=checkpointed if use_reentrant else run)
    with pytest.warns(UserWarning, match="rebuilds activations and needs none"):
        assert_same_bits(step(model, True, run=checkpointed), expected)


def test_other_operations_in_the_same_checkpoint_are_an_error():
    model = looped()
    layer, (x, mask) = model.layers[0], inputs()
    with pytest.warns(UserWarning, match="needs none"):
        y = checkpoint(lambda x: layer(x, mask)[0].sin(), x, use_reentrant=False)
    message = r"inside torch\.utils\.checkpoint, which cannot be passed by"
    with pytest.raises(RuntimeError, match=message):
        y.sum().backward()
    dr2net.set_reversible(model, False)
    with pytest.raises(RuntimeError, match=message):
        checkpoint(layer, x, mask, use_reentrant=False)


class Cache:
    """Keeps keys from call to call, as language models' do."""

    def __init__(self):
        self.keys = {}

    def update(self, place: int, key: Tensor) -> Tensor:
        first = self.keys.setdefault(place, key)
        return first if first is key else torch.cat([first, key])[: len(first)]


class Cached(Block):
    def forward(self, stream: Tensor, cache: Cache, place: int) -> tuple:
        return stream + cache.update(place, self.linear(stream)), None


def test_what_an_argument_keeps_from_forward_is_an_error_and_no_lost_gradient():
    model = looped(make=partial(network, kind=Cached))

    def run(x, _):
        cache = Cache()
        for number, layer in enumerate(model.layers):
            x = layer(x, cache, number)[0]
        return model.head(x)

    with pytest.raises(RuntimeError, match=r"an argument of it \(Cache\) .*use_cache=False"):
        step(model, True, run=run)
    step(model, False, run=run)


class Beside(Block):
    def forward(self, stream: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> tuple:
        stream = super().forward(stream, mask, scale)[0]
        return stream, self.linear(stream)


def test_tensors_beside_the_stream_have_their_gradients_and_are_told_of():
    model = looped(make=partial(network, kind=Beside))

    def run(x, mask):
        total = 0
        for layer in model.layers:
            x, beside = layer(x, mask)
            total = total + beside
        return model.head(x + total)

    stored = step(model, False, run=run)
    with pytest.warns(UserWarning, match="returns more than the stream, with gradients"):
        rebuilt = step(model, True, run=run)
    for a, b in zip(stored, rebuilt, strict=True):
        torch.testing.assert_close(a, b)


class Widening(Block):
    def forward(self, stream: Tensor, *_, **__) -> tuple:
        return torch.cat([stream, stream], 1), None


def widened(places=(2,)):
    torch.manual_seed(0)
    plain = Network(5)
    for place in places:
        plain.layers[place] = Widening()
    return plain.train()


@pytest.mark.parametrize("places", [(2,), (0,), (4,), (0, 2), (1, 3), (0, 1, 2, 3)])
def test_blocks_that_change_the_shape_run_as_they_are(places):
    model = looped(make=partial(widened, places))
    x, _ = inputs()
    stored = step(model, False, x)
    assert_same_bits(step(model, True, x), stored)
    assert model.layers.ordinary == {str(place) for place in places}
    fresh = looped(make=partial(widened, places))
    assert_same_bits(step(fresh, True, x), stored)  # the same when they are found
    known = looped(make=partial(widened, places), example=x)
    assert known.layers.ordinary == model.layers.ordinary
    assert_same_bits(step(known, True, x), stored)


def test_a_list_no_block_of_which_keeps_the_shape_is_an_error():
    with pytest.raises(ValueError, match="No block of layers keeps the shape of its stream"):
        looped(make=partial(widened, range(5)))(inputs()[0])


def test_a_block_that_has_kept_the_shape_before_may_not_change_it():
    model = looped()
    step(model, True)
    x, _ = inputs()
    with model.layers[1].linear.register_forward_hook(lambda m, a, output: output[:, :1]):
        model(x)  # which broadcasts
    with pytest.raises(ValueError, match=r"coupling 1 .*must keep the shape"):
        model.layers[1](model.layers[0](x)[0], torch.ones(3, 1, 1, 1))


def test_fully_sharded_blocks_are_refused(monkeypatch):
    monkeypatch.setattr("dr2net.loop.is_sharded", lambda _: True)
    with pytest.raises(ValueError, match="fully_shard was called on blocks of layers"):
        looped()(*inputs())


# State


def test_copies_pickles_and_states():
    model = looped()
    expected = step(model, True)
    twin = copy.deepcopy(model)
    assert twin.layers[0].forward.chain is twin.layers
    assert_same_bits(step(twin, True), expected)
    assert_same_bits(step(pickle.loads(pickle.dumps(model)), True), expected)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = looped(1, 0.5, partial(network, seed=3))
    other.load_state_dict(torch.load(file))
    assert_same_bits(step(other, True), expected)


def test_names_stay_and_reverting_gives_the_network_back():
    plain = network()
    model = looped()
    assert set(model.state_dict()) == {*plain.state_dict(), "layers.coefficients"}
    model.load_state_dict(plain.state_dict())
    with pytest.warns(UserWarning, match="left"):
        reverted = dr2net.revert(model, *inputs())
    assert type(reverted.layers) is nn.ModuleList
    assert "forward" not in vars(reverted.layers[0])
    assert_same_bits(step(reverted, True), step(plain, True))


def test_hooks_on_blocks_run_where_the_loop_calls_them():
    model = looped()
    seen = []
    with model.layers[1].register_forward_hook(lambda *a: seen.append(a[2][0].shape)):
        expected = step(model, False)
        assert_same_bits(step(model, True), expected)
    assert seen == [(2, 5, WIDTH)] * 2


def test_compiled_and_exported():
    model = looped()
    expected = step(model, True)
    compiled = torch.compile(model, backend="eager")
    assert_same_bits(step(model, True, run=compiled), expected)
    model.eval()
    x, mask = (t.detach() for t in inputs())
    with torch.no_grad():
        program = torch.export.export(model, (x, mask), strict=False)
        torch.testing.assert_close(program.module()(x, mask), model(x, mask))


# What a user can ask


def test_verify_finds_a_block_that_is_not_deterministic():
    model = looped()
    dr2net.verify(model, *inputs())
    source = torch.Generator().manual_seed(0)
    model.layers[2].dropout.forward = lambda x: x + torch.rand(1, generator=source)
    with pytest.raises(RuntimeError, match=r"layers\.2, whole\) is not deterministic"):
        dr2net.verify(model, *inputs())


def test_plan_and_the_gradient_error():
    model = looped(make=partial(network, 6))
    x, mask = inputs()
    kept = bytes_kept(partial(model, x, mask), [x, mask])
    found = dr2net.plan(model, x, mask, budget_gb=1)
    assert found.keep == tuple(f"layers.{number}" for number in range(6))
    assert found.kept_if_rebuilt <= kept < found.kept
    assert dr2net.diagnostics.gradient_error(model, lambda: model(x, mask).sum()) == 0


# What comes to a block by other ways than its arguments, and rows that part


def test_a_tensor_made_of_the_stream_outside_of_a_block_is_an_error_and_no_lost_gradient():
    class Gated(Block):
        gate = None

        def forward(self, stream: Tensor, *args, **kwargs) -> tuple:
            return super().forward(stream, *args, **kwargs)[0] * (1 + self.gate), None

    model = looped(make=partial(network, kind=Gated))

    def run(x, mask):
        for layer in model.layers:
            layer.gate = 0.1 * x.mean(1, keepdim=True)
            x = layer(x, mask)[0]
        return model.head(x)

    step(model, False, run=run)
    with pytest.raises(RuntimeError, match=r"coupling 0 .* gradient would be lost"):
        step(model, True, run=run)


def test_a_hook_on_a_block_that_makes_something_of_the_stream_is_an_error():
    model, made = looped(), []
    block = model.layers[1]
    with (
        block.register_forward_pre_hook(lambda m, args: made.append(args[0].mean(1, True))),
        block.linear.register_forward_hook(lambda m, args, output: output * (1 + made[-1])),
        pytest.raises(RuntimeError, match=r"coupling 1 .* made of one of its inputs outside of it"),
    ):
        step(model, True)


@pytest.mark.filterwarnings("ignore:Network called block")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_a_row_that_parts_is_an_error_and_copies_begin_rows_of_their_own(mode):
    model = looped().eval()
    x, mask = inputs()
    with mode():
        a = model.layers[0](x, mask)[0]
        expected = model.layers[1](a.clone())[0]
        model.layers[1](a)
        with pytest.raises(RuntimeError, match=r"Block '2' .* x that block '0' had .* cannot part"):
            model.layers[2](a)
        assert torch.equal(model.layers[1](a.clone())[0], expected)


def test_a_row_goes_on_where_gradients_are_switched_on_or_off():
    model = looped(0.5, 0.5)

    def run(x, mask, without=()):
        for number, layer in enumerate(model.layers):
            with torch.set_grad_enabled(number not in without):
                x = layer(x, mask)[0]
        return model.head(x)

    expected = step(model, True, run=run)[0]
    for without in [(0,), (0, 1), (0, 1, 2), (1,), (3,), (1, 2)]:
        part = partial(run, without=without)
        stored = step(model, False, run=part)
        assert_same_bits(step(model, True, run=part), stored)
        assert torch.equal(stored[0], expected)
    x, mask = inputs()
    torch.manual_seed(2)
    with torch.no_grad():
        assert torch.equal(run(x, mask), expected)


def test_without_beta_alpha_counts_all_the_same():
    x, mask = inputs()
    model = looped(0.5, 0).eval()
    found = model(x, mask)
    dr2net.set_coefficients(model, 0.5, 2**-8)
    torch.testing.assert_close(model(x, mask), found, rtol=0.02, atol=0.02)
    dr2net.set_coefficients(model, 1, 0)
    assert (model(x, mask) - found).norm() > 0.1 * found.norm()


def test_a_block_that_changes_the_shape_only_sometimes_is_told_of():
    class Pruning(Block):
        def forward(self, stream: Tensor, *args, **kwargs) -> tuple:
            stream = super().forward(stream, *args, **kwargs)[0]
            return stream if self.training else stream[:, ::2], None

    model = network()
    model.layers[1] = Pruning()
    model = dr2net.convert(model.train(), blocks="layers").eval()
    model(inputs()[0])
    with pytest.warns(UserWarning, match="changed the shape of the stream in an earlier call"):
        model.train()(inputs()[0])


@pytest.mark.parametrize("wrap", [lambda block: Block(), lambda block: nn.Sequential(block)])
def test_a_block_that_was_exchanged_or_wrapped_is_an_error(wrap):
    model = looped()
    setattr(model.layers, "2", wrap(model.layers[2]))
    with pytest.raises(ValueError, match="Block '2' of layers was exchanged or wrapped"):
        model(*inputs())


def test_backward_hooks_on_blocks_are_an_error():
    model = looped()
    with (
        model.layers[1].register_full_backward_hook(lambda *_: None),
        pytest.raises(ValueError, match=r"Block '1' of layers .*has backward hooks"),
    ):
        model(*inputs())


def test_a_forward_does_not_depend_on_what_made_its_input():
    model = looped().eval()

    def run(x):
        for layer in model.layers:
            x = layer(x)[0]
        return x

    with torch.no_grad():
        a = run(inputs()[0])
        assert torch.equal(run(a), run(a.clone()))


def test_streams_of_a_finished_row_go_with_the_next_forward():
    model = looped()
    y = model.layers[3](model.layers[0](inputs()[0])[0])[0]
    row = model.layers.under_way[y]
    assert row.pair is not None
    model(*inputs())
    assert row.pair is None


def test_inference_mode_and_training_after_it():
    model = looped().eval()
    x, mask = inputs()
    with torch.inference_mode():
        expected = model(x, mask)
    assert torch.equal(model(x, mask), expected)
    assert_exact(model.train())


def test_a_block_that_raised_may_be_called_again():
    model = looped()
    failures = [True]

    def fail(*_):
        if failures.pop():
            raise ZeroDivisionError

    def run(x, mask):
        for number, layer in enumerate(model.layers):
            if number == 2 and model.layers.reversible:
                failures[:] = [True]
                state = torch.get_rng_state()
                with layer.linear.register_forward_pre_hook(fail), pytest.raises(ZeroDivisionError):
                    layer(x, mask)
                torch.set_rng_state(state)
            x = layer(x, mask)[0]
        return model.head(x)

    assert_exact(model, run=run)


def test_a_block_whose_stream_has_no_place_runs_as_it_is_and_is_told_of():
    class ByName(Block):
        def forward(self, *, stream: Tensor) -> tuple:
            return super().forward(stream)

    def make():
        model = network()
        model.layers[1] = ByName()
        return model.train()

    def run(model, x):
        for number, layer in enumerate(model.layers):
            x = (layer(stream=x) if number == 1 else layer(x))[0]
        return x

    x, _ = inputs()
    with torch.no_grad():
        torch.manual_seed(0)
        plain = make().eval()
        expected = run(plain, x)
        model = dr2net.convert(copy.deepcopy(plain), 1, 0, blocks="layers")
        assert torch.equal(run(model, x), expected)
        dr2net.set_coefficients(model, 0.875, 0.125)
        with pytest.warns(UserWarning, match="where its stream should be"):
            run(model, x)


def test_chains_in_blocks_of_chains():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleList(Block() for _ in range(3))

        def forward(self, stream: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> tuple:
            for layer in self.inner:
                stream = layer(stream, mask, scale)[0]
            return stream, None

    def make():
        return network(3, Outer)

    assert_same_bits(step(make(), True), step(looped(1, 0, make), True))
    model = dr2net.convert(make(), blocks=["layers", "layers.*.inner"])
    assert len(dr2net.chains(model)) == 4
    assert_exact(model)


class Inplace(Block):
    def forward(self, stream: Tensor, *args, **kwargs) -> tuple:
        return super().forward(stream.mul_(0.5).relu_(), *args, **kwargs)


@pytest.mark.parametrize("reversible", [True, False])
def test_blocks_that_change_their_input_in_place_get_a_copy(reversible):
    def run(model, x, mask):
        y = x * 1
        return model(y, mask)

    plain, model = network(kind=Inplace), looped(1, 0, partial(network, kind=Inplace))
    expected = step(plain, True, run=partial(run, plain))
    assert_same_bits(step(model, True, run=partial(run, model)), expected)
    dr2net.set_coefficients(model, 0.5, 0.5)
    first = step(model, reversible, run=partial(run, model))
    assert model.layers.inplace == {"0", "1", "2", "3"}
    assert_same_bits(step(model, not reversible, run=partial(run, model)), first)
    x, mask = inputs()
    model.eval()
    expected = run(model, x, mask)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(run(model, x, mask), expected)


class DiffusionBlock(nn.Module):
    """As in diffusion transformers: a condition shifts, scales and gates what is added."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.condition = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.condition(condition)[:, None].chunk(3, dim=-1)
        inner = self.norm(x) * (1 + scale) + shift
        return x + gate * self.attend(inner, inner, inner, need_weights=False)[0]


def test_a_diffusion_transformer_whose_condition_is_a_side_input():
    class Diffusion(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(3, WIDTH)
            self.layers = nn.ModuleList(DiffusionBlock() for _ in range(4))

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            condition = self.embed(time).tanh()
            for layer in self.layers:
                x = layer(x, condition)
            return x

    torch.manual_seed(0)
    plain = Diffusion().train()
    time = torch.randn(2, 3).requires_grad_()
    model = dr2net.convert(copy.deepcopy(plain), 1, 0, blocks="layers")
    assert_same_bits(step(model, True, inputs()[0], time), step(plain, True, inputs()[0], time))
    for point in POINTS:
        dr2net.set_coefficients(model, *point)
        assert_exact(model, inputs()[0], time)
