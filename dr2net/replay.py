"""What a module computes by beside its input: settings, random states, and what its block holds.

Each is taken when the module runs in forward, and put back when it runs again in backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .block_hooks import refuse_sharded
from .branches import Branch

__all__ = [
    "RECOMPUTING",
    "Inventories",
    "Inventory",
    "RandomState",
    "Settings",
    "Snapshot",
    "WatchedBuffers",
    "compute_dtype",
    "fix_settings",
    "holding",
    "random_state",
    "set_random_state",
    "undo",
]

RandomState = list[Tensor]
"""States of the generators that a module can draw from: the CPU's, then the device's."""

# Random states and what blocks hold are the process's: one recomputation at a time sets them.
RECOMPUTING = RLock()


@cache
def _settings(kind: str) -> list[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """How to read and how to write what a context manager may have set around forward alone."""
    internal: Any = torch._C
    found: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = []
    for device in dict.fromkeys(("cpu", kind)):
        if torch.amp.is_autocast_available(device):
            found += [
                _of_device(device, torch.get_autocast_dtype, torch.set_autocast_dtype),
                _of_device(device, torch.is_autocast_enabled, torch.set_autocast_enabled),
            ]
    for name in ("flash", "mem_efficient", "math", "cudnn"):
        read = getattr(internal, f"_get_{name}_sdp_enabled")
        found.append((read, getattr(internal, f"_set_sdp_use_{name}")))
    found += [
        (internal._get_sdp_priority_order, internal._set_sdp_priority_order),
        (internal._get_float32_matmul_precision, internal._set_float32_matmul_precision),
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        (internal._get_mkldnn_enabled, internal._set_mkldnn_enabled),
    ]
    if kind == "cuda":
        found += [
            (internal._get_cudnn_enabled, internal._set_cudnn_enabled),
            (internal._get_cudnn_allow_tf32, internal._set_cudnn_allow_tf32),
            (internal._get_cudnn_deterministic, internal._set_cudnn_deterministic),
        ]
    return found


def _of_device(device: str, read: Any, write: Any) -> tuple[Callable, Callable]:
    return partial(read, device), partial(write, device)


# The same both times, whatever is set. The cache of cast weights would hand them from one pass to
# another: those cast without gradients would lose their gradient, and gradients of several passes
# would be summed in low precision. cuDNN's trials could choose another algorithm each time.
_FIXED: list[tuple[Callable[[], Any], Callable[[Any], Any], Any]] = [
    (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled, False),
    (torch._C._get_cudnn_benchmark, torch._C._set_cudnn_benchmark, False),
]


class Settings:
    """Autocast, precisions and choices of kernels, as they are when this is made."""

    def __init__(self, device: torch.device):
        self._pairs = _settings(device.type)
        self._readers = [read for read, _ in self._pairs]
        self._values = [read() for read in self._readers]
        # The generators' states, where nothing has drawn since they were read.
        self.random: RandomState | None = None

    def apply(self) -> list[tuple[Callable[[Any], Any], Any]]:
        """Sets them; returns what to give to ``undo``."""
        now, changed = [read() for read in self._readers], fix_settings()
        if now != self._values:
            for (_, write), value, before in zip(self._pairs, self._values, now, strict=True):
                if value != before:
                    changed.append((write, before))
                    write(value)
        return changed


def fix_settings() -> list[tuple[Callable[[Any], Any], Any]]:
    """Sets what is the same in forward and backward; returns what to give to ``undo``."""
    changed = []
    for read, write, value in _FIXED:
        if (now := read()) != value:
            changed.append((write, now))
            write(value)
    return changed


def undo(changed: list[tuple[Callable[[Any], Any], Any]]) -> None:
    """Sets back what ``Settings.apply`` or ``fix_settings`` has changed."""
    for write, before in reversed(changed):
        write(before)


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The precision of matrix products on inputs of ``dtype``."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return dtype


def random_state(device: torch.device) -> RandomState:
    """The state of what a module on ``device`` draws random numbers from."""
    states = [torch.default_generator.get_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def set_random_state(device: torch.device, states: RandomState) -> None:
    """Puts back what ``random_state`` returned."""
    torch.default_generator.set_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1], device)


class Inventory:
    """What a block and the modules in it hold: found once, and anew when something was exchanged.

    Attributes:
        parameters: each once.
        ids: theirs.
        sliceable: whether a module can run over slices of its tokens, where that is known.
        made: those that others were made of (``torch.func.functional_call``).
        buffers: likewise, without those of inference mode, which do not change in training.
    """

    def __init__(self, block: nn.Module):
        modules = list(block.modules())
        held = [d for m in modules for d in (m._parameters, m._buffers, m._modules)]
        self._places = [(d, name, thing) for d in held for name, thing in d.items()]
        self._things = [d.values() for d in held]  # views: what is held at any time
        self._ids = self._ids_now()
        self.parameters = _distinct(m._parameters for m in modules)
        self.ids = set(map(id, self.parameters))
        self.made = [p for p in self.parameters if not p.is_leaf]
        self.sliceable: dict[Branch, bool] = {}
        self._uses: dict[Branch, tuple[list[int], list[bool], list[Tensor], list[Tensor]]] = {}
        self.buffers = [b for b in _distinct(m._buffers for m in modules) if not b.is_inference()]
        self._owners = [m for m in modules if m._buffers]
        # Buffers that forward changes, by branch and the modes of the modules that own buffers.
        self._moving: dict[tuple, list[Tensor]] = {}

    def is_current(self) -> bool:
        """Whether the block still holds all of it, and nothing else."""
        return self._ids_now() == self._ids

    def _ids_now(self) -> list[int]:
        return [*map(id, chain.from_iterable(self._things))]

    def moving(self, branch: Branch) -> list[Tensor] | None:
        """The buffers that a module changes in the present mode; None before its first run."""
        return self._moving.get((branch, *(m.training for m in self._owners)))

    def learn(self, branch: Branch, changed: set[int]) -> None:
        """Remembers the buffers that a module changes in the present mode.

        Those of the ids ``changed``, and the others of the same part of the block: what it has
        written once may have been the value that was there. Running statistics in any case.
        """
        moving = []
        for owner in self._owners:
            own = [b for b in owner._buffers.values() if b is not None and not b.is_inference()]
            counts = isinstance(owner, _NormBase) and owner.training
            if counts or any(id(buffer) in changed for buffer in own):
                moving += own
        key = branch, *(m.training for m in self._owners)
        self._moving[key] = moving

    def use(self, branch: Branch, ids: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters of these ids, and those that must not change until backward.

        The first in the block's order: only they become inputs of a coupling, as DDP and others
        tell by the graph which parameters are used. The others are frozen: of those trained, what
        is not used may be updated in this backward already, as soon as its gradient is there.
        """
        trained = [p.requires_grad for p in self.parameters]
        last = self._uses.get(branch)
        if last is None or last[0] != ids or last[1] != trained:
            known = set(ids)
            used = [p for p in self.parameters if p.requires_grad and id(p) in known]
            frozen = [p for p in self.parameters if not p.requires_grad]
            last = self._uses[branch] = ids, trained, used, used + frozen
        return last[2:]

    def exchanged(self, instead: dict[int, Tensor]) -> list[tuple[dict[str, Any], str, Any]]:
        """Where the block holds something else by now, or is to, and what to put there."""
        wanted = ((held, name, instead.get(id(thing), thing)) for held, name, thing in self._places)
        return [entry for entry in wanted if entry[0].get(entry[1]) is not entry[2]]


