"""Nodes of a graph give, one by one, what the model gives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.fx.node import map_aggregate

from brevitas_axe.model.nodes import called_module, inputs_of, is_node, result_of


class Net(nn.Module):
    """Every kind of node: inputs with and without a default, parameters, modules, functions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.gain = nn.Parameter(torch.rand(3))

    def forward(self, x: Tensor, shift: float = 2.0, *, factor: float = 3.0) -> Tensor:
        return (self.layer(x).relu() + torch.tanh(x) * self.gain) * factor - shift


def test_nodes_in_turn_give_what_the_model_gives() -> None:
    graph = symbolic_trace(Net())
    x = torch.rand(2, 3)
    values = inputs_of(graph, ((x,), {"factor": 5.0}))
    assert [values[node] for node in values if node.target != "x"] == [2.0, 5.0]
    for node in graph.graph.nodes:
        if node not in values:
            args, kwargs = (
                map_aggregate(part, lambda leaf: values[leaf] if is_node(leaf) else leaf)
                for part in (node.args, node.kwargs)
            )
            values[node] = result_of(graph, node, args, kwargs)
    assert torch.equal(values[node], graph(x, factor=5.0))


def test_the_module_that_a_node_calls() -> None:
    graph = symbolic_trace(Net())
    found = [called_module(graph, node) for node in graph.graph.nodes]
    assert [module for module in found if module is not None] == [graph.layer]
