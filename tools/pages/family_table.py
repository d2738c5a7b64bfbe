"""Measure a small network of every family and write what the table of families shows.

    python tools/pages/family_table.py && python tools/pages/readme_tables.py

The families are those of dr2net's registry, the networks those of ``tools/pages/families``.
"""

import argparse
import copy
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import dr2net
from dr2net.conversion import FAMILIES
from dr2net.diagnostics import bytes_kept
from dr2net.verification import projection
from tools.pages.families import EXAMPLES, Example
from tools.result_files import origin, write_json

DEPTH = 4
PACKAGES = ("timm", "mmaction2", "onedl-mmdetection", "transformers")


def measure() -> dict:
    """Return the contents of the result file."""
    return {
        "title": f"Small networks of every family, with {DEPTH} blocks in their last chain.",
        **origin("tools/pages/family_table.py", PACKAGES),
        "columns": list(describe("timm ViT", EXAMPLES["timm ViT"])),
        "rows": [describe(name, example) for name, example in EXAMPLES.items()],
        "notes": (
            "Kept is what autograd keeps of the whole network from forward to backward of a "
            "training step, parameters left out; what is not in a chain (stem, patch merging, "
            "head) has its share in it. Equal means bit for bit, outputs and the gradients of all "
            "parameters, with dropout of every kind on: at (1, 0) to the library's own network, "
            "at (1, 0.1) to the same equations with activations stored."
        ),
    }


def describe(name: str, example: Example) -> dict[str, str]:
    """Return a family's row of the table."""
    torch.manual_seed(0)
    network = example.build(DEPTH, 0.3)
    network.train()  # which returns nothing in some of OpenMMLab's networks
    x = torch.randn(example.shape)
    model = dr2net.convert(copy.deepcopy(network), 1, 0)
    found = dr2net.chains(model)
    equal_to_original = _same(_step(network, x), _step(model, x))
    kept = {}
    for alpha, beta in ((1, 0.1), (0, 1)):
        dr2net.set_coefficients(model, alpha, beta)
        kept[alpha, beta] = bytes_kept(lambda: model(x)) / 1000
    dr2net.set_coefficients(model, 1, 0.1)
    rebuilt = _step(model, x)
    dr2net.set_reversible(model, False)
    return {
        "family": name,
        "library": example.library,
        "class": f"`{registered_name(network).rpartition('.')[2]}`",
        "chains": str(len(found)),
        "couplings": str(sum(len(chain.couplings()) for chain in found)),
        "stored (kB)": f"{bytes_kept(lambda: network(x)) / 1000:.0f}",
        "kept at (1, 0.1) (kB)": f"{kept[1, 0.1]:.0f}",
        "kept at (0, 1) (kB)": f"{kept[0, 1]:.0f}",
        "equal at (1, 0)": "yes" if equal_to_original else "NO",
        "equal at (1, 0.1)": "yes" if _same(rebuilt, _step(model, x)) else "NO",
    }


def registered_name(network: nn.Module) -> str:
    """Return the name under which the network, or a part of it, stands in dr2net's registry.

    Raises:
        LookupError: It stands there under none.
    """
    for module in network.modules():
        for ancestor in type(module).__mro__:
            name = f"{ancestor.__module__}.{ancestor.__qualname__}"
            if name in FAMILIES:
                return name
    raise LookupError(f"no part of this {type(network).__name__} is of a registered family")


def _step(model: nn.Module, x: Tensor) -> list[Tensor | None]:
    """The outputs of a training step and the gradients of the parameters, from a fixed seed."""
    torch.manual_seed(1)
    outputs = model(x)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(projection(outputs), parameters, allow_unused=True)
    return [*(value for value in tree_leaves(outputs) if isinstance(value, Tensor)), *gradients]


def _same(first: list[Tensor | None], second: list[Tensor | None]) -> bool:
    return all(
        a is b if a is None or b is None else torch.equal(a, b)
        for a, b in zip(first, second, strict=True)
    )


def main() -> None:
    """Write results/families.json."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    logging.disable(logging.INFO)  # OpenMMLab's networks tell how every parameter was initialized
    write_json(ROOT / "results/families.json", measure())


if __name__ == "__main__":
    main()
