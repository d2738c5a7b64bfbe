"""MLPs over slices of their tokens: the same gradients both ways, and a lower peak of memory."""

import copy
import pickle
import weakref
from functools import partial

import pytest
import timm
import torch
from timm.layers import GlobalResponseNormMlp, GluMlp, Mlp, SwiGLU, SwiGLUPacked
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import dr2net
from dr2net import ReversibleChain, residual
from dr2net.conversion.mlps import MLPS, can_be_sliced
from tests.conversion.families import IMAGES, STOCHASTIC, converted, timm_vit
from tests.toy import assert_same_bits, export, gradients

# In float32: a parameter's gradient is summed over tokens slice by slice; and kernels may be others
# for fewer rows, and their rounding move a stream by a step of 2^-20, which is the most of it.
BOUND = 2**-14

PAIRS = pytest.mark.parametrize(("alpha", "beta"), [(1, 0), (1, 0.1), (0.5, 0.5), (0, 1)])


def sliced(network, alpha=1.0, beta=0.1, tokens=5):
    """Slices of the 2 × 17 tokens of a small timm ViT, or 2 × 32 of mmaction's, are not even."""
    model = converted(network.train(), alpha, beta)
    dr2net.slice_mlps(model, tokens)
    return model


def image():
    return torch.randn(IMAGES, requires_grad=True)


def block(mlp):
    return nn.ModuleDict({"mlp": mlp})


@partial(residual, tokenwise=("mlp",))
def whole_coupling(block, x):
    return block["mlp"](x)


@residual
def beside_others(block, x):
    return block["mlp"](x) * torch.sigmoid(x.mean(1, keepdim=True))


@partial(residual, tokenwise=("mlp",))
def layers(block, x):
    return block["mlp"].layers(x)


@partial(residual, tokenwise=("mlp", "output"))
def two_halves(block, x):
    return block["output"](block["mlp"](x))


def make_chain(*mlps, branch=whole_coupling):
    chain = ReversibleChain(nn.Sequential(*map(block, mlps)), (branch,))
    chain.set_coefficients(1, 0.1)
    return chain.train()


def rows_seen(mlp, run):
    """How many tokens the first layer of an MLP is given, call by call."""
    seen = []
    first = next(part for part in mlp.modules() if isinstance(part, nn.Linear))
    with first.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1])):
        run()
    return seen


def difference(first, second):
    """The largest relative L2 difference among pairs of tensors."""
    pairs = zip(first, second, strict=True)
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs if b.norm() > 0)


# Rebuilt and stored


@PAIRS
@pytest.mark.parametrize(
    ("frozen", "bf16"), [("nothing", False), ("nothing", True), ("blocks.0.", True), ("mlp", True)]
)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_gradients_are_those_of_stored_activations(name, frozen, bf16, alpha, beta):
    network, shape = STOCHASTIC[name]
    model = sliced(network(depth=2), alpha, beta)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in parameter_name)
    x = torch.randn(shape, requires_grad=True)
    expected = gradients(model, x, reversible=False, bf16=bf16)
    random_state = torch.get_rng_state()
    assert_same_bits(gradients(model, x, bf16=bf16), expected)
    assert torch.equal(torch.get_rng_state(), random_state)


def steps(model, *losses):
    """Gradients of the parameters after a backward of each of the ``losses``."""
    model.zero_grad()
    torch.manual_seed(7)
    for loss in losses:
        loss(model).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_accumulated_gradients_and_those_of_several_passes_at_once_are_the_same_too():
    model = sliced(timm_vit(proj_drop_rate=0.1, drop_path_rate=0.2))
    x, found = image(), []
    for reversible in (False, True):
        dr2net.set_reversible(model, reversible)
        found.append(
            steps(
                model,
                lambda model: model(x).square().mean() + model(-x).sin().sum() + model(x).sum(),
                lambda model: model(2 * x).square().mean(),
            )
        )
    assert_same_bits(*found)


def test_an_mlp_that_stands_in_several_blocks_has_the_same_gradients():
    shared = Mlp(8, 32, drop=0.1)
    chain = make_chain(shared, Mlp(8, 32), shared)
    x = torch.randn(2, 9, 8, requires_grad=True)
    dr2net.slice_mlps(chain, 4)
    assert_same_bits(gradients(chain, x), gradients(chain, x, reversible=False))


