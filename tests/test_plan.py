"""Plans survive JSON, and nothing else passes for one."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brevitas_axe.errors import AccumulatorTooNarrow, AxeError, InvalidPlan, InvalidTile
from brevitas_axe.formats import MINIFLOATS
from brevitas_axe.plan import Choices, LayerPrecision, Plan, bit_map_rules, name_matches
from brevitas_axe.recipe import Recipe

FORMATS = st.none() | st.integers(1, 32) | st.sampled_from([*MINIFLOATS])
PRECISIONS = st.builds(
    LayerPrecision,
    weight=FORMATS,
    input=FORMATS,
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
        (broken(format="brevitas_axe.plan.v3"), "format"),
        (broken(layers=[]), "layers"),
        (broken().replace('"layers"', '"format": 1, "layers"'), "a key appears twice"),
        (broken().replace('"fc"', '"fc": {}, "fc"'), "a key appears twice"),
        (broken(layers={"a": {"weight": 4, "bits": 3}}), "layer 'a'"),
        (broken(layers={"a": 4}), "layer 'a'"),
        (broken(layers={"a": {"weight": "4"}}), "layer 'a': the format '4' does not exist.*e4m3"),
        (broken(layers={"a": {"weight": [4]}}), "layer 'a': weight"),
        (broken(layers={"a": {"accumulator": "e4m3"}}), "layer 'a': accumulator"),
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


def test_integers_are_plain_numbers_in_files_and_formats_are_names() -> None:
    plan = Plan({"fc": LayerPrecision("e4m3", 8)})
    assert json.loads(plan.to_json())["layers"]["fc"]["weight"] == "e4m3"
    assert json.loads(plan.to_json())["layers"]["fc"]["input"] == 8
    older = plan.to_json().replace("plan.v2", "plan.v1")
    assert Plan.from_json(older) == plan
    assert repr(plan) == "Plan(1 layer: weight e4m3, input 8)"


def test_formats_count_the_bits_that_they_are_stored_in() -> None:
    precision = LayerPrecision("e3m2", 4)
    assert (precision.weight_bits, precision.input_bits) == (6, 4)
    assert LayerPrecision().weight_bits is None


@pytest.mark.parametrize("kind", [Plan, Choices])
def test_what_needs_integers_refuses_formats_by_the_name_of_the_layer(kind) -> None:
    precision = LayerPrecision(4, "e2m1")
    offered = kind({"fc": precision if kind is Plan else (LayerPrecision(4, 4), precision)})
    with pytest.raises(InvalidPlan, match="layer 'fc' is planned in e2m1, but it takes only int"):
        offered.check_integers("it takes")
    SMALL.check_integers("it takes")


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


def test_files_of_the_first_version_hold_the_same() -> None:
    assert good()["format"] == "brevitas_axe.plan.v2"
    assert Plan.from_json(broken(format="brevitas_axe.plan.v1")) == SMALL


def test_within_is_one_block_by_its_own_names() -> None:
    four, five = LayerPrecision(4), LayerPrecision(5)
    plan = Plan({"h.1.fc": four, "h.10.fc": five, "h.1.attn.q": five, "head": four})
    assert plan.within("h.1") == Plan({"fc": four, "attn.q": five})
    assert not plan.within("h").within("2").layers


def test_missing_are_the_names_without_a_plan() -> None:
    assert SMALL.missing(["fc", "conv2", "conv1", "head"]) == ("conv2", "head")


def test_a_part_of_a_whole_layer_points_to_the_split() -> None:
    plan = Plan({"fc1.low": LayerPrecision(4)})
    with pytest.raises(InvalidPlan, match=r"'fc1' is not split; apply the recipe's split first"):
        plan.check_names(["fc1", "fc2"])
    with pytest.raises(InvalidPlan) as raised:
        plan.check_names(["fc2"])
    assert "split" not in str(raised.value)


@pytest.mark.parametrize(
    ("pattern", "name", "yes"),
    [
        ("*.fc1", "h.0.fc1", True),
        ("*.fc1", "h.0.fc10", False),
        ("fc1", "h.fc1", False),
        ("/fc[12]$/", "h.0.fc2", True),
        ("/^fc/", "h.fc", False),
        ("/", "/", True),
    ],
)
def test_patterns_stand_for_names(pattern: str, name: str, yes: bool) -> None:
    assert name_matches(pattern, name) == yes


def test_a_broken_pattern_is_named() -> None:
    with pytest.raises(InvalidPlan, match=r"'/\(/' is no regular expression"):
        name_matches("/(/", "x")


OFFERED = tuple(LayerPrecision(w, i) for w in (2, 4, 8) for i in (4, 8))
CHOICES = Choices({"a.q": OFFERED, "a.k": OFFERED, "b": OFFERED}, (("a.q", "a.k"),))


def test_rules_leave_the_choices_that_they_allow() -> None:
    found = CHOICES.restricted({"a.*": {"input": [8]}, "/q$/": {"weight": [8, 2]}})
    assert found.layers["a.q"] == (LayerPrecision(2, 8), LayerPrecision(8, 8))
    assert {choice.input for choice in found.layers["a.k"]} == {8}
    assert found.layers["b"] == OFFERED
    assert found.same_input == CHOICES.same_input
    assert CHOICES.restricted({}) == CHOICES


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"c": {"weight": [4]}}, "'c' matches no layer; there are: a.q, a.k, b"),
        ({"b": {"weight": [3]}}, "'b' leaves no choice for layer 'b'"),
        ({"b": {"bits": [3]}}, "restricts 'bits'"),
        ({"a.q": {"input": [4]}, "a.k": {"input": [8]}}, "read the same activation"),
    ],
)
def test_rules_that_cannot_be_followed_are_named(rules: dict, says: str) -> None:
    with pytest.raises(InvalidPlan, match=says):
        CHOICES.restricted(rules)


# What `mixtral_quantize_config` of UNITES-Lab/moe-quantization (13c6471635) makes of these texts.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("main_3", [3, 3, 3, 3, 3]),
        ("main_2.attn_4", [4, 2, 2, 2, 2]),
        ("exp_l01e1_8.attn_4.main_2", [4, 2, 2, 8, 8]),
        ("main_2.layer_1_3.exp_l1e1_8.exp_l0e1_4", [2, 2, 4, 3, 3]),
        ("main_2.layer_1_3.keyword__down_proj__6.layer_1_5", [2, 2, 2, 5, 6]),
        ("main_2.keyword__experts__3.keyword__up_proj__4", [2, 4, 4, 4, 3]),
    ],
)
def test_a_bit_map_applies_as_in_the_authors_code(text: str, expected: list[int]) -> None:
    names = [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.experts.11.up_proj",
        "model.layers.0.mlp.experts.1.up_proj",
        "model.layers.1.mlp.experts.1.up_proj",
        "model.layers.1.mlp.experts.1.down_proj",
    ]
    found = []
    for name in names:
        bits = [rule["weight"] for p, rule in bit_map_rules(text).items() if name_matches(p, name)]
        found.append(bits[-1])
    assert found == expected
    rules: Any = text
    recipe = Recipe(rules=rules)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    wide = LayerPrecision(8, 8)
    assert [recipe.ruled(name, None, wide) for name in names] == [
        LayerPrecision(bits, 8) for bits in expected
    ]


def test_what_is_no_bit_map_is_named() -> None:
    with pytest.raises(InvalidPlan, match="'exp_l1_3' is no part of a bit map"):
        bit_map_rules("main_2.exp_l1_3")
    with pytest.raises(InvalidPlan, match="says nothing of all layers"):
        bit_map_rules("attn_4")
