"""From a network to reversible chains: ``convert`` and the registry of adapters.

An adapter is a function that replaces, in a network of one family, the containers of residual
blocks by ``ReversibleChain``s. There is one file per family; it is imported when a network of that
family is converted, so that its library need not be installed.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..block_hooks import refuse_sharded
from ..branches import whole
from ..chain import ReversibleChain
from ..coefficients import (
    DEFAULT_BETA,
    alpha_on_the_line,
    check_coefficients,
    is_on_the_line,
    round_coefficient,
)
from ..kernels.arithmetic import check_arithmetic
from ..messages import warn
from .by_name import (
    as_call,
    candidates,
    describe_lists,
    in_eval_mode,
    require_calls,
    split_lists,
)
from .saved_folders import refuse_other_coefficients
from .subclass import restore_methods

__all__ = [
    "chains",
    "convert",
    "get_coefficients",
    "is_convertible",
    "register_adapter",
    "require_chains",
    "revert",
    "set_coefficients",
    "set_reversible",
]

Model = TypeVar("Model", bound=nn.Module)
Adapter = Callable[..., None]

DEFORMABLE = "mmdet.models.layers.transformer.deformable_detr_layers"
# Qualified name of a network's class → the file here that registers its adapter.
FAMILIES = {
    "timm.models.vision_transformer.VisionTransformer": "timm_vit",
    "timm.models.beit.Beit": "timm_beit",
    "timm.models.eva.Eva": "timm_eva",
    "timm.models.swin_transformer.SwinTransformer": "timm_swin",
    "timm.models.swin_transformer_v2.SwinTransformerV2": "timm_swin_v2",
    "timm.models.convnext.ConvNeXt": "timm_convnext",
    "timm.models.resnet.ResNet": "timm_resnet",
    "transformers.models.vit.modeling_vit.ViTModel": "transformers_vit",
    "transformers.models.videomae.modeling_videomae.VideoMAEModel": "transformers_videomae",
    "transformers.models.dinov2.modeling_dinov2.Dinov2Model": "transformers_dinov2",
    "transformers.models.dinov2.modeling_dinov2.Dinov2Backbone": "transformers_dinov2_backbone",
    "mmaction.models.backbones.vit_mae.VisionTransformer": "mmaction_vit",
    "mmaction.models.backbones.swin.SwinTransformer3D": "mmaction_swin",
    "mmaction.models.backbones.mvit.MViT": "mmaction_mvit",
    "mmdet.models.backbones.swin.SwinTransformer": "mmdet_swin",
    f"{DEFORMABLE}.DeformableDetrTransformerEncoder": "mmdet_dino",
    f"{DEFORMABLE}.DeformableDetrTransformerDecoder": "mmdet_dino",
}

_adapters: dict[type[nn.Module], Adapter] = {}


def register_adapter(network: type[nn.Module]) -> Callable[[Adapter], Adapter]:
    """Decorator that makes a function the adapter of ``network`` and its subclasses.

    The function takes the network, and keyword options of its own if it wants any, and puts a
    ``ReversibleChain`` where each container of blocks stood. It raises ``ValueError`` for a
    network that it cannot split.
    """

    def register(adapter: Adapter) -> Adapter:
        _adapters[network] = adapter
        return adapter

    return register


def convert(
    model: Model,
    alpha: float | None = None,
    beta: float = DEFAULT_BETA,
    arithmetic: str = "exact",
    keep: Collection[str] = (),
    on_mismatch: str = "raise",
    blocks: str | Collection[str] | None = None,
    example: Any = None,
    couplings: str = "branch",
    **options: Any,
) -> Model:
    """Makes a pretrained network a Dr²Net, in place, and returns it.

    Parameter names, and so checkpoints, stay what they were; (α, β) become part of the state_dict.

    Args:
        model: a network of a supported family, or one that contains such networks (a recognizer
            around a backbone); or any network, with ``blocks``.
        alpha, beta: the coefficients to start from; (1, 0) is the pretrained network, bit for bit.
            α is 1 − β unless it is given: on that line streams do not grow, and at a small β the
            network stays near the pretrained one.
        arithmetic: ``"exact"`` (gradients are those of stored activations, bit for bit),
            ``"exact64"`` (the same in 64-bit words, whatever the activations) or ``"float"`` (as
            in the paper).
        keep: names of modules whose activations are stored, not rebuilt: more memory, less time,
            the same gradients. A block (``"blocks.11"``), a chain, or what contains chains
            (``"layers.0"``). ``dr2net.plan`` finds those that a memory budget allows.
        on_mismatch: ``"raise"`` or ``"warn"`` where backward finds that a module did not repeat
            what it computed in forward.
        blocks: names of the network's lists of blocks (``nn.ModuleList``, ``nn.Sequential``), or
            patterns: ``"encoder.layers"``, ``"stages.*.blocks"``. Each block that keeps the shape
            of the stream is a coupling then, whatever is inside, and the network's own loops over
            its blocks stay as they are: arguments of each block's own, tuples whose first entry is
            the stream, streams that are collected on the way.
        example: an input of the network (a tensor, a tuple, a dict of named inputs), on which the
            conversion is checked: the same bits at (1, 0) as before, and rows of couplings where
            the loops hand the stream on. Blocks that change the shape are found by it.
        couplings: ``"branch"`` (attention and MLP apart, where the family's adapter has them: the
            narrower module to recompute) or ``"block"`` (whole blocks: half the couplings, and so
            half of what is kept, and nearer to the pretrained network at the same β).
        options: options of the family's adapter, such as ``fused_attention=True`` for mmaction2's
            ViT.

    Raises:
        TypeError: the network's family has no adapter, or the adapter does not know an option.
        ValueError: a value is out of range, the network is converted already, it is of a
            supported family but built of blocks that cannot be split, or ``blocks`` names no list;
            or the network is another one on the example at (1, 0); or its weights were saved by a
            Dr²Net at another (α, β).
    """
    if chains(model):
        raise ValueError(
            f"This {type(model).__name__} is converted already: use dr2net.set_coefficients to "
            "change α and β."
        )
    refuse_sharded(model.modules(), "convert the model first, then shard it.")
    check_coefficients(alpha_on_the_line(beta) if alpha is None else alpha, beta)
    alpha = alpha_on_the_line(beta) if alpha is None else alpha
    refuse_other_coefficients(model, round_coefficient(alpha), round_coefficient(beta))
    check_arithmetic(arithmetic)
    if on_mismatch not in ("raise", "warn"):
        raise ValueError(f"on_mismatch={on_mismatch!r} is unknown: use 'raise' or 'warn'.")
    if couplings not in ("branch", "block"):
        raise ValueError(f"couplings={couplings!r} is unknown: use 'branch' or 'block'.")
    args, kwargs = as_call(example)
    before = [] if example is None else _outputs(model, args, kwargs)
    try:
        if blocks is None:
            _split_families(model, example, options)
        else:
            _refuse_options(options)
            split_lists(model, blocks)
        for name, chain in _named_chains(model):
            chain.name = name or "chain"
            chain.owner = (model.get_submodule(name.rpartition(".")[0]),) if name else ()
            chain.arithmetic = arithmetic
            chain.guard.on_mismatch = on_mismatch
            if couplings == "block":
                chain.branches = (whole,)
        if example is not None:
            _compare(model, before, _outputs(model, args, kwargs))
        set_coefficients(model, alpha, beta)
        if example is not None and beta > 0:
            require_calls(model, example)
        set_reversible(model, True, keep)
    except BaseException:
        _restore(model)
        raise
    return model


def _split_families(model: nn.Module, example: Any, options: dict[str, Any]) -> None:
    networks = [module for module in model.modules() if _find_adapter(type(module))]
    if not networks:
        raise TypeError(_describe_unsupported(model, example))
    for network in networks:
        adapter = _find_adapter(type(network))
        assert adapter is not None
        _check_options(adapter, network, options)
        try:
            adapter(network, **options)
        except ValueError as error:
            _restore(network)
            call = describe_lists(model, example)
            hint = f" Whole blocks convert without an adapter: {call}" if call else ""
            raise ValueError(f"{error}{hint}") from None


def _refuse_options(options: dict[str, Any]) -> None:
    if options:
        raise TypeError(f"{', '.join(options)}: not an option where blocks are named.")


def _compare(model: nn.Module, before: list[Tensor], now: list[Tensor]) -> None:
    """Raises ValueError unless the converted network returns the bits of the original."""
    if len(before) == len(now) and all(map(torch.equal, before, now)):
        return
    raise ValueError(
        f"At (1, 0) the converted {type(model).__name__} returns other values on the example than "
        "the original. Either it is not deterministic in eval mode, or its blocks do more than "
        "their adapter knows: name its lists of blocks (blocks=...)."
    )


def revert(model: Model, *inputs: Any, **named_inputs: Any) -> Model:
    """Gives a converted network back its own classes and its own state_dict, in place.

    Undoes ``convert``, to ship a network that was finetuned on the line α + β = 1: its weights then
    serve the plain network. From any other point of the line than (1, 0) the function changes; this
    is said, with the distance on an example input if there is one.

    Args:
        model: a converted network.
        inputs, named_inputs: what it is called with, to measure the change.

    Returns:
        The network, or, if ``model`` is itself a chain, what stands in its place.

    Raises:
        ValueError: the network has no chains, or is off the line: under such coefficients its
            weights only make sense with the second residual.
    """
    alpha, beta = get_coefficients(model)
    if not is_on_the_line(alpha, beta):
        raise ValueError(
            f"A network at (alpha, beta) = {(alpha, beta)} is another function than the original "
            "with the same weights. Ship it converted (torch.export and ONNX take it), finetune it "
            "on the line alpha = 1 - beta, or revert one that dr2net.set_coefficients(model, 1, 0) "
            "leaves useful."
        )
    refuse_sharded(model.modules(), "load its weights into a model that is not, and revert that.")
    measured = beta > 0 and (inputs or named_inputs)
    before = _outputs(model, inputs, named_inputs) if measured else []
    plain = _restore(model)
    if beta > 0:
        change = "its function changes a little at a small beta, a lot at a large one"
        if measured:
            after = _outputs(plain, inputs, named_inputs)
            distance = max(
                float((a - b).norm() / a.norm()) for a, b in zip(before, after, strict=True)
            )
            change = f"its outputs on these inputs change by {distance:.3g} of their norm"
        warnings.warn(
            f"This {type(plain).__name__} left (alpha, beta) = ({alpha:g}, {beta:g}) for the plain "
            f"network: {change}. Validate it before you ship it.",
            stacklevel=2,
        )
    return plain


def _outputs(model: nn.Module, inputs: tuple, named_inputs: dict[str, Any]) -> list[Tensor]:
    """The floating-point tensors that the network returns in eval mode, in float64."""
    with torch.no_grad(), in_eval_mode(model):
        found = tree_leaves(model(*inputs, **named_inputs))
    return [t.double() for t in found if isinstance(t, Tensor) and t.is_floating_point()]


def _restore(model: Model) -> Model:
    containers = {chain: chain.restore_container() for chain in chains(model)}
    for module in list(model.modules()):
        restore_methods(module)
        for name, child in module._modules.items():
            if isinstance(child, ReversibleChain):
                module._modules[name] = containers[child]
    return containers[model] if isinstance(model, ReversibleChain) else model  # type: ignore


def is_convertible(model: nn.Module) -> bool:
    """Whether ``convert`` has an adapter for the network or a part of it."""
    return any(_find_adapter(type(module)) for module in model.modules())


def chains(model: nn.Module) -> list[ReversibleChain]:
    """The chains of a converted network, in the order in which it holds them."""
    return [chain for _, chain in _named_chains(model)]


def set_coefficients(model: nn.Module, alpha: float, beta: float) -> None:
    """Sets (α, β) of every chain, both rounded to a multiple of 2^-16.

    Raises:
        ValueError: the network has no chains, α is not in [0, 1], or β neither 0 nor in
            [2^-8, 1].
    """
    for chain in require_chains(model):
        chain.set_coefficients(alpha, beta)


def get_coefficients(model: nn.Module) -> tuple[float, float]:
    """Returns (α, β) as they are used; all chains of a network have the same.

    Raises:
        ValueError: the network has no chains, or chains with different coefficients.
    """
    found = {chain.get_coefficients() for chain in require_chains(model)}
    if len(found) > 1:
        raise ValueError(
            f"The chains have different coefficients {sorted(found)}: ask each of "
            "dr2net.chains(model), or set them alike with dr2net.set_coefficients."
        )
    return found.pop()


def set_reversible(model: nn.Module, reversible: bool, keep: Collection[str] | None = None) -> None:
    """Chooses whether chains rebuild their activations in backward or store them.

    Equations and gradients are the same either way, bit for bit in exact arithmetic.

    Args:
        model: a converted network.
        reversible: False stores all activations.
        keep: names of what stays stored while the rest is rebuilt, as in ``convert``; None leaves
            this as it was.

    Raises:
        ValueError: the network has no chains, or a name in ``keep`` fits none of its blocks.
    """
    found = require_chains(model)
    if keep is not None:
        kept = _blocks_named(model, keep)
        for chain, keys in kept.items():
            chain.keep = frozenset(keys)
    for chain in found:
        chain.reversible = reversible


def _blocks_named(model: nn.Module, names: Collection[str]) -> dict[ReversibleChain, list[str]]:
    """For each chain the keys of its blocks that ``names`` name, or that lie within what they do.

    Raises:
        ValueError: a name fits no block of a chain.
    """
    if isinstance(names, str):
        raise ValueError(f"keep={names!r}: give a list or tuple of names.")
    paths = {
        chain: {f"{name}.{key}".lstrip("."): key for key in chain.coupled_keys()}
        for name, chain in _named_chains(model)
    }
    found: dict[ReversibleChain, list[str]] = {chain: [] for chain in paths}
    for name in names:
        inside = [
            (chain, key)
            for chain, blocks in paths.items()
            for path, key in blocks.items()
            if f"{path}.".startswith(f"{name}.")
        ]
        if not inside:
            raise ValueError(
                f"keep={name!r} names no block of a chain. Name blocks, such as "
                f"{next(iter(next(iter(paths.values()))), 'none')!r}, chains "
                f"({', '.join(chain.name for chain in paths)}) or what contains chains."
            )
        for chain, key in inside:
            found[chain].append(key)
    return found


def _named_chains(model: nn.Module) -> list[tuple[str, ReversibleChain]]:
    found = model.named_modules()
    return [(name, module) for name, module in found if isinstance(module, ReversibleChain)]


def require_chains(model: nn.Module) -> list[ReversibleChain]:
    """The chains of a converted network; raises ValueError if there are none."""
    found = chains(model)
    if not found:
        raise ValueError(
            f"This {type(model).__name__} has no reversible chains: dr2net.convert it first."
        )
    return found


def _find_adapter(network: type) -> Adapter | None:
    for ancestor in network.__mro__:
        file = FAMILIES.get(f"{ancestor.__module__}.{ancestor.__qualname__}")
        if file:
            try:
                import_module(f"{__name__}.{file}")
            except ImportError as error:
                return _whole_blocks_because(error)
        if ancestor in _adapters:
            return _adapters[ancestor]
    return None


def _whole_blocks_because(error: ImportError) -> Adapter:
    """What takes the place of an adapter that does not fit the library's version."""

    def split(model: nn.Module) -> None:
        names = list(candidates(model))
        if not names:
            raise ValueError(f"The adapter of {type(model).__name__} cannot be imported: {error}.")
        warn(
            f"The adapter of {type(model).__name__} does not fit this version of its library "
            f"({error}): whole blocks are couplings, blocks={names}."
        )
        split_lists(model, names)

    return split


