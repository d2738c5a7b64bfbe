"""A block's parameters and buffers as forward found them, put back when backward recomputes.

Between the two others may have come into their places (``torch.func.functional_call`` takes its
parameters out again at once), and forward itself may have moved a buffer on: the estimate of a
spectral norm, a counter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["BlockState"]

# The dictionary of a module that holds a tensor, the name it has there, the tensor.
Place = tuple[dict[str, Any], str, Tensor]


class BlockState:
    """What ``block`` holds at the moment of construction, which is before it runs forward."""

    def __init__(self, block: nn.Module):
        # One walk through the modules, as this runs for every coupling.
        modules = list(block.modules())
        self.places: list[Place] = [
            (held, name, tensor)
            for module in modules
            for held in (module._parameters, module._buffers)
            for name, tensor in held.items()
            if tensor is not None
        ]
        self.parameters = [(p, p._version) for p in _distinct(m._parameters for m in modules)]
        # Where there is no version, in inference mode's tensors, there is no change in training.
        self.buffers = [b for b in _distinct(m._buffers for m in modules) if not b.is_inference()]
        self.changed = [(b, b._version, b.detach().clone()) for b in self.buffers]

    def keep_what_matters(self, used: Sequence[Tensor]) -> None:
        """To be called after forward: drops the copies of buffers that are as they were.

        Of the parameters with a gradient only the ``used`` ones have to stay as they are: others of
        the block may be updated in this backward already, as soon as their gradient is there.

        BatchNorm's kernels write its running statistics without a new version, which is well: a
        recomputation does not read them.
        """
        self.changed = [entry for entry in self.changed if entry[0]._version != entry[1]]
        known = set(map(id, used))
        self.parameters = [
            e for e in self.parameters if id(e[0]) in known or not e[0].requires_grad
        ]

    @contextmanager
    def put_back(
        self, coupling: str, instead: dict[int, Tensor] | None = None
    ) -> Iterator[list[Tensor]]:
        """Has the block hold again what it held; yields the buffers that are not copies.

        Raises:
            RuntimeError: parameters of ``coupling`` were changed in place or freed. As autograd
                does for tensors that it keeps: a recomputation with other weights is wrong.
        """
        copies = {id(buffer): values.clone() for buffer, _, values in self.changed}
        copies.update(instead or {})
        wanted = [
            (held, name, copies.get(id(tensor), tensor)) for held, name, tensor in self.places
        ]
        moved = [(h, name, tensor) for h, name, tensor in wanted if h.get(name) is not tensor]
        freed = any(t.numel() and not t.untyped_storage().nbytes() for _, _, t in moved)
        if freed or any(parameter._version != version for parameter, version in self.parameters):
            raise RuntimeError(
                f"The parameters of {coupling} were changed between forward and backward: run "
                "backward before the optimizer's step, or call "
                "dr2net.set_reversible(model, False)."
            )
        now = [(held, dict(held)) for held, _, _ in moved]
        try:
            for held, name, tensor in moved:
                held[name] = tensor
            yield [buffer for buffer in self.buffers if id(buffer) not in copies]
        finally:
            for held, tensors in now:
                held.clear()
                held.update(tensors)


def _distinct(dictionaries: Iterable[dict[str, Any]]) -> Iterable[Tensor]:
    """The tensors that the dictionaries hold, each once, in their order."""
    found = (t for held in dictionaries for t in held.values() if t is not None)
    return {id(tensor): tensor for tensor in found}.values()
