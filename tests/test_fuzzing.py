"""Random networks, inputs and schedules: is any gradient not that of stored activations?

2,000 cases, the same every time; ``pytest tests/test_fuzzing.py --hypothesis-profile=long`` tries
100,000 others.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from dr2net import CoefficientSchedule, ReversibleChain, residual, set_reversible
from dr2net.conversion.mlps import Slicer
from dr2net.loop import LoopedChain
from tests.toy import assert_same_bits, gate, mix

CASES = 20 * settings().max_examples


class Tokens(nn.Module):
    """Has the parts that ``mix``, ``gate`` and ``perceive`` use."""

    def __init__(self, width: int, dropout: float, norm: str):
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm == "layer" else BatchNormOfTokens(width)
        self.first = nn.Linear(width, 2 * width)
        self.second = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)
        self.mlp = Mlp(width, 2 * width, drop=dropout)
        self.drop_path = DropPath(dropout)


class BatchNormOfTokens(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[:-1].numel() < 2:  # which training refuses
            return x * self.weight + self.bias
        return super().forward(x.reshape(-1, x.shape[-1])).reshape(x.shape)


class Images(nn.Module):
    def __init__(self, width: int, dropout: float, norm: str):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(1, width)
        self.dropout = nn.Dropout2d(dropout)


def rectify(block: nn.Module, x: Tensor, alpha: float, shift: Tensor | None = None) -> Tensor:
    """A module whose shortcut is inside, as in a ResNet."""
    return torch.relu_(mix.__wrapped__(block, x, shift) + alpha * x)


@partial(residual, tokenwise=("norm", "mlp"), drop_path="drop_path")
def perceive(block: nn.Module, x: Tensor) -> Tensor:
    """Runs over slices of its tokens, unless the norm is one of all of them."""
    return block.mlp(block.norm(x))


@residual
def convolve(block: nn.Module, x: Tensor, shift: Tensor | None = None) -> Tensor:
    x = block.conv(x if shift is None else x + shift)
    return block.dropout(
        block.norm(x) if x[:, 0].numel() > 1 else x * block.norm.weight[:, None, None]
    )


def rectify_image(block: nn.Module, x: Tensor, alpha: float, shift: Tensor | None = None) -> Tensor:
    return torch.relu_(convolve(block, x, alpha, shift))


@dataclass
class Case:
    chain: nn.Module  # or a network around it
    x: Tensor
    shift: Tensor | None
    autocast: torch.dtype | None
    schedule: CoefficientSchedule
    steps: list[int]
    seed: int


# Of the weights and of autocast.
PRECISIONS = [
    (torch.float32, None),
    (torch.float32, None),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float64, None),
    (torch.bfloat16, None),
    (torch.float16, None),
]

unit = st.floats(0, 1)
betas = st.one_of(
    st.integers(1 << 8, 1 << 16).map(lambda n: n / (1 << 16)),
    st.sampled_from([2.0**-8, 0.01, 0.1, 0.25, 0.5, 0.9, 1.0]),
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    images = draw(st.booleans())
    width, norm = draw(st.integers(1, 9)), draw(st.sampled_from(["layer", "batch"]))
    dropout = draw(st.sampled_from([0.0, 0.3]))
    kind, branches = (
        (Images, [convolve, rectify_image]) if images else (Tokens, [mix, gate, rectify, perceive])
    )
    dtype, autocast = draw(st.sampled_from(PRECISIONS))
    seed = draw(st.integers(0, 1 << 30))
    torch.manual_seed(seed)
    blocks = nn.Sequential(*[kind(width, dropout, norm) for _ in range(draw(st.integers(1, 4)))])
    keys = list(blocks._modules)
    chain = ReversibleChain(
        blocks, draw(st.lists(st.sampled_from(branches), min_size=1, max_size=3)), ()
    )
    chain.to(dtype).train(draw(st.sampled_from([True, True, False])))
    chain.arithmetic = draw(st.sampled_from(["exact", "exact", "exact64"]))
    tokens = draw(st.sampled_from([None, 1, 2, 3, 7]))
    chain.slicer = None if tokens is None else Slicer(tokens)
    chain.keep = frozenset(draw(st.sets(st.sampled_from(keys))) if draw(st.booleans()) else ())
    for key in draw(st.sets(st.sampled_from(keys))) if draw(st.booleans()) else ():
        chain.get_submodule(key).requires_grad_(False)
    shape = (draw(st.integers(0, 3)), width, draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    scale = 2.0 ** draw(st.integers(-12, 6))
    x = draw(st.sampled_from([laid_out_plainly, laid_out_backwards, repeated]))(
        scale, shape, images
    )
    shift = None
    if draw(st.booleans()):
        shift = torch.randn((width, 1, 1) if images else (width,), dtype=dtype)
        shift.requires_grad_(draw(st.booleans()))
    schedule = CoefficientSchedule(
        alpha=draw(st.none() | st.tuples(unit, unit)),
        beta=(draw(betas), draw(betas)),
        end=draw(st.integers(2, 6)),
        order=draw(st.sampled_from(["alternate", "together", "alpha_first", "beta_first"])),
        shape=draw(st.sampled_from(["linear", "cosine", "step"])),
    )
    return Case(
        chain=chain,
        x=x.to(dtype).requires_grad_(draw(st.booleans())),
        shift=shift,
        autocast=autocast,
        schedule=schedule,
        steps=draw(st.lists(st.integers(0, 7), min_size=1, max_size=2)),
        seed=seed,
    )


def laid_out_plainly(scale: float, shape: tuple[int, ...], images: bool) -> Tensor:
    x = scale * torch.randn(shape)
    return x if images else x.flatten(2).mT.contiguous()


def laid_out_backwards(scale: float, shape: tuple[int, ...], images: bool) -> Tensor:
    x = scale * torch.randn(shape)
    return x.to(memory_format=torch.channels_last) if images else x.flatten(2).mT


def repeated(scale: float, shape: tuple[int, ...], images: bool) -> Tensor:
    x = laid_out_plainly(scale, (1, *shape[1:]), images)
    return x.expand(shape[0], *x.shape[1:])


def train(case: Case, reversible: bool) -> list[Tensor | None] | type[Exception]:
    """All that training leaves behind: outputs, gradients, weights, buffers; or what it raised."""
    chain = copy.deepcopy(case.chain)
    set_reversible(chain, reversible)
    torch.manual_seed(case.seed)
    found: list[Tensor | None] = []
    for step in case.steps:
        case.schedule.apply(chain, step)
        leaves = [
            leaf.detach().requires_grad_(leaf.requires_grad)
            for leaf in (case.x, case.shift)
            if leaf is not None
        ]
        chain.zero_grad()
        try:
            with torch.autocast("cpu", case.autocast, enabled=case.autocast is not None):
                output = chain(*leaves)
        except FloatingPointError as error:
            return type(error)
        found.append(output.detach().clone())
        if output.requires_grad:
            weights = torch.linspace(-1, 2, output.numel()).view(output.shape)
            (output.float() * weights).sum().backward()
        found += [
            None if t.grad is None else t.grad.clone() for t in (*leaves, *chain.parameters())
        ]
        with torch.no_grad():
            for parameter in chain.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad.clamp(-1, 1)
    return [*found, *chain.state_dict().values(), torch.get_rng_state()]


@pytest.mark.timeout(0)
@pytest.mark.filterwarnings("ignore:A stream reached")
@settings(
    max_examples=CASES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(case=cases())
def test_no_gradient_differs_from_that_of_stored_activations(case: Case) -> None:
    stored, rebuilt = train(case, reversible=False), train(case, reversible=True)
    if isinstance(stored, type):
        assert stored is rebuilt
        return
    assert not isinstance(rebuilt, type)
    assert_same_bits(bits(stored), bits(rebuilt))


def bits(tensors: list[Tensor | None]) -> list[Tensor | None]:
    """As integers, for which NaN equals itself."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return [
        tensor.contiguous().view(integers[tensor.element_size()])
        if tensor is not None and tensor.is_floating_point()
        else tensor
        for tensor in tensors
    ]


