"""Traces of the Hessian by random probes."""

from __future__ import annotations

import pytest
import torch

from brevitas_axe.methods.sensitivity.hutchinson import block_traces


def test_traces_are_those_of_the_hessian() -> None:
    torch.manual_seed(0)
    root = torch.randn(5, 5, dtype=torch.float64)
    x = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    loss = 0.5 * (root @ x).square().sum()
    (trace,) = block_traces(loss, [x], 4000, torch.Generator().manual_seed(0))
    assert trace == pytest.approx(float((root.T @ root).trace()), rel=0.05)
    diagonal = 0.5 * (x.square() * torch.arange(5)).sum()
    assert block_traces(diagonal, [x], 1, torch.Generator().manual_seed(0)) == [10.0]
