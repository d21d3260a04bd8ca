"""FINN's estimates by hand; tests/finn/test_cost.py compares them with FINN itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from brevitas_axe.errors import InvalidOption, UnsupportedLayer
from brevitas_axe.methods.cost import (
    Estimate,
    Folding,
    Hardware,
    LayerShape,
    estimate,
    thresholding,
)
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import method

SHAPE = LayerShape("fc", "dense", inputs=64, outputs=32, vectors=10, output_bits=3)
BITS = LayerPrecision(weight=4, input=4, accumulator=11)
FOLDING = Folding(pe=4, simd=8)


def test_a_matrix_unit_by_hand() -> None:
    # Per PE: 8·(2·2-1)·8 products, 8·15 additions, 11 accumulator, 7 thresholds of 11 bits twice.
    per_pe = 192 + 120 + 11 + 7 * 11 * 2
    assert estimate(SHAPE, BITS, FOLDING) == Estimate(
        lut=int(300 + 1.1 * 4 * per_pe), dsp=0, bram=4, cycles=64 * 32 * 10 // 32
    )
    in_dsp = estimate(SHAPE, BITS, FOLDING, Hardware(res_type="dsp"))
    assert (in_dsp.dsp, in_dsp.lut) == (32, int(300 + 1.1 * 4 * (per_pe - 192)))


def test_accumulator_bits_cost_most_through_thresholds() -> None:
    def saved(shape: LayerShape) -> float:
        wide = replace(BITS, accumulator=12)
        return estimate(shape, wide, FOLDING).lut - estimate(shape, BITS, FOLDING).lut

    assert saved(SHAPE) == pytest.approx(4 * 1.1 * 15, abs=1)
    assert saved(replace(SHAPE, output_bits=None)) == pytest.approx(4 * 1.1, abs=1)


def test_finn_s_default_leaves_thresholds_out() -> None:
    automatic = Hardware(ram_style_thresholds="auto")
    free = replace(SHAPE, output_bits=None)
    assert estimate(SHAPE, BITS, FOLDING, automatic) == estimate(free, BITS, FOLDING)


@pytest.mark.parametrize(
    ("hardware", "bits", "is_rtl"),
    [
        (Hardware("auto", standalone_thresholds=True), (4, 4), True),
        (Hardware("auto", standalone_thresholds=True), (3, 4), False),
        (Hardware("rtl", standalone_thresholds=True), (3, 2), True),
        (Hardware("rtl", standalone_thresholds=True), (3, 1), False),
        (Hardware("rtl", standalone_thresholds=True), (28, 8), False),
        (Hardware("rtl"), (4, 4), False),
        (Hardware("hls", standalone_thresholds=True), (4, 4), False),
    ],
)
def test_rtl_where_finn_would(hardware, bits, is_rtl) -> None:
    precision = LayerPrecision(*bits, accumulator=11)
    assert (estimate(SHAPE, precision, FOLDING, hardware).dsp > 0) == is_rtl


def test_depthwise_rtl_is_for_versal_alone() -> None:
    shape = LayerShape("dw", "depthwise", 9, 16, 10, 16, (3, 3), 16)
    for block, dsp in (("DSP58", 4), ("DSP48E2", 0)):
        hardware = Hardware("rtl", dsp_block=block)
        assert estimate(shape, BITS, Folding(4, 3), hardware).dsp == dsp


def test_a_tiled_layer_is_charged_with_its_outer_accumulator() -> None:
    tiled = replace(BITS, accumulator=8, tile=8)
    assert estimate(SHAPE, tiled, FOLDING) == estimate(SHAPE, BITS, FOLDING)


def test_what_finn_cannot_build_and_unknown_options_are_refused() -> None:
    for shape, says in (
        (replace(SHAPE, groups=2), "has 2 groups"),
        (replace(SHAPE, kernel=(1, 2, 2)), "is a convolution over 3 axes"),
        (replace(SHAPE, kind="transposed"), "is a transposed convolution"),
    ):
        for name in ("finn_lut", "finn_dsp", "finn_bram", "finn_cycles"):
            with pytest.raises(UnsupportedLayer, match=f"layer 'fc' {says}.* exclude it"):
                method("cost", name)(shape, BITS)
        assert method("cost", "bops")(shape, BITS) > 0
    with pytest.raises(InvalidOption, match="res_type must be one of lut, dsp, not 'gpu'"):
        Hardware(res_type="gpu")


def test_thresholds_of_a_fraction_of_a_channel_are_refused() -> None:
    with pytest.raises(InvalidOption, match="PE=3 does not divide the 32 outputs of layer 'fc'"):
        thresholding(SHAPE, 11, 3)


def test_resources_add_up_and_the_slowest_sets_the_pace() -> None:
    total = Estimate.total([Estimate(1, 2, 3, 4, 50), Estimate(10, 20, 30, 40, 5)])
    assert total == Estimate(11, 22, 33, 44, 50)
    assert Estimate.total([]) == Estimate()
