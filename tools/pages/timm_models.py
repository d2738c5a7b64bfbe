"""Convert every model that timm registers and that an adapter knows; write docs/timm_models.md.

    python tools/pages/timm_models.py           # about a minute

No weights are loaded. Each model is built with random ones at a reduced size: what is kept of it,
and what is compared, is written at the head of the page.
"""

import argparse
import copy
import sys
import textwrap
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from timm.models._registry import model_entrypoint
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import dr2net
from dr2net.conversion import FAMILIES
from tools.result_files import markdown_table

PAGE = ROOT / "docs/timm_models.md"

INTRODUCTION = """# timm's models as Dr²Nets

<!-- Written by "python tools/pages/timm_models.py"; a test compares. -->

Of the {registered} models that timm {version} registers and whose class has an adapter, {converted}
convert. For each of these, without pretrained weights, it was checked in training mode that

- outputs and all gradients at (α, β) = (1, 0) are those of timm's own network, bit for bit;
- gradients at (0.5, 0.5) are, bit for bit, those of the same equations with activations stored.

{table}

A stage of a ResNet whose every block changes the shape has no chain. A convolutional network in
front of a ViT's blocks stays as it is.

Checked at a reduced size: two images of at most {pixels} × {pixels} pixels, at most two blocks in a
stage (ViTs: two blocks), few channels, heads and classes. Kinds of blocks, attention, norms,
activations, embeddings and heads are the model's own. Weights are random, with noise added to those
that start at zero. Checked with their own number of channels, since their parts fit each other at
no other, and the pruned ones of their own depth:

{wide}

A slow test converts all models at full size, where their weights take no memory and nothing can be
computed, and finds the same number of chains.

## Not converted

{refused}
"""

PIXELS = 64


@dataclass(frozen=True)
class Registered:
    """A model that timm registers.

    Attributes:
        name: its name in timm.
        network: its class.
        options: what its entry point hands to the class, and to timm's builder.
    """

    name: str
    network: type[nn.Module]
    options: dict[str, Any]

    @property
    def family(self) -> str:
        """The path of the class whose adapter it has, or nothing."""
        paths = [f"{base.__module__}.{base.__qualname__}" for base in self.network.__mro__]
        return next((path for path in paths if path in FAMILIES), "")


@dataclass(frozen=True)
class Outcome:
    """What became of a model.

    Attributes:
        chains: how many chains it has; 0 if it was refused.
        branches: how many couplings a block is.
        refusal: why it cannot be converted.
        original_at_one_zero: whether outputs and gradients at (1, 0) are timm's.
        reversible_as_stored: whether gradients do not depend on how they are computed.
    """

    chains: int = 0
    branches: int = 0
    refusal: str = ""
    original_at_one_zero: bool = False
    reversible_as_stored: bool = False


def supported_models() -> list[Registered]:
    """All registered models whose class has an adapter, found without building them."""

    class Found(Exception):  # noqa: N818 - no error
        pass

    def builder(network: type[nn.Module], *_: Any, **options: Any) -> nn.Module:
        if options.get("features_only"):  # a part of the model that is meant
            return nn.Identity()
        raise Found(network, options)

    found = []
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("timm.models.") and hasattr(module, "build_model_with_cfg"):
                stack.enter_context(mock.patch.object(module, "build_model_with_cfg", builder))
        for name in timm.list_models():
            try:
                model_entrypoint(name)()
            except Found as caught:
                network, options = caught.args
                if isinstance(network, type):
                    found.append(Registered(name, network, options))
    return [model for model in found if model.family]


def reduced_options(model: Registered) -> dict[str, Any]:
    """What makes the model small, without changing which of its blocks can be reversed."""
    options = model.options
    family = model.family.rsplit(".", 1)[1]
    if options.get("pruned"):  # by a file of timm's that names the channels to keep
        return {}
    if family == "ResNet":
        blocks = options["block"]
        keeps_stem_width = getattr(blocks, "expansion", 4) == 1
        return {
            "layers": tuple(min(depth, 2) for depth in options["layers"]),
            "channels": options.get("channels", (64 if keeps_stem_width else 32, 32, 32, 32)),
        }
    if family == "ConvNeXt":
        depths = tuple(min(depth, 2) for depth in options["depths"])
        return {"depths": depths, "dims": (8, 16, 16, 24)}
    if family.startswith("Swin"):
        depths = tuple(min(depth, 2) for depth in options["depths"])
        heads = (1, 2, 2, 4)
        return {"depths": depths, "embed_dim": 16, "num_heads": heads, "img_size": PIXELS}
    if "embed_layer" in options:
        return {"depth": 2, "img_size": PIXELS}
    smaller: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 2}
    smaller["img_size"] = 2 * options.get("patch_size", 16)
    if "num_kv_heads" in options:
        smaller["num_kv_heads"] = 1
    if "attn_pool_num_heads" in options:
        smaller["attn_pool_num_heads"] = 2
    return smaller


def is_wide(model: Registered) -> bool:
    """Whether the model is checked with its own number of channels."""
    return not {"embed_dim", "dims", "channels"} & set(reduced_options(model))


