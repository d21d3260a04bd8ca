"""Nodes of a graph, one at a time: which module one calls, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from torch import nn

from brevitas_axe.model.running import Batch, Graph


def is_node(value: Any) -> bool:
    """Whether an argument is a node of a graph."""
    return hasattr(value, "op") and hasattr(value, "users")


def called_module(model: Graph, node: Graph) -> nn.Module | None:
    """The module that a node calls; None for a node that calls none."""
    return model.get_submodule(node.target) if node.op == "call_module" else None


def inputs_of(model: Graph, batch: Batch) -> dict[Graph, Any]:
    """What the model's inputs are in one forward; their defaults where the batch leaves them out.

    Args:
        model: a graph.
        batch: arguments of the forward.
    """
    left, named = [*batch[0]], batch[1]
    found = {}
    for node in model.graph.nodes:
        if node.op == "placeholder":
            usual = node.args[0] if node.args else None
            found[node] = left.pop(0) if left else named.get(node.target, usual)
    return found


def result_of(model: Graph, node: Graph, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a node gives that is no input.

    Args:
        model: its graph, or a copy.
        node: the node.
        args, kwargs: its arguments, with values in the place of nodes.
    """
    if node.op == "get_attr":
        return attrgetter(node.target)(model)
    if node.op == "call_module":
        return model.get_submodule(node.target)(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    if node.op == "call_function":
        return node.target(*args, **kwargs)
    return args[0]  # of the output


def value_at(model: Graph, node: Graph, values: Mapping[Graph, Any]) -> Any:
    """What a node that is no input gives, with what the nodes before it gave."""

    def value(leaf: Any) -> Any:
        return values[leaf] if is_node(leaf) else leaf

    return result_of(model, node, mapped(node.args, value), mapped(node.kwargs, value))


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """A structure of arguments with a function of each leaf in its place."""
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(part, function) for part in value)
    if isinstance(value, dict):
        return {key: mapped(part, function) for key, part in value.items()}
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return slice(*(mapped(part, function) for part in parts))
    return function(value)
