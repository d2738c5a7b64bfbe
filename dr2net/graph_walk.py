"""Which parameters a module's run used, told by its autograd graph."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from .arguments import Arguments
from .replay import Inventory

__all__ = ["parameters_behind", "refuse_lost_gradients", "refuse_tensors_from_forward"]


def parameters_behind(
    output: Tensor, inputs: Sequence[Tensor], outside: Sequence[Tensor], call: Any
) -> list[int]:
    """The ids of the parameters that ``output`` depends on.

    Args:
        inputs: where the graph of the module begins: views of its own.
        outside: what they are views of.
        call: a ``call.Call``, whose name and inventory these are.

    Raises:
        RuntimeError: it depends on a leaf that is neither a parameter nor an input, or on an input
            by another way, so that a gradient would be lost.
    """
    beside: set[Any] = {t.grad_fn for t in outside if t.requires_grad}
    ends: set[Any] = {t.grad_fn for t in inputs if t.requires_grad}
    ends |= beside
    # What is no leaf itself (parameters put in by functional_call) has its history elsewhere.
    made: dict[Any, int] = {p.grad_fn: id(p) for p in call.inventory.made}
    ends.update(made)
    leaves, left = walk(output.grad_fn or get_gradient_edge(output).node, ends)
    beside.discard(None)  # of leaves, which are told by themselves
    if not left.isdisjoint(beside):
        raise RuntimeError(
            f"{call.name} used a tensor that was made of one of its inputs outside of it (by the "
            "network's loop, or a hook on the block), so that the gradient would be lost: make it "
            "inside the block, or pass it as an argument."
        )
    for leaf in leaves:
        if id(leaf) not in call.inventory.ids:
            raise RuntimeError(
                f"{call.name} used a tensor of shape {tuple(leaf.shape)} that requires a gradient "
                "and is neither a parameter of its block nor an argument of the chain, so that the "
                "gradient would be lost. Register it in the block, or pass it: chain(x, tensor)."
            )
    return [*map(id, leaves), *(made[node] for node in left if node in made)]


def refuse_lost_gradients(
    end: GradientEdge | None,
    leaves: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    used: Sequence[Tensor],
    block: nn.Module,
    name: str,
) -> None:
    """Raises RuntimeError if a parameter that forward used had no part in the recomputation.

    Args:
        end: of the recomputation's graph.
        leaves: what stood for the parameters ``used`` in it, and got the gradients ``grads``.
        block, name: of the coupling, for the message.
    """
    reached = set() if end is None else set(map(id, walk(end.node)[0]))
    for leaf, parameter, grad in zip(leaves, used, grads, strict=True):
        if grad is None and id(leaf) not in reached:  # else a function returned none
            names = (name for name, p in block.named_parameters() if p is parameter)
            raise RuntimeError(
                f"{name} used its parameter {next(names, 'of another name by now')!r} in forward "
                "and not when it was recomputed in backward, so that its gradient would be lost: "
                "something else was switched on in between (another adapter, a frozen parameter). "
                "Run backward before you switch, or call dr2net.set_reversible(model, False)."
            )


def refuse_tensors_from_forward(
    end: GradientEdge,
    inputs: Sequence[Tensor],
    inventory: Inventory,
    arguments: Arguments,
    name: str,
) -> None:
    """Raises RuntimeError if a recomputation used what an argument has kept of forward.

    A cache of keys and values, for example, which forward fills and the recomputation finds full:
    the output may be the same, but the gradient would leave by forward's graph.
    """
    for leaf in walk(end.node)[0]:
        if id(leaf) not in inventory.ids and all(leaf is not tensor for tensor in inputs):
            kinds = ", ".join(sorted(kind.__name__ for kind in arguments.objects))
            raise RuntimeError(
                f"{name} was recomputed with tensors that an argument of it ({kinds}) has kept "
                "since forward, so that gradients would be lost: train without it (language "
                "models: use_cache=False), or call dr2net.set_reversible(model, False)."
            )


def walk(root: Node, ends: Collection[Node] = ()) -> tuple[list[Tensor], set[Node]]:
    """The leaves that the graph behind ``root`` leads to, and the ``ends`` where it is left."""
    if root in ends:
        return [], {root}
    leaves: list[Tensor] = []
    waiting, seen, left = [root], {root}, set()
    while waiting:
        node = waiting.pop()
        following = node.next_functions
        if not following and (leaf := getattr(node, "variable", None)) is not None:
            leaves.append(leaf)
        for other, _ in following:
            if other is None or other in seen:
                continue
            seen.add(other)
            if other in ends:
                left.add(other)
            else:
                waiting.append(other)
    return leaves, left
