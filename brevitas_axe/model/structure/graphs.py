"""Graphs of torch.fx, and of Brevitas's copy of it, as JSON."""

from __future__ import annotations

from typing import Any

from brevitas.backport.fx import GraphModule as BrevitasGraphModule
from torch import nn
from torch.fx import GraphModule

from brevitas_axe.errors import InvalidOption, InvalidState
from brevitas_axe.model.structure.names import function_name, function_of

_KINDS = (GraphModule, BrevitasGraphModule)
_OPERATIONS = ("placeholder", "get_attr", "call_module", "call_method", "call_function", "output")


def graph_class(module: nn.Module) -> type | None:
    """Which of the two kinds a module is; None for neither."""
    return next((kind for kind in _KINDS if isinstance(module, kind)), None)


def described_graph(module: Any, description: Any, where: str) -> dict[str, Any]:
    """The nodes of a graph, in order.

    Args:
        module: holds the graph.
        description: turns what is no node into JSON, by its method `value`.
        where: name of the module, for messages.
    """
    codegen = type(module.graph._codegen).__name__
    if codegen != "CodeGen":
        raise InvalidOption(f"the graph of {where or 'the model'} has code of its own ({codegen}).")
    nodes = []
    for node in module.graph.nodes:
        target = node.target
        if node.op == "call_function":
            target = function_name(target, f"the graph of {where or 'the model'}")
        nodes.append(
            {
                "name": node.name,
                "op": node.op,
                "target": target,
                "args": _described(node.args, description, where),
                "kwargs": _described(node.kwargs, description, where),
            }
        )
    return {"name": type(module).__name__, "nodes": nodes}


def _described(value: Any, description: Any, where: str) -> Any:
    """As the description's own values, with nodes by name; torch.fx's containers are plain ones."""
    if hasattr(value, "op") and hasattr(value, "users"):
        return {"node": value.name}
    if isinstance(value, dict):
        return {"dict": [[k, _described(v, description, where)] for k, v in value.items()]}
    if isinstance(value, list):
        return [_described(item, description, where) for item in value]
    if type(value) is tuple:
        return {"tuple": [_described(item, description, where) for item in value]}
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return {"slice": [_described(part, description, where) for part in parts]}
    return description.value(value, where)


def fill_graph(module: Any, content: dict[str, Any], building: Any) -> None:
    """Gives a module the graph that `described_graph` wrote.

    Args:
        module: has its children and an empty graph.
        content: what was written.
        building: turns JSON into values, by its method `value`.

    Raises:
        InvalidState: a graph that does more than compute.
    """
    graph = type(module.graph)()
    nodes: dict[str, Any] = {}

    def found(value: Any) -> Any:
        if isinstance(value, list):
            return [found(item) for item in value]
        if isinstance(value, dict):
            [(kind, inner)] = value.items()
            if kind == "node":
                return nodes[inner]
            if kind == "dict":
                return {key: found(item) for key, item in inner}
            if kind == "tuple":
                return tuple(found(item) for item in inner)
            if kind == "slice":
                return slice(*(found(item) for item in inner))
        return building.value(value)

    for entry in content["nodes"]:
        op, target, args = entry["op"], entry["target"], found(entry["args"])
        if op not in _OPERATIONS or not isinstance(target, str):
            raise InvalidState(f"the saved graph has a node '{entry['name']}' that is none.")
        if op == "call_function":
            target = function_of(target)
        names = [target] if op == "call_method" else args[1:2] if target is getattr else []
        if any(not isinstance(name, str) or name.startswith("_") for name in names):
            raise InvalidState(f"the saved graph's node '{entry['name']}' reads what is private.")
        node = graph.create_node(op, target, args, found(entry["kwargs"]), entry["name"])
        nodes[entry["name"]] = node
    module.graph = graph
    module.recompile()