@pytest.mark.parametrize("keep", [["blocks.0"], ["blocks.1", "blocks.2"]])
def test_kept_blocks_change_no_gradient(keep):
    model, x = sliced(timm_vit(proj_drop_rate=0.1)), image()
    expected = gradients(model, x, reversible=False)
    dr2net.set_reversible(model, True, keep=keep)
    assert_same_bits(gradients(model, x), expected)


def test_verify_passes():
    dr2net.verify(sliced(timm_vit(proj_drop_rate=0.1, drop_path_rate=0.2)), torch.randn(IMAGES))


@pytest.mark.parametrize("reversible", [False, True])
def test_parameters_of_functional_call_are_those_of_forward(reversible):
    model, x = sliced(timm_vit()), torch.randn(IMAGES)
    dr2net.set_reversible(model, reversible)
    found = []
    for tokens in (5, None):
        dr2net.slice_mlps(model, tokens)
        given = {n: (2 * p.detach()).requires_grad_() for n, p in model.named_parameters()}
        functional_call(model, given, (x,)).square().mean().backward()
        found.append([parameter.grad for parameter in given.values()])
    assert difference(*found) < BOUND


@pytest.mark.parametrize("reversible", [False, True])
def test_parameters_changed_before_backward_are_an_error(reversible):
    chain = make_chain(Mlp(8, 32))
    dr2net.slice_mlps(chain, 4)
    chain.reversible = reversible
    loss = chain(torch.randn(2, 9, 8)).sum()
    with torch.no_grad():
        chain[0]["mlp"].fc1.weight.mul_(2)
        chain[0]["mlp"].fc2.weight.mul_(2)
    message = "changed between forward and backward" if reversible else "modified by an inplace"
    with pytest.raises(RuntimeError, match=message):
        loss.backward()


@pytest.mark.parametrize("reversible", [False, True])
def test_unused_parameters_get_no_gradient(reversible):
    chain = make_chain(Mlp(8, 32))
    chain[0]["mlp"].spare = nn.Parameter(torch.ones(8))
    chain.reversible = reversible
    dr2net.slice_mlps(chain, 4)
    chain(torch.randn(2, 9, 8)).sum().backward()
    assert [name for name, p in chain.named_parameters() if p.grad is None] == ["0.mlp.spare"]


def test_a_weight_used_twice_for_each_token_has_the_same_gradient():
    mlp = Mlp(8, 8)
    mlp.fc1 = mlp.fc2 = nn.Linear(8, 8)
    chain, x = make_chain(mlp, Mlp(8, 8)), torch.randn(2, 9, 8, requires_grad=True)
    dr2net.slice_mlps(chain, 4)
    assert_same_bits(gradients(chain, x), gradients(chain, x, reversible=False))


@partial(residual, tokenwise=("mlp",), drop_path="drop")
def dropped_at_times(block, x):
    return block["mlp"](x)


@pytest.mark.parametrize("kind", [timm.layers.DropPath, "mmcv", "transformers"])
def test_samples_are_dropped_whole_and_by_the_same_draw(kind):
    if kind == "mmcv":
        kind = pytest.importorskip("mmcv.cnn.bricks.drop").DropPath
    elif kind == "transformers":
        pytest.importorskip("transformers")
        kind = pytest.importorskip("transformers.models.dinov2.modeling_dinov2").Dinov2DropPath
    chain = make_chain(Mlp(8, 32), branch=dropped_at_times)
    x = torch.randn(16, 9, 8, requires_grad=True)
    chain[0]["drop"] = kind(0.5).train()
    chain.set_coefficients(0, 0.5)
    found = []
    for tokens in (None, 4):
        dr2net.slice_mlps(chain, tokens)
        found.append(gradients(chain, x))
    assert difference(*found) < BOUND
    drops = (found[1][0] - x.detach() / 2).abs() < 1e-4
    of_samples = drops.flatten(1).float().mean(1)
    assert set(of_samples.round().tolist()) == {0, 1}
    assert (of_samples - of_samples.round()).abs().max() < 0.1


