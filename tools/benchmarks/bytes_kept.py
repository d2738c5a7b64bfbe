"""Write down the bytes that a small network of every family keeps from forward to backward.

    python tools/benchmarks/bytes_kept.py  # writes results/bytes_kept.json

They are exact and the same on every machine. A change of the code that raises one fails a test,
until the file is written anew.
"""

import argparse
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch

import dr2net
from dr2net.diagnostics import bytes_kept
from tools.pages.families import EXAMPLES, Example
from tools.result_files import origin, write_json

DEPTH = 4
PAIRS = ((1.0, 0.1), (0.5, 0.5), (0.0, 1.0))
PACKAGES = ("timm", "mmaction2", "onedl-mmdetection", "transformers")
RESULT = ROOT / "results/bytes_kept.json"


def measure(example: Example) -> dict[str, int]:
    """Bytes that the whole network keeps, with dropout of every kind on, at each of ``PAIRS``."""
    torch.manual_seed(0)
    network = example.build(DEPTH, 0.3)
    network.train()  # which returns nothing in some of OpenMMLab's networks
    x = torch.randn(example.shape)
    model = dr2net.convert(network)
    found = {}
    for alpha, beta in PAIRS:
        dr2net.set_coefficients(model, alpha, beta)
        found[f"({alpha:g}, {beta:g})"] = bytes_kept(lambda: model(x))
    return found


def main() -> None:
    """Write results/bytes_kept.json."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    logging.disable(logging.INFO)
    found = {name: measure(example) for name, example in EXAMPLES.items()}
    rows = [
        {"family": name, **{pair: f"{number:,}" for pair, number in by_pair.items()}}
        for name, by_pair in found.items()
    ]
    result = {
        "title": f"Bytes kept by small networks of every family, with {DEPTH} blocks.",
        **origin("tools/benchmarks/bytes_kept.py", PACKAGES),
        "columns": list(rows[0]),
        "rows": rows,
        "notes": (
            "What autograd keeps of the whole network from forward to backward of a training step "
            "at each (α, β), parameters left out."
        ),
        "bytes": found,
    }
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
