"""Which input channels train in which epoch, under a budget of bytes: TraDy (arXiv 2510.19675)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..block_hooks import refuse_sharded
from .measurement import Layer, measure, preselected, selectable_layers
from .moments import MOMENTS, Exchange, exchange, require_members
from .trained_channels import TrainedChannels, trained_channels

__all__ = ["SELECTORS", "Selection", "select_channels"]

SELECTORS = ("uniform", "largest", "all")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
# What the last layer is called, in networks that have no get_classifier().
CLASSIFIERS = ("head", "classifier", "fc", "cls_head", "fc_cls")


def select_channels(
    model: nn.Module,
    loss_function: Callable[[], Tensor],
    budget: int | str | None = None,
    selector: str = "uniform",
    always: str | Collection[str] | None = None,
    batches: int = 4,
    share: float = 0.97,
    moments: str = "restart",
    seed: int = 0,
    optimizer: Any = None,
) -> Selection:
    """Trains only some input channels of the network's linear and convolution layers from now on.

    Chooses layers once and channels for epoch 0; ``selection.draw(epoch, optimizer)`` draws those
    of later epochs. Everything else is frozen, but for ``always``. A trained channel takes the
    memory of its weights' gradient and optimizer state, and of its part of the layer's input; the
    rest of the weights takes nothing besides itself. Gradients of the trained channels are those
    of full training, up to the kernels' rounding.

    Names in the state_dict stay, and so do its values: a layer's ``weight`` is whole, and what the
    network computes with. Names of parameters stay, too, beside one more for each layer chosen.

    Args:
        model: any network, converted or not, before DistributedDataParallel is put around it.
        loss_function: runs the network on a batch and returns its scalar loss. Called ``batches``
            times. Its batch is what the bytes of activations are counted of: of one image they
            are those of the paper.
        budget: for the weights of trained channels and their input in one batch: bytes,
            ``"64MB"`` (10^6), ``"64MiB"`` (2^20), or ``"10%"`` of all selectable layers. Gradient
            and optimizer state, which have the size of the weights, come on top, and so does what
            ``always`` names. None with ``selector="all"`` alone.
        selector: ``"uniform"``, drawn anew for each epoch (TraDy); ``"largest"``, those of the
            largest gradient for their cost, as measured once; ``"all"`` those of the chosen layers.
        always: names of modules or parameters that train whole, or patterns (``"*.bias"``); None
            finds the classifier. What was frozen before stays frozen.
        share: of the sum of relative gradient norms that the chosen layers carry.
        moments: what becomes of the optimizer's state of a layer whose channels change.
            ``"restart"``: it starts anew. ``"carry"``: channels that go on training keep theirs
            and the others start from zero, as suits SGD's momentum. Not Adam's moments, whose
            correction for their start from zero counts the steps of the whole parameter: first
            steps of new channels would be about three times as large as they should.
        seed: of the draws, which depend on it, the epoch and what was measured alone.
        optimizer: one that was made of the whole weights before; it then trains their channels.

    Returns:
        The selection, whose ``state_dict()`` belongs into checkpoints.

    Raises:
        TypeError, ValueError: an argument is none of those above; the network is sharded, wrapped
            or has a selection already; ``always`` names nothing; no layer gets a gradient.
        FloatingPointError: a gradient is not finite.
    """
    _refuse_network(model)
    _check(selector, budget, batches, share, moments)
    patterns = _patterns(model, always)
    layers = selectable_layers(model, _parameters_named(model, patterns))
    if not layers:
        raise ValueError(
            f"This {type(model).__name__} has no layer to choose channels of: it takes linear and "
            "convolution layers of one group that are not frozen, not named in always, and whose "
            "weight is theirs alone."
        )
    measured = measure(model, layers, loss_function, batches)
    state = {
        "seed": seed,
        "epoch": 0,
        "selector": selector,
        "moments": moments,
        "always": patterns,
        "budget": None if budget is None else _bytes(budget, measured),
        "layers": {
            name: {"cost": layer.cost, "rgn": layer.rgn}
            for name, layer in preselected(measured, share).items()
        },
    }
    return Selection(model, state, optimizer)


class Selection:
    """The channels of a network that train; made by ``select_channels``, or anew of its state.

    To resume, make one of the checkpoint's state instead of calling ``select_channels``, before or
    after the network's weights are loaded and before the optimizer is made.

    Args:
        model: the network.
        state: what ``state_dict()`` of a selection of such a network returned.
        optimizer: as in ``select_channels``; its state may have been loaded already.

    Attributes:
        epoch: that the channels were drawn for.
        budget: in bytes, None for all.
        layers: what was measured of the chosen layers, by name.

    Raises:
        ValueError: as ``select_channels``; a layer of the state is not in the network; the budget
            is too small for a single channel.
    """

    def __init__(self, model: nn.Module, state: dict[str, Any], optimizer: Any = None):
        _refuse_network(model)
        self._settings = {key: value for key, value in state.items() if key != "layers"}
        self.epoch: int = state["epoch"]
        self.budget: int | None = state["budget"]
        self.layers = {name: Layer(**layer) for name, layer in state["layers"].items()}
        channels, modules = self._drawn(self.epoch), _modules(model, self.layers)
        weights = {name: module.weight for name, module in modules.items()}
        if optimizer is not None:
            require_members([optimizer], weights)
        kept = _parameters_named(model, state["always"])
        self._before = [(p, p.requires_grad) for p in model.parameters()]
        for parameter, trains in self._before:
            parameter.requires_grad_(trains and parameter in kept)
        self._trained = {
            name: TrainedChannels(module, name, channels[name]) for name, module in modules.items()
        }
        if optimizer is not None:
            exchanges = [
                Exchange(weights[name], trained.parameter, None, trained.channels)
                for name, trained in self._trained.items()
            ]
            exchange(optimizer, exchanges, state["moments"])

    def draw(self, epoch: int, *optimizers: torch.optim.Optimizer) -> None:
        """Trains the channels of ``epoch`` from now on; to be called between two steps.

        The same in every process. Where a layer's channels change, a new parameter takes the place
        of the old one in the network and in its optimizer's group; DistributedDataParallel has to
        be put around the network anew.

        Args:
            optimizers: all those that train channels.

        Raises:
            ValueError: the channels change, and one of them is in none of the optimizers.
        """
        channels = self._drawn(epoch)
        before = {
            name: (trained.parameter, trained.channels)
            for name, trained in self._trained.items()
            if not torch.equal(trained.channels.cpu(), channels[name])
        }
        require_members(optimizers, {name: parameter for name, (parameter, _) in before.items()})
        exchanges = []
        for name, (parameter, old) in before.items():
            trained = self._trained[name]
            trained.choose(channels[name])
            exchanges.append(Exchange(parameter, trained.parameter, old, trained.channels))
        for optimizer in optimizers:
            exchange(optimizer, exchanges, self._settings["moments"])
        self.epoch = epoch

    @property
    def channels(self) -> dict[str, Tensor]:
        """The input channels that train, ascending, by the name of their layer."""
        return {name: trained.channels for name, trained in self._trained.items()}

    @property
    def bytes(self) -> int:
        """What they take of the budget."""
        return sum(len(self.channels[name]) * layer.cost for name, layer in self.layers.items())

    def apply_to(self, copy: nn.Module) -> None:
        """Gives a copy of the network, such as an average, the channels of this one.

        Its parameters are then those of the network, one by one, also if it was copied before.
        """
        for name, module in _modules(copy, self.layers).items():
            channels = self.channels[name].cpu()
            if (trained := module.__dict__.get("trained_channels")) is None:
                TrainedChannels(module, name, channels)
            else:
                trained.choose(channels)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it: plain containers and tensors."""
        layers = {n: {"cost": layer.cost, "rgn": layer.rgn} for n, layer in self.layers.items()}
        return {**self._settings, "epoch": self.epoch, "layers": layers}

    def remove(self) -> None:
        """Leaves the network as it was, with the weights as they are trained by now.

        Optimizers then train nothing of it any more: make new ones.
        """
        for trained in self._trained.values():
            trained.remove()
        for parameter, trains in self._before:
            parameter.requires_grad_(trains)

    def __str__(self) -> str:
        budget = "" if self.budget is None else f" of {self.budget / 1e6:.1f}"
        return (
            f"{describe(self._trained.values())}; {self.bytes / 1e6:.1f}{budget} MB of weights and "
            "activations."
        )

    def _drawn(self, epoch: int) -> dict[str, Tensor]:
        settings = self._settings
        return draw_channels(
            self.layers, settings["selector"], self.budget, f"{settings['seed']}, {epoch}"
        )