def check_all(models: list[Registered]) -> list[tuple[Registered, Outcome]]:
    """Checks the models, and once those that are the same network at the reduced size.

    Half of timm's models differ from another in their weights, or in sizes that are reduced.
    """
    outcomes: dict[tuple, Outcome] = {}
    found = []
    for model in models:
        network = _reduced_network(model)
        if network not in outcomes:
            outcomes[network] = check(model)
        found.append((model, outcomes[network]))
    return found


def _reduced_network(model: Registered) -> tuple:
    """Equal for models that timm builds alike: their class and what it is given."""
    reduced = reduced_options(model)
    options = model.options | reduced
    if options.get("pruned") or "embed_layer" in options:
        # By a file, or behind a network of its own: what comes of them tells them apart.
        options["network"] = str(timm.create_model(model.name, device="meta", **reduced))
    configuration = timm.get_pretrained_cfg(model.name).to_dict()  # whence timm fills in the rest
    options.setdefault("global_pool", configuration.get("global_pool"))
    options["in_chans"] = configuration["input_size"][0]
    return model.network, tuple(sorted((key, repr(value)) for key, value in options.items()))


def convert_at_full_size(model: Registered) -> Outcome:
    """Converts the model on the meta device, which needs no memory for weights."""
    network = timm.create_model(model.name, device="meta")
    return _converted(network)[1]


def check(model: Registered) -> Outcome:
    """Converts the model at a reduced size and compares it."""
    torch.manual_seed(0)
    options = reduced_options(model)
    network = timm.create_model(model.name, num_classes=3, **options).train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    size = options.get("img_size", PIXELS)
    images = torch.randn(2, 3, size, size)
    converted, outcome = _converted(copy.deepcopy(network))
    if converted is None:
        return outcome
    expected = outputs_and_gradients(network, images)
    as_original = same_bits(outputs_and_gradients(converted, images), expected)
    dr2net.set_coefficients(converted, 0.5, 0.5)
    reversible = outputs_and_gradients(converted, images)
    dr2net.set_reversible(converted, False)
    as_stored = same_bits(outputs_and_gradients(converted, images), reversible)
    return Outcome(
        outcome.chains,
        outcome.branches,
        original_at_one_zero=as_original,
        reversible_as_stored=as_stored,
    )


def _converted(network: nn.Module) -> tuple[nn.Module | None, Outcome]:
    try:
        network = dr2net.convert(network, 1, 0)
    except ValueError as error:
        return None, Outcome(refusal=str(error))
    chains = dr2net.chains(network)
    return network, Outcome(len(chains), len(chains[0].branches))


def outputs_and_gradients(network: nn.Module, images: Tensor) -> list[Tensor | None]:
    torch.manual_seed(1)
    network.zero_grad(set_to_none=True)
    output = network(images)
    # Not a sum of squares, which is constant behind a LayerNorm.
    (output * torch.linspace(-1, 2, output.numel()).view(output.shape)).sum().backward()
    return [output.detach(), *[parameter.grad for parameter in network.parameters()]]


def same_bits(first: list[Tensor | None], second: list[Tensor | None]) -> bool:
    return all(
        a is b if a is None or b is None else torch.equal(a, b)
        for a, b in zip(first, second, strict=True)
    )


def draw_page(outcomes: list[tuple[Registered, Outcome]]) -> str:
    """The text of docs/timm_models.md."""
    rows = []
    for family in sorted({model.family for model, _ in outcomes}):
        of_family = [outcome for model, outcome in outcomes if model.family == family]
        converted = [outcome for outcome in of_family if not outcome.refusal]
        rows.append(
            {
                "class": f"`{family.removeprefix('timm.models.')}`",
                "registered": str(len(of_family)),
                "converted": str(len(converted)),
                "chains": _values(converted, lambda outcome: outcome.chains),
                "couplings per block": _values(converted, lambda outcome: outcome.branches),
            }
        )
    refused = [
        _wrapped(f"- `{model.name}`: {outcome.refusal}", subsequent_indent="  ")
        for model, outcome in outcomes
        if outcome.refusal
    ]
    return INTRODUCTION.format(
        version=timm.__version__,
        registered=len(outcomes),
        converted=len(outcomes) - len(refused),
        table=markdown_table(list(rows[0]), rows),
        pixels=PIXELS,
        wide=_wrapped(
            ", ".join(f"`{model.name}`" for model, _ in outcomes if is_wide(model)) + "."
        ),
        refused="\n".join(refused),
    )


def _values(outcomes: list[Outcome], value: Callable[[Outcome], int]) -> str:
    return ", ".join(str(number) for number in sorted(set(map(value, outcomes))))


def _wrapped(text: str, **options: Any) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False, **options)


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    # With more, PyTorch adds up the gradients of Swin's tables of positions in any order: not even
    # the original networks repeat themselves.
    torch.set_num_threads(1)
    outcomes = check_all(supported_models())
    different = [
        model.name
        for model, outcome in outcomes
        if not outcome.refusal
        and not (outcome.original_at_one_zero and outcome.reversible_as_stored)
    ]
    if different:
        sys.exit(f"Converted, but not the same bits: {', '.join(different)}")
    PAGE.write_text(draw_page(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()
