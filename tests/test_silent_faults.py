"""What went wrong in silence once: each kind is right now, or an error that says what to do."""

import threading
import warnings
from importlib import import_module

import pytest
import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import dr2net
from dr2net import optimizers, residual
from dr2net.diagnostics import bytes_kept
from tests.toy import Block, assert_same_bits, gradients, make_chain, mix

POINTS = pytest.mark.parametrize(("alpha", "beta"), [(0.875, 0.125), (1, 0.1), (0, 1)])


def stream(*shape):
    return torch.randn(shape or (2, 5, 8), requires_grad=True)


# Gradients of what was switched between forward and backward


class TwoAdapters(nn.Module):
    """A block with two adapters whose B is 0, as LoRA starts them: either one changes nothing."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8).requires_grad_(False)
        self.down = nn.ParameterList([nn.Parameter(torch.randn(8, 2)) for _ in range(2)])
        self.up = nn.ParameterList([nn.Parameter(torch.zeros(2, 8)) for _ in range(2)])
        self.active = 0


@residual
def adapted(block, x):
    return block.linear(x) + x @ block.down[block.active] @ block.up[block.active]


@pytest.mark.parametrize("arithmetic", ["exact", "float"])
def test_an_adapter_that_is_switched_before_backward_is_an_error_and_no_lost_gradient(arithmetic):
    chain = dr2net.ReversibleChain(nn.Sequential(TwoAdapters(), TwoAdapters()), (adapted,))
    chain.arithmetic = arithmetic
    chain.set_coefficients(0, 1)
    first = chain(stream())
    for block in chain:
        block.active = 1
    loss = first.sum() + chain(stream()).sum()
    with pytest.raises(RuntimeError, match=r"used its parameter 'down.\d' in forward and not when"):
        loss.backward()


def test_a_parameter_frozen_before_backward_is_an_error_and_no_lost_gradient():
    chain = make_chain()
    loss = chain(stream()).sum()
    chain[1].first.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"coupling 2 \(chain.1, mix\).*'first.weight'"):
        loss.backward()


def test_which_parameters_a_module_uses_may_change_from_step_to_step():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
            self.step = 0

    @residual
    def route(block, x):
        return block.experts[block.step % 3](x)

    chain, x = dr2net.ReversibleChain(nn.Sequential(Routed(), Routed()), (route,)), stream()
    chain.set_coefficients(0.5, 0.5)
    for step in range(6):
        for block in chain:
            block.step = step
        assert_same_bits(gradients(chain, x), gradients(chain, x, reversible=False))
        assert chain[0].experts[step % 3].weight.grad is not None


# Where gradients are on, activations are rebuilt


@pytest.mark.parametrize("how", ["eval", "LoRA", "BitFit"])
def test_memory_does_not_depend_on_the_mode_of_the_network(how):
    chain, x = make_chain(0, 1, blocks=6), torch.randn(4, 16, 8)
    for name, parameter in chain.named_parameters():
        parameter.requires_grad_(how == "eval" or "bias" in name)
    trained = bytes_kept(lambda: chain.train()(x))
    assert bytes_kept(lambda: chain.eval()(x)) == trained
    assert_same_bits(gradients(chain, x), gradients(chain, x, reversible=False))


# Checkpointing that is switched on


def checkpointed_calls(monkeypatch, module):
    calls = []
    original = import_module(module).checkpoint

    def counting(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(f"{module}.checkpoint", counting)
    return calls


def test_checkpointing_is_said_to_be_needless_where_activations_are_rebuilt():
    model = dr2net.convert(timm.create_model("test_vit", img_size=32).train())
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    expected = gradients(model, x)
    model.set_grad_checkpointing(True)
    with pytest.warns(UserWarning, match="rebuilds activations and needs none"):
        assert_same_bits(gradients(model, x), expected)
    assert_same_bits(gradients(model, x), expected)  # without a warning


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet"])
def test_checkpointing_takes_effect_where_activations_are_stored(name, monkeypatch):
    model = dr2net.convert(timm.create_model(name).train(), 1, 0)
    x = torch.randn(2, 3, 160, 160, requires_grad=True)
    expected = gradients(model, x)
    stored = bytes_kept(lambda: model(x))
    calls = checkpointed_calls(monkeypatch, "dr2net.stored")
    model.set_grad_checkpointing(True)
    assert bytes_kept(lambda: model(x)) < stored
    assert len(calls) == sum(len(c.coupled_keys()) for c in dr2net.chains(model))
    if "resnet" not in name:  # whose running statistics move in the recomputation, as in timm's own
        assert_same_bits(gradients(model, x), expected)


def test_kept_blocks_are_checkpointed():
    model = dr2net.convert(timm.create_model("test_vit", img_size=32).train(), keep=["blocks"])
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    expected, stored = gradients(model, x), bytes_kept(lambda: model(x))
    model.set_grad_checkpointing(True)
    assert bytes_kept(lambda: model(x)) < stored
    assert_same_bits(gradients(model, x), expected)


# A forward that a chain would not run


@pytest.mark.parametrize("beta", [0, 0.125])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_forward_put_on_a_block_is_an_error(when, beta):
    model = timm.create_model("test_vit", img_size=32)
    if when == "after":
        dr2net.convert(model, beta=beta)
    block = model.blocks[1]
    block.forward = lambda x: x
    fails = (lambda: dr2net.convert(model, beta=beta)) if when == "before" else None
    with pytest.raises(ValueError, match=r"Block '1' \(Block\) of .* has a forward of its own"):
        fails() if fails else model(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("beta", [0, 0.125])
def test_a_block_of_another_class_is_an_error_unless_its_forward_is_the_same(beta):
    model = dr2net.convert(timm.create_model("test_vit", img_size=32), beta=beta)
    kind, x = type(model.blocks[0]), torch.randn(1, 3, 32, 32)

    class Merging(kind):
        def forward(self, x):
            return super().forward(x)[:, ::2]

    class Named(kind):
        pass

    model.blocks[0].__class__ = Named
    model(x)
    model.blocks[0].__class__ = Merging
    with pytest.raises(ValueError, match=r"Block '0' \(Block\).*has become a .*Merging"):
        model(x)


# Hooks on every module


@pytest.mark.parametrize("beta", [0, 0.125])
def test_hooks_that_observe_run_where_nothing_is_recomputed(beta):
    model = dr2net.convert(timm.create_model("test_vit", img_size=32), beta=beta).eval()
    x, seen, entered = torch.randn(1, 3, 32, 32), [], []
    with torch.no_grad():
        expected = model(x)
        features = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
        for module in model.modules():
            module.register_forward_hook(lambda m, inputs, output: seen.append((m, output)))
            module.register_forward_pre_hook(lambda m, inputs: entered.append(m))
        assert torch.equal(model(x), expected)
    outputs = [output for module, output in seen if module in list(model.blocks)]
    assert len(outputs) == len(model.blocks)
    for output, feature in zip(outputs, features, strict=True):
        assert torch.equal(output[:, model.num_prefix_tokens :], feature)
    assert set(model.blocks) <= set(entered)


def test_hooks_that_observe_run_in_eval_mode_with_gradients_on():
    chain, x, seen = make_chain().eval(), stream(), []
    expected = gradients(chain, x)
    chain[1].register_forward_hook(lambda *call: seen.append(call))
    assert_same_bits(gradients(chain, x), expected)
    assert len(seen) == 1


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_hooks_that_change_something_are_refused(kind):
    chain = make_chain().eval()
    getattr(chain[1], f"register_{kind}")(lambda *call: call[-1])
    with torch.no_grad(), pytest.raises(ValueError, match="can observe, not change"):
        chain(stream())


# Backwards at the same time


@pytest.mark.parametrize("arithmetic", ["exact", "float"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_backwards_through_one_graph_at_the_same_time(arithmetic, dropout):
    chain, x = make_chain(0, 1, blocks=4, dropout=dropout, arithmetic=arithmetic), stream(8, 64, 8)
    loss = chain(x).square().sum()
    wanted = [x, *chain.parameters()]
    (expected, *_) = [torch.autograd.grad(loss, wanted, retain_graph=True)]
    found, errors = {}, []

    def run(number):
        try:
            for turn in range(5):
                found[number, turn] = torch.autograd.grad(loss, wanted, retain_graph=True)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(found) == 20
    for grads in found.values():
        assert_same_bits(list(grads), list(expected))


# Settings that a context manager holds around forward alone


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)


@residual
def attend(block, x):
    q, k, v = block.qkv(x).chunk(3, -1)
    return nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]


CONTEXTS = {
    "sdpa_kernel": lambda: sdpa_kernel(SDPBackend.MATH),
    "matmul precision": lambda: _held(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "deterministic": lambda: _held(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "mkldnn": lambda: torch.backends.mkldnn.flags(enabled=False),
}


class _held:  # noqa: N801
    def __init__(self, read, write, value):
        self.read, self.write, self.value = read, write, value

    def __enter__(self):
        self.before = self.read()
        self.write(self.value)

    def __exit__(self, *_):
        self.write(self.before)


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS.keys())
@pytest.mark.parametrize("arithmetic", ["exact", "float"])
def test_settings_around_forward_alone_are_replayed(context, arithmetic):
    chain = dr2net.ReversibleChain(nn.Sequential(Attention(), Attention()), (attend,))
    chain.arithmetic = arithmetic
    chain.set_coefficients(0, 1)
    seen = []

    def note(*_):
        sdp = torch.backends.cuda
        seen.append(
            (
                torch.get_float32_matmul_precision(),
                sdp.flash_sdp_enabled(),
                sdp.math_sdp_enabled(),
                torch.are_deterministic_algorithms_enabled(),
                torch.backends.mkldnn.enabled,
            )
        )

    chain[0].qkv.register_forward_hook(note)
    before = torch.get_float32_matmul_precision(), torch.backends.cuda.flash_sdp_enabled()
    with context():
        loss = chain(stream(2, 7, 16)).square().sum()
    loss.backward()
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert before == (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.flash_sdp_enabled(),
    )


FACTOR = [1.0]


@residual
def scaled_by_a_global(block, x):
    return mix.__wrapped__(block, x) * FACTOR[0]


@pytest.mark.parametrize("arithmetic", ["exact", "float"])
def test_what_cannot_be_replayed_is_noticed_in_every_arithmetic(arithmetic):
    chain = make_chain(0, 1, arithmetic=arithmetic, branches=(scaled_by_a_global,))
    loss = chain(stream()).sum()
    FACTOR[0] = 1.1
    try:
        with pytest.raises(RuntimeError, match="returned other values when it was recomputed"):
            loss.backward()
    finally:
        FACTOR[0] = 1.0


def test_a_mismatch_may_be_a_warning():
    chain = make_chain(0, 1, branches=(scaled_by_a_global,))
    chain.guard.on_mismatch = "warn"
    loss = chain(stream()).sum()
    FACTOR[0] = 1.1
    try:
        with pytest.warns(UserWarning, match="returned other values when it was recomputed"):
            loss.backward()
    finally:
        FACTOR[0] = 1.0
    model = dr2net.convert(timm.create_model("test_vit"), on_mismatch="warn")
    assert all(chain.guard.on_mismatch == "warn" for chain in dr2net.chains(model))
    with pytest.raises(ValueError, match="on_mismatch='ignore'"):
        dr2net.convert(timm.create_model("test_vit"), on_mismatch="ignore")


# Devices without float64


@pytest.mark.parametrize("beta", [0.125, 0.1, 1])
def test_a_step_makes_nothing_of_float64(beta, monkeypatch):
    monkeypatch.setattr("dr2net.kernels.arithmetic._has_float64", lambda _: False)
    made = set()

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            leaves = torch.utils._pytree.tree_leaves(result)
            made.update(leaf.dtype for leaf in leaves if hasattr(leaf, "dtype"))
            return result

    chain, x = make_chain(1 - beta, beta, dropout=0.1), stream()
    expected = gradients(chain, x)
    with Watching():
        assert_same_bits(gradients(chain, x), expected)
    assert torch.float32 in made
    assert torch.float64 not in made


# Kernels that are tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
)
def test_no_memory_while_kernels_are_tried_is_raised_and_not_kept(monkeypatch, error):
    pytest.importorskip("triton")
    from dr2net import kernels

    answers = [error, True]

    def answer(*_):
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(kernels, "gives_reference_bits", answer)
    monkeypatch.setattr(kernels, "import_module", lambda *_: kernels)
    kernels._kernels_of.cache_clear()
    key = torch.device("cpu"), torch.float32, torch.float16
    with pytest.raises(RuntimeError, match="out of memory"):
        kernels._kernels_of(*key)
    assert kernels._kernels_of(*key) is kernels
    kernels._kernels_of.cache_clear()


def test_a_fallback_from_the_kernels_is_said_once():
    from dr2net import kernels

    kernels._say.cache_clear()
    arithmetic = dr2net.kernels.arithmetic.ExactArithmetic(0.5, torch.float32)
    with pytest.warns(UserWarning, match="no multiple of 8"):
        assert kernels.kernels_for(arithmetic, torch.ones(9), torch.float32) is None
    assert kernels.kernels_for(arithmetic, torch.ones(9), torch.float32) is None  # in silence


# Slices


def test_a_slice_does_not_change_the_chain_s_coefficients():
    chain = make_chain(0.5, 0.5)
    message = r"a slice of chain.*set them on the chain"
    with pytest.raises(ValueError, match=message):
        chain[:1].set_coefficients(1, 0.1)
    with pytest.raises(ValueError, match=message):
        dr2net.set_coefficients(chain[:1], 1, 0.1)
    assert chain.get_coefficients() == (0.5, 0.5)


# Numbers that arrive late, as from a busy GPU


@pytest.fixture
def late(monkeypatch):
    """Reports do not arrive by themselves, and no forward but a chain's first waits for them."""

    class Report:
        def __init__(self, numbers):
            self.numbers = numbers.clone()

        def has_arrived(self):
            return ARRIVED[0]

        def read(self):
            return self.numbers.tolist()

    monkeypatch.setattr("dr2net.guard.Report", Report)
    for module in ("chain", "container", "guard"):
        monkeypatch.setattr(f"dr2net.{module}.is_immediate", lambda device: False)
    ARRIVED[0] = False
    yield
    ARRIVED[0] = True


