"""What every registered cost model promises, on random layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brevitas_axe.errors import InvalidOption, InvalidPlan
from brevitas_axe.methods.cost import Folding, LayerShape, total_cost
from brevitas_axe.methods.cost.protocol import divisors
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.registry import methods

MODELS = methods("cost")
EXTRA = {"weight": st.integers(1, 8), "input": st.integers(1, 8), "accumulator": st.integers(1, 30)}
every_model = pytest.mark.parametrize("name", MODELS)


@st.composite
def layers(draw) -> tuple[LayerShape, LayerPrecision, Folding]:
    kernel = draw(st.sampled_from([(), (1, 1), (3, 3)]))
    depthwise = kernel != () and draw(st.booleans())
    taps = 9 if kernel == (3, 3) else 1
    channels, outputs = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    shape = LayerShape(
        name="layer",
        kind="depthwise" if depthwise else "dense",
        inputs=taps if depthwise else taps * channels,
        outputs=channels if depthwise else outputs,
        vectors=draw(st.integers(1, 100)),
        groups=channels if depthwise else 1,
        kernel=kernel,
        channels=channels,
        signed=draw(st.booleans()),
        output_bits=draw(st.none() | st.integers(1, 8)),
    )
    precision = LayerPrecision(
        weight=draw(st.integers(1, 8)),
        input=draw(st.integers(1, 8)),
        accumulator=draw(st.none() | st.integers(2, 32)),
        tile=draw(st.none() | st.integers(1, 100)),
    )
    pe = draw(st.sampled_from(divisors(shape.outputs)))
    return shape, precision, Folding(pe, draw(st.sampled_from(divisors(shape.inputs))))


def test_all_are_there() -> None:
    ours = {"bops", "ebops", "finn_bram", "finn_cycles", "finn_dsp", "finn_lut", "macs_accumulator"}
    assert {*ours, "memory"} <= MODELS.keys()


@every_model
def test_claims_are_widths_and_the_unit_is_named(name) -> None:
    assert MODELS[name].unit
    assert set(MODELS[name].grows_with) <= set(EXTRA)


@every_model
@given(layer=layers())
def test_no_cost_is_negative(name, layer) -> None:
    assert MODELS[name](*layer) >= 0


@every_model
@given(layer=layers(), data=st.data())
def test_cost_never_falls_with_the_bits_that_are_claimed(name, layer, data) -> None:
    shape, precision, folding = layer
    for field in MODELS[name].grows_with:
        bits = getattr(precision, field)
        # The widest accumulator is one without a limit.
        more = None if bits is None else bits + data.draw(EXTRA[field])
        wider = replace(precision, **{field: more})
        assert MODELS[name](shape, wider, folding) >= MODELS[name](shape, precision, folding)


@every_model
@given(layer=layers())
def test_an_unlimited_accumulator_costs_as_much_as_a_very_wide_one(name, layer) -> None:
    shape, precision, folding = layer
    free = replace(precision, accumulator=None)
    wide = replace(precision, accumulator=64)
    assert MODELS[name](shape, free, folding) == MODELS[name](shape, wide, folding)


@every_model
@given(some=st.lists(layers(), max_size=4))
def test_a_plan_costs_the_sum_of_its_layers(name, some) -> None:
    named = {f"layer{i}": layer for i, layer in enumerate(some)}
    shapes = {key: replace(shape, name=key) for key, (shape, _, _) in named.items()}
    plan = Plan({key: precision for key, (_, precision, _) in named.items()})
    foldings = {key: folding for key, (_, _, folding) in named.items()}
    alone = sum(MODELS[name](shapes[key], plan[key], foldings[key]) for key in named)
    assert total_cost(MODELS[name], plan, shapes, foldings) == alone
    serial = sum(MODELS[name](shapes[key], plan[key]) for key in named)
    assert total_cost(MODELS[name], plan, shapes) == serial


SHAPE = LayerShape("fc", "dense", inputs=12, outputs=8, vectors=2)
FULL = LayerPrecision(weight=4, input=4)


@every_model
@pytest.mark.parametrize("missing", ["weight", "input"])
def test_missing_bits_are_named(name, missing) -> None:
    with pytest.raises(InvalidPlan, match=f"layer 'fc' has no {missing} bits"):
        MODELS[name](SHAPE, replace(FULL, **{missing: None}))


@every_model
@pytest.mark.parametrize(
    ("folding", "says"),
    [
        (Folding(pe=3), r"PE=3 does not divide the 8 outputs of layer 'fc'; .*: 1, 2, 4, 8\."),
        (Folding(simd=5), "SIMD=5 does not divide the 12 inputs per output of layer 'fc'"),
        (Folding(pe=0), "PE=0"),
        (Folding(simd=2.0), r"SIMD=2\.0"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_a_folding_that_does_not_divide_is_named(name, folding, says) -> None:
    with pytest.raises(InvalidOption, match=says):
        MODELS[name](SHAPE, FULL, folding)
