"""More bits for some output rows: which rows, and what they save."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.splits.layers import float_problem
from brevitas_axe.methods.splits.row_importance import row_errors, row_importance
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import method

WIDTHS = LayerPrecision(weight=3, input=6)


def problem(seed: int, rows: int = 40):
    torch.manual_seed(seed)
    layer = nn.Linear(24, rows)
    layer.weight.data *= torch.rand(rows, 1) ** 2 * 4
    x = torch.randn(256, 24) @ torch.randn(24, 24) / 5
    return float_problem("fc", layer, WIDTHS, x), x


def error_of(branches, given) -> float:
    hessian = given.hessian[0].double()
    return sum(
        float(row_errors(b.weight.double(), hessian, b.precision.weight).sum()) for b in branches
    )


def test_the_error_of_a_row_is_that_of_its_rounded_weights() -> None:
    given, x = problem(0)
    weight = given.weight[0]
    scale = weight.abs().amax(1, keepdim=True) / 3
    rounded = (weight / scale).round().clamp(-3, 3) * scale
    wanted = ((rounded - weight) @ x.T).square().mean(1)
    found = row_errors(weight.double(), given.hessian[0].double(), 3)
    assert torch.allclose(found.float(), wanted, rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_importance_beats_random_and_its_inverse_at_equal_bits(seed: int) -> None:
    given, x = problem(seed)
    branches = row_importance(given, WIDTHS, x)
    assert [branch.name for branch in branches] == ["more", "rest", "fewer"]
    bits = [b.precision.weight for b in branches for _ in range(len(b.weight))]
    assert sum(bits) == 3 * 40
    ours, weight = error_of(branches, given), given.weight[0]
    whole = float(row_errors(weight.double(), given.hessian[0].double(), 3).sum())
    assert ours < 0.8 * whole
    rows = {branch.name: branch.rows for branch in branches}
    errors = {w: row_errors(weight.double(), given.hessian[0].double(), w) for w in (2, 3, 4)}

    def with_rows(more, fewer) -> float:
        width = torch.full((40,), 3)
        width[more], width[fewer] = 4, 2
        return float(sum(errors[int(w)][row] for row, w in enumerate(width)))

    assert with_rows(rows["more"], rows["fewer"]) == pytest.approx(ours)
    assert ours < with_rows(rows["fewer"], rows["more"])
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        order = torch.randperm(40, generator=generator)
        assert ours < with_rows(order[:10], order[10:20])


def test_a_layer_whose_rows_are_alike_stays_whole() -> None:
    given, x = problem(0)
    alike = replace(given, weight=given.weight[:, :1].expand(1, 40, 24))
    assert len(row_importance(alike, WIDTHS, x)) == 1


def test_bits_can_be_added_without_taking_any_away() -> None:
    given, x = problem(0)
    branches = method("splits", "row_importance:share=0.1,more=4,fewer=0")(given, WIDTHS, x)
    assert [(b.name, len(b.weight), b.precision.weight) for b in branches] == [
        ("more", 4, 7),
        ("rest", 36, 3),
    ]


def test_bad_options_are_named() -> None:
    for option in ("share=1.5", "more=0", "fewer=-1"):
        with pytest.raises(InvalidOption, match="RowImportance must be"):
            method("splits", f"row_importance:{option}")
