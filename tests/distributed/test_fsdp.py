"""FSDP2 (``fully_shard``) on converted networks, with gloo in two and four processes."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import dr2net
from dr2net import ReversibleChain
from dr2net.diagnostics import gradient_error
from tests.distributed.networks import ToyNetwork, loss_of, make_batch, make_network
from tests.distributed.processes import SHARDS_ON_CPU, run_in_processes
from tests.toy import assert_same_bits, make_chain

pytestmark = pytest.mark.skipif(
    not SHARDS_ON_CPU, reason="FSDP2 of this PyTorch needs GPUs, one for each process"
)

COEFFICIENTS = [(1, 0), (1, 0.1), (0, 1)]
SGD = {"optimizer_type": torch.optim.SGD}


def shard(network: nn.Module, parts: str = "blocks", **options) -> nn.Module:
    """Shards the named parts and, as FSDP2 asks for, the network last."""
    (chain,) = dr2net.chains(network)
    if parts == "blocks":
        for block in chain:
            fully_shard(block, **options)
    if parts == "a group of blocks":
        fully_shard([chain[0], chain[1]], **options)
        fully_shard(chain[2], **options)
    if parts == "chain":
        fully_shard(chain, **options)
    fully_shard(network, **options)
    return network


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: whole(value).clone() for name, value in network.state_dict().items()}


def train(
    name: str,
    coefficients: tuple[float, float],
    wrap: str,
    reversible: bool = True,
    policy: MixedPrecisionPolicy | None = None,
    micro_batches: int = 1,
    frozen: tuple[str, ...] = (),
    keep: tuple[str, ...] = (),
    optimizer_type: type[torch.optim.Optimizer] = torch.optim.AdamW,
    mlp_tokens: int | None = None,
) -> dict[str, Tensor]:
    """The weights after three steps with an evaluation after each, and the last one's output.

    Of AdamW, which makes large steps of small gradients, where every bit is to agree; of SGD, whose
    steps are linear in the gradient, where sums are taken in another order.
    """
    rank = distributed.get_rank()
    network = make_network(name, *coefficients, reversible)
    dr2net.set_reversible(network, reversible, keep)
    dr2net.slice_mlps(network, mlp_tokens)
    for parameter_name, parameter in network.named_parameters():
        parameter.requires_grad_(not parameter_name.startswith(frozen or ("nothing",)))
    options: dict = {} if policy is None else {"mp_policy": policy}
    if wrap == "ddp":
        model: nn.Module = DistributedDataParallel(network)
    elif wrap == "two dimensions":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        model = shard(network, mesh=mesh)
    else:
        model = shard(network, wrap, **options)
    optimizer = optimizer_type([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        for micro_step in range(micro_batches):
            if isinstance(model, FSDPModule):
                model.set_requires_gradient_sync(micro_step == micro_batches - 1)
            batch = make_batch(name, rank, micro_batches * step + micro_step)
            loss_of(model, batch, seed=rank).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            evaluated = model.eval()(make_batch(name, rank))
        model.train()
    return {**weights(network), "evaluated": evaluated}


def assert_same_weights(found: list[dict], expected: list[dict]) -> None:
    for weights_found, weights_expected in zip(found, expected, strict=True):
        assert weights_found.keys() == weights_expected.keys()
        assert_same_bits(list(weights_found.values()), list(weights_expected.values()))


def assert_close_weights(found: list[dict], expected: list[dict]) -> None:
    """Up to the order in which gradients are summed; those not averaged make 1e-3 of difference."""
    for name, value in found[0].items():
        torch.testing.assert_close(value, expected[0][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("name", ["toy", "timm"])
class TestWeights:
    def test_are_those_of_ddp_on_two_processes(self, name, coefficients):
        # The sum of two numbers has one order.
        expected = run_in_processes(2, train, name, coefficients, "ddp")
        assert_same_weights(run_in_processes(2, train, name, coefficients, "blocks"), expected)

    def test_are_those_of_ddp_on_four_processes(self, name, coefficients):
        expected = run_in_processes(4, train, name, coefficients, "ddp", **SGD)
        found = run_in_processes(4, train, name, coefficients, "blocks", **SGD)
        assert_close_weights(found, expected)
        # The chain adds no error of its own: with its activations stored, bit for bit the same.
        stored = run_in_processes(4, train, name, coefficients, "blocks", False, **SGD)
        assert_same_weights(found, stored)


@pytest.mark.parametrize("parts", ["root", "chain", "a group of blocks"])
def test_other_parts_than_blocks_can_be_sharded(parts):
    expected = run_in_processes(2, train, "timm", (1, 0.1), "ddp")
    assert_same_weights(run_in_processes(2, train, "timm", (1, 0.1), parts), expected)


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
def test_sliced_mlps_train_as_under_ddp(coefficients):
    expected = run_in_processes(2, train, "timm", coefficients, "ddp", mlp_tokens=2)
    for reversible in (False, True):
        found = run_in_processes(2, train, "timm", coefficients, "blocks", reversible, mlp_tokens=2)
        assert_same_weights(found, expected)


def test_a_mesh_of_two_dimensions_replicates_and_shards():
    expected = run_in_processes(4, train, "toy", (1, 0.1), "blocks", **SGD)
    found = run_in_processes(4, train, "toy", (1, 0.1), "two dimensions", **SGD)
    assert_close_weights(found, expected)


@pytest.mark.parametrize("frozen", [("embed", "blocks.0", "blocks.1"), ("blocks.2", "norm")])
def test_frozen_parts_stay_and_the_rest_trains_as_under_ddp(frozen):
    expected = run_in_processes(2, train, "toy", (1, 0.1), "ddp", frozen=frozen)
    found = run_in_processes(2, train, "toy", (1, 0.1), "blocks", frozen=frozen)
    assert_same_weights(found, expected)


def test_blocks_that_are_stored_among_rebuilt_ones_are_gathered_too():
    expected = run_in_processes(2, train, "toy", (1, 0.1), "ddp")
    found = run_in_processes(2, train, "toy", (1, 0.1), "blocks", keep=("blocks.1", "blocks.3"))
    assert_same_weights(found, expected)


def test_gradients_are_accumulated_without_communication():
    # DDP sums the micro-batches' gradients over the processes at every micro-batch, so that only
    # FSDP2's own activations-stored result is the same bit for bit.
    args = {"micro_batches": 3, **SGD}
    found, stored = (
        run_in_processes(2, train, "toy", (1, 0.1), "blocks", reversible, **args)
        for reversible in (True, False)
    )
    assert_same_weights(found, stored)
    assert_close_weights(found, run_in_processes(2, train, "toy", (1, 0.1), "ddp", **args))


BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
def test_mixed_precision_trains_as_with_activations_stored(coefficients):
    found, stored = (
        run_in_processes(2, train, "timm", coefficients, "blocks", reversible, policy=BF16)
        for reversible in (True, False)
    )
    assert_same_weights(found, stored)
    full = run_in_processes(2, train, "timm", coefficients, "blocks")
    assert any(not torch.equal(value, full[0][name]) for name, value in found[0].items())


def gathered_during_couplings() -> list[list[int]]:
    """For each coupling as it runs, the blocks whose parameters are whole at that moment."""
    network = ToyNetwork(blocks=4)
    seen: list[list[int]] = []

    def look(*_: object) -> None:
        whole_blocks = [
            number
            for number, block in enumerate(network.blocks)
            if not isinstance(block.second.weight, DTensor)
        ]
        seen.append(whole_blocks)

    for block in network.blocks:
        block.second.register_forward_pre_hook(look)
    shard(network)
    loss_of(network, make_batch("toy", distributed.get_rank()), seed=0).backward()
    return seen


def test_only_the_block_at_work_is_gathered():
    forward = [[0], [1], [2], [3]]
    backward = [[3], [2], [1], [0]]
    assert run_in_processes(2, gathered_during_couplings) == [forward + backward] * 2


def features(reversible: bool) -> list[Tensor]:
    network = make_network("toy", 1, 0.1, reversible)
    shard(network)
    first, last = network.blocks.features(
        make_batch("toy", distributed.get_rank()), blocks=[0, 2], apply=torch.tanh
    )
    (first.sum() + last.square().sum()).backward()
    return [first.detach(), last.detach(), *(whole(p.grad) for p in network.blocks[0].parameters())]


def test_features_of_single_blocks_get_the_same_gradients():
    for found, stored in zip(
        run_in_processes(2, features, True), run_in_processes(2, features, False), strict=True
    ):
        assert_same_bits(found, stored)


def slice_of_sharded_chain() -> bool:
    chain = make_chain()
    x = make_batch("toy", 0)
    expected = chain[1:](x)
    fully_shard(chain)
    return torch.equal(chain[1:](x), expected)


def test_slices_of_a_sharded_chain_run():
    assert run_in_processes(2, slice_of_sharded_chain) == [True, True]


def chain_of_sharded_blocks() -> tuple[list, list]:
    """Gradients of a chain, and of one whose blocks were sharded before it was made."""
    whole_chain = make_chain(0.875, 0.125)
    blocks = nn.Sequential(*map(copy.deepcopy, whole_chain))
    for block in blocks:
        block._forward_pre_hooks.clear()  # the first chain's
        fully_shard(block)
    chain = ReversibleChain(blocks, whole_chain.branches)
    chain.set_coefficients(0.875, 0.125)
    fully_shard(chain.train())
    found = []
    for network in (whole_chain, chain):
        network(make_batch("toy", 0)).square().mean().backward()
        found.append([whole(parameter.grad) for parameter in network.parameters()])
    return tuple(found)


def test_blocks_that_were_sharded_before_their_chain_was_made_are_gathered():
    for unsharded, sharded in run_in_processes(2, chain_of_sharded_blocks):
        assert_same_bits(unsharded, sharded)


def step_whole_and_sharded(build: Callable[[], nn.Module]) -> tuple[list, list]:
    """The gradients of a step on the same batch in every process, before and after sharding."""
    torch.manual_seed(0)
    network = dr2net.convert(build().train(), 1, 0.1)
    x = torch.randn(2, 3, 32, 32)
    found = []
    for whole_network in (True, False):
        if not whole_network:
            for chain in dr2net.chains(network):
                for block in chain:
                    fully_shard(block)
            fully_shard(network)
        torch.manual_seed(1)
        network(x).square().mean().backward()
        found.append([whole(parameter.grad) for parameter in network.parameters()])
        network.zero_grad()
    return tuple(found)


FAMILIES = {
    "ResNet": partial(timm.create_model, "test_resnet"),
    "parallel ViT": partial(
        VisionTransformer,
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=3,
        drop_path_rate=0.2,
        block_fn=ParallelScalingBlock,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_that_ask_for_the_class_of_their_block_run(family):
    for unsharded, sharded in run_in_processes(2, step_whole_and_sharded, FAMILIES[family]):
        assert_same_bits(unsharded, sharded)


def deferred_initialization() -> tuple[dict, dict, tuple[float, float]]:
    """Weights made after sharding, as for a model too large for one process."""
    expected = make_network("toy", 1, 0.1)
    with torch.device("meta"):
        network = ToyNetwork()
    dr2net.set_coefficients(network, 0.5, 0.25)
    shard(network)
    network.to_empty(device="cpu")
    coefficients = dr2net.get_coefficients(network)
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), expected.parameters(), strict=True):
            local = distributed.tensor.distribute_tensor(value, parameter.device_mesh)
            parameter.copy_(local)
    dr2net.set_coefficients(network, 1, 0.1)
    for model in (network, expected):
        loss_of(model, make_batch("toy", 0), seed=0).backward()
    grads = (
        {name: whole(p.grad) for name, p in model.named_parameters()}
        for model in (network, expected)
    )
    return *grads, coefficients


def test_a_network_made_on_the_meta_device_keeps_its_coefficients():
    for found, expected, coefficients in run_in_processes(2, deferred_initialization):
        assert coefficients == (0.5, 0.25)
        assert_same_bits(list(found.values()), list(expected.values()))


def mistakes() -> dict[str, str]:
    """The first line that each mistake meets with."""
    x = make_batch("toy", distributed.get_rank())

    def inside_a_block() -> None:
        network = ToyNetwork()
        for block in network.blocks:
            fully_shard(block.first)
        fully_shard(network)
        network(x)

    def frozen_inside_a_block() -> None:
        network = ToyNetwork().requires_grad_(False)
        fully_shard(network.blocks[1].first)
        network(x)

    def two_precisions() -> None:
        network = ToyNetwork()
        for block in network.blocks:
            fully_shard(block, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
        network(x)

    def other_output() -> None:
        network = ToyNetwork()
        shard(network, mp_policy=MixedPrecisionPolicy(output_dtype=torch.float64))
        network(x)

    def step_before_backward() -> None:
        network = shard(ToyNetwork())
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        loss_of(network, x, seed=0).backward()
        loss = loss_of(network, x, seed=0)
        optimizer.step()
        loss.backward()

    def features_of_a_sharded_chain() -> None:
        chain = make_chain()
        fully_shard(chain)
        chain.features(x, blocks=[0])

    def convert_late() -> None:
        network = VisionTransformer(img_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=3)
        fully_shard(network)
        dr2net.convert(network)

    def revert_late() -> None:
        network = make_network("timm", 1, 0)
        shard(network)
        dr2net.revert(network)

    def verify_late() -> None:
        dr2net.verify(shard(ToyNetwork()), x)

    def plan_late() -> None:
        dr2net.plan(shard(ToyNetwork()), x, budget_gb=1)

    def measure_late() -> None:
        network = shard(ToyNetwork())
        gradient_error(network, lambda: loss_of(network, x, seed=0))

    found = {}
    for mistake in (
        inside_a_block,
        frozen_inside_a_block,
        two_precisions,
        other_output,
        step_before_backward,
        features_of_a_sharded_chain,
        convert_late,
        revert_late,
        verify_late,
        plan_late,
        measure_late,
    ):
        try:
            mistake()
            found[mistake.__name__] = "nothing was raised"
        except (ValueError, TypeError, RuntimeError) as error:
            found[mistake.__name__] = f"{type(error).__name__}: {error}"
    return found


@pytest.fixture(scope="module")
def messages() -> dict[str, str]:
    return run_in_processes(2, mistakes)[0]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            "inside_a_block",
            "ValueError: fully_shard was called on a Linear: it stands in block '0' of a chain",
        ),
        (
            "frozen_inside_a_block",
            "ValueError: fully_shard was called on a Linear: it stands in block '1' of a chain",
        ),
        (
            "two_precisions",
            "TypeError: The mixed-precision policy of a Block casts the stream of its chain from "
            "torch.float32 to torch.bfloat16",
        ),
        (
            "other_output",
            "TypeError: The mixed-precision policy of a Block casts the stream of its chain from "
            "torch.float32 to torch.float64",
        ),
        ("step_before_backward", "RuntimeError: coupling"),
        ("features_of_a_sharded_chain", "got mixed torch.Tensor and DTensor"),
        ("convert_late", "convert the model first, then shard it"),
        ("verify_late", "verify the network before it is sharded"),
        ("plan_late", "plan before it is sharded"),
        ("measure_late", "measure the network before it is sharded"),
        ("revert_late", "load its weights into a model that is not, and revert that"),
    ],
)
def test_what_cannot_work_is_refused(mistake, message, messages):
    assert message in messages[mistake]


def run_documentation(code: str, folder: str) -> tuple[dict, float]:
    """The weights and α that the code in the documentation ends with."""
    rank = distributed.get_rank()
    batches = [(make_batch("timm", rank, step), torch.tensor([0, 1, 2])) for step in range(2)]
    make_model = partial(VisionTransformer, img_size=16, patch_size=8, embed_dim=24, depth=2)
    scope = {"make_model": partial(make_model, num_heads=3), "batches": batches}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code, scope)
    return weights(scope["model"]), dr2net.get_coefficients(scope["model"])[0]


def test_the_loop_in_the_documentation_runs_and_saves(tmp_path):
    text = (Path(__file__).parents[2] / "docs/distributed.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (trained, alpha), _ = run_in_processes(2, run_documentation, code, str(tmp_path))
    assert alpha < 1
    network = VisionTransformer(img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3)
    dr2net.convert(network)
    network.load_state_dict(torch.load(tmp_path / "finetuned.pth"))
    assert_same_weights([network.state_dict()], [trained])
    assert dr2net.get_coefficients(network)[0] == alpha