def describe(trained: Collection[TrainedChannels]) -> str:
    """How much of the layers trains, in one line; empty where there are none."""
    if not trained:
        return ""
    chosen = sum(len(one.channels) for one in trained)
    weights: list[Any] = [one.layer.weight for one in trained]
    elements = sum(one.parameter.numel() for one in trained) / sum(w.numel() for w in weights)
    return (
        f"{chosen:,} of {sum(w.shape[1] for w in weights):,} input channels of {len(weights)} "
        f"layers train, {elements:.1%} of their weights"
    )


def draw_channels(
    layers: dict[str, Layer], selector: str, budget: int | None, seed: str
) -> dict[str, Tensor]:
    """The channels to train of each layer, ascending; those that still fit, in the drawn order.

    By Python's generator, whose numbers are the same on every machine.

    Raises:
        ValueError: not one fits.
    """
    order = [(name, channel) for name, layer in layers.items() for channel in range(len(layer.rgn))]
    if selector == "uniform":
        random.Random(seed).shuffle(order)
    elif selector == "largest":
        rgn = {name: layer.rgn.tolist() for name, layer in layers.items()}
        order.sort(key=lambda one: -rgn[one[0]][one[1]])
    chosen: dict[str, list[int]] = {name: [] for name in layers}
    left = sum(layer.cost * len(layer.rgn) for layer in layers.values())
    if selector != "all":
        assert budget is not None
        left = budget
    for name, channel in order:
        if layers[name].cost <= left:
            left -= layers[name].cost
            chosen[name].append(channel)
    if not any(chosen.values()):
        least = min(layer.cost for layer in layers.values())
        raise ValueError(f"budget={budget} bytes: a single channel takes {least} of them at least.")
    return {
        name: torch.tensor(sorted(channels), dtype=torch.int64) for name, channels in chosen.items()
    }


