"""Name the lists of blocks of every timm model that has no adapter; write docs/timm_blocks.md.

    python tools/pages/timm_blocks.py           # about a quarter of an hour

The lists are found on the meta device, where a model runs without weights and without numbers. Of
each class the smallest model is then converted for real and compared, at its own size.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import defaultdict
from pathlib import Path

import timm
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import dr2net
from dr2net.conversion.by_name import lists_seen
from tools.pages.timm_models import outputs_and_gradients, same_bits
from tools.result_files import markdown_table

PAGE = ROOT / "docs/timm_blocks.md"

# Of a model that is compared: larger ones take minutes.
MOST_PARAMETERS = 60_000_000

INTRODUCTION = """# timm's models, by their lists of blocks

<!-- Written by "python tools/pages/timm_blocks.py"; a slow test compares. -->

Of {registered} models that timm {version} registers, {family} convert by an adapter
([timm_models.md](timm_models.md)), and {blocks} more by the names of their lists of blocks:

```text
dr2net.convert(model, blocks="stages.*.blocks", example=images)
```

The rest, {none}, have no list in which blocks of one class hand the stream on in one shape. Lists
are those that `dr2net.convert(model, example=images)` names in its error. Of each class that is
marked the smallest model (of up to {most} million parameters) was converted and compared, in
training mode, without pretrained weights: outputs and all gradients at (1, 0) are timm's own, and
gradients at (0.5, 0.5) those of stored activations, both bit for bit. Couplings are of the whole
network: from the fewest to the most of a class.

{table}

## No list of blocks

{without}
"""


def image_of(name: str, device: str) -> torch.Tensor:
    """An input of the model's own size."""
    size = timm.get_pretrained_cfg(name).to_dict().get("input_size") or (3, 224, 224)
    generator = None if device == "meta" else torch.Generator(device).manual_seed(0)
    return torch.randn((1, *size), device=device, generator=generator)


def path_of(model: nn.Module) -> str:
    """The class, within ``timm.models``."""
    kind = type(model)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("timm.models.")


def look_at(name: str) -> tuple[str, int, list[str] | None, int]:
    """(class, parameters, lists of blocks, couplings); no lists but None of what has an adapter."""
    model = timm.create_model(name, device="meta")
    count = sum(parameter.numel() for parameter in model.parameters())
    if dr2net.is_convertible(model):
        return path_of(model), count, None, 0
    image = image_of(name, "meta")
    names = lists_seen(model, image)
    couplings = 0
    if names:
        dr2net.convert(model, 1, 0, blocks=names)
        couplings = sum(len(chain) for chain in dr2net.chains(model))
    return path_of(model), count, names, couplings


def is_exact(name: str, lists: list[str]) -> bool:
    """Whether the model is timm's at (1, 0), and rebuilds as it stores at (0.5, 0.5)."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3).train()
    image = image_of(name, "cpu").repeat(2, 1, 1, 1)
    expected = outputs_and_gradients(network, image)
    dr2net.convert(network, 1, 0, blocks=lists, example=image[:1])
    network.train()
    as_original = same_bits(outputs_and_gradients(network, image), expected)
    dr2net.set_coefficients(network, 0.5, 0.5)
    rebuilt = outputs_and_gradients(network, image)
    dr2net.set_reversible(network, False)
    return as_original and same_bits(outputs_and_gradients(network, image), rebuilt)


def draw_page(found: dict[str, tuple[str, int, list[str] | None, int]], exact: set[str]) -> str:
    """The text of docs/timm_blocks.md."""
    classes: dict[str, list[str]] = defaultdict(list)
    for name, (path, _, lists, _) in found.items():
        if lists is not None:
            classes[path].append(name)
    rows, without = [], []
    for path, names in sorted(classes.items()):
        converted = [name for name in names if found[name][2]]
        missing = [name for name in names if not found[name][2]]
        if missing:
            without.append(f"- `{path}`: {', '.join(f'`{name}`' for name in missing)}")
        if not converted:
            continue
        most = max(converted, key=lambda name: len(found[name][2] or ()))
        couplings = [found[name][3] for name in converted]
        rows.append(
            {
                "class": f"`{path}`",
                "registered": str(len(names)),
                "converted": str(len(converted)),
                "lists": ", ".join(f"`{name}`" for name in found[most][2] or ()),
                "couplings": f"{min(couplings)} to {max(couplings)}",
                "compared": "yes" if path in exact else "",
            }
        )
    blocks = sum(bool(lists) for _, _, lists, _ in found.values())
    family = sum(lists is None for _, _, lists, _ in found.values())
    return INTRODUCTION.format(
        registered=len(found),
        version=timm.__version__,
        family=family,
        blocks=blocks,
        none=len(found) - blocks - family,
        most=MOST_PARAMETERS // 10**6,
        table=markdown_table(list(rows[0]), rows),
        without="\n".join(without),
    )


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    warnings.simplefilter("ignore")
    found = {name: look_at(name) for name in timm.list_models()}
    smallest: dict[str, str] = {}
    for name, (path, count, lists, _) in found.items():
        is_small = count <= MOST_PARAMETERS
        if lists and is_small and (path not in smallest or count < found[smallest[path]][1]):
            smallest[path] = name
    exact, different = set(), []
    for path, name in smallest.items():
        print(path, name, flush=True)
        try:
            same = is_exact(name, found[name][2] or [])
        except (RuntimeError, ValueError) as error:
            print(f"    {type(error).__name__}: {error}")
            same = False
        if same:
            exact.add(path)
        else:
            different.append(name)
    PAGE.write_text(draw_page(found, exact), encoding="utf-8")
    if different:
        sys.exit(f"Not compared, or not the same bits: {', '.join(different)}")


if __name__ == "__main__":
    main()