# Loops


class Looped(nn.Module):
    """Runs a random program over its blocks: which one, with what, and what is done with its x."""

    def __init__(self, blocks: list[nn.Module], program: list[tuple[int, str, str]]):
        super().__init__()
        self.blocks, self.program = nn.ModuleList(blocks), program

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        collected = []
        for block, handed, then in self.program:
            own = {"nothing": None, "shift": shift, "its own": x.new_ones(x.shape[-1])}[handed]
            x, _ = self.blocks[block % len(self.blocks)](x, shift=own)
            if then == "collect":
                collected.append(x)
            elif then == "change":
                x = x * 0.5
            elif then == "draw":
                x = x + 0 * torch.rand(())
        return x + sum(collected)


class LoopedBlock(Tokens):
    def forward(self, x: Tensor, shift: Tensor | None = None) -> tuple[Tensor, None]:
        return x + mix.__wrapped__(self, x, shift) * 0.5, None


@st.composite
def loops(draw: st.DrawFn) -> Case:
    width, count = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    dtype, autocast = draw(st.sampled_from(PRECISIONS))
    seed = draw(st.integers(0, 1 << 30))
    torch.manual_seed(seed)
    dropout, norm = draw(st.sampled_from([0.0, 0.3])), draw(st.sampled_from(["layer", "batch"]))
    acts = st.tuples(
        st.integers(0, 3),
        st.sampled_from(["nothing", "shift", "its own"]),
        st.sampled_from(["pass on"] * 4 + ["collect", "change", "draw"]),
    )
    program = draw(
        st.just([(block, "shift", "pass on") for block in range(count)])
        | st.lists(acts, min_size=1, max_size=6)
    )
    network = Looped([LoopedBlock(width, dropout, norm) for _ in range(count)], program)
    network.to(dtype).train(draw(st.sampled_from([True, True, False])))
    network.blocks = chain = LoopedChain(network.blocks)
    keys = list(chain._modules)
    chain.keep = frozenset(draw(st.sets(st.sampled_from(keys))) if draw(st.booleans()) else ())
    for key in draw(st.sets(st.sampled_from(keys))) if draw(st.booleans()) else ():
        chain.get_submodule(key).requires_grad_(False)
    shape = (draw(st.integers(1, 3)), width, draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    x = laid_out_plainly(2.0 ** draw(st.integers(-12, 4)), shape, False).to(dtype)
    shift = torch.randn(width, dtype=dtype).requires_grad_(draw(st.booleans()))
    return Case(
        chain=network,
        x=x.requires_grad_(draw(st.booleans())),
        shift=draw(st.sampled_from([None, shift])),
        autocast=autocast,
        schedule=CoefficientSchedule(
            alpha=draw(st.none() | st.tuples(unit, unit)),
            beta=(draw(betas), draw(betas)),
            end=draw(st.integers(2, 6)),
        ),
        steps=draw(st.lists(st.integers(0, 7), min_size=1, max_size=2)),
        seed=seed,
    )


@pytest.mark.timeout(0)
@pytest.mark.filterwarnings("ignore:A stream reached", "ignore:.*called block")
@settings(
    max_examples=CASES // 4,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(case=loops())
def test_no_gradient_of_a_loop_differs_from_that_of_stored_activations(case: Case) -> None:
    test_no_gradient_differs_from_that_of_stored_activations.hypothesis.inner_test(case)
