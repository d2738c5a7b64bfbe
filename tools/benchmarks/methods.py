"""Ways to train a network with less memory: ``METHODS`` is the table of them.

What a method does not run without (a package, a GPU, a compiler) is said in the table;
``methods_for`` leaves out what cannot run here, and says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from shutil import which
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.autograd.graph import save_on_cpu

import dr2net
from tools.benchmarks.checkpointing import (
    SLICE_TOKENS,
    checkpoint_selectively,
    checkpointed,
    remat,
)

Forward = Callable[[Tensor], Tensor]
Make = Callable[..., Forward]

LORA_RANK = 8


@dataclass(frozen=True)
class Method:
    """A way to train a network.

    Args:
        make: changes a network in place and returns what to call; where there are ``settings``, it
            takes one of them as well.
        settings: of these, that with the lowest measured peak is the one that is reported.
        pair, couplings, lora: what is computed: (α, β), what a module of the Dr²Net is, and
            whether adapters are trained in place of the weights of the blocks.
        needs: what it does not run without: packages, ``GPU``, ``COMPILER``.
        extra: whether it is measured only when all methods are asked for.
    """

    make: Make
    settings: tuple[Any, ...] = ()
    pair: tuple[float, float] = (1, 0)
    couplings: str = "branch"
    lora: bool = False
    needs: tuple[str, ...] = ()
    extra: bool = False

    @property
    def computes(self) -> tuple[tuple[float, float], str, bool]:
        """What methods with the same gradients have in common."""
        return self.pair, self.couplings, self.lora


def reversible(
    model: nn.Module,
    alpha: float,
    beta: float,
    arithmetic: str = "exact",
    couplings: str = "branch",
    sliced: bool = False,
) -> nn.Module:
    """A Dr²Net; ``sliced`` has its MLPs run over slices of ``SLICE_TOKENS``."""
    dr2net.convert(model, alpha, beta, arithmetic, couplings=couplings)
    if sliced:
        dr2net.slice_mlps(model, SLICE_TOKENS[next(model.parameters()).device.type])
    return model


def with_lora(model: nn.Module, *setting: Any, make: Make) -> Forward:
    """``make``'s network with adapters in all products of the blocks; these and the head train."""
    import peft

    torch.manual_seed(0)  # the same adapters in every network
    products = r".*\bblocks\..*\.(qkv|proj|fc1|fc2)"
    # B starts from 0 in training, where A has no gradient to compare.
    config = peft.LoraConfig(r=LORA_RANK, target_modules=products, init_lora_weights=False)
    peft.inject_adapter_in_model(config, model)
    model.head.requires_grad_(True)
    return make(model, *setting)


def compiled_modules(model: nn.Module, *setting: Any, make: Make) -> Forward:
    """``make``'s network, attention and MLPs compiled one by one."""
    # One compilation for each way in which a module is called, whatever the number of methods; more
    # would run uncompiled, and say so in a log.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for module in list(model.modules()):
        if hasattr(module, "attn") and hasattr(module, "mlp"):
            module.attn.compile()
            module.mlp.compile()
    return make(model, *setting)


def compiled(model: nn.Module, budget: float = 1.0) -> Forward:
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


def offloaded_by_trl(model: nn.Module, make: Make) -> Forward:
    """The same for what ``make``'s network saves, beside the computation and not in its way."""
    from trl.models.activation_offloading import get_act_offloading_ctx_manager

    forward = make(model)
    offloading = get_act_offloading_ctx_manager(model)

    def forward_under_it(images: Tensor) -> Tensor:
        with offloading:
            return forward(images)

    return forward_under_it


def plain(model: nn.Module) -> nn.Module:
    """The network as it is."""
    return model


GPU, COMPILER = "a GPU", "a compiler"
CONVENTIONAL = "conventional"
CHECKPOINT = "checkpoint, every block"
IN_SLICES = "MLPs in slices"
HALVES = 0.5
NUMBERS_OF_BLOCKS = (HALVES, 1, 2, 3)
PAPER = ((1, 0.1), (0, 1))
LINE = {"15/16, 1/16": 2**-4, "7/8, 1/8": 2**-3, "3/4, 1/4": 2**-2, "1/2, 1/2": 2**-1}
HELD = "7/8, 1/8"