def test_a_stochastic_depth_that_is_not_declared_is_not_sliced():
    chain = make_chain(Mlp(8, 32))
    chain[0]["mlp"].drop2 = timm.layers.DropPath(0.5)
    assert not can_be_sliced(chain[0], whole_coupling)
    chain[0]["drop"] = nn.Dropout(0.5)  # which would draw for each sample alone
    assert not can_be_sliced(chain[0], dropped_at_times)
    chain[0]["mlp"].drop2, chain[0]["drop"] = nn.Identity(), nn.Identity()
    assert can_be_sliced(chain[0], whole_coupling)
    assert can_be_sliced(chain[0], dropped_at_times)


@pytest.mark.parametrize(
    "part",
    [
        lambda: torch.nn.utils.spectral_norm(nn.Linear(8, 8)),
        lambda: torch.nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
        lambda: nn.LayerNorm((9, 8)),
        lambda: nn.BatchNorm1d(9),
    ],
)
def test_parts_that_tokens_share_are_not_sliced(part):
    chain = make_chain(Mlp(8, 8), branch=two_halves)
    chain[0]["output"] = nn.LayerNorm(8)
    assert can_be_sliced(chain[0], two_halves)
    chain[0]["output"] = part()
    assert not can_be_sliced(chain[0], two_halves)


class Quantised(nn.Linear):
    def forward(self, x):
        assert type(self.weight) is nn.Parameter
        return super().forward(x)


def test_frozen_parameters_are_left_as_they_are():
    mlp = Mlp(8, 8)
    mlp.fc1 = Quantised(8, 8).requires_grad_(False)
    chain, x = make_chain(mlp), torch.randn(2, 9, 8, requires_grad=True)
    dr2net.slice_mlps(chain, 4)
    assert_same_bits(gradients(chain, x), gradients(chain, x, reversible=False))


def test_pure_low_precision_and_double_precision_have_the_same_gradients():
    for dtype in (torch.bfloat16, torch.float64):
        chain = make_chain(Mlp(8, 32, drop=0.1), Mlp(8, 32)).to(dtype)
        x = torch.randn(2, 9, 8, dtype=dtype, requires_grad=True)
        dr2net.slice_mlps(chain, 4)
        assert_same_bits(gradients(chain, x), gradients(chain, x, reversible=False))


def test_batched_gradients_are_those_one_by_one():
    chain, x = make_chain(Mlp(8, 32), Mlp(8, 32)), torch.randn(2, 9, 8, requires_grad=True)
    dr2net.slice_mlps(chain, 4)
    output = chain(x)
    seeds = torch.randn(3, *output.shape)
    inputs = [x, *chain.parameters()]
    one_by_one = [torch.autograd.grad(chain(x), inputs, seed) for seed in seeds]
    batched = torch.autograd.grad(output, inputs, seeds, is_grads_batched=True)
    for found, expected in zip(batched, zip(*one_by_one, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(expected))


def test_backward_may_run_twice():
    model, x = sliced(timm_vit(proj_drop_rate=0.1)), image()
    loss = model(x).square().mean()
    first, second = (
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for _ in range(2)
    )
    assert_same_bits(first, second)


# Sliced and whole


@PAIRS
@pytest.mark.parametrize("tokens", [1, 5, 16])
def test_outputs_and_gradients_are_those_of_whole_mlps_up_to_rounding(tokens, alpha, beta):
    model, x = sliced(timm_vit(init_values=0.5), alpha, beta, None), image()
    whole = gradients(model, x)
    dr2net.slice_mlps(model, tokens)
    assert difference(gradients(model, x), whole) < BOUND


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((2, 9, 8), [4, 4, 4, 3, 3]),
        ((2, 3, 5, 8), [4, 4, 4, 4, 4, 4, 3, 3]),
        ((1, 2, 3, 2, 8), [4, 4, 4]),
        ((0, 9, 8), [9]),
    ],
)
def test_tokens_are_those_of_all_samples_in_every_dimension_but_channels(shape, rows):
    chain, x = make_chain(Mlp(8, 32), Mlp(8, 32)), torch.randn(shape, requires_grad=True)
    whole = gradients(chain, x)
    dr2net.slice_mlps(chain, 4)
    found = gradients(chain, x)
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in whole]
    assert difference(found, whole) < BOUND if len(x) else all(not t.any() for t in found)
    assert rows_seen(chain[0], lambda: chain(x.detach())) == rows


