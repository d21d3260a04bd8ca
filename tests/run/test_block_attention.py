"""Blocks whose attention products are integers within an accumulator."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from brevitas_axe import finetune, load, save
from brevitas_axe.errors import (
    AccumulatorTooNarrow,
    InvalidOption,
    InvalidPlan,
    UnsupportedLayer,
)
from brevitas_axe.model.attention_products import attention_products, products_plan
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.recipe import Run
from brevitas_axe.run.allocate import allocate
from brevitas_axe.run.costs import costs_of
from brevitas_axe.run.quantize import quantize
from brevitas_axe.run.result import QuantizeResult
from tests.run.solved import P, solve
from tests.run.tiny import batches, tiny

# Keywords of `solve` where a plan has the accumulators.
NO_LIMIT = {"accumulator_bit_width": None, "tile_size": None}


@cache
def solved_vit() -> QuantizeResult:
    """Not to be changed."""
    return solve("vit", attention="quantized")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "vit"])
def test_both_products_of_every_attention_are_proven(kind: str) -> None:
    result = solve(kind, attention="quantized")
    proven = {entry.name: entry for entry in result.certificate.require().judged}
    planned = products_plan(result.model).layers
    assert len(planned) == 4
    for name, widths in planned.items():
        entry = proven[name]
        # Head size 8; 12 tokens, or 4 patches and the class token.
        assert entry.inputs == (8 if name.endswith("scores") else {"vit": 5}.get(kind, 12))
        assert widths.accumulator == entry.target == P
        signed = name.endswith("scores")
        left = 2 ** (widths.input - 1) if signed else 2**widths.input - 1
        worst = entry.inputs * left * 2 ** (widths.weight - 1)
        # Scores are largest where both integers are the most negative ones.
        assert (entry.maximum if signed else -entry.minimum) == worst <= 2 ** (P - 1) - 1
    assert "attention products: Plan(4 layers" in repr(result)


def test_a_saved_result_has_its_products_again(tmp_path: Path) -> None:
    result = solved_vit()
    again = load(save(result, tmp_path / "saved"), tiny("vit"))
    assert products_plan(again.model) == products_plan(result.model)
    x = batches("vit")[0]
    with torch.no_grad():
        mine, other = (r.model(x).last_hidden_state for r in (result, again))
    assert torch.equal(mine, other)
    assert again.certificate.require().ok


def test_products_keep_their_proof_in_training() -> None:
    result = solve("vit", attention="quantized")
    tuned = finetune(
        result,
        batches("vit"),
        epochs=1,
        loss=lambda output, _: output.last_hidden_state.square().mean(),
        progress=False,
    )
    proven = {entry.name: entry for entry in tuned.certificate.require().judged}
    assert {proven[name].target for name in products_plan(result.model).layers} == {P}


def test_a_plan_names_the_accumulator_of_one_product(tmp_path: Path) -> None:
    uniform = solved_vit()
    [scores, context, *_] = products_plan(uniform.model).layers
    plan = Plan({"layers.0.attention.v_proj": uniform.plan["layers.0.attention.v_proj"]})
    plan = Plan({**plan.layers, scores: LayerPrecision(accumulator=P + 4)})
    result = solve("vit", plan=plan, attention="quantized", **NO_LIMIT)
    proven = {entry.name: entry for entry in result.certificate.require().judged}
    assert proven[scores].target == P + 4
    # 8 products of 8 bits each fit 18 bits; 14 do not hold them.
    assert (result.plan[scores].weight, result.plan[scores].input) == (8, 7)
    assert proven[context].target == P
    assert set(result.plan.layers) == set(plan.layers)
    again = load(save(result, tmp_path / "saved"), tiny("vit"))
    assert again.plan == result.plan
    assert products_plan(again.model) == products_plan(result.model)
    with pytest.raises(InvalidPlan, match="attention to quantized"):
        solve("vit", plan=plan, **NO_LIMIT)
    stray = Plan({**uniform.plan.layers, "b.attention_products.scores": LayerPrecision()})
    with pytest.raises(InvalidPlan, match="in no block"):
        solve("vit", plan=stray, attention="quantized", **NO_LIMIT)


def test_costs_of_products_are_told_and_kept_within_a_budget() -> None:
    result = solved_vit()
    costs, refusals = costs_of(result, ["macs_accumulator", "memory", "finn_lut"])
    assert not refusals
    rows = {name: {r.layer: r for r in found.layers} for name, found in costs.items()}
    products = products_plan(result.model).layers
    # One picture of 5 tokens; each of the 4 heads multiplies 5 times 8 by 8 times 5 numbers.
    for name, widths in products.items():
        row = rows["macs_accumulator"][name]
        assert row.cost == 800 * (widths.weight * widths.input + row.accumulator)
        assert rows["memory"][name].cost == 0 < rows["finn_lut"][name].cost
    first = [name for name in rows["memory"] if name.startswith("layers.0.")]
    budget = {"macs_accumulator": sum(rows["macs_accumulator"][name].cost for name in first)}
    found = allocate(
        tiny("vit"),
        batches("vit"),
        budget,
        {"weight": [2, 4], "input": [4, 8], "accumulator": [P]},
        scorer="importance",
        exclude=("embeddings", "pooler", "layers.1"),
        attention="quantized",
        run=Run(progress=False),
    )
    again = solve("vit", plan=found.plan, attention="quantized", **NO_LIMIT)
    spent = costs_of(again, list(budget))[0]["macs_accumulator"]
    alone = sum(row.cost for row in spent.layers if row.layer not in products)
    # At most what was counted, which is the dearest division of bits between both operands.
    assert alone < spent.total <= found.costs["macs_accumulator"] <= budget["macs_accumulator"]
    with pytest.raises(InvalidOption, match="count as they are"):
        allocate(result.model, batches("vit"), budget, attention="quantized")


def test_widths_that_are_chosen_count_products(monkeypatch) -> None:
    given = {}

    def best_widths(*_, attention, **__) -> QuantizeResult:
        given.update(attention)
        return solved_vit()

    monkeypatch.setattr("brevitas_axe.run.quantize_blocks.best_widths", best_widths)
    solve("vit", widths="auto", attention="quantized", budget={"bops": "90%"})
    products = [product for mine in given.values() for product in mine.values()]
    assert {p.name for p in products} == set(products_plan(solved_vit().model).layers)
    assert {(p.layer or "").rpartition(".")[2] for p in products} == {"v_proj"}
    assert {p.vectors for p in products} == {4 * 5}  # one picture


def test_by_default_attention_stays_in_float() -> None:
    assert not attention_products(solve("vit").model)


def test_what_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(AccumulatorTooNarrow, match=r"layers?\.0\.attention.*scores"):
        solve("vit", attention="quantized", accumulator_bit_width=4, tile_size=None)
    eager = tiny("vit")
    eager.set_attn_implementation("eager")
    with pytest.raises(UnsupportedLayer, match="attn_implementation='sdpa'"):
        solve(eager, attention="quantized")
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    for field in ("attention", "outside"):
        with pytest.raises(InvalidOption, match=f"'{field}' .*solved as a whole"):
            quantize(net, [torch.randn(8, 4)], progress=False, **{field: "quantized"})