def _refuse_network(model: nn.Module) -> None:
    if isinstance(model, DistributedDataParallel):
        raise ValueError(
            "The network is in DistributedDataParallel already: choose channels of model.module, "
            "and wrap it afterwards."
        )
    refuse_sharded(model.modules(), "FSDP2 cannot train a part of a weight: use DDP.")
    if any(trained_channels(model)):
        raise ValueError(
            "The network has a selection of channels already: call its remove() first, or its "
            "draw(epoch, optimizer) for other channels."
        )


def _check(
    selector: str, budget: int | str | None, batches: int, share: float, moments: str
) -> None:
    if selector not in SELECTORS:
        raise ValueError(f"selector={selector!r} is unknown: use one of {', '.join(SELECTORS)}.")
    if moments not in MOMENTS:
        raise ValueError(f"moments={moments!r} is unknown: use one of {', '.join(MOMENTS)}.")
    if (budget is None) != (selector == "all"):
        raise ValueError(
            f"selector={selector!r} with budget={budget!r}: 'all' takes no budget, the others do."
        )
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: give a number above 0, up to 1.")
    if batches < 1:
        raise ValueError(f"batches={batches}: give a positive number.")


def _bytes(budget: int | str, layers: dict[str, Layer]) -> int:
    """The budget in bytes.

    Args:
        layers: that a share is taken of.
    """
    if isinstance(budget, int) and not isinstance(budget, bool) and budget > 0:
        return budget
    text = budget if isinstance(budget, str) else ""
    if found := re.fullmatch(r"\s*(\d+\.?\d*)\s*%\s*", text):
        whole = sum(layer.cost * len(layer.rgn) for layer in layers.values())
        result = int(float(found[1]) / 100 * whole)
    elif found := re.fullmatch(r"\s*(\d+\.?\d*)\s*([KMG]i?|)B\s*", text):
        result = int(float(found[1]) * UNITS[found[2]])
    else:
        result = 0
    if result <= 0:
        raise ValueError(
            f"budget={budget!r}: give a positive number of bytes, '64MB', '64MiB' or '10%'."
        )
    return result


def _patterns(model: nn.Module, always: str | Collection[str] | None) -> list[str]:
    if always is not None:
        return [always] if isinstance(always, str) else list(always)
    get_classifier = getattr(model, "get_classifier", None)
    found: Any = get_classifier() if callable(get_classifier) else None
    heads = found if isinstance(found, (tuple, list)) else [found]
    names = [name for name, module in model.named_modules() if any(module is h for h in heads)]
    names = names or [name for name, _ in model.named_children() if name in CLASSIFIERS]
    if not any(_parameters_named(model, [name]) for name in names):
        raise ValueError(
            f"Which part of this {type(model).__name__} is its classifier, which always trains, "
            "cannot be told: name it, always=['...'], or always=[] for none. Its parts are "
            f"{', '.join(name for name, _ in model.named_children())}."
        )
    return names


def _parameters_named(model: nn.Module, patterns: Sequence[str]) -> set[Tensor]:
    """The parameters that patterns name, by themselves or by a module that they are in."""
    found: set[Tensor] = set()
    for pattern in patterns:
        named = [
            parameter
            for name, parameter in model.named_parameters()
            if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
        ]
        if not named:
            raise ValueError(f"always={pattern!r} names no parameter and no module that has some.")
        found.update(named)
    return found


def _modules(model: nn.Module, names: Collection[str]) -> dict[str, Any]:
    known = dict(model.named_modules())
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(
            f"The selection has channels of {missing[0]} and {len(missing) - 1} more layers that "
            f"this {type(model).__name__} has not: give the network that it was made of."
        )
    return {name: known[name] for name in names}
