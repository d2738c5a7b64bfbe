"""(α, β) among the weights of PEFT's adapters, which are saved without the network around them.

LoRA's ``save_pretrained`` takes what the modules of an adapter hold. One of them in each chain
holds a copy of the chain's coefficients, as a buffer of the shape (1, 3): PEFT takes vectors for a
fault.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

__all__ = ["holders", "put_coefficients"]

NAME = "coefficients"


def holders(chain: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module, of each adapter the first that is in ``chain``."""
    if "peft" not in sys.modules:
        return
    found = set()
    for name, layer in chain.named_modules():
        for kind in getattr(layer, "adapter_layer_names", ()):
            modules: Any = getattr(layer, kind, None)
            for adapter in modules if isinstance(modules, nn.ModuleDict) else ():
                if adapter not in found:
                    found.add(adapter)
                    yield f"{name}.{kind}.{adapter}", modules[adapter]


def put_coefficients(chain: nn.Module, state: Tensor) -> list[str]:
    """Puts ``state``, what ``coefficients.to_state`` makes, into the adapters of ``chain``.

    Returns:
        The names of the buffers, from the chain.
    """
    names = []
    for name, module in holders(chain):
        module.register_buffer(NAME, state.detach().clone()[None])
        names.append(f"{name}.{NAME}")
    return names
