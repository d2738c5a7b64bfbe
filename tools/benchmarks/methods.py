"""Ways to train a network with less memory: each takes a network and returns what to call.

Those of ``METHODS`` run everywhere. ``COMPILED`` need a C++ compiler (on a GPU, Triton), and
``OFFLOADED`` a GPU whose activations can be sent to the CPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import dr2net

Forward = Callable[[Tensor], Tensor]
Method = Callable[[nn.Module], Forward]

PAIRS = ((1, 0.1), (0.5, 0.5), (0, 1))

aten = torch.ops.aten
# What selective checkpointing keeps: the products, whose recomputation takes most of the time.
PRODUCTS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
}


class Checkpointed(nn.Module):
    """Blocks that are recomputed in backward, ``every`` so many from one stored input."""

    def __init__(self, blocks: nn.Sequential, every: int, **options: Any):
        super().__init__()
        self.parts = nn.ModuleList(
            blocks[start : start + every] for start in range(0, len(blocks), every)
        )
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = checkpoint(part, x, use_reentrant=False, **self.options)
        return x


def checkpointed(model: nn.Module, every: int = 1, **options: Any) -> Forward:
    """``torch.utils.checkpoint`` in every container of blocks."""
    owners = [
        part for part in model.modules() if isinstance(getattr(part, "blocks", None), nn.Sequential)
    ]
    for owner in owners:
        owner.blocks = Checkpointed(owner.blocks, every, **options)
    return model


def keep_products(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Policy of selective checkpointing."""
    kept = operation in PRODUCTS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def reversible(
    model: nn.Module,
    alpha: float,
    beta: float,
    arithmetic: str = "exact",
    stored: bool = False,
    mlp_tokens: int | None = None,
) -> nn.Module:
    """A Dr²Net; ``stored`` keeps its activations, ``mlp_tokens`` are those of slices of MLPs."""
    dr2net.convert(model, alpha, beta, arithmetic)
    dr2net.set_reversible(model, not stored)
    dr2net.slice_mlps(model, mlp_tokens)
    return model


def compiled_modules(model: nn.Module, make: Method) -> Forward:
    """``make``'s network, attention and MLPs compiled one by one."""
    for module in list(model.modules()):
        if hasattr(module, "attn") and hasattr(module, "mlp"):
            module.attn.compile()
            module.mlp.compile()
    return make(model)


def compiled(model: nn.Module, budget: float) -> Forward:
    """The whole network compiled, allowed ``budget`` of the activations it would keep."""
    from torch._inductor.compile_fx import compile_fx

    # Of its own, or torch.compile would take code that it compiled for another budget.
    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        with functorch_config.patch(activation_memory_budget=budget):
            return compile_fx(graph, inputs)

    return torch.compile(model, backend=backend)


def offloaded(model: nn.Module) -> Forward:
    """What autograd saves goes to pinned memory of the CPU."""

    def forward(images: Tensor) -> Tensor:
        with save_on_cpu(pin_memory=True):
            return model(images)

    return forward


MLP_TOKENS = 512

CONVENTIONAL = "conventional"
CHECKPOINT = "checkpoint, every block"

METHODS: dict[str, Method] = {
    CONVENTIONAL: lambda model: model,
    CHECKPOINT: checkpointed,
    "checkpoint, every 3 blocks": partial(checkpointed, every=3),
    "selective checkpoint, products kept": partial(
        checkpointed, context_fn=partial(create_selective_checkpoint_contexts, keep_products)
    ),
}
# The same equations with activations stored, which times and gradients are compared with.
STORED: dict[str, str] = {}
# What a method computes, as the coefficients at which stored activations compute it.
COEFFICIENTS: dict[str, tuple[float, float]] = {}
for pair in PAIRS:
    stored = f"Dr²Net, stored {pair}"
    METHODS[stored] = partial(reversible, alpha=pair[0], beta=pair[1], stored=True)
    COEFFICIENTS[stored] = pair
    rebuilt: dict[str, dict[str, Any]] = {
        f"previous reversible, float {pair}": {"arithmetic": "float"},
        f"Dr²Net, exact {pair}": {},
        f"Dr²Net, exact {pair}, MLPs of {MLP_TOKENS} tokens": {"mlp_tokens": MLP_TOKENS},
    }
    for name, options in rebuilt.items():
        if "previous" in name and pair == (0.5, 0.5):
            continue
        METHODS[name] = partial(reversible, alpha=pair[0], beta=pair[1], **options)
        STORED[name] = stored
        COEFFICIENTS[name] = pair

OFFLOADED: dict[str, Method] = {"offload to pinned memory": offloaded}

COMPILED: dict[str, Method] = {
    "conventional, compiled": partial(compiled, budget=1.0),
    "compiled, half the activations": partial(compiled, budget=0.5),
    "compiled, a tenth of the activations": partial(compiled, budget=0.1),
}
for pair in PAIRS:
    for kind in ("stored", "exact"):
        name = f"Dr²Net, {kind} {pair}"
        COMPILED[f"{name}, compiled modules"] = partial(compiled_modules, make=METHODS[name])
        COEFFICIENTS[f"{name}, compiled modules"] = pair
    STORED[f"Dr²Net, exact {pair}, compiled modules"] = f"Dr²Net, stored {pair}, compiled modules"


def methods_for(device: str, with_compile: bool) -> dict[str, Method]:
    """The methods that make sense on ``device``."""
    offloading = OFFLOADED if device.startswith("cuda") else {}
    return METHODS | offloading | (COMPILED if with_compile else {})