METHODS: dict[str, Method] = {
    CONVENTIONAL: Method(plain),
    CHECKPOINT: Method(checkpointed),
    "checkpoint, best number of blocks": Method(checkpointed, NUMBERS_OF_BLOCKS),
    f"{CHECKPOINT}, {IN_SLICES}": Method(partial(checkpointed, sliced=True)),
    f"checkpoint, attention and MLP apart, {IN_SLICES}": Method(
        partial(checkpointed, every=HALVES, sliced=True), extra=True
    ),
    "checkpoint, best number of blocks, stream in bfloat16": Method(
        partial(checkpointed, bfloat16=True), NUMBERS_OF_BLOCKS
    ),
    f"{CHECKPOINT}, {IN_SLICES}, stream in bfloat16": Method(
        partial(checkpointed, sliced=True, bfloat16=True), extra=True
    ),
    f"checkpoint, attention and MLP apart, {IN_SLICES}, stream in bfloat16": Method(
        partial(checkpointed, every=HALVES, sliced=True, bfloat16=True), extra=True
    ),
    "selective checkpoint, products kept": Method(
        partial(checkpointed, run=checkpoint_selectively)
    ),
    "torch_remat, every block": Method(remat, needs=("torch_remat",)),
    "torch_remat, every block, attention kept": Method(
        partial(remat, keep_attention=True), needs=("torch_remat",), extra=True
    ),
    "offload to pinned memory": Method(offloaded, needs=(GPU,)),
    "offload by trl": Method(partial(offloaded_by_trl, make=plain), needs=(GPU, "trl")),
    f"{CHECKPOINT}, inputs offloaded by trl": Method(
        partial(offloaded_by_trl, make=checkpointed), needs=(GPU, "trl")
    ),
}
for pair in PAPER:
    make = partial(reversible, alpha=pair[0], beta=pair[1])
    METHODS |= {
        f"previous reversible, float {pair}": Method(
            partial(make, arithmetic="float"), pair=pair, extra=pair != (0, 1)
        ),
        f"Dr²Net, exact {pair}": Method(make, pair=pair),
        f"Dr²Net, exact {pair}, {IN_SLICES}": Method(
            partial(make, sliced=True), pair=pair, extra=True
        ),
    }
for text, beta in LINE.items():
    name, pair = f"Dr²Net, exact ({text})", (1 - beta, beta)
    make, extra = partial(reversible, alpha=pair[0], beta=pair[1]), text != HELD
    METHODS |= {
        name: Method(make, pair=pair, extra=beta == 2**-4),
        f"{name}, {IN_SLICES}": Method(partial(make, sliced=True), pair=pair, extra=extra),
        f"{name}, whole blocks": Method(
            partial(make, couplings="block"), pair=pair, couplings="block", extra=extra
        ),
    }
for name in (CONVENTIONAL, CHECKPOINT, f"Dr²Net, exact ({HELD})"):
    method = METHODS[name]
    METHODS[f"LoRA, {name}"] = replace(
        method, make=partial(with_lora, make=method.make), lora=True, needs=("peft",)
    )

COMPILED: dict[str, Method] = {
    "conventional, compiled": Method(compiled, needs=(COMPILER,)),
    "compiled, best memory budget": Method(compiled, (0.5, 0.3, 0.2, 0.1, 0.05), needs=(COMPILER,)),
}
for name, method in METHODS.items():
    # The policies of selective checkpointing, and what torch_remat keeps, see no operation of
    # compiled code; what is offloaded is the same.
    if name == CONVENTIONAL or any(text in name for text in ("kept", "offload", "previous")):
        continue
    COMPILED[f"{name}, compiled modules"] = replace(
        method,
        make=partial(compiled_modules, make=method.make),
        needs=(*method.needs, COMPILER),
    )


def missing(need: str, device: str) -> str | None:
    """What to say where ``need`` of a method is not there; None where it is."""
    on_gpu = device.startswith("cuda")
    if need == GPU:
        return None if on_gpu else "needs a GPU"
    if need == COMPILER and on_gpu:
        return None if find_spec("triton") else "needs Triton (pip install triton)"
    if need == COMPILER:
        return None if which(os.environ.get("CXX", "g++")) else "needs a C++ compiler (g++, or CXX)"
    return None if find_spec(need) else f"needs {need}, not installed (pip install {need})"


def methods_for(
    device: str, everything: bool, with_compile: bool
) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods that can be measured on ``device``, and of the others what they need.

    Args:
        everything: whether those that are ``extra`` are asked for.
        with_compile: whether those that compile are.
    """
    asked = METHODS | (COMPILED if with_compile else {})
    methods, left_out = {}, {}
    for name, method in asked.items():
        if method.extra and not everything:
            continue
        reasons = [reason for need in method.needs if (reason := missing(need, device))]
        if reasons:
            left_out[name] = " and ".join(reasons)
        else:
            methods[name] = method
    return methods, left_out
