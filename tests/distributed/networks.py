"""Networks with reversible chains, and their training data, for processes to train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import dr2net
from tests.toy import make_chain


class ToyNetwork(nn.Module):
    def __init__(self, blocks: int = 4):
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.blocks = make_chain(blocks=blocks, dropout=0.1)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(self.embed(x)))


def make_network(name: str, alpha: float, beta: float, reversible: bool = True) -> nn.Module:
    """The same weights in every process."""
    torch.manual_seed(3)
    if name == "toy":
        network: nn.Module = ToyNetwork()
        dr2net.set_coefficients(network, alpha, beta)
    else:
        from timm.models.vision_transformer import VisionTransformer

        network = VisionTransformer(
            img_size=16,
            patch_size=8,
            embed_dim=24,
            depth=3,
            num_heads=3,
            num_classes=8,
            drop_path_rate=0.2,
            proj_drop_rate=0.1,
        )
        dr2net.convert(network, alpha, beta)
    dr2net.set_reversible(network, reversible)
    return network.train()


def make_batch(name: str, rank: int, step: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    shape = (5, 3, 8) if name == "toy" else (3, 3, 16, 16)
    return torch.randn(shape, generator=generator)


def loss_of(model: nn.Module, batch: Tensor, seed: int) -> Tensor:
    """The loss, with the random numbers in the network drawn from ``seed``."""
    torch.manual_seed(seed)
    # Not a sum of squares, which is constant behind a LayerNorm.
    return (model(batch) * torch.linspace(-1, 2, 8)).square().mean()
