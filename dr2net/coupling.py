"""Couplings as autograd nodes, with activations rebuilt in backward or stored.

Each coupling is one node, so that the gradients of its parameters leave as soon as they are known
(to the hooks of DDP, for example). The nodes of one pass through a chain share a ``Pass``.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge, saved_tensors_hooks

from .arithmetic import combine_gradients
from .block_state import BlockState
from .distributed import after_couplings, before_couplings
from .replay import RandomState, run_recorded, run_replayed
from .streams import Pass
from .tokenwise import Slices

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
    slices = this_pass.slices(index, x)
    if slices is None:
        output = this_pass.call(index, for_module, side)
    else:
        output = _stored_slices(this_pass, index, slices, for_module, side)
    return _StoredCoupling.apply(this_pass, output, for_y, y)


def _stored_slices(
    this_pass: Pass, index: int, slices: Slices, x: Tensor, side: Sequence[Tensor]
) -> Tensor:
    """The module's output, so stored that parameters' gradients are summed as when rebuilt.

    That is over each slice first, over the slices from the last to the first, and only then over
    couplings that share a parameter. Views of views have autograd do so.
    """
    block, _ = this_pass.couplings[index]
    state, name = BlockState(block), this_pass.coupling_names[index]
    of_coupling = {id(parameter): parameter[...] for parameter, _ in state.parameters}
    state.keep_what_matters(())
    outputs = []
    for part, mask in zip(slices.cut(x), slices.masks(), strict=True):
        of_slice = {key: parameter[...] for key, parameter in of_coupling.items()}
        with state.put_back(name, of_slice):
            outputs.append(this_pass.call(index, part, side, mask))
    return slices.join(outputs)


def _rebuilt_coupling(
    this_pass: Pass, index: int, begins: bool, ends: bool, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    block, _ = this_pass.couplings[index]
    side, block_state = this_pass.side, BlockState(block)
    # With gradients on and the same inputs requiring them as in backward, so that PyTorch chooses
    # the same kernels. The graph made here is dropped at once: what it saves is not for the hooks
    # that the user may have set (to offload, to count).
    name = this_pass.coupling_names[index]
    refuse = partial(_refuse_use_outside, name)
    slices = this_pass.slices(index, x)
    with torch.enable_grad(), saved_tensors_hooks(_keep_nothing, refuse):
        leaves = [_Inside.apply(name, tensor) for tensor in (x, *side)]
        version = x._version  # which leaves[0] shares
        output, random_states = _run_recorded(this_pass, index, slices, leaves[0], leaves[1:])
    if x._version != version:
        raise RuntimeError(
            f"{name} changed its input, the stream, by an inplace operation: it must leave it as "
            "it is and return a new tensor."
        )
    parameters = [parameter for parameter, _ in block_state.parameters]
    used = _used_parameters(output, leaves, parameters, name)
    block_state.keep_what_matters(used)
    output = output.detach()
    if not used and not any(leaf.requires_grad for leaf in leaves):
        # Before the first coupling that needs a gradient there is nothing to rebuild.
        with torch.no_grad():
            x, y, _ = this_pass.advance(output, keep_remainder=False)
        return x, y
    if begins or not x.requires_grad:
        this_pass.take_fingerprint(index)
    return _ReversibleCoupling.apply(
        this_pass,
        index,
        ends,
        output,
        slices,
        random_states,
        block_state,
        x,
        y,
        *side,
        *used,
    )


def _run_recorded(
    this_pass: Pass, index: int, slices: Slices | None, x: Tensor, side: Sequence[Tensor]
) -> tuple[Tensor, list[RandomState | None]]:
    """The module's output, and the random state that it, or each slice, started from."""
    call = partial(this_pass.call, index)
    if slices is None:
        output, state = run_recorded(partial(call, x, side), this_pass.device)
        return output, [state]
    outputs, states = [], []
    for part, mask in zip(slices.cut(x), slices.masks(), strict=True):
        output, state = run_recorded(partial(call, part, side, mask), this_pass.device)
        outputs.append(output)
        states.append(state)
    return slices.join(outputs), states


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
        slices: Slices | None,
        random_states: list[RandomState | None],
        block_state: BlockState,
        x: Tensor,
        y: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.this_pass, ctx.index, ctx.keeps_streams = this_pass, index, keeps_streams
        ctx.used = tensors[len(this_pass.side) :]
        ctx.output_dtype, ctx.slices = output.dtype, slices
        ctx.random_states, ctx.block_state = random_states, block_state
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
        needs_x, _, *needs_tensors = ctx.needs_input_grad[7:]
        side = list(map(_leaf_like, this_pass.side, needs_tensors))
        name = this_pass.coupling_names[index]
        # Parameters that functional_call made of others: the way on from them is not ours.
        made = {id(p): p.detach().requires_grad_() for p in ctx.used if not p.is_leaf}
        used = [made.get(id(p), p) for p in ctx.used]
        grads: list[Tensor | None] = [None] * (1 + len(side) + len(used))
        with ctx.block_state.put_back(name, made) as buffers:
            if ctx.slices is None:
                x.requires_grad_(needs_x)
                output = _recompute(ctx, x, side, None, ctx.random_states[0], buffers)
                this_pass.retreat(index, stream, output)
                if grad_x is not None and output.requires_grad:
                    # The module's backward, where memory has its peak, needs the graph alone.
                    end = get_gradient_edge(output)
                    del output
                    grads = _gradients(end, (x, *side, *used), grad_x.to(ctx.output_dtype))
            else:
                grad_output = None if grad_x is None else grad_x.to(ctx.output_dtype)
                output, of_x, of_used = _slices_back(ctx, x, side, used, grad_output, buffers)
                grads = [of_x, *[None] * len(side), *of_used]
                this_pass.retreat(index, stream, output)
        if needs_x:
            grads[0] = combine_gradients(grads[0], grad_y, this_pass.arithmetic.beta)
        return *[None] * 7, grads[0], grad_x, *grads[1:]