@pytest.mark.parametrize("shape", [(1, 4, 8), (1, 2, 2, 8), (2, 0, 8), (4, 8)])
def test_fewer_tokens_run_in_one_call_of_forward_and_one_of_recomputation(shape):
    chain, x = make_chain(Mlp(8, 32)), torch.randn(shape, requires_grad=True)
    whole = gradients(chain, x)
    dr2net.slice_mlps(chain, 4)
    assert_same_bits(gradients(chain, x), whole)
    assert len(rows_seen(chain[0], lambda: gradients(chain, x))) == 2


def test_no_layer_is_computed_more_often_than_without_slices():
    chain, x = make_chain(Mlp(8, 32)), torch.randn(1, 10, 8, requires_grad=True)
    dr2net.slice_mlps(chain, 4)
    seen = rows_seen(chain[0], lambda: chain(x).sum().backward())
    assert seen == [4, 3, 3, 3, 3, 4]
    with torch.no_grad():
        assert rows_seen(chain[0], lambda: chain(x)) == [4, 3, 3]


def test_inference_runs_mlps_whole():
    chain, x = make_chain(Mlp(8, 32)), torch.randn(1, 10, 8)
    whole = chain.eval()(x)
    dr2net.slice_mlps(chain, 4)
    with torch.no_grad():
        assert rows_seen(chain[0], lambda: chain(x)) == [10]
        assert torch.equal(chain(x), whole)


def test_a_network_in_eval_mode_with_gradients_on_runs_in_slices():
    chain, x = make_chain(Mlp(8, 32)).eval(), torch.randn(1, 10, 8, requires_grad=True)
    dr2net.slice_mlps(chain, 4)
    assert rows_seen(chain[0], lambda: chain(x)) == [4, 3, 3]
    assert_same_bits(gradients(chain, x), gradients(chain, x, reversible=False))


@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_a_chain_changes_nothing(reversible, reentrant):
    # A reentrant one runs forward without gradients: slices, and their dropout, are the same.
    chain = make_chain(Mlp(8, 32, drop=0.5), Mlp(8, 32, drop=0.5))
    chain.reversible = reversible
    dr2net.slice_mlps(chain, 4)
    found = []
    for run in (chain, partial(checkpoint, chain, use_reentrant=reentrant)):
        x = torch.linspace(-1, 2, 144).view(2, 9, 8).requires_grad_()
        found.append([*steps(chain, lambda _, run=run, x=x: run(x).square().sum()), x.grad])
    assert_same_bits(*found)


def test_a_backward_after_one_that_failed_midway_is_not_mistaken():
    chain = make_chain(*(Mlp(8, 32) for _ in range(4)))
    x = torch.randn(2, 9, 8, requires_grad=True)
    first, last = chain.features(x, blocks=[1, 3])

    def fail(*_):
        raise ZeroDivisionError

    with chain[1]["mlp"].register_forward_pre_hook(fail), pytest.raises(ZeroDivisionError):
        last.sum().backward(retain_graph=True)
    first.sum().backward()
    assert x.grad is not None


class Peak(TorchDispatchMode):
    """Counts the bytes of the storages that operations made and that live at the same time."""

    def __init__(self):
        super().__init__()
        self.known, self.live, self.peak = set(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return result

    def free(self, address, size):
        self.known.discard(address)
        self.live -= size


def peak_of_a_step(chain, x):
    chain.zero_grad()
    with Peak() as counted:
        chain(x).sum().backward()
    return counted.peak


def test_the_peak_of_memory_falls():
    # Width 64, hidden 256, 4,096 tokens in slices of 256. Whole, hidden activations (before and
    # after GELU, and their gradients) are 4 MB each, and the streams 1 MB.
    chain = make_chain(Mlp(64, 256), Mlp(64, 256))
    x = torch.randn(1, 4096, 64)
    whole = peak_of_a_step(chain, x)
    dr2net.slice_mlps(chain, 256)
    assert peak_of_a_step(chain, x) < 0.6 * whole


# What is sliced


def ffn():
    pytest.importorskip("mmcv")
    from mmcv.cnn.bricks.transformer import FFN

    return FFN(8, 32, ffn_drop=0.1)


def of_transformers(family, name):
    pytest.importorskip("transformers")
    config = pytest.importorskip(f"transformers.models.{family}.configuration_{family}")
    modeling = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    kind = {"vit": "ViTConfig", "dinov2": "Dinov2Config", "videomae": "VideoMAEConfig"}[family]
    options = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 32}
    return getattr(modeling, name)(getattr(config, kind)(**options))


