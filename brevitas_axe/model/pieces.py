"""A quantized graph cut into pieces, each with some layers, that run one after the other.

Between two pieces only the values that are still needed are kept, so that a piece can run again
and again, with gradients, from what arrived there once. A model that is no graph is one piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx.node import map_aggregate

from brevitas_axe.model.nodes import inputs_of, is_node, result_of
from brevitas_axe.model.running import Batch, Graph, float_tensors

# Name of a value → the value.
Values = dict[str, Any]
_ARGUMENTS, _OUTPUT = "arguments", "output"


@dataclass(frozen=True, eq=False)
class Piece:
    """A run of operations of a graph, or a whole model.

    Attributes:
        layers: names of the layers that first run here.
        nodes: names of the operations; None for a whole model.
        needed: names of the values that are needed afterwards.
    """

    layers: tuple[str, ...]
    nodes: tuple[str, ...] | None
    needed: frozenset[str]

    def run(self, model: nn.Module, values: Mapping[str, Any]) -> Values:
        """The values after this piece, from those before it; of the model or of a copy of it."""
        if self.nodes is None:
            args, kwargs = values[_ARGUMENTS]
            return {_OUTPUT: model(*args, **kwargs)}
        found = dict(values)
        graph: Graph = model
        by_name = {node.name: node for node in graph.graph.nodes}
        for name in self.nodes:
            found[name] = _result(graph, by_name[name], found)
        return {name: value for name, value in found.items() if name in self.needed}

    def given(self, values: Mapping[str, Any]) -> list[torch.Tensor]:
        """The float tensors among the values that this piece has computed."""
        mine = (_OUTPUT,) if self.nodes is None else self.nodes
        return [t for name in mine if name in values for t in float_tensors(values[name])]


def _result(graph: Graph, node: Any, values: Mapping[str, Any]) -> Any:
    def value_of(leaf: Any) -> Any:
        return values[leaf.name] if is_node(leaf) else leaf

    args, kwargs = (map_aggregate(part, value_of) for part in (node.args, node.kwargs))
    return result_of(graph, node, args, kwargs)


def cut(model: nn.Module, layers: Sequence[str], whole: bool = False) -> list[Piece]:
    """Pieces that together compute the model, one for each run of layers with the same parent.

    What follows a layer up to the first layer with another parent belongs to its piece; a layer at
    the top is a piece by itself.

    Args:
        model: a graph, or any model.
        layers: names of the layers.
        whole: one piece, in any case.
    """
    graph: Graph = model
    # A graph of torch, or of Brevitas's copy of torch.fx.
    if whole or not hasattr(graph, "recompile"):
        return [Piece(tuple(layers), None, frozenset({_OUTPUT}))]
    nodes = [*graph.graph.nodes]
    starts: list[tuple[int, str]] = []
    members: dict[str, list[str]] = {}
    seen: set[str] = set()
    for index, node in enumerate(nodes):
        if node.op != "call_module" or node.target not in layers or node.target in seen:
            continue
        name: str = node.target
        seen.add(name)
        parent = name.rpartition(".")[0]
        if not starts or parent != starts[-1][1].rpartition(".")[0] or not parent:
            starts.append((index, name))
            members[name] = []
        members[starts[-1][1]].append(name)
    ends = [index for index, _ in starts[1:]] + [len(nodes)]
    place = {node.name: index for index, node in enumerate(nodes)}
    pieces, first = [], 0
    for (_, head), end in zip(starts, ends, strict=True):
        inside = [node for node in nodes[first:end] if node.op != "placeholder"]
        needed = {
            node.name
            for node in nodes[:end]
            if any(place[user.name] >= end for user in node.users) or node.op == "output"
        }
        names = tuple(node.name for node in inside)
        pieces.append(Piece(tuple(members[head]), names, frozenset(needed)))
        first = end
    return pieces


def arguments(model: nn.Module, piece: Piece, batch: Batch) -> Values:
    """The values in front of the first piece."""
    if piece.nodes is None:
        return {_ARGUMENTS: batch}
    return {node.name: value for node, value in inputs_of(model, batch).items()}