def _recompute(
    ctx: Any,
    x: Tensor,
    side: Sequence[Tensor],
    drop_mask: Tensor | None,
    state: RandomState | None,
    buffers: list[Tensor],
) -> Tensor:
    call = partial(ctx.this_pass.call, ctx.index, x, side, drop_mask)
    with torch.enable_grad():
        return run_replayed(call, ctx.this_pass.device, state, buffers)


def _slices_back(
    ctx: Any,
    x: Tensor,
    side: list[Tensor],
    used: list[Tensor],
    grad_output: Tensor | None,
    buffers: list[Tensor],
) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
    """The module's output, the gradient of x, and those of the ``used`` parameters.

    The activations of one slice live at a time. Slices run in the order in which autograd would
    come to them, from the last to the first, so that sums over them are of the same bits.
    """
    slices, needs_x = ctx.slices, ctx.needs_input_grad[7]
    parts, masks = slices.cut(x), slices.masks()
    outputs: list[Tensor] = []
    grads_x: list[Tensor | None] = []
    sums: list[Tensor | None] = [None] * len(used)
    for i in reversed(range(len(parts))):
        part = parts[i].detach().requires_grad_(needs_x)
        output = _recompute(ctx, part, side, masks[i], ctx.random_states[i], buffers)
        outputs.insert(0, output.detach())
        grads_x.insert(0, None)
        if grad_output is not None and output.requires_grad:
            end = get_gradient_edge(output)
            del output
            grads_x[0], *found = _gradients(end, (part, *used), slices.cut(grad_output)[i])
            sums = list(map(_sum, sums, found))
            del found  # before the next slice has its own
    grad_x = None
    if any(grad is not None for grad in grads_x):
        pairs = zip(grads_x, parts, strict=True)
        grad_x = slices.join([torch.zeros_like(p) if g is None else g for g, p in pairs])
    return slices.join(outputs), grad_x, sums


def _sum(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """Their sum, in memory that is no gradient's own: several gradients can be one tensor."""
    if total is None or more is None:
        return total if more is None else more.clone()
    return total.add_(more)


def _gradients(
    end: GradientEdge, tensors: Sequence[Tensor], grad_output: Tensor
) -> list[Tensor | None]:
    """For each of the ``tensors`` its gradient, None where it needs none or has no part in it."""
    wanted = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
    inputs = [tensors[i] for i in wanted]
    with _tensor_hooks_suspended(inputs):
        found = torch.autograd.grad(end, inputs, grad_output, allow_unused=True)
    grads: list[Tensor | None] = [None] * len(tensors)
    for i, grad in zip(wanted, found, strict=True):
        grads[i] = grad
    return grads


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


@contextmanager
def _tensor_hooks_suspended(tensors: list[Tensor]) -> Iterator[None]:
    """Keeps hooks on parameters for the gradient that autograd will hand them, and them alone."""
    hooks = [tensor._backward_hooks for tensor in tensors]
    for tensor in tensors:
        tensor._backward_hooks = None
    try:
        yield
    finally:
        for tensor, hook in zip(tensors, hooks, strict=True):
            tensor._backward_hooks = hook


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