def of_mmaction(file, name):
    pytest.importorskip("mmcv")
    import dr2net.openmmlab.mended  # makes mmaction2 importable  # noqa: F401

    module = pytest.importorskip(f"mmaction.models.backbones.{file}")
    return getattr(module, name)(8, 32)


KNOWN = {
    "Mlp": lambda: Mlp(8, 32, drop=0.1, norm_layer=nn.LayerNorm),
    "GluMlp": lambda: GluMlp(8, 32, drop=0.1),
    "SwiGLUPacked": lambda: SwiGLUPacked(8, 32),
    "SwiGLU": lambda: SwiGLU(8, 32, drop=0.1),
    "FFN": ffn,
    "mmaction2's Mlp": lambda: of_mmaction("swin", "Mlp"),
    "mmaction2's MLP": lambda: of_mmaction("mvit", "MLP"),
    "ViTMLP": lambda: of_transformers("vit", "ViTMLP"),
    "Dinov2MLP": lambda: of_transformers("dinov2", "Dinov2MLP"),
    "Dinov2SwiGLUFFN": lambda: of_transformers("dinov2", "Dinov2SwiGLUFFN"),
    "VideoMAEIntermediate": lambda: of_transformers("videomae", "VideoMAEIntermediate"),
}
BRANCH_OF = {"FFN": layers, "VideoMAEIntermediate": two_halves}


@pytest.mark.parametrize("name", KNOWN)
def test_known_mlps_are_sliced(name):
    mlp, x = KNOWN[name](), torch.randn(1, 10, 8, requires_grad=True)
    chain = make_chain(mlp, branch=BRANCH_OF.get(name, whole_coupling))
    chain[0]["output"] = nn.Linear(32, 8) if name == "VideoMAEIntermediate" else nn.Identity()
    dr2net.slice_mlps(chain, 4)
    assert rows_seen(mlp, lambda: chain(x)) == [4, 3, 3]
    assert_same_bits(gradients(chain, x), gradients(chain, x, reversible=False))
    for part in mlp.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    found = gradients(chain, x)
    dr2net.slice_mlps(chain, None)
    assert difference(found, gradients(chain, x)) < BOUND


def test_an_mlp_beside_other_things_stays_whole():
    chain = make_chain(Mlp(8, 32), branch=beside_others)
    with pytest.raises(ValueError, match=r"no MLP that can be sliced.* in modules of their own"):
        dr2net.slice_mlps(chain, 4)


def test_every_known_class_is_tested():
    found = {type(make()) for make in KNOWN.values()}
    paths = {f"{kind.__module__}.{kind.__qualname__}" for kind in found}
    assert paths == MLPS


class Derived(Mlp):
    def forward(self, x):
        return super().forward(x) + x.mean(1, keepdim=True)


@pytest.mark.parametrize(
    "mlp",
    [
        Derived(8),
        GlobalResponseNormMlp(8),
        Mlp(8, use_conv=True),
        GluMlp(8, use_conv=True),
        Mlp(8, norm_layer=lambda *_, **__: nn.BatchNorm1d(9)),
    ],
    ids=lambda mlp: type(mlp).__name__,
)
def test_others_are_refused_and_stay_as_they_are(mlp):
    chain = make_chain(mlp)
    with pytest.raises(
        ValueError, match=rf"Known are mmaction.*timm.*found were .*{type(mlp).__name__}"
    ):
        dr2net.slice_mlps(chain, 4)
    assert chain.slicer is None
    chain.add_module("1", block(Mlp(8)))
    dr2net.slice_mlps(chain, 4)
    x = torch.randn(1, 10, 8)
    assert rows_seen(chain[1]["mlp"], lambda: chain[1:](x)) == [4, 3, 3]


def test_mlps_outside_of_chains_stay_as_they_are():
    model = nn.Sequential(Mlp(8), make_chain(Mlp(8)))
    dr2net.slice_mlps(model, 4)
    assert type(model[0]) is Mlp


