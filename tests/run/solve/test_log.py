"""The figures of one solved layer, against sums written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from brevitas_axe.methods.solvers.problem import UNLIMITED, LayerProblem
from brevitas_axe.registry import method
from brevitas_axe.run.solve import log
from brevitas_axe.run.solve.log import describe

K, ROWS = 12, 3


def problem(bits: int | None) -> tuple[LayerProblem, torch.Tensor]:
    torch.manual_seed(0)
    inputs = torch.randn(K, 50, dtype=torch.float64)
    layer = LayerProblem(
        weight=torch.randn(1, ROWS, K, dtype=torch.float64),
        hessian=(inputs @ inputs.T / 50).unsqueeze(0),
        scale=torch.full((1, ROWS), 0.4, dtype=torch.float64),
        weight_low=-7,
        weight_high=7,
        input_low=-8,
        input_high=7,
        accumulator_bit_width=bits,
        tile_size=5,
    )
    return layer, inputs


@pytest.mark.parametrize("strip", [5, 128])
def test_errors_and_budget(monkeypatch: pytest.MonkeyPatch, strip: int) -> None:
    monkeypatch.setattr(log, "STRIP", strip)
    layer, inputs = problem(8)
    solution = method("solvers", "gptq")(layer)
    figures = describe(layer, solution)
    weight, x = layer.weight[0].numpy(), inputs.numpy()
    whole = np.square(weight @ x).sum()
    rounded = np.clip(np.round(weight / 0.4), -7, 7) * 0.4
    assert figures["error_rounded"] == pytest.approx(
        np.square((weight - rounded) @ x).sum() / whole
    )
    q = solution.integers[0].numpy()
    given = q * solution.scale[0].numpy()[:, None]
    assert figures["error"] == pytest.approx(np.square((weight - given) @ x).sum() / whole)
    sums = [
        max(np.maximum(-8 * t, 7 * t).sum(), np.maximum(8 * t, -7 * t).sum())
        for row in q
        for t in (row[:5], row[5:10], row[10:])
    ]
    assert figures["budget_used"] == max(sums) / 127
    assert figures["budget_used"] <= 1
    assert (figures["inputs"], figures["outputs"]) == (K, ROWS)


def test_the_budget_is_that_of_the_fullest_tile() -> None:
    layer, _ = problem(8)
    widths = torch.tensor([8, UNLIMITED, 9][: layer.tiles])
    layer = replace(layer, accumulator_bit_width=widths)
    solution = method("solvers", "gptq")(layer)
    q = solution.integers[0].numpy()
    used = [
        max(np.maximum(-8 * t, 7 * t).sum(), np.maximum(8 * t, -7 * t).sum()) / limit
        for row in q
        for t, limit in ((row[:5], 127), (row[10:], 255))
    ]
    assert describe(layer, solution)["budget_used"] == pytest.approx(max(used))


def test_no_limit_uses_no_budget() -> None:
    layer, _ = problem(None)
    assert describe(layer, method("solvers", "gptq")(layer))["budget_used"] is None
