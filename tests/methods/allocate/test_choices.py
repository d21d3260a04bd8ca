"""Choices: JSON in and out, strict."""

from __future__ import annotations

import json

import pytest

from brevitas_axe.errors import InvalidPlan
from brevitas_axe.plan import Choices, LayerPrecision

SMALL = Choices(
    {"a": (LayerPrecision(4, 8), LayerPrecision(2, 4, 12, 16)), "b": (LayerPrecision(8, 8),)},
    (("a", "b"),),
)


def broken(**changes) -> str:
    return json.dumps({**json.loads(SMALL.to_json()), **changes})


def test_round_trip(tmp_path) -> None:
    SMALL.save(tmp_path / "choices.json")
    assert Choices.load(tmp_path / "choices.json") == SMALL


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "choices file is not valid JSON"),
        (broken(extra=1), "exactly the keys 'format', 'layers', 'same_input'"),
        (broken(format="brevitas_axe.plan.v1"), "format"),
        (broken(layers=[]), "must be a JSON object"),
        (broken(layers={"a": {}}), "list of objects"),
        (broken(layers={"a": [{"bits": 3}]}), "layer 'a'"),
        (broken(layers={"a": []}, same_input=[]), "at least one choice"),
        (broken(layers={"a": [{"weight": 2}] * 2}, same_input=[]), "none of them twice"),
        (broken(same_input="a"), "list of lists"),
        (broken(same_input=[["a", "c"]]), "'c'"),
        (broken(same_input=[["a"], ["a", "b"]]), "named twice"),
    ],
)
def test_strict_json(text, says) -> None:
    with pytest.raises(InvalidPlan, match=says) as raised:
        Choices.from_json(text)
    assert "\n" not in str(raised.value)


def test_a_group_needs_a_common_width() -> None:
    with pytest.raises(InvalidPlan, match="read the same activation"):
        Choices({"a": (LayerPrecision(4, 8),), "b": (LayerPrecision(4, 6),)}, (("a", "b"),))
