"""Which products a model's attention has, and how many bits their operands may have."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from brevitas_axe.errors import AccumulatorTooNarrow, InvalidPlan
from brevitas_axe.model.attention_calls import Product, find_attention, named_products
from brevitas_axe.plan import LayerPrecision, Plan


def product(length: int, signed: bool) -> Product:
    return Product("a.attention_products.scores", length, 3, 3, signed, "fc")


@given(
    length=st.integers(1, 300),
    most=st.integers(2, 8),
    accumulator=st.integers(6, 20),
    signed=st.booleans(),
)
def test_neither_operand_could_have_more_bits(length, most, accumulator, signed) -> None:
    def fits(left: int, right: int) -> bool:
        largest = 2 ** (left - 1) if signed else 2**left - 1
        return length * largest * 2 ** (right - 1) < 2 ** (accumulator - 1)

    bits = range(2, most + 1)
    every = {(a, b) for a in bits for b in bits if fits(a, b)}
    best = {
        (a, b)
        for a, b in every
        if not any(c >= a and d >= b and (c, d) != (a, b) for c, d in every)
    }
    layer = LayerPrecision(weight=4, input=most, accumulator=accumulator)
    if not every:
        with pytest.raises(AccumulatorTooNarrow, match="operands of 2 bits"):
            product(length, signed).operand_bits(layer)
        return
    found = product(length, signed).operand_bits(layer)
    assert {(w.input, w.weight) for w in found} == best
    assert all(w.accumulator == accumulator for w in found)


def test_a_plan_that_names_the_product_counts_instead_of_its_layer() -> None:
    layer = LayerPrecision(weight=4, input=8, accumulator=10)
    named = LayerPrecision(weight=3, accumulator=24)
    assert product(4, True).operand_bits(layer, named) == (LayerPrecision(3, 8, 24),)


@pytest.mark.parametrize("widths", [{"tile": 4}, {"weight": 1}, {"input": "e4m3"}])
def test_what_a_product_cannot_have_is_refused(widths) -> None:
    plan = Plan({"a.attention_products.context": LayerPrecision(**widths)})
    with pytest.raises(InvalidPlan, match=r"a\.attention_products\.context"):
        named_products(plan)


class Block(nn.Module):
    """Attention between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(F.scaled_dot_product_attention(x, x, x))


@pytest.mark.parametrize(
    ("layers", "follows"),
    [
        (("0.first", "0.last", "1.first", "1.last"), "1.first"),
        (("0.last", "1.last"), "1.last"),  # not that of another block, though it ran last
        (("0.first", "0.last"), None),
    ],
)
def test_a_product_follows_the_nearest_layer_of_its_block(layers, follows) -> None:
    net = nn.Sequential(Block(), Block())
    found = find_attention(net, lambda: net(torch.randn(1, 3, 4)), layers, ("0", "1"))
    assert {p.layer for p in found["1"].values()} == {follows}