class Inventories:
    """Those of a chain's blocks; a copy or pickle starts anew."""

    def __init__(self) -> None:
        self._of: dict[nn.Module, Inventory] = {}

    def __reduce__(self) -> tuple:
        return Inventories, ()

    def of(self, key: str, block: nn.Module) -> Inventory:
        """The inventory of ``block``, named ``key``, as it is now."""
        inventory = self._of.get(block)
        if inventory is None or not inventory.is_current():
            # Hooks inside a block would run again in the recomputation, where FSDP2 would lose the
            # gradients.
            refuse_sharded(
                (part for part in block.modules() if part is not block),
                f"it stands in block {key!r} of a chain, so shard the block instead.",
            )
            inventory = self._of[block] = Inventory(block)
        return inventory


@contextmanager
def holding(
    moved: list[tuple[dict[str, Any], str, Any]], result: Sequence[Tensor] = ()
) -> Iterator[Sequence[Tensor]]:
    """Has blocks hold what ``Inventory.exchanged`` returned; gives ``result``."""
    with RECOMPUTING:
        now = {id(held): (held, dict(held)) for held, _, _ in moved}
        try:
            for held, name, thing in moved:
                held[name] = thing
            yield result
        finally:
            for held, things in now.values():
                held.clear()
                held.update(things)


