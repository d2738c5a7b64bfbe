"""Couplings as autograd nodes, with activations rebuilt in backward or stored.

Each coupling is one node, so that the gradients of its parameters leave as soon as they are known
(to the hooks of DDP, for example). The nodes of one pass through a chain share a ``Pass``.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge, saved_tensors_hooks

from .arithmetic import combine_gradients
from .distributed import after_couplings, before_couplings
from .recomputation import Recomputation, run_stored
from .streams import Pass

__all__ = ["coupling_values"]


class _Start(torch.autograd.Function):
    """x → (x_0, y_0)."""

    @staticmethod
    def forward(ctx: Any, this_pass: Pass, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.beta = this_pass.arithmetic.beta
        return this_pass.start(x)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, grad_y: Tensor | None) -> tuple:
        return None, combine_gradients(grad_x, grad_y, ctx.beta)


def coupling_values(
    this_pass: Pass, x: Tensor, rebuilt: Sequence[bool], outputs: Container[int]
) -> Iterator[Tensor]:
    """Yields the stream x after each coupling.

    Args:
        x: what enters the first coupling.
        rebuilt: for each coupling, whether backward rebuilds its input and recomputes its module;
            autograd stores what it needs of the others, which are the reference.
        outputs: the couplings whose x leaves the chain.
    """
    x, y = _Start.apply(this_pass, x)
    blocks = [block for block, _ in this_pass.couplings]
    last = len(blocks) - 1
    for index, block in enumerate(blocks):
        if index == 0 or block is not blocks[index - 1]:
            x, y = before_couplings(block, x, y)
        if not rebuilt[index]:
            x, y = _stored_coupling(this_pass, index, x, y)
        else:
            begins = index == 0 or not rebuilt[index - 1]
            ends = index in outputs or index == last or not rebuilt[index + 1]
            x, y = _rebuilt_coupling(this_pass, index, begins, ends, x, y)
        if index == last or block is not blocks[index + 1]:
            x, y = after_couplings(block, x, y)
        yield x


def _stored_coupling(this_pass: Pass, index: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    for_module, for_y = _Split.apply(this_pass.arithmetic.beta, x)
    # Views, so that gradients of side inputs are summed coupling by coupling. [...] and not
    # view_as, which may give other strides, by which kernels are chosen.
    # The last is made first, as backward reaches views in the reverse order: a tensor given twice
    # has its gradients summed in the order of the recomputation.
    side = [
        tensor[...] if tensor.layout == torch.strided else tensor.clone()  # sparse: has no views
        for tensor in reversed(this_pass.side)
    ][::-1]
    output = run_stored(this_pass, index, for_module, side)
    return _StoredCoupling.apply(this_pass, output, for_y, y)


def _rebuilt_coupling(
    this_pass: Pass, index: int, begins: bool, ends: bool, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    side, recomputation = this_pass.side, Recomputation(this_pass, index, x)
    # With gradients on and the same inputs requiring them as in backward, so that PyTorch chooses
    # the same kernels. The graph made here is dropped at once: what it saves is not for the hooks
    # that the user may have set (to offload, to count).
    name = this_pass.coupling_names[index]
    refuse = partial(_refuse_use_outside, name)
    with torch.enable_grad(), saved_tensors_hooks(_keep_nothing, refuse):
        leaves = [_Inside.apply(name, tensor) for tensor in (x, *side)]
        version = x._version  # which leaves[0] shares
        output = recomputation.run(leaves[0], leaves[1:])
    if x._version != version:
        raise RuntimeError(
            f"{name} changed its input, the stream, by an inplace operation: it must leave it as "
            "it is and return a new tensor."
        )
    parameters = [parameter for parameter, _ in recomputation.block_state.parameters]
    used = _used_parameters(output, leaves, parameters, name)
    recomputation.block_state.keep_what_matters(used)
    output = output.detach()
    if not used and not any(leaf.requires_grad for leaf in leaves):
        # Before the first coupling that needs a gradient there is nothing to rebuild.
        with torch.no_grad():
            x, y, _ = this_pass.advance(output, keep_remainder=False)
        return x, y
    if begins or not x.requires_grad:
        this_pass.take_fingerprint(index)
    return _ReversibleCoupling.apply(
        this_pass, index, ends, output, recomputation, x, y, *side, *used
    )


class _Inside(torch.autograd.Function):
    """What a module is given in forward; only its recomputation may be differentiated."""

    @staticmethod
    def forward(ctx: Any, coupling: str, x: Tensor) -> Tensor:
        ctx.coupling = coupling
        return x.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> NoReturn:
        _refuse_use_outside(ctx.coupling, grad)


class _Split(torch.autograd.Function):
    """The input of a stored coupling, once for its module and once for the stream y."""

    @staticmethod
    def forward(ctx: Any, beta: float, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.beta = beta
        return x.detach(), x.detach()

    @staticmethod
    def backward(ctx: Any, grad_module: Tensor | None, grad_y: Tensor | None) -> tuple:
        return None, combine_gradients(grad_module, grad_y, ctx.beta)


class _StoredCoupling(torch.autograd.Function):
    """(module output, x, y) → (x', y'), the straight-through derivative of the arithmetic."""

    @staticmethod
    def forward(ctx: Any, this_pass: Pass, output: Tensor, x: Tensor, y: Tensor) -> tuple:
        ctx.set_materialize_grads(False)
        ctx.output_dtype = output.dtype
        return this_pass.advance(output, keep_remainder=False)[:2]

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, grad_y: Tensor | None) -> tuple:
        grad_output = None if grad_x is None else grad_x.to(ctx.output_dtype)
        return None, grad_output, grad_y, grad_x  # _Split multiplies grad_y by β


class _ReversibleCoupling(torch.autograd.Function):
    """(x, y, side inputs, used parameters) → (x', y'), keeping no more than the remainder.

    A coupling from which backward starts to rebuild also keeps the pair of streams after it: its x'
    leaves the chain, or the next coupling is stored.
    """

    @staticmethod
    def forward(
        ctx: Any,
        this_pass: Pass,
        index: int,
        keeps_streams: bool,
        output: Tensor,
        recomputation: Recomputation,
        x: Tensor,
        y: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.this_pass, ctx.index, ctx.keeps_streams = this_pass, index, keeps_streams
        ctx.recomputation, ctx.used = recomputation, tensors[len(this_pass.side) :]
        x, y, remainder = this_pass.advance(output, keep_remainder=True)
        streams = this_pass.keep_streams() if keeps_streams else ()
        ctx.save_for_backward(remainder, *streams)
        return x, y

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, grad_y: Tensor | None) -> tuple:
        this_pass, index = ctx.this_pass, ctx.index
        _refuse_gradient_modes(this_pass)
        remainder, *streams = ctx.saved_tensors
        if ctx.keeps_streams:
            this_pass.restart_backward(index, *streams)
        stream, x = this_pass.rebuild(index, remainder)
        needs_x, _, *needs_tensors = ctx.needs_input_grad[5:]
        x.requires_grad_(needs_x)
        side = map(_leaf_like, this_pass.side, needs_tensors)
        of_x, *grads = ctx.recomputation.run_back(stream, [x, *side], ctx.used, grad_x)
        if needs_x:
            of_x = combine_gradients(of_x, grad_y, this_pass.arithmetic.beta)
        return *[None] * 5, of_x, grad_x, *grads


def _used_parameters(
    output: Tensor, inputs: list[Tensor], parameters: list[Tensor], name: str
) -> list[Tensor]:
    """The ``parameters`` that ``output`` depends on with a gradient, in their order.

    Only they become inputs of the coupling: DDP and others tell by the graph which are used.

    Raises:
        RuntimeError: the output depends on a leaf that is neither among them nor among ``inputs``.
            Its gradient would be lost, as the graph that leads to it exists only during
            recomputation.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    known = {id(tensor) for tensor in (*inputs, *trained)}
    # What is no leaf itself (parameters put in by functional_call) has its history elsewhere.
    ends = {tensor.grad_fn for tensor in (*inputs, *trained) if tensor.grad_fn is not None}
    leaves, seen = set(), set()
    waiting: list[Node | None] = [get_gradient_edge(output).node] if output.requires_grad else []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in ends:
            continue
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            raise RuntimeError(
                f"{name} used a tensor of shape {tuple(leaf.shape)} that requires a gradient and "
                "is neither a parameter of its block nor an argument of the chain, so that the "
                "gradient would be lost. Register it in the block, or pass it: chain(x, tensor)."
            )
        leaves.add(id(leaf))
        waiting.extend(following for following, _ in node.next_functions)
    return [p for p in trained if (id(p) in leaves if p.is_leaf else p.grad_fn in seen)]


def _keep_nothing(_: Any) -> Any:
    """Packs a tensor of a graph that is never run backward: an output kept would be a cycle."""
    return None


def _refuse_use_outside(coupling: str, _: Any) -> NoReturn:
    raise RuntimeError(
        f"A tensor that {coupling} made in forward, other than its output, was differentiated (an "
        "auxiliary loss, a cached weight, autograd.grad within the module): its activations are "
        "rebuilt, not stored. Return it through the stream, or keep this block: "
        "dr2net.set_reversible(model, True, keep=[...])."
    )


def _leaf_like(tensor: Tensor, needs_gradient: bool) -> Tensor:
    """A leaf with the values of ``tensor``."""
    return tensor.detach().requires_grad_(needs_gradient)


def _refuse_gradient_modes(this_pass: Pass) -> None:
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{this_pass.name} is reversible and cannot run backward under torch.inference_mode, "
            "where nothing recomputed gets a gradient: leave it first."
        )
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{this_pass.name} is reversible and has no second derivative "
            "(create_graph=True): call dr2net.set_reversible(model, False) for it."
        )
