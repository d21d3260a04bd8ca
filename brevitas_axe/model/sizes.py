"""Numbers that a forward computes beside its tensors, such as x.shape[1] // 2, out of the way.

Brevitas's graph quantization takes every node for a tensor: it would quantize sizes, and again what
nothing but x.size() reads. So these nodes are taken out of the graph, and put back afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from brevitas_axe.model.nodes import inputs_of, is_node, mapped, value_at
from brevitas_axe.model.running import Batch, Graph


class Seen(int):
    """What a node gave on a sample, in its place until it is back."""

    name: str

    @classmethod
    def of(cls, value: int, name: str) -> Seen:
        """The value with the name of its node."""
        seen = cls(value)
        seen.name = name
        return seen


@dataclass(frozen=True)
class _Taken:
    """A node that was taken out; arguments that were nodes are names."""

    name: str
    op: str
    target: Any
    args: tuple
    kwargs: dict


@dataclass(frozen=True)
class _Name:
    of: str


_TENSOR = object()
_CALLS = ("call_function", "call_method")


def set_sizes_aside(model: Graph, sample: Batch) -> Callable[[Graph], None]:
    """Takes nodes that give integers, and what only these read, out of a graph, in place.

    Args:
        model: a graph that runs.
        sample: to run it on.

    Returns:
        A function that puts them back into this graph, or into one that was made of it.
    """
    values = _values(model, sample)
    plain = {n for n, v in values.items() if v is not _TENSOR and n.op in _CALLS}
    for node in reversed(list(model.graph.nodes)):
        hidden = type(values.get(node)) is int  # others cannot stand in for themselves
        if node in plain and not hidden and any(user not in plain for user in node.users):
            plain.remove(node)
    taken = [
        _Taken(n.name, n.op, n.target, mapped(n.args, _named), mapped(n.kwargs, _named))
        for n in model.graph.nodes
        if n in plain
    ]

    def seen(value: Any) -> Any:
        return Seen.of(values[value], value.name) if is_node(value) and value in plain else value

    for node in model.graph.nodes:
        if node not in plain:
            node.args, node.kwargs = mapped(node.args, seen), mapped(node.kwargs, seen)
    for node in reversed(list(model.graph.nodes)):
        if node in plain:
            model.graph.erase_node(node)
    model.recompile()
    return lambda graph: _put_back(graph, taken)


def _values(model: Graph, sample: Batch) -> dict[Graph, Any]:
    """What every node gives; only that it is one, or several, for tensors."""
    found = inputs_of(model, sample)
    with torch.no_grad():
        for node in model.graph.nodes:
            if node.op not in ("placeholder", "output"):
                found[node] = value_at(model, node, found)
    return {node: _TENSOR if _holds_tensor(value) else value for node, value in found.items()}


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _named(value: Any) -> Any:
    return _Name(value.name) if is_node(value) else value


def _put_back(model: Graph, taken: list[_Taken]) -> None:
    nodes = {node.name: node for node in model.graph.nodes}
    order = {node: index for index, node in enumerate(model.graph.nodes)}
    first = next(iter(model.graph.nodes))
    back: dict[str, Graph] = {}
    # Of what is back: the node behind which it stands, and what stands last behind each.
    before: dict[Graph, Graph] = {}
    last: dict[Graph, Graph] = {}

    def node_of(leaf: Any) -> Any:
        name = leaf.name if isinstance(leaf, Seen) else getattr(leaf, "of", None)
        return leaf if name is None else back.get(name, nodes.get(name))

    for each in taken:
        args, kwargs = mapped(each.args, node_of), mapped(each.kwargs, node_of)
        read = [leaf for leaf in _leaves((args, kwargs)) if is_node(leaf)]
        # Right behind what it reads, and so before everything that reads it.
        place = max((before.get(n, n) for n in read), key=order.__getitem__, default=first)
        with model.graph.inserting_after(last.get(place, place)):
            node = model.graph.create_node(each.op, each.target, args, kwargs)
        back[each.name] = last[place] = node
        before[node] = place
    for node in model.graph.nodes:
        node.args, node.kwargs = mapped(node.args, node_of), mapped(node.kwargs, node_of)
    model.graph.lint()
    model.recompile()


def _leaves(value: Any) -> list[Any]:
    found: list[Any] = []
    mapped(value, found.append)
    return found
