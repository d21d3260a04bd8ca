"""Plans survive JSON, and nothing else passes for one."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brevitas_axe.errors import AccumulatorTooNarrow, AxeError, InvalidPlan, InvalidTile
from brevitas_axe.plan import LayerPrecision, Plan

PRECISIONS = st.builds(
    LayerPrecision,
    weight=st.none() | st.integers(1, 32),
    input=st.none() | st.integers(1, 32),
    accumulator=st.none() | st.integers(2, 64),
    tile=st.none() | st.integers(1, 10**6),
)
PLANS = st.builds(Plan, st.dictionaries(st.text(max_size=20), PRECISIONS, max_size=6))
SMALL = Plan({"conv1": LayerPrecision(4, 8, 16), "fc": LayerPrecision(tile=64)})


@given(PLANS)
def test_json_round_trip(plan) -> None:
    assert Plan.from_json(plan.to_json()) == plan
    assert list(Plan.from_json(plan.to_json()).layers) == list(plan.layers)


@given(st.text(max_size=40) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
).map(json.dumps))  # fmt: skip
def test_any_other_text_is_refused_by_our_error(text) -> None:
    with pytest.raises(AxeError):
        Plan.from_json(text)


def good() -> dict:
    return json.loads(SMALL.to_json())


def broken(**changes) -> str:
    return json.dumps({**good(), **changes})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "JSON object"),
        (json.dumps({"format": good()["format"]}), "exactly the keys"),
        (broken(extra=1), "exactly the keys"),
        (broken(format="brevitas_axe.plan.v2"), "format"),
        (broken(layers=[]), "layers"),
        (broken().replace('"layers"', '"format": 1, "layers"'), "a key appears twice"),
        (broken().replace('"fc"', '"fc": {}, "fc"'), "a key appears twice"),
        (broken(layers={"a": {"weight": 4, "bits": 3}}), "layer 'a'"),
        (broken(layers={"a": 4}), "layer 'a'"),
        (broken(layers={"a": {"weight": "4"}}), "layer 'a': weight"),
        (broken(layers={"a": {"weight": 4.0}}), "layer 'a': weight"),
        (broken(layers={"a": {"tile": True}}), "layer 'a': tile"),
        (broken(layers={"a": {"weight": 0}}), "weight bits"),
        (broken(layers={"a": {"input": 33}}), "input bits"),
    ],
)
def test_strict_json(text, says) -> None:
    with pytest.raises(InvalidPlan, match=says) as raised:
        Plan.from_json(text)
    assert "\n" not in str(raised.value)


def test_widths_and_tiles_out_of_range_are_refused() -> None:
    with pytest.raises(AccumulatorTooNarrow):
        LayerPrecision(accumulator=1)
    with pytest.raises(InvalidTile):
        LayerPrecision(tile=0)


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        SMALL.layers = {}
    with pytest.raises(FrozenInstanceError):
        SMALL["fc"].weight = 3


def test_uniform_gives_everyone_the_same() -> None:
    precision = LayerPrecision(4, 8, 16, 64)
    plan = Plan.uniform(["a", "b"], precision)
    assert plan["a"] == plan["b"] == precision
    assert list(plan.layers) == ["a", "b"]


@given(PLANS, PLANS)
def test_diff_names_exactly_what_differs(mine, other) -> None:
    difference = mine.diff(other)
    for name in {**mine.layers, **other.layers}:
        pair = mine.layers.get(name), other.layers.get(name)
        assert difference.get(name) == (pair if pair[0] != pair[1] else None)
    assert {n: (b, a) for n, (a, b) in difference.items()} == other.diff(mine)


def test_check_names_names_the_unknown_and_the_known() -> None:
    SMALL.check_names(["fc", "conv1", "more"])
    with pytest.raises(InvalidPlan, match=r"conv1; its layers are: fc, conv2"):
        SMALL.check_names(name for name in ("fc", "conv2"))


def test_save_and_load(tmp_path) -> None:
    path = tmp_path / "folder" / "plan.json"
    SMALL.save(path)
    assert Plan.load(path) == SMALL
    assert [p.name for p in path.parent.iterdir()] == ["plan.json"]


def test_a_file_that_cannot_be_read_is_named(tmp_path) -> None:
    with pytest.raises(InvalidPlan, match=r"missing\.json"):
        Plan.load(tmp_path / "missing.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidPlan, match=r"binary\.json"):
        Plan.load(tmp_path / "binary.json")
