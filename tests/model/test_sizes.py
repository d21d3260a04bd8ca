"""Sizes that are set aside come back in an order in which the graph runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace

from brevitas_axe.model.sizes import set_sizes_aside

X = torch.arange(24.0).reshape(2, 3, 4)


class ReadsSizes(nn.Module):
    """Sizes of sizes: each reads another, and two that stand behind the same tensor."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        half = x.shape[2] // 2
        twice = half * 4
        rows = x.shape[1]
        return x.reshape(-1, rows * half // half, twice - half * 2)


def test_sizes_that_read_sizes_come_back_behind_them() -> None:
    graph = symbolic_trace(ReadsSizes())
    put_back = set_sizes_aside(graph, ((X,), {}))
    assert not any(node.target is getattr for node in graph.graph.nodes)
    assert torch.equal(graph(X), ReadsSizes()(X))
    put_back(graph)
    longer = torch.arange(48.0).reshape(2, 4, 6)
    assert torch.equal(graph(longer), ReadsSizes()(longer))