def _check_options(adapter: Adapter, network: nn.Module, options: dict[str, Any]) -> None:
    parameters = list(inspect.signature(adapter).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    accepted = [parameter.name for parameter in parameters]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise TypeError(
            f"{', '.join(unknown)}: not an option for {type(network).__name__}, which takes "
            f"{', '.join(accepted) or 'none'}."
        )


def _describe_unsupported(model: nn.Module, example: Any = None) -> str:
    known = sorted({*FAMILIES, *(f"{c.__module__}.{c.__qualname__}" for c in _adapters)})
    families = "\n    ".join(known)
    name = type(model).__name__
    call = describe_lists(model, example)
    by_name = f"""Its lists of blocks convert without one, if the stream keeps its shape in them:

    {call}

""" if call else ""
    return f"""No adapter for {type(model).__module__}.{name}. {by_name}Supported families:
    {families}
For another network, register an adapter that puts a chain where its blocks stand:

    from dr2net import ReversibleChain, register_adapter, residual

    @residual                                   # G(x; α) = F(x) + α·x, and this is F
    def attention(block, x):
        return block.attn(block.norm1(x))

    @residual
    def mlp(block, x):
        return block.mlp(block.norm2(x))

    @register_adapter({name})
    def split(model):
        model.blocks = ReversibleChain(model.blocks, (attention, mlp))

The network's forward must then call self.blocks(x) once, not its blocks one by one."""