@pytest.mark.parametrize(
    ("tokens", "error"),
    [(0, ValueError), (-1, ValueError), (True, TypeError), (2.0, TypeError), ("4", TypeError)],
)
def test_anything_but_a_positive_int_is_refused(tokens, error):
    chain = make_chain(Mlp(8))
    with pytest.raises(error, match=f"tokens={tokens!r}: give a positive int"):
        dr2net.slice_mlps(chain, tokens)
    assert type(chain[0]["mlp"]) is Mlp


@pytest.mark.parametrize("tokens", [4, None])
def test_networks_without_chains_are_refused(tokens):
    with pytest.raises(ValueError, match="no reversible chains"):
        dr2net.slice_mlps(Mlp(8), tokens)


# There and back


def test_parameter_names_and_representation_stay():
    network = timm_vit()
    model = sliced(copy.deepcopy(network))
    names = [name for name in model.state_dict() if not name.endswith("coefficients")]
    assert names == list(network.state_dict())
    model.load_state_dict(network.state_dict(), strict=True)
    assert "(fc1): Linear(in_features=32" in repr(model)


def test_none_gives_the_modules_back_as_they_were():
    model, x = converted(timm_vit().train(), 1, 0.1), image()
    whole, states = gradients(model, x), [set(vars(module)) for module in model.modules()]
    classes = [type(module) for module in model.modules()]
    for tokens in (5, 3, None, None):
        dr2net.slice_mlps(model, tokens)
    assert [type(module) for module in model.modules()] == classes
    assert [set(vars(module)) for module in model.modules()] == states
    assert_same_bits(gradients(model, x), whole)


def test_other_sizes_replace_the_former():
    model = sliced(timm_vit(), tokens=5)
    dr2net.slice_mlps(model, 9)
    assert rows_seen(model.blocks[0].mlp, lambda: model(torch.randn(IMAGES))) == [9, 9, 8, 8]
    assert "slice_tokens=9" in repr(model)


def test_reverting_undoes_it():
    network = timm_vit()
    found = dr2net.revert(sliced(network, 1, 0))
    assert [type(part) for part in found.modules()] == [type(part) for part in network.modules()]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_sliced_on_their_own(copied):
    model, x = sliced(timm_vit(proj_drop_rate=0.1)), image()
    twin = copied(model)
    assert_same_bits(gradients(twin, x), gradients(model, x))
    dr2net.slice_mlps(model, None)
    assert twin.blocks.slicer.tokens == 5
    assert rows_seen(twin.blocks[0].mlp, lambda: twin(x))[:2] == [5, 5]
    assert rows_seen(model.blocks[0].mlp, lambda: model(x)) == [17]


# Elsewhere


@PAIRS
def test_it_is_exported_whole_without_checkpoints(alpha, beta):
    model, x = sliced(timm_vit(), alpha, beta).eval(), torch.randn(IMAGES)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = export(model, (x,), dynamic_shapes={"x": {0: batch}})
    other = torch.randn(5, *IMAGES[1:])
    with torch.no_grad():
        assert torch.equal(program.module()(other), model(other))
    assert "checkpoint" not in str(program.graph)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_it_is_traced_and_runs_under_torch_func_where_chains_do():
    model, x = sliced(timm_vit(), 1, 0).eval(), torch.randn(IMAGES)
    assert torch.equal(torch.jit.trace(model, (x,))(x), model(x))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    found = torch.func.grad(lambda w: functional_call(model, w, (x,)).sum())(weights)
    model(x).sum().backward()
    expected = [parameter.grad for parameter in model.parameters()]
    assert difference(found.values(), expected) < BOUND


def test_compiled_mlps_are_sliced():
    torch._dynamo.reset()
    model, x = sliced(timm_vit(proj_drop_rate=0.1, depth=1)), image()
    model.blocks[0].mlp.compile(backend="aot_eager")
    stored = gradients(model, x, reversible=False)
    assert_same_bits(gradients(model, x), stored)
    assert_same_bits(gradients(copy.deepcopy(model), x), stored)  # copies are not compiled
    torch._dynamo.reset()


def test_a_network_of_other_blocks_is_refused_with_what_was_found():
    model = dr2net.convert(timm.create_model("test_resnet"))
    with pytest.raises(ValueError, match="found were BasicBlock, BatchNorm2d, Conv2d"):
        dr2net.slice_mlps(model, 4)
