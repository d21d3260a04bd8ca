"""Recipes survive YAML, and nothing else passes for one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import FrozenInstanceError, dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from brevitas_axe.errors import AxeError, InvalidOption
from brevitas_axe.methods.transforms.smooth import Smooth
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.registry import Facts, method

WIDTHS = st.fixed_dictionaries(
    {"exclude": st.booleans()},
    optional={"weight": st.integers(2, 8), "tile": st.none() | st.integers(1, 99)},
)
RECIPES = st.builds(
    Recipe,
    transforms=st.lists(st.sampled_from(["smooth", "rotate", "smooth:strength=0.25"])).map(tuple),
    inputs=st.sampled_from(["static", "per_token"]),
    symmetric=st.booleans(),
    ranges=st.sampled_from([None, "mse", "calibrated"]),
    weights=st.sampled_from(["channel", "tensor"]),
    power_of_two=st.booleans(),
    solver=st.sampled_from(["gpfq", "gptq"]),
    quality=st.sampled_from(["fast", "best"]),
    act_order=st.none() | st.booleans(),
    widths=st.just("auto"),
    budget=st.dictionaries(
        st.sampled_from(["bops", "finn_lut"]), st.integers(1, 10**9) | st.sampled_from([0.5, "80%"])
    ),
    rules=st.dictionaries(st.from_regex(r"[a-z.*:]{1,9}", fullmatch=True), WIDTHS, max_size=3),
)


@given(RECIPES)
def test_yaml_round_trip(recipe: Recipe) -> None:
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe
    assert list(again.rules) == list(recipe.rules)


@given(st.text(max_size=60))
def test_any_other_text_is_refused_by_our_error_or_is_empty(text: str) -> None:
    with suppress(AxeError):
        assert Recipe.from_yaml(text) == Recipe()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid YAML"),
        ("[1]", "a recipe is a mapping"),
        ("7", "a recipe is a mapping"),
        ("solvr: gptq", "'solvr' is no key of a recipe; there are: transforms, split"),
        ("solver: gptq\nsolver: gpfq", "a key appears twice"),
        ("format: other", "format is 'other'"),
        ("solver: 3", "solver must name a method of the room 'solvers'"),
        ("transforms: smooth", "transforms are a list"),
        ("transforms: [3]", "transforms must name a method"),
        ("weights: row", "weights 'row' is unknown; choose from channel, tensor, tile"),
        ("symmetric: 1", "symmetric '1' is unknown; choose from true, false"),
        ("quality: 'on'", "choose from fast, best"),
        ("{weights: tile, power_of_two: true}", "power_of_two scales for every tile"),
        ("widths: best", "widths 'best' is unknown; choose from auto, null"),
        ("budget: {bops: 9}", "set widths to auto"),
        ("{widths: auto, budget: {bops: 9%%}}", "positive number, or a share"),
        ("rules: [a]", "rules are a mapping"),
        ("rules: {a: 8}", "rule 'a' must be a mapping with keys among weight"),
        ("rules: {a: {}}", "rule 'a' must be a mapping"),
        ("rules: {a: {bits: 8}}", "rule 'a' must be a mapping"),
        ("rules: {a: {weight: '8'}}", "rule 'a': the format '8' does not exist"),
        ("rules: {a: {exclude: 1}}", "exclude must be true or false"),
        ("rules: {'/(/': {weight: 8}}", "no regular expression"),
        ("rules: {a: {weight: 99}}", "weight bits"),
    ],
)
def test_strict_yaml(text: str, says: str) -> None:
    with pytest.raises(AxeError, match=says) as raised:
        Recipe.from_yaml(text)
    assert "\n" not in str(raised.value)


def test_yaml_makes_no_objects() -> None:
    with pytest.raises(InvalidOption, match="not valid YAML"):
        Recipe.from_yaml("solver: !!python/object/apply:os.getcwd []")


def test_what_is_resolved_is_written_in_full() -> None:
    found = Recipe(
        transforms=(Smooth(strength=0.25), "smooth"), solver=method("solvers", "gptq")
    ).resolved()
    assert found.transforms == ("smooth:strength=0.25", "smooth")
    assert found.solver == "gptq"
    assert Recipe.from_yaml(found.to_yaml()) == found == found.resolved()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"solver": "newton"}, "choose one of: .*gptq"),
        ({"inputs": "weekly"}, "choose one of: dynamic, per_token, static"),
        ({"transforms": ("smooth:power=2",)}, "no option of 'smooth'"),
        ({"transforms": ("smooth:strength=2",)}, "between 0 and 1"),
        ({"ranges": "guess"}, "'guess' is not registered"),
        ({"transforms": ("rotate", "linears")}, r"'linears' .* before 'rotate'; .*linears, rotate"),
    ],
)
def test_methods_that_cannot_be_used_are_named(fields: dict, says: str) -> None:
    with pytest.raises(InvalidOption, match=says):
        Recipe(**fields).resolved()


@dataclass(frozen=True)
class Own:
    facts = Facts("–", "layer", "none", "–", "ours")


def test_a_method_without_a_name_runs_but_has_no_file() -> None:
    recipe = Recipe(solver=Own()).resolved()
    assert recipe.methods("solver") == (Own(),)
    with pytest.raises(InvalidOption, match=r"Own\(\) cannot be written"):
        recipe.to_yaml()


def test_rules_apply_in_order_and_to_what_they_name() -> None:
    recipe = Recipe(
        rules={
            "*": {"weight": 4, "tile": 8},
            "type:Linear": {"weight": 6},
            "/head$/": {"weight": 8, "tile": None},
            "type:Conv2d": {"exclude": True},
            "stem": {"exclude": False},
        }
    )
    uniform = LayerPrecision(2, 8, 16, 64)
    linear, conv = nn.Linear(2, 2), nn.Conv2d(1, 1, 1)
    assert recipe.ruled("h.fc", linear, uniform) == LayerPrecision(6, 8, 16, 8)
    assert recipe.ruled("head", linear, uniform) == LayerPrecision(8, 8, 16, None)
    assert recipe.ruled("body", conv, uniform) is None
    assert recipe.ruled("stem", conv, uniform) == LayerPrecision(4, 8, 16, 8)
    assert recipe.excluded({"body": conv, "stem": conv, "head": linear}) == ("body",)
    recipe.check_rules({"stem": conv, "head": linear})
    with pytest.raises(InvalidOption, match="'stem' applies to no layer; there are: body, head"):
        recipe.check_rules({"body": conv, "head": linear})


@pytest.mark.parametrize("name", ["fpga", "transformer", "fast"])
def test_presets_can_be_used(name: str, tmp_path) -> None:
    recipe = Recipe.preset(name)
    assert recipe != Recipe()
    recipe.resolved().save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == Recipe.of(name).resolved()
    assert Recipe.of(tmp_path / "recipe.yaml").resolved() == recipe.resolved()


def test_what_is_no_recipe_is_refused(tmp_path) -> None:
    with pytest.raises(InvalidOption, match="choose from fpga, transformer, fast"):
        Recipe.preset("slow")
    with pytest.raises(InvalidOption, match="there is no recipe 'slow'"):
        Recipe.of("slow")
    with pytest.raises(InvalidOption, match="not a int"):
        Recipe.of(7)  # type: ignore[arg-type]
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidOption, match=r"recipe .*binary\.yaml cannot be read"):
        Recipe.load(tmp_path / "binary.yaml")


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Recipe().solver = "gptq"  # type: ignore[misc]
    with pytest.raises(InvalidOption, match="workers is 0"):
        Run(workers=0)
