"""Foldings are the cheapest that keep the pace."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from brevitas_axe.errors import InvalidOption, InvalidPlan
from brevitas_axe.methods.cost import (
    Folding,
    Hardware,
    LayerShape,
    choose_folding,
    choose_foldings,
    cycles_per_frame,
    estimate,
)
from brevitas_axe.methods.cost.protocol import divisors
from brevitas_axe.plan import LayerPrecision, Plan

HARDWARE = [Hardware(), Hardware(res_type="dsp"), Hardware("rtl", standalone_thresholds=True)]
SHAPES = {
    "conv": LayerShape("conv", "dense", 27, 8, 64, 1, (3, 3), 3, output_bits=4),
    "dw": LayerShape("dw", "depthwise", 9, 8, 64, 8, (3, 3), 8, output_bits=4),
    "fc": LayerShape("fc", "dense", 60, 10, 1, channels=60),
}
PLAN = Plan.uniform(SHAPES, LayerPrecision(4, 4, 10))


@pytest.mark.parametrize("hardware", HARDWARE)
@given(name=st.sampled_from(sorted(SHAPES)), share=st.floats(0.002, 1), weight=st.integers(2, 8))
def test_no_other_folding_is_cheaper(hardware, name, share, weight) -> None:
    shape, precision = SHAPES[name], LayerPrecision(weight, 4, 10)
    target = int(shape.macs * share)
    assume(target >= shape.vectors)
    chosen = choose_folding(shape, precision, target, hardware)
    mine = estimate(shape, precision, chosen, hardware)
    assert mine.cycles <= target
    for pe in divisors(shape.outputs):
        for simd in divisors(shape.inputs):
            if shape.kind == "depthwise" and simd > 1 and pe < shape.outputs:
                continue
            other = estimate(shape, precision, Folding(pe, simd), hardware)
            assert other.cycles > target or (mine.dsp, mine.lut) <= (other.dsp, other.lut)


def test_depthwise_layers_unfold_their_channels_first() -> None:
    shape = SHAPES["dw"]
    assert choose_folding(shape, PLAN["dw"], shape.macs // 4) == Folding(4, 1)
    assert choose_folding(shape, PLAN["dw"], shape.macs // 9) == Folding(8, 3)


def test_every_layer_meets_the_target() -> None:
    foldings = choose_foldings(SHAPES, PLAN, 200)
    assert list(foldings) == list(SHAPES)
    assert all(estimate(SHAPES[n], PLAN[n], f).cycles <= 200 for n, f in foldings.items())


def test_a_target_out_of_reach_says_what_is_in_reach() -> None:
    with pytest.raises(InvalidOption, match="layer 'conv' takes at least 64 cycles, but 63"):
        choose_foldings(SHAPES, PLAN, 63)


@pytest.mark.parametrize("cycles", [0, -5, 0.5, math.nan])
def test_a_target_that_is_no_number_of_cycles_is_refused(cycles) -> None:
    with pytest.raises(InvalidOption, match="max_cycles must be at least 1"):
        choose_foldings(SHAPES, PLAN, cycles)


def test_words_stay_as_narrow_as_vitis_needs() -> None:
    shape = LayerShape("big", "dense", 1024, 64, 1)
    chosen = choose_folding(shape, LayerPrecision(8, 8), 128)
    assert chosen.pe * chosen.simd * 8 <= 8191
    with pytest.raises(InvalidOption, match="takes at least 128 cycles"):
        choose_folding(shape, LayerPrecision(8, 8), 127)


def test_a_plan_without_a_layer_is_refused() -> None:
    with pytest.raises(InvalidPlan, match="no precision for dw, fc"):
        choose_foldings(SHAPES, Plan({"conv": PLAN["conv"]}), 200)


def test_cycles_per_frame() -> None:
    assert cycles_per_frame(1000, 100) == 100_000
    assert cycles_per_frame(3, 100) == 33_333_333
    assert cycles_per_frame(1, 2.3) == 2_300_000  # 2.3 * 1e6 is a little less
    for frames, clock in ((0, 100), (100, -1), (2e8, 100), (1, math.inf), (math.nan, 1)):
        with pytest.raises(InvalidOption):
            cycles_per_frame(frames, clock)
