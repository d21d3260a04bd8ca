"""The table of savings: both sides at the same widths and folding, but for the accumulator."""

from __future__ import annotations

import pytest
import torch
from brevitas import nn as qnn
from torch import nn

from brevitas_axe.accumulator import datatype_bound
from brevitas_axe.errors import InvalidOption, InvalidPlan
from brevitas_axe.methods.cost import (
    Estimate,
    Folding,
    LayerShape,
    estimate,
    resource_rows,
    resource_table,
)
from brevitas_axe.plan import LayerPrecision, Plan

SHAPES = {
    "conv": LayerShape("conv", "dense", 27, 8, 64, 1, (3, 3), 3, output_bits=4),
    "fc": LayerShape("fc", "dense", 60, 10, 1, channels=60),
}
PLAN = Plan({"conv": LayerPrecision(4, 4, 9), "fc": LayerPrecision(4, 4, 8, 16)})
FOLDINGS = {"conv": Folding(4, 9), "fc": Folding(2, 6)}


def test_rows_and_totals() -> None:
    table = resource_table(PLAN, SHAPES, FOLDINGS)
    assert [row.name for row in table.rows] == ["conv", "fc"]
    conv, fc = table.rows
    assert (conv.accumulator, conv.unlimited) == (9, datatype_bound(27, 4, 4, False))
    assert (fc.accumulator, fc.unlimited) == (10, datatype_bound(60, 4, 4, False))
    for row in table.rows:
        shape, folding = SHAPES[row.name], FOLDINGS[row.name]
        assert row.folding == folding
        assert row.planned == estimate(shape, PLAN[row.name], folding)
        assert row.unplanned == estimate(shape, LayerPrecision(4, 4), folding)
        assert row.planned.lut < row.unplanned.lut
        assert row.planned.cycles == row.unplanned.cycles
    assert table.planned == Estimate.total([conv.planned, fc.planned])
    assert table.unplanned == Estimate.total([conv.unplanned, fc.unplanned])


def test_a_plan_without_accumulators_saves_nothing() -> None:
    table = resource_table(Plan.uniform(SHAPES, LayerPrecision(4, 4)), SHAPES)
    assert table.planned == table.unplanned
    assert all(row.folding == Folding() for row in table.rows)


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(InvalidPlan, match="no precision for fc"):
        resource_table(Plan({"conv": PLAN["conv"]}), SHAPES)
    with pytest.raises(InvalidPlan, match="fc"):
        resource_table(PLAN, {"conv": SHAPES["conv"]})
    with pytest.raises(InvalidOption, match="layer 'fc' has no folding"):
        resource_table(PLAN, SHAPES, {"conv": FOLDINGS["conv"]})


def test_rows_of_a_model_for_its_report() -> None:
    model = nn.Sequential(
        qnn.QuantIdentity(bit_width=4, return_quant_tensor=True),
        qnn.QuantLinear(60, 10, weight_bit_width=4),
    )
    x = torch.randn(8, 60)
    model(x)
    [row] = resource_rows(model.eval(), (x[:1],), Plan({"1": LayerPrecision(accumulator=9)}))
    assert row["name"] == "1"
    assert (row["accumulator"], row["unlimited_accumulator"]) == (9, datatype_bound(60, 4, 4, True))
    assert 0 < row["lut"] < row["unlimited_lut"]
    assert resource_rows(model, (x[:1],), Plan({}), exclude=("1",)) == []
