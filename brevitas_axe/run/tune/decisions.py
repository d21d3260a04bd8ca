"""What a tuning chooses from, and how a choice is written as arguments of `quantize`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.search.protocol import Configuration
from brevitas_axe.model.prepare import has_quantizers
from brevitas_axe.recipe import Recipe
from brevitas_axe.run.request import Keywords

WIDTHS, TRANSFORMS, CALIBRATION, SHARE = "widths", "transforms", "calibration", "share"
# Plans by their rank, the uniform widths of a plain call of `quantize` before them.
PLAIN = "default"
RANKS = ("best", "second", "third")
_NONE, _AND = "none", " + "
# Tried besides what the recipe says. Each is cheap enough for many trials, and what FINN builds
# it still builds.
_USUAL: Mapping[str, tuple[Any, ...]] = {
    "solver": ("qronos", "gptq", "gpfq"),
    "quality": ("best", "fast"),
    "ranges": (None, "percentile", "max"),
    TRANSFORMS: (_NONE, "shift_scale"),
}
_SHARES = ("100%", "80%", "65%", "50%")
_ACCUMULATORS = (20, 16, 14, 12)
# Keywords of `quantize` that are no decisions.
_NOT_DECIDED = {
    "weight_bit_width", "input_bit_width", "widths", "budget", "validate",
    "state", "offload", "workers", "progress", "log",
}  # fmt: skip
_DECIDED = (
    WIDTHS,
    TRANSFORMS,
    CALIBRATION,
    SHARE,
    *(name for name in Keywords.__annotations__ if name not in _NOT_DECIDED),
)


def decisions_of(
    model: nn.Module,
    recipe: Recipe,
    accumulator: int | None,
    cheapest: bool,
    given: Mapping[str, Sequence[Any]],
) -> dict[str, tuple[Any, ...]]:
    """Name → values, of which the first are those of a plain call of `quantize`.

    Args:
        model: one with quantizers of its own keeps them, so that nothing transforms it.
        recipe: to start from.
        accumulator: width that is asked for; None for none.
        cheapest: the least cost is looked for, so that plans of several costs are needed.
        given: by the user; they replace what is usual.

    Raises:
        InvalidOption: an unknown decision, or values that are none.
    """
    own = {
        "solver": recipe.solver,
        "quality": recipe.quality,
        "ranges": recipe.ranges,
        TRANSFORMS: _AND.join(map(str, recipe.transforms)) or _NONE,
    }
    found: dict[str, tuple[Any, ...]] = {WIDTHS: (PLAIN, *RANKS)}
    if cheapest:
        found[SHARE] = _SHARES
        if accumulator is None:
            found["accumulator_bit_width"] = _ACCUMULATORS
    found |= {name: tuple(dict.fromkeys((own[name], *_USUAL[name]))) for name in own}
    found[CALIBRATION] = (1.0, 0.25)
    if has_quantizers(model):
        del found[TRANSFORMS]
    for name, values in given.items():
        if name not in _DECIDED:
            raise InvalidOption(f"'{name}' is no decision; there are: {', '.join(_DECIDED)}.")
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InvalidOption(f"decision '{name}' needs a list of values, not {values!r}.")
        found[name] = tuple(values)
    _check(found)
    return found


def _check(found: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuses values before the first trial, which would refuse them one by one.

    Raises:
        InvalidOption: by the name of the decision or of the method.
    """
    for name, values in found.items():
        if not all(value is None or isinstance(value, str | int | float) for value in values):
            raise InvalidOption(f"values of '{name}' are plain text, numbers or null.")
    for value in found[WIDTHS]:
        if value not in (PLAIN, *RANKS):
            raise InvalidOption(
                f"widths cannot be {value!r}; choose from {', '.join((PLAIN, *RANKS))}."
            )
    for value in found[CALIBRATION]:
        if isinstance(value, str) or value is None or not 0 < value <= 1:
            raise InvalidOption(f"calibration is a share from 0 to 1, not {value!r}.")
    for value in found.get(SHARE, ()):
        if not Recipe.share(str(value)) > 0:
            raise InvalidOption(f"share is one of what W4A4 costs, such as '80%', not {value!r}.")
    for value in found.get(TRANSFORMS, ()):
        with_transforms(Recipe(), {TRANSFORMS: value}).resolved()
    for name in ("solver", "ranges", "quality"):
        for value in found.get(name, ()):
            replace(Recipe(), **{name: value}).resolved()


def with_transforms(recipe: Recipe, configuration: Configuration) -> Recipe:
    """The recipe with the transforms of a configuration, where it decides them."""
    if TRANSFORMS not in configuration:
        return recipe
    names = str(configuration[TRANSFORMS])
    return replace(recipe, transforms=() if names == _NONE else tuple(names.split(_AND)))


def keywords_of(configuration: Configuration) -> dict[str, Any]:
    """What of a configuration is a keyword of `quantize`."""
    ours = (WIDTHS, TRANSFORMS, CALIBRATION, SHARE)
    return {name: value for name, value in configuration.items() if name not in ours}


def written(configuration: Configuration) -> str:
    """A configuration as text, the same for equal ones."""
    return json.dumps(dict(configuration), sort_keys=True)


def told(configuration: Configuration) -> str:
    """A configuration for people: what is as usual, None, is left out."""
    return ", ".join(f"{name} {v}" for name, v in configuration.items() if v is not None)


def features_of(model: nn.Module, accumulator: int | None, tile: int | None) -> dict[str, float]:
    """Numbers by which results of similar models are told from others, after Quantune."""
    convolutions = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    kinds = [type(module).__name__ for module in model.modules()]
    return {
        "accumulator": float(accumulator or 0),
        "tile": float(tile or 0),
        "linear": sum(isinstance(m, nn.Linear) for m in model.modules()),
        "convolutions": len(convolutions),
        "depthwise": sum(1 < m.groups == m.in_channels for m in convolutions),
        "pointwise": sum(set(m.kernel_size) == {1} for m in convolutions),
        "norms": sum("Norm" in kind for kind in kinds),
        "activations": sum(kind in nn.modules.activation.__all__ for kind in kinds),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
