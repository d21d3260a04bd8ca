"""Specifications of hardware constrain what is offered."""

from __future__ import annotations

import json

import pytest
from torch import nn

from brevitas_axe.errors import InvalidOption, InvalidPlan, UnsupportedLayer
from brevitas_axe.methods.allocate import load_backend
from brevitas_axe.methods.allocate.backend import parse_backend
from brevitas_axe.methods.cost import LayerShape
from brevitas_axe.plan import Choices, LayerPrecision

DENSE = LayerShape("a", "dense", 64, 8, 10)
REFUSED_BY_FINN = {
    "grouped": LayerShape("a", "dense", 18, 8, 10, groups=2, kernel=(3, 3), channels=4),
    "transposed": LayerShape("a", "transposed", 36, 8, 10, kernel=(3, 3), channels=4),
    "volumetric": LayerShape("a", "depthwise", 27, 4, 10, groups=4, kernel=(3, 3, 3), channels=4),
}
OPTIONS = (
    LayerPrecision(1, 8),
    LayerPrecision(4, 4, 16),
    LayerPrecision(4, 4, 16, 8),
    LayerPrecision(8, 8),
    LayerPrecision(8, 8, 32),
    LayerPrecision(8, 16, 32),
)


def kept(backend: str, shape: LayerShape = DENSE) -> list[LayerPrecision]:
    found = load_backend(backend).constrain(Choices({"a": OPTIONS}), {"a": shape}, nn.Identity())
    return list(found.layers["a"])


def test_no_layer_gets_types_outside_its_backend() -> None:
    assert kept("finn") == [OPTIONS[1], OPTIONS[3], OPTIONS[4]]
    assert kept("generic-int8") == [OPTIONS[3], OPTIONS[4]]


@pytest.mark.parametrize("kind", REFUSED_BY_FINN)
def test_kinds_that_a_backend_lacks_are_refused(kind: str) -> None:
    shape = REFUSED_BY_FINN[kind]
    with pytest.raises(UnsupportedLayer, match=f"'finn' computes no {kind} layers"):
        kept("finn", shape)
    assert kept("generic-int8", shape)


def test_nothing_left_is_said() -> None:
    only = Choices({"a": (LayerPrecision(4, 4),)})
    with pytest.raises(InvalidPlan, match="8 to 8 weight bits"):
        load_backend("generic-int8").constrain(only, {"a": DENSE}, nn.Identity())


def test_your_own_by_path(tmp_path) -> None:
    own = good()
    own["types"][0]["weight"] = [4, 4]
    (tmp_path / "own.json").write_text(json.dumps(own))
    assert kept(str(tmp_path / "own.json")) == [OPTIONS[1]]
    with pytest.raises(InvalidOption, match="choose from finn, generic-int8"):
        load_backend("missing.json")


def good() -> dict:
    types = {"kinds": ["linear"], "weight": [2, 8], "input": [2, 8], "accumulator": [2, 32]}
    types["tiles"] = False
    form = "brevitas_axe.backend.v1"
    return {"format": form, "name": "own", "power_of_two": False, "types": [types]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"extra": 1}, "exactly the keys"),
        ({"name": 3}, "'name' is text"),
        ({"power_of_two": 1}, "true or false"),
        ({"types": []}, "at least one"),
        ({"types": [{}]}, "exactly the keys"),
        ({"types": [{**good()["types"][0], "kinds": ["lstm"]}]}, "'kinds'"),
        ({"types": [{**good()["types"][0], "weight": [8, 2]}]}, "'weight'"),
        ({"types": [{**good()["types"][0], "tiles": 0}]}, "'tiles'"),
    ],
)
def test_strict_json(changes, says) -> None:
    with pytest.raises(InvalidPlan, match=says):
        parse_backend(json.dumps({**good(), **changes}))
