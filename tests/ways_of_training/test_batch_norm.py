"""Normalisations whose buffers forward changes: they move once a step, as without recomputation."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from dr2net import ReversibleChain, residual
from tests.toy import assert_same_bits, gradients

COEFFICIENTS = pytest.mark.parametrize(("alpha", "beta"), [(1, 0), (1, 0.1), (0.5, 0.5), (0, 1)])


@residual
def normalised(block, x):
    return block.second(torch.relu(block.norm(block.first(x))))


def make_chain(norm, alpha=1, beta=0.1, dims=1):
    """A chain of 2 blocks of convolutions around ``norm()``, always with the same weights."""
    torch.manual_seed(1)
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    blocks = nn.Sequential()
    for _ in range(2):
        block = nn.Module()
        block.first, block.second = convolution(4, 4, 1), convolution(4, 4, 1)
        block.norm = norm()
        blocks.append(block)
    chain = ReversibleChain(blocks, (normalised,))
    chain.set_coefficients(alpha, beta)
    return chain.train()


def stream(dims=1):
    return torch.randn(3, 4, *[5] * dims, requires_grad=True)


def assert_trains_as_stored(make, x, steps=3, **options):
    """Gradients of each step and buffers after it, of two equal chains."""
    stored, rebuilt = make(), make()
    for _ in range(steps):
        assert_same_bits(
            gradients(stored, x, reversible=False, **options), gradients(rebuilt, x, **options)
        )
        assert_same_bits(list(stored.buffers()), list(rebuilt.buffers()))
        with torch.no_grad():
            for chain in (stored, rebuilt):
                for parameter in chain.parameters():
                    parameter.sub_(0.01 * parameter.grad if parameter.grad is not None else 0)
    return rebuilt


NORMS = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), 1),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), 2),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(4), 3),
    "cumulative average": (lambda: nn.BatchNorm2d(4, momentum=None), 2),
    "no running statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), 2),
    "not affine": (lambda: nn.BatchNorm1d(4, affine=False), 1),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(4, track_running_stats=True), 1),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), 2),
}
EVERY_NORM = pytest.mark.parametrize(("norm", "dims"), NORMS.values(), ids=NORMS.keys())


@EVERY_NORM
@COEFFICIENTS
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_running_statistics_are_those_of_stored_activations(norm, dims, alpha, beta, bf16):
    assert_trains_as_stored(lambda: make_chain(norm, alpha, beta, dims), stream(dims), bf16=bf16)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_move_once_per_step(momentum):
    chain = make_chain(lambda: nn.BatchNorm1d(4, momentum=momentum))
    for step in range(1, 4):
        gradients(chain, stream())
        assert [block.norm.num_batches_tracked for block in chain] == [step, step]


def test_at_one_and_zero_running_statistics_are_those_of_the_blocks_alone():
    chain, x = make_chain(lambda: nn.BatchNorm1d(4), 1, 0), stream()
    alone = make_chain(lambda: nn.BatchNorm1d(4), 1, 0)
    chain(x)
    for block in alone:
        x = x + normalised.__wrapped__(block, x)
    assert_same_bits(list(chain.buffers()), list(alone.buffers()))


def test_several_forwards_before_a_backward_each_move_the_statistics_once():
    found = []
    for reversible in (False, True):
        chain = make_chain(lambda: nn.BatchNorm1d(4))
        chain.reversible = reversible
        torch.manual_seed(0)
        sum(chain(torch.randn(3, 4, 5)).square().sum() for _ in range(3)).backward()
        found.append([*[parameter.grad for parameter in chain.parameters()], *chain.buffers()])
        assert chain[0].norm.num_batches_tracked == 3
    assert_same_bits(*found)


def test_a_forward_without_gradients_moves_the_statistics_as_ever():
    found = []
    for reversible in (False, True):
        chain = make_chain(lambda: nn.BatchNorm1d(4))
        chain.reversible = reversible
        with torch.no_grad():
            chain(torch.ones(3, 4, 5))
        found.append(list(chain.buffers()))
    assert_same_bits(*found)
    assert found[0][-1] == 1


@COEFFICIENTS
@pytest.mark.parametrize("frozen", ["statistics", "all"])
def test_frozen_batch_norm(frozen, alpha, beta):
    def make():
        chain = make_chain(lambda: nn.BatchNorm1d(4), alpha, beta)
        chain(stream())  # statistics that are no longer 0 and 1
        for block in chain:
            block.norm.eval()
            block.norm.requires_grad_(frozen != "all")
        return chain

    torch.manual_seed(2)
    state = torch.get_rng_state()

    def repeated():
        torch.set_rng_state(state)
        return make()

    before = [buffer.clone() for buffer in repeated().buffers()]
    chain = assert_trains_as_stored(repeated, stream())
    assert_same_bits(list(chain.buffers()), before)


def test_eval_mode_uses_the_running_statistics_and_leaves_them():
    chain, x = make_chain(lambda: nn.BatchNorm1d(4)), stream()
    gradients(chain, x)
    before = [buffer.clone() for buffer in chain.buffers()]
    chain.eval()
    # What else is in the batch makes no difference; as many, since kernels differ by the batch.
    others = torch.cat([x[:1], torch.randn(2, 4, 5)])
    assert torch.equal(chain(x)[:1], chain(others)[:1])
    assert_same_bits(list(chain.buffers()), before)


@pytest.fixture
def process_group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def with_sync_batch_norm():
    chain = make_chain(lambda: nn.BatchNorm1d(4))
    return nn.SyncBatchNorm.convert_sync_batchnorm(chain)


def test_sync_batch_norm_in_one_process_is_batch_norm():
    assert isinstance(with_sync_batch_norm()[0].norm, nn.SyncBatchNorm)
    x = stream()
    synced = assert_trains_as_stored(with_sync_batch_norm, x)
    plain = assert_trains_as_stored(lambda: make_chain(lambda: nn.BatchNorm1d(4)), x)
    assert_same_bits(list(synced.buffers()), list(plain.buffers()))


@pytest.mark.usefixtures("process_group")
def test_sync_batch_norm_across_processes_on_a_cpu_is_torch_s_error_in_training_alone():
    chain = with_sync_batch_norm()
    with pytest.raises(ValueError, match="SyncBatchNorm expected input tensor to be on"):
        chain(stream())
    plain, x = make_chain(lambda: nn.BatchNorm1d(4)), stream()
    assert torch.equal(chain.eval()(x), plain.eval()(x))


def parametrized(make_norm, parametrize):
    def make():
        chain = make_norm()
        for block in chain:
            parametrize(block.first)
        return chain

    return make


PARAMETRIZATIONS = {
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": torch.nn.utils.weight_norm,
}


@COEFFICIENTS
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("parametrize", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS.keys())
def test_parametrized_weights(parametrize, alpha, beta):
    make = parametrized(lambda: make_chain(lambda: nn.BatchNorm1d(4), alpha, beta), parametrize)
    assert_trains_as_stored(make, stream())


@COEFFICIENTS
@pytest.mark.parametrize(
    "parametrize",
    [parametrizations.spectral_norm, torch.nn.utils.spectral_norm],
    ids=["parametrization", "old"],
)
def test_spectral_norm_whose_estimate_moves_in_forward(parametrize, alpha, beta):
    make = parametrized(lambda: make_chain(lambda: nn.BatchNorm1d(4), alpha, beta), parametrize)
    assert_trains_as_stored(make, stream())


class Decaying(nn.Module):
    """Scales by a buffer that each forward changes before autograd saves it."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("scale", torch.ones(4, 1))

    def forward(self, x):
        if self.in_place:
            self.scale.mul_(0.9)
        else:
            self.scale = self.scale * 0.9
        return x * self.scale.clone()


class DecayingSaved(Decaying):
    def forward(self, x):
        self.scale.mul_(0.9)
        return x * self.scale


MOVING = {
    "in place": lambda: Decaying(in_place=True),
    "replaced": lambda: Decaying(in_place=False),
    "saved": lambda: DecayingSaved(in_place=True),
}


@COEFFICIENTS
@pytest.mark.parametrize("norm", MOVING.values(), ids=MOVING.keys())
def test_a_buffer_that_forward_moves_on(norm, alpha, beta):
    chain = assert_trains_as_stored(lambda: make_chain(norm, alpha, beta), stream(), steps=3)
    assert torch.allclose(chain[0].norm.scale, torch.tensor(0.9**3))


@pytest.mark.parametrize("norm", MOVING.values(), ids=MOVING.keys())
def test_a_buffer_that_forward_moves_on_in_a_graph_used_twice(norm):
    chain, x = make_chain(norm), stream()
    loss = chain(x).square().sum()
    grads = [
        torch.autograd.grad(loss, [x, *chain.parameters()], retain_graph=retain)
        for retain in (True, False)
    ]
    assert_same_bits(*grads)
    assert torch.allclose(chain[1].norm.scale, torch.tensor(0.9))
