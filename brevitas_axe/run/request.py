"""What a call of `quantize` asks for: keywords become widths, a recipe and a run.

A plan and a recipe can express everything; the keywords are a short form of their usual parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict

from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate import check_budget
from brevitas_axe.methods.ranges import USUAL_FITTER
from brevitas_axe.methods.solvers.protocol import wide
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.recipe import (
    MAX_CYCLES,
    Attention,
    Function,
    Log,
    Outside,
    Quality,
    Recipe,
    Run,
    Spec,
    Widths,
)

Validate = Callable[[nn.Module], float]


class Keywords(TypedDict, total=False):
    """Keywords of `quantize` for the usual parts of a plan and a recipe.

    Attributes:
        accumulator_bit_width: P for every layer; None leaves them unconstrained.
        tile_size: inputs per inner accumulator, None for whole dot products.
        weight_bit_width: bits of the weights of a float model, 4 unless given.
        input_bit_width: bits of the layers' inputs of a float model, 8 unless given.
        activations: the recipe's `inputs`: "static", "dynamic", "per_token".
        symmetric, ranges, power_of_two, solver, quality, act_order, function, attention, outside:
            those of the recipe.
        smooth: strength of SmoothQuant (arXiv 2211.10438), 0.5 as published; None for none.
        rotate: rotate every layer's inputs by a Hadamard matrix.
        tile_scales: one weight scale per output and tile, instead of per output. The results of
            the inner accumulators are then scaled before they are added, so there is no outer
            integer accumulator to prove.
        widths: "auto" chooses the bits of weights and inputs layer by layer, instead of the two
            above; see `brevitas_axe.run.widths`.
        budget: limits of costs for these, see `Recipe`.
        validate: function(model) → how good it is, larger is better; then widths are chosen by it,
            among a few more plans, instead of by the divergence from the float model.
        state, offload, workers, progress, log: those of `Run`.
    """

    accumulator_bit_width: int | None
    tile_size: int | None
    weight_bit_width: int
    input_bit_width: int
    activations: Spec
    symmetric: bool
    ranges: Spec | None
    power_of_two: bool
    smooth: float | None
    rotate: bool
    tile_scales: bool
    solver: Spec
    quality: Quality
    act_order: bool | None
    function: Function | None
    attention: Attention
    outside: Outside
    widths: Widths | None
    budget: Mapping[str, float | str]
    validate: Validate | None
    state: str | Path | None
    offload: str | Path | None
    workers: int | None
    progress: bool
    log: Log | None


_WIDTHS = {
    "accumulator_bit_width": "accumulator",
    "tile_size": "tile",
    "weight_bit_width": "weight",
    "input_bit_width": "input",
}
_FIRST_WIDTHS = LayerPrecision(weight=4, input=8)
# Keyword → field of the recipe, where the names differ.
_OF_RECIPE = {"activations": "inputs"}
_FORMER = {"algorithm": "solver", "cache": "state", "jobs": "workers"}


@dataclass(frozen=True)
class Request:
    """How a model is to be quantized.

    Attributes:
        widths: of layers that neither the plan nor a rule gives others.
        plan: widths by layer name; None gives every layer `widths`.
        recipe: resolved.
        exclude: names of layers to leave alone.
        run: what changes no integer.
        validate: tells how good a model is, where widths are chosen.
        told: of `widths`, what the caller said; a model with quantizers keeps the others.
        of_branches: widths of branches, where there is no plan, as the split gives them.
    """

    widths: LayerPrecision
    plan: Plan | None
    recipe: Recipe
    exclude: tuple[str, ...]
    run: Run
    validate: Validate | None = None
    told: LayerPrecision = field(default_factory=LayerPrecision)
    of_branches: Mapping[str, LayerPrecision] = field(default_factory=dict)

    def check_formats(self) -> None:
        """Raises InvalidPlan for floating-point formats that layers of blocks cannot have.

        They can have those of weights with one scale per output or tensor, and of static inputs
        without a zero point, in layers that are not split.
        """
        recipe = self.recipe
        self.check_learning()
        [inputs], [static] = recipe.methods("inputs"), Recipe().methods("inputs")
        if recipe.split is not None:
            self.check_integers("splits work with")
        if recipe.weights == "tile":
            self.check_integers("scales per tile fit", ("weight",))
        if inputs != static:
            self.check_integers("scales that are found at run time fit", ("input",))
        if not recipe.symmetric:
            self.check_integers("zero points of inputs fit", ("input",))

    def check_learning(self) -> None:
        """Raises InvalidPlan for floating-point formats where a solver learns from whole blocks."""
        [solver] = self.recipe.methods("solver")
        if wide(solver) is not None:
            self.check_integers("a solver that learns from whole blocks rounds")

    def check_integers(self, what: str, of: Sequence[str] = ("weight", "input")) -> None:
        """Raises InvalidPlan where widths, plan or rules ask for a floating-point format.

        Args:
            what: that handles only integers, as the subject of a sentence.
            of: "weight", "input" or both.
        """
        self.widths.check_integers("*", what, of)
        if self.plan is not None:
            self.plan.check_integers(what, of)
        for pattern in self.recipe.rules:
            self.recipe.rule_widths(pattern).check_integers(pattern, what, of)

    def settled(self, plain: bool) -> Request:
        """The request with the recipe's ranges known.

        Args:
            plain: the model has no quantizers, and so no ranges of its own to keep.
        """
        if self.recipe.ranges is not None:
            return self
        ranges = USUAL_FITTER if plain else Recipe.CALIBRATED
        return replace(self, recipe=replace(self.recipe, ranges=ranges))


def requested(
    plan: Plan | LayerPrecision | None,
    recipe: Recipe | str | Path | None,
    exclude: Iterable[str],
    run: Run,
    keywords: Mapping[str, Any],
) -> Request:
    """Reads the arguments of a call, before anything is done.

    Raises:
        InvalidOption: an unknown keyword, two that say the same, or a method that does not exist.
        InvalidPlan, AccumulatorTooNarrow, InvalidTile: an impossible width.
    """
    _check_keywords(keywords)
    given = {width: keywords[key] for key, width in _WIDTHS.items() if key in keywords}
    uniform, given_plan = _FIRST_WIDTHS, plan
    if isinstance(plan, LayerPrecision):
        if given:
            raise InvalidOption("give either a plan or one accumulator width and tile, not both.")
        said = {f.name: getattr(plan, f.name) for f in fields(plan)}
        given = {key: value for key, value in said.items() if value is not None}
        plan = None
    elif plan is not None and not isinstance(plan, Plan):
        raise InvalidOption(f"a plan is a Plan or a LayerPrecision, not a {type(plan).__name__}.")
    elif plan is not None and (given.get("accumulator"), given.get("tile")) != (None, None):
        raise InvalidOption("give either a plan or one accumulator width and tile, not both.")
    uniform = replace(uniform, **given)
    changed = {f.name: keywords[f.name] for f in fields(Run) if f.name in keywords}
    request = Request(
        uniform,
        plan,
        _changed(Recipe.of(recipe), keywords),
        (exclude,) if isinstance(exclude, str) else tuple(exclude),
        replace(run, **changed),
        keywords.get("validate"),
        LayerPrecision(**given),
    )
    bits = [key for key in ("weight_bit_width", "input_bit_width") if key in keywords]
    _check_chosen_widths(request, given_plan, bits)
    chosen = request.recipe.resolved()
    if chosen.weights == "tile" and plan is None and uniform.tile is None:
        raise InvalidOption("tile_scales needs the size of the tiles: tile_size=64, say.")
    if chosen.act_order is None:
        chosen = replace(chosen, act_order=chosen.quality == "best")
    return replace(request, recipe=chosen)


def _check_chosen_widths(
    request: Request, given: Plan | LayerPrecision | None, bits: Sequence[str]
) -> None:
    """Refuses what does not go with widths that are to be chosen, or goes with them alone.

    Raises:
        InvalidOption: by name, with the way out.
    """
    recipe, widths = request.recipe, request.widths
    if recipe.widths is None:
        if request.validate is not None:
            raise InvalidOption("validate judges widths that are chosen; give widths='auto' too.")
        return
    if isinstance(given, LayerPrecision):
        bits = [*bits, *(key for key in ("weight", "input") if getattr(given, key) is not None)]
    if isinstance(given, Plan) or bits:
        what = "a plan" if isinstance(given, Plan) else bits[0]
        raise InvalidOption(f"widths='auto' chooses the bits itself; leave out {what}, or widths.")
    limits = [name for name in recipe.budget if name != MAX_CYCLES]
    if widths.accumulator is None and not limits:
        raise InvalidOption(
            "widths='auto' needs a limit: accumulator_bit_width=P, or budget={'finn_lut': '80%'}."
        )
    for name in limits:
        check_budget(name)
    if recipe.split is not None or recipe.weights == "tile":
        raise InvalidOption(
            "widths='auto' chooses for whole layers with one scale per output; leave out the split "
            "and the scales per tile, or give the plan that it finds without them."
        )
    if request.validate is not None and not callable(request.validate):
        raise InvalidOption("validate must be a function of the model that returns a number.")


def _check_keywords(keywords: Mapping[str, Any]) -> None:
    for key in keywords:
        if key in _FORMER:
            raise InvalidOption(f"'{key}' is called '{_FORMER[key]}'; give it by that name.")
        if key not in Keywords.__annotations__:
            raise InvalidOption(
                f"'{key}' is no keyword of quantize; there are: plan, recipe, exclude, stack, run, "
                f"{', '.join(Keywords.__annotations__)}."
            )


def _changed(recipe: Recipe, keywords: Mapping[str, Any]) -> Recipe:
    """The recipe with the fields that keywords set replaced."""
    names = [f.name for f in fields(Recipe)]
    found = {_OF_RECIPE.get(key, key): value for key, value in keywords.items()}
    changes = {key: value for key, value in found.items() if key in names}
    if "tile_scales" in keywords:
        changes["weights"] = "tile" if keywords["tile_scales"] else "channel"
    transforms = [*recipe.transforms]
    if keywords.get("rotate"):
        transforms.append("rotate")
    if keywords.get("smooth") is not None:
        transforms.append(f"smooth:strength={keywords['smooth']}")
    return replace(recipe, transforms=tuple(transforms), **changes)


def layer_widths(
    layers: Mapping[str, nn.Module],
    columns: Mapping[str, int],
    recipe: Recipe,
    widths: LayerPrecision,
    of_branches: Mapping[str, LayerPrecision] | None = None,
) -> Plan:
    """The plan that uniform widths and the rules make, for layers that no rule excludes.

    Args:
        layers: name → layer.
        columns: name → inputs of one dot product; a layer with no more than a tile takes one.
        recipe: contains the rules.
        widths: of layers that no rule gives others.
        of_branches: branch → widths of it instead. Rules for the whole layer made them.
    """
    of_branches = of_branches or {}
    split = {name.rpartition(".")[0]: None for name in of_branches}
    recipe.check_rules({**split, **layers})
    found: dict[str, LayerPrecision] = {}
    for name, layer in layers.items():
        mine = recipe.ruled(name, layer, of_branches.get(name, widths))
        if mine is not None:
            whole = mine.tile is not None and mine.tile >= columns[name]
            found[name] = replace(mine, tile=None) if whole else mine
    return Plan(found)