ARRIVED = [True]


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = 1.0

    def forward(self, x):
        return x * self.gain


def chain_with_gain(**options):
    chain = make_chain(0.875, 0.125, **options)
    for block in chain:
        block.dropout = Gain()
    return chain


@pytest.mark.usefixtures("late")
def test_no_call_waits_for_the_device_between_the_first_coupling_and_the_optimizer(monkeypatch):
    chain, x = make_chain(0.875, 0.125, dropout=0.1), stream()
    schedule = dr2net.CoefficientSchedule(beta=(0.125, 0.5), end=10)
    gradients(chain, x)  # the first forward may wait
    calls = []

    def noted(name, original):
        def run(tensor, *args, **kwargs):
            if name != "equal" or tensor.dtype != torch.uint8:  # of random states, on the CPU
                calls.append(name)
            return original(tensor, *args, **kwargs)

        return run

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, noted(name, getattr(torch.Tensor, name)))
    monkeypatch.setattr(torch, "equal", noted("equal", torch.equal))
    for step in range(3):
        schedule.apply(chain, step)
        chain(x).square().sum().backward()
        assert set(calls) <= {"tolist"}  # of forward's report, in the last node of backward
        assert len(calls) == 1
        calls.clear()


@pytest.mark.usefixtures("late")
def test_a_jump_beyond_the_range_never_reaches_an_optimizer():
    chain, x = chain_with_gain(), torch.randn(2, 5, 8)
    optimizer = torch.optim.AdamW(chain.parameters(), lr=0.1, weight_decay=0.1)
    chain(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    before = [parameter.detach().clone() for parameter in chain.parameters()]
    skipped = optimizers.skipped_steps[0]
    for block in chain:
        block.dropout.gain = 1e5
    output = chain(x)
    assert output.isnan().all()
    with pytest.warns(UserWarning, match="A stream reached"):
        output.square().mean().backward()
    with pytest.warns(UserWarning, match="A step was skipped"):
        optimizer.step()
    assert optimizers.skipped_steps[0] == skipped + 1
    assert_same_bits(before, [parameter.detach() for parameter in chain.parameters()])
    # From the next step on there is room.
    optimizer.zero_grad()
    found = gradients(chain, x)
    assert all(grad is None or grad.isfinite().all() for grad in found)
    assert_same_bits(found, gradients(chain, x, reversible=False))


@pytest.mark.usefixtures("late")
def test_nan_in_forward_is_an_error_before_backward_returns():
    chain, x = chain_with_gain(), stream()
    gradients(chain, x)
    chain[1].dropout.gain = float("nan")
    loss = chain(x).sum()
    assert loss.isnan()
    with pytest.raises(FloatingPointError, match=r"NaN or infinity at coupling 2 \(chain.1, mix\)"):
        loss.backward()


@pytest.mark.usefixtures("late")
def test_a_module_that_is_not_replayed_is_an_error_when_the_numbers_have_arrived():
    source = torch.Generator()

    @residual
    def noisy(block, x):
        return mix.__wrapped__(block, x) + torch.rand(1, generator=source)

    chain = make_chain(branches=(noisy,))
    chain(stream()).sum().backward()
    ARRIVED[0] = True
    with pytest.raises(RuntimeError, match="recomputed in backward"):
        chain(stream())


@pytest.mark.usefixtures("late")
def test_a_buffer_that_ddp_writes_in_each_forward_is_not_waited_for(monkeypatch):
    for module in ("chain", "container"):
        monkeypatch.setattr(f"dr2net.{module}.several_processes", lambda: True)
    chain, x = make_chain(0.875, 0.125), stream()
    gradients(chain, x)
    reads, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: reads.append(t.dtype) or tolist(t))
    chain.coefficients.copy_(chain.coefficients.clone())  # as a broadcast does
    loss = chain(x).sum()
    assert not reads
    loss.backward()
    chain.coefficients.copy_(make_chain(0.5, 0.5).coefficients)
    loss = chain(x).sum()
    with pytest.raises(RuntimeError, match="written by something else than dr2net"):
        loss.backward()


def test_said_once_means_once_for_a_chain():
    chain = make_chain()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            chain.guard.say_once("key", "message")
    assert len(said) == 1


def test_a_copy_says_what_it_has_to_say_itself():
    import copy

    chain = make_chain()
    with pytest.warns(UserWarning, match="message"):
        chain.guard.say_once("key", "message")
    with pytest.warns(UserWarning, match="message"):
        copy.deepcopy(chain).guard.say_once("key", "message")


def test_a_block_may_be_added_to_a_chain_later():
    chain = make_chain()
    chain.add_module("3", Block())
    x = stream()
    assert_same_bits(gradients(chain, x), gradients(chain, x, reversible=False))


def test_what_is_made_of_a_feature_and_used_in_a_later_block_is_an_error():
    chain = make_chain()

    def gate(feature):
        chain[1].gate = feature.mean()
        return feature

    with (
        chain[1].first.register_forward_hook(lambda m, _, output: output * chain[1].gate),
        pytest.raises(RuntimeError, match=r"coupling 2 .* made of one of its inputs outside"),
    ):
        chain.features(stream(), blocks=[0, 2], apply=gate)
