"""`cost` prints what the cost room says, with and without the accumulator budget."""

from __future__ import annotations

import json

import pytest

from brevitas_axe import load
from brevitas_axe.cli import main
from brevitas_axe.methods.cost import layer_shapes, total_cost
from brevitas_axe.model.prepare import one_sample
from brevitas_axe.registry import method
from tests.cli.refusals import refused


def test_totals_are_those_of_the_plan(at, capsys) -> None:
    assert main(["cost", "solved", "--json", "--cost", "bops", "--cost", "finn_lut"]) == 0
    found = json.loads(capsys.readouterr().out)
    result = load("solved")
    assert result.example is not None
    shapes = layer_shapes(result.model, *one_sample(result.example))
    for name in ("bops", "finn_lut"):
        price = method("cost", name)
        assert found[name]["total"] == total_cost(price, result.plan, shapes)
        assert found[name]["unit"] == price.unit
        assert [row["layer"] for row in found[name]["layers"]] == list(shapes)
    assert found["finn_lut"]["total"] < found["finn_lut"]["unlimited_total"]
    assert found["bops"]["total"] == found["bops"]["unlimited_total"]


def test_the_table_has_a_column_pair_for_each_cost(at, capsys) -> None:
    assert main(["cost", "solved", "--cost", "memory"]) == 0
    out = capsys.readouterr().out
    assert "memory" in out
    assert out.count("without budget") == 2
    assert "next: brevitas-axe export" in out


def test_costs_of_some_layers_are_added_up(at, capsys) -> None:
    name = next(iter(load("solved").plan.layers))
    assert main(["cost", "solved", "--json", "--cost", "bops", "--include", name]) == 0
    [found] = json.loads(capsys.readouterr().out).values()
    [row] = found["layers"]
    assert row["layer"] == name
    assert row["cost"] == found["total"]
    assert main(["cost", "solved", "--exclude", name]) == 0
    assert "one sample, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--cost", "gold"], "gold"), (["--model", "user.py:nothing"], "no function named")],
)
def test_bad_options_are_one_sentence(at, capsys, options, says) -> None:
    assert says in refused(capsys, "cost", "solved", *options)