def _distinct(dictionaries: Iterable[dict[str, Any]]) -> list[Tensor]:
    found = (t for held in dictionaries for t in held.values() if t is not None)
    return list({id(tensor): tensor for tensor in found}.values())


class WatchedBuffers:
    """Copies of the buffers that modules of a block may change, to find those that they did.

    All of them before a module's first run in the block's present mode, later those known to
    change. BatchNorm's kernels write its running statistics without a new version, so that the
    first run compares values, too. A buffer that begins to change later is known from then on;
    backward notices if it mattered.

    Args:
        inventory: of the block.
        branches: the modules about to run.
    """

    def __init__(self, inventory: Inventory, branches: Sequence[Branch]):
        self._inventory, self._branches = inventory, branches
        self._known = [inventory.moving(branch) for branch in branches]
        self._is_new = None in self._known
        known = {id(buffer): buffer for found in self._known for buffer in found or ()}
        watched = inventory.buffers if self._is_new else known.values()
        self.copies = [(buffer, buffer.detach().clone()) for buffer in watched]
        self._versions = [buffer._version for buffer in inventory.buffers]

    def moved(self) -> list[tuple[Tensor, Tensor]]:
        """The copies of the buffers that the modules change, which the inventory remembers."""
        inventory = self._inventory
        versions = zip(inventory.buffers, self._versions, strict=True)
        changed = {id(buffer) for buffer, version in versions if buffer._version != version}
        if self._is_new:
            changed.update(id(b) for b, old in self.copies if not torch.equal(b, old))
        for branch, known in zip(self._branches, self._known, strict=True):
            # Which of several modules has changed a buffer cannot be told.
            before = set() if known is None else set(map(id, known))
            if known is None or (len(self._branches) == 1 and not changed <= before):
                inventory.learn(branch, changed | before)
        moving = {id(b) for branch in self._branches for b in inventory.moving(branch) or ()}
        return [entry for entry in self.copies if id(entry[0]) in moving]


class Snapshot:
    """What a forward changes besides gradients, as it was, to run the forward again.

    Args:
        inventories: of its blocks.
        branches: that it runs of each of them.
    """

    def __init__(
        self, inventories: Sequence[Inventory], branches: Sequence[Branch], device: torch.device
    ):
        self._inventories, self._device = inventories, device
        self._state = random_state(device) if inventories else []
        self._buffers = [WatchedBuffers(i, branches) for i in inventories if i.buffers]

    def learn(self) -> None:
        """Remembers the buffers that the forward has changed: only they are copied from now on."""
        for buffers in self._buffers:
            buffers.moved()

    def restore(self) -> None:
        """Puts it back."""
        set_random_state(self._device, self._state)
        for inventory in self._inventories:
            for held, name, thing in inventory.exchanged({}):
                held[name] = thing
        for buffers in self._buffers:
            for buffer, value in buffers.copies:
                buffer.data.copy_(value)
