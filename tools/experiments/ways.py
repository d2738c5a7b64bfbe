"""Ways of finetuning that the study compares, each by what it makes of a pretrained network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

import dr2net

BEGIN_OF_LANDING = 0.8  # of the run


@dataclass(frozen=True)
class Way:
    """A way of finetuning.

    Args:
        rate: The learning rate that the search begins at. That of a new head is the recipe's.
        pretrained: Whether it starts from the pretrained weights.
        trained: ``"all"``, ``"head"``, ``"biases"`` (and the head), ``"lora"`` or ``"side"``.
        channels: Budget of the input channels that are trained, and nothing else but the head, as
            for ``dr2net.select_channels``; None: all are.
        selector: Which channels, as there.
        alpha, beta: (α, β) of a Dr²Net, or the pairs that they move between; β None: no Dr²Net.
        order: In which α and β move.
        moving: Shares of the run between which they move.
        arithmetic, couplings: As for ``dr2net.convert``.
        checkpointed: Whether blocks are recomputed in backward, by torch.utils.checkpoint.
        same_as: The way whose weights it must end with, to the last bit. It is run once, to see
            that. Dr²Nets in exact arithmetic store their activations unless they are such a
            second way, which takes less time for the same bits.
    """

    rate: float = 3e-5
    pretrained: bool = True
    trained: str = "all"
    channels: str | None = None
    selector: str = "uniform"
    alpha: float | tuple[float, float] | None = None
    beta: float | tuple[float, float] | None = None
    order: str = "together"
    moving: tuple[float, float] = (0.0, 0.5)
    arithmetic: str = "exact"
    couplings: str = "branch"
    checkpointed: bool = False
    same_as: str | None = None

    @property
    def ends_on_the_line(self) -> bool:
        """Whether its weights can be put back into the plain network."""
        if self.beta is None:
            return False
        alpha, beta = _last(self.alpha), _last(self.beta)
        return alpha is None or alpha == 1 or alpha + beta == 1

    @property
    def is_stored(self) -> bool:
        """Whether it is a Dr²Net that stores its activations, for the same bits in less time."""
        return self.beta is not None and self.arithmetic != "float" and self.same_as is None


def _last(value: float | tuple[float, float] | None) -> float | None:
    return value[1] if isinstance(value, tuple) else value


PAPER = {"alpha": (1.0, 0.0), "beta": (0.1, 1.0), "rate": 1e-4}
PREVIOUS = {"alpha": 0.0, "beta": 1.0, "rate": 1e-4}

# In the order in which a study that is cut short should have them.
WAYS: dict[str, Way] = {
    "conventional": Way(),
    "conventional, checkpointed": Way(checkpointed=True, same_as="conventional"),
    "held (7/8, 1/8)": Way(beta=2**-3),
    "held (7/8, 1/8), rebuilt": Way(beta=2**-3, same_as="held (7/8, 1/8)"),
    "previous reversible, exact (0, 1)": Way(**PREVIOUS),
    "from scratch": Way(pretrained=False, rate=3e-4),
    "the paper's, exact, (1, 0.1) to (0, 1)": Way(**PAPER),
    "held (3/4, 1/4)": Way(beta=2**-2),
    "held (15/16, 1/16)": Way(beta=2**-4),
    "frozen, head alone": Way(trained="head", rate=3e-3),
    "LoRA": Way(trained="lora", rate=1e-3),
    "LoRA, checkpointed": Way(trained="lora", checkpointed=True, same_as="LoRA"),
    "LoRA, held (7/8, 1/8)": Way(trained="lora", rate=1e-3, beta=2**-3),
    "10 % of channels": Way(channels="10%", rate=1e-4),
    "10 % of channels, held (7/8, 1/8)": Way(channels="10%", rate=1e-4, beta=2**-3),
    "2 % of channels": Way(channels="2%", rate=1e-4),
    "2 % of channels, held (7/8, 1/8)": Way(channels="2%", rate=1e-4, beta=2**-3),
    "biases and head": Way(trained="biases", rate=1e-3),
    "biases and head, held (7/8, 1/8)": Way(trained="biases", rate=1e-3, beta=2**-3),
    "30 % of channels": Way(channels="30%", rate=1e-4),
    "30 % of channels, held (7/8, 1/8)": Way(channels="30%", rate=1e-4, beta=2**-3),
    "10 % of channels, largest": Way(channels="10%", selector="largest", rate=1e-4),
    "held (1/2, 1/2)": Way(beta=2**-1),
    "side tuning": Way(trained="side", rate=1e-3),
    "previous reversible, float (0, 1)": Way(**PREVIOUS, arithmetic="float"),
    "the paper's, float, (1, 0.1) to (0, 1)": Way(**PAPER, arithmetic="float"),
    "held (3/4, 1/4), blocks": Way(beta=2**-2, couplings="block"),
    "held (1/2, 1/2), blocks": Way(beta=2**-1, couplings="block"),
    "held (1, 2^-6)": Way(alpha=1.0, beta=2**-6),
    "held (1, 0.1)": Way(alpha=1.0, beta=0.1),
    "held (3/4, 1/4), landing at 2^-8": Way(beta=(2**-2, 2**-8), moving=(BEGIN_OF_LANDING, 1.0)),
    "held (1/2, 1/2), landing at 2^-8": Way(beta=(2**-1, 2**-8), moving=(BEGIN_OF_LANDING, 1.0)),
    "along the line, 0.1 to 1/2": Way(beta=(0.1, 0.5)),
    "along the line, 0.1 to 1": Way(beta=(0.1, 1.0), rate=1e-4),
    "to (0.4, 0.7), exact": Way(alpha=(1.0, 0.4), beta=(0.1, 0.7), rate=1e-4),
    "the paper's, exact, alternating": Way(**PAPER, order="alternate"),
    "the paper's, exact, α first": Way(**PAPER, order="alpha_first"),
    "the paper's, exact, β first": Way(**PAPER, order="beta_first"),
    "held (1 - 2^-8, 2^-8)": Way(beta=2**-8),
    "held (1 - 2^-6, 2^-6)": Way(beta=2**-6),
    "held (7/8, 1/8), blocks": Way(beta=2**-3, couplings="block"),
}


class SideTuned(nn.Module):
    """A frozen ViT of timm and a narrow network beside it that reads its stream after each block.

    Ladder side tuning (Sung et al., NeurIPS 2022): no gradient goes through the ViT, so nothing of
    it is stored. Shapes: images (batch, 3, height, width) to (batch, classes).
    """

    def __init__(self, vit: nn.Module, reduction: int = 8):
        super().__init__()
        self.vit = vit.requires_grad_(False)
        width, classes = vit.embed_dim, vit.num_classes
        narrow = width // reduction
        self.down = nn.ModuleList(nn.Linear(width, narrow) for _ in range(len(vit.blocks) + 1))
        self.side = nn.ModuleList(Block(narrow, num_heads=3) for _ in vit.blocks)
        self.gates = nn.Parameter(torch.zeros(len(vit.blocks)))
        self.up = nn.Linear(narrow, width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            last, streams = self.vit.forward_intermediates(
                images, indices=len(self.vit.blocks), output_fmt="NLC", return_prefix_tokens=True
            )
            tokens = [torch.cat([prefix, patches], 1) for patches, prefix in streams]
        x = self.down[0](tokens[0])
        for block, down, gate, stream in zip(
            self.side, self.down[1:], self.gates.sigmoid(), tokens, strict=True
        ):
            x = block(gate * x + (1 - gate) * down(stream))
        return self.head(last[:, 0] + self.up(x)[:, 0])


def prepare(
    way: Way, model: nn.Module, steps: int
) -> tuple[nn.Module, dr2net.CoefficientSchedule | None]:
    """Make of a ViT of timm what ``way`` finetunes.

    Args:
        way: What to make.
        model: The network, with its weights and a new head.
        steps: Of the run, for a schedule of (α, β).

    Returns:
        The network, whose parameters that are not trained take no gradient, and its schedule.
    """
    if way.trained == "head":
        model.requires_grad_(False)
        model.head.requires_grad_(True)
    elif way.trained == "biases":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(".bias") or is_new(name))
    elif way.trained == "side":
        model = SideTuned(model)
    elif way.trained == "lora":
        from peft import LoraConfig, get_peft_model

        layers = r"blocks\.\d+\.(attn|mlp)\.(qkv|proj|fc1|fc2)"
        settings = LoraConfig(r=8, lora_alpha=16, target_modules=layers, modules_to_save=["head"])
        model = get_peft_model(model, settings)
    if way.checkpointed:
        model.set_grad_checkpointing(True)
    if way.beta is None:
        return model, None
    schedule = dr2net.CoefficientSchedule(
        alpha=way.alpha,
        beta=way.beta,
        begin=way.moving[0] * steps,
        end=way.moving[1] * steps,
        order=way.order,
        interval=max(1, steps // 40),
    )
    alpha, beta = schedule.at(0)
    dr2net.convert(model, alpha, beta, way.arithmetic, couplings=way.couplings)
    dr2net.set_reversible(model, not way.is_stored)
    return model, schedule


def select(
    way: Way, model: nn.Module, loss: Callable[[], Tensor], seed: int
) -> dr2net.Selection | None:
    """Choose the channels that train, where ``way`` trains some alone; ``loss`` is of a batch."""
    if way.channels is None:
        return None
    return dr2net.select_channels(model, loss, way.channels, way.selector, seed=seed)


def is_new(name: str) -> bool:
    """Whether a parameter is of a new head, which learns at the recipe's own rate."""
    return name.rpartition(".")[0].endswith("head") or ".head." in name


def parameter_groups(model: nn.Module, rate: float, head_rate: float) -> Iterator[dict]:
    """The optimizer's groups: what was pretrained or lies beside it, and the new head."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for new, lr in ((False, rate), (True, head_rate)):
        parameters = [parameter for name, parameter in named if is_new(name) == new]
        if parameters:
            yield {"params": parameters, "lr": lr}
