"""A small residual network and the two ways of running it that tests compare."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dr2net import ReversibleChain, residual

# As users call it: reversible chains need strict=False, which is the default from PyTorch 2.8 on.
export = partial(torch.export.export, **({} if torch.__version__ >= (2, 8) else {"strict": False}))

COEFFICIENTS = [
    (alpha, beta) for alpha in (1, 0.7, 0.5, 0.3, 0) for beta in (0.01, 0.1, 0.25, 0.5, 0.9, 1)
]


class Block(nn.Module):
    def __init__(self, width: int = 8, dropout: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, 2 * width)
        self.second = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)


@residual
def mix(block: Block, x: Tensor, shift: Tensor | None = None) -> Tensor:
    x = block.norm(x) if shift is None else block.norm(x) + shift
    return block.dropout(block.second(torch.tanh(block.first(x))))


@residual
def gate(block: Block, x: Tensor, shift: Tensor | None = None) -> Tensor:
    return torch.sigmoid(x) * block.norm.weight


def make_chain(
    alpha: float = 0.5,
    beta: float = 0.25,
    blocks: int = 3,
    dropout: float = 0.0,
    arithmetic: str = "exact",
    branches: tuple = (mix, gate),
) -> ReversibleChain:
    chain = ReversibleChain(
        nn.Sequential(*[Block(dropout=dropout) for _ in range(blocks)]), branches
    )
    chain.arithmetic = arithmetic
    chain.set_coefficients(alpha, beta)
    return chain.train()


def gradients(
    chain: nn.Module, x: Tensor, *side: Tensor, reversible: bool = True, bf16: bool = False
) -> list[Tensor | None]:
    """Outputs and gradients of the input, the side inputs and the parameters, from a fixed seed."""
    for module in chain.modules():
        if isinstance(module, ReversibleChain):
            module.reversible = reversible
    leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in (x, *side)]
    chain.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        outputs = [value for value in tree_leaves(chain(*leaves)) if isinstance(value, Tensor)]
    # Not a sum of squares, which is constant behind a LayerNorm.
    loss = sum(
        (
            output.float()
            * torch.linspace(-1, 2, output.numel(), device=output.device).view(output.shape)
        ).sum()
        for output in outputs
    )
    loss.backward()
    grads = [tensor.grad for tensor in (*leaves, *chain.parameters())]
    return [
        *[output.detach() for output in outputs],
        *[None if grad is None else grad.clone() for grad in grads],
    ]


def assert_same_bits(first: list[Tensor | None], second: list[Tensor | None]) -> None:
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        assert (a is None) == (b is None), f"tensor {index}: one of them is missing"
        assert a is None or torch.equal(a, b), f"tensor {index} differs"
