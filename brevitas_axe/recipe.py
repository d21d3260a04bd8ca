"""How a model is quantized: every choice except the widths, which are in a plan.

A recipe is written by hand in YAML, or made in Python; what a run used comes back with everything
filled in. Methods are named as everywhere, "NAME:key=value":

    transforms: ["smooth:strength=0.5"]
    inputs: per_token
    solver: qronos
    rules:
      "*.down_proj": {weight: 8}
      "type:Conv2d": {exclude: true}

`Run` has the settings that change no integer: the folder for progress, and the number of tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import yaml

from brevitas_axe.errors import InvalidOption
from brevitas_axe.files import StrictLoader, read_text, write_whole
from brevitas_axe.formats import Format
from brevitas_axe.plan import LayerPrecision, bit_map_rules
from brevitas_axe.registry import Facts, method, spec_of
from brevitas_axe.rules import EXCLUDE, applies, check_pattern, check_rule

_FORMAT = "brevitas_axe.recipe.v1"
# "NAME:key=value", or the method itself.
Spec = Any
Weights = Literal["channel", "tensor", "tile"]
Quality = Literal["fast", "best"]
Widths = Literal["auto"]
Function = Literal["float", "quantized"]
Attention = Literal["float", "quantized"]
Outside = Literal["float", "quantized"]
# Name, value, step, as `add_scalar` of TensorBoard and `log_metric` of MLflow take them.
Log = Callable[[str, float, int], object]

# Field of the recipe → room of its methods.
_ROOMS = {
    "transforms": "transforms",
    "split": "splits",
    "inputs": "inputs",
    "ranges": "ranges",
    "solver": "solvers",
}
# Key of a budget that is no cost.
MAX_CYCLES = "max_cycles"

_PRESETS: Mapping[str, Mapping[str, Any]] = {
    # What FINN builds: static inputs, one weight scale per channel, ranges that fit few bits.
    "fpga": {"inputs": "static", "ranges": "mse", "weights": "channel"},
    # Linear layers between float norms: outliers go to the weights, each token has its own scale.
    "transformer": {"transforms": ("smooth",), "inputs": "per_token"},
    # Seconds instead of minutes, for a first look: the published algorithm without a search.
    "fast": {"solver": "gptq", "quality": "fast"},
}


@dataclass(frozen=True)
class Recipe:
    """Everything about a run that changes integers, besides the widths of a `Plan`.

    Attributes:
        transforms: rewrites of the float model that preserve its function, in this order.
        split: method that divides layers into branches; None for none. Or a mapping from patterns,
            as in rules, to methods and None: a layer has that of the last one that applies.
        inputs: how the inputs of layers are quantized.
        symmetric: True for signed inputs without a zero point, False for unsigned ones with one.
        ranges: how the range of a static input is fitted to its bits; "calibrated" keeps the
            calibrated range (Brevitas's percentile of 99.999), and None is the least squared
            error, or what a model with quantizers of its own has.
        weights: one scale per output channel, per tensor, or per output and tile.
        power_of_two: weight scales are powers of two.
        solver: method that finds the integers.
        quality: "fast" (as published) or "best".
        act_order: columns with the largest inputs first; None for the default of the quality.
        function: what the solve keeps near: "float", the model without its quantizers, or
            "quantized", a Brevitas model with them as they are, as after quantization-aware
            training; None decides by what batch norms learned, and is "float" without any.
        attention: of a transformer solved block by block, "quantized" makes integer products of
            query · key and weights · value, with the bits that the accumulator leaves for them.
        outside: of such a transformer, "quantized" makes integers of the convolutions and linear
            layers in front of and behind the blocks, too, as a patch embedding and a classifier
            are; a layer that shares its weights with an embedding stays in float.
        distill: steps that each solved block of such a transformer is trained towards the float
            block's outputs, within its accumulators; kept only where batches held out gain.
        rules: name pattern (see `brevitas_axe.plan.name_matches`) or "type:" and a layer's class
            ("type:Conv2d") → widths ("weight", "input", "accumulator", "tile") or {"exclude":
            true}. All rules that apply do so in order, a later one over an earlier one. Layers
            that a plan names keep the plan's widths. Text is a bit map of mixtures of experts,
            "main_2.attn_4.exp_l1e3_4" (`brevitas_axe.plan.bit_map_rules`), and becomes rules.
        widths: "auto" chooses weight and input bits for every layer, under the accumulator that is
            asked for, the budget, or both; None leaves them to the plan.
        budget: with widths "auto", name of a cost → most that it may be for one sample, or a share
            of what 4 bits for all weights and inputs take ("80%"); beside these "max_cycles", to
            which every layer is folded for costs of hardware.

    Raises:
        InvalidOption, InvalidPlan: a value that cannot be used, by its name.
    """

    transforms: tuple[Spec, ...] = ()
    split: Spec | Mapping[str, Spec | None] | None = None
    inputs: Spec = "static"
    symmetric: bool = True
    ranges: Spec | None = None
    weights: Weights = "channel"
    power_of_two: bool = False
    solver: Spec = "qronos"
    quality: Quality = "best"
    act_order: bool | None = None
    function: Function | None = None
    attention: Attention = "float"
    outside: Outside = "float"
    distill: int = 0
    rules: Mapping[str, Mapping[str, Format | bool | None]] = field(default_factory=dict)
    widths: Widths | None = None
    budget: Mapping[str, float | str] = field(default_factory=dict)

    # What `ranges` may be besides a method.
    CALIBRATED: ClassVar[str] = "calibrated"

    def __post_init__(self) -> None:
        if isinstance(self.transforms, str) or not isinstance(self.transforms, tuple | list):
            raise InvalidOption("a recipe's transforms are a list of methods; write [NAME, NAME].")
        object.__setattr__(self, "transforms", tuple(self.transforms))
        for key, room in _ROOMS.items():
            for spec in self._specs(key):
                if not isinstance(spec, str) and not isinstance(
                    getattr(spec, "facts", None), Facts
                ):
                    raise InvalidOption(
                        f"a recipe's {key} must name a method of the room '{room}', not {spec!r}."
                    )
        _one_of("weights", self.weights, get_args(Weights))
        _one_of("quality", self.quality, get_args(Quality))
        _one_of("symmetric", self.symmetric, (True, False))
        _one_of("power_of_two", self.power_of_two, (True, False))
        _one_of("act_order", self.act_order, (True, False, None))
        _one_of("function", self.function, (*get_args(Function), None))
        _one_of("attention", self.attention, get_args(Attention))
        _one_of("outside", self.outside, get_args(Outside))
        if type(self.distill) is not int or self.distill < 0:
            raise InvalidOption(f"distill is a number of steps from 0, not {self.distill!r}.")
        if self.power_of_two and self.weights == "tile":
            raise InvalidOption(
                "a recipe cannot have power_of_two scales for every tile; set weights to channel "
                "or tensor."
            )
        _one_of("widths", self.widths, (*get_args(Widths), None))
        _check_budget(self.widths, self.budget)
        if isinstance(self.rules, str):
            object.__setattr__(self, "rules", bit_map_rules(self.rules))
        if not isinstance(self.rules, Mapping):
            raise InvalidOption("a recipe's rules are a mapping from patterns to widths.")
        for pattern, rule in self.rules.items():
            check_rule(pattern, rule)
        for pattern in self.split if isinstance(self.split, Mapping) else ():
            check_pattern("split", pattern)

    def _specs(self, key: str) -> tuple[Spec, ...]:
        value = getattr(self, key)
        if key == "split" and isinstance(value, Mapping):
            value = tuple(spec for spec in value.values() if spec is not None)
        if isinstance(value, tuple):
            return value
        if key == "ranges" and value == self.CALIBRATED:
            return ()
        return () if value is None and key in ("split", "ranges") else (value,)

    def _each(self, key: str, change: Callable[[Spec], Spec]) -> Any:
        """What a field names, every method changed, in the field's own form."""
        value = getattr(self, key)
        if isinstance(value, Mapping):
            return {name: None if spec is None else change(spec) for name, spec in value.items()}
        found = [change(spec) for spec in self._specs(key)]
        return found if key == "transforms" else found[0]

    def methods(self, key: str) -> tuple[Any, ...]:
        """The methods that one field names, with their options; empty where it names none.

        Raises:
            InvalidOption: there is none of that name, or of that option.
        """
        return tuple(method(_ROOMS[key], spec) for spec in self._specs(key))

    def resolved(self) -> Recipe:
        """The same recipe with every method looked up and written in full.

        Raises:
            InvalidOption: a method that does not exist, or transforms in an order in which they
                would undo each other.
        """
        transforms = self.methods("transforms")
        names = [_written("transforms", spec) for spec in transforms]
        for i in range(1, len(names)):
            if transforms[i].stage < transforms[i - 1].stage:
                order = sorted(range(len(names)), key=lambda j: transforms[j].stage)
                raise InvalidOption(
                    f"the transform '{names[i]}' comes before '{names[i - 1]}'; write them as "
                    f"[{', '.join(names[j] for j in order)}]."
                )
        single = {
            key: self._each(key, partial(_found, room))
            for key, room in _ROOMS.items()
            if key != "transforms" and self._specs(key)
        }
        return replace(self, transforms=tuple(names), **single)

    def split_of(self, name: str, layer: object) -> Spec | None:
        """The split of one layer, None where it has none; see `ruled`."""
        if not isinstance(self.split, Mapping):
            return self.split
        found = [spec for pattern, spec in self.split.items() if applies(pattern, name, layer)]
        return found[-1] if found else None

    def ruled(self, name: str, layer: object, widths: LayerPrecision) -> LayerPrecision | None:
        """Widths of one layer after the rules; None where a rule excludes it.

        Args:
            name: of the layer.
            layer: the module itself.
            widths: of the layer without the rules.
        """
        excluded = False
        for pattern, rule in self.rules.items():
            if applies(pattern, name, layer):
                excluded = bool(rule.get(EXCLUDE, excluded))
                widths = replace(widths, **{k: v for k, v in rule.items() if k != EXCLUDE})
        return None if excluded else widths

    def rule_widths(self, pattern: str) -> LayerPrecision:
        """The widths that one rule gives."""
        widths = {k: v for k, v in self.rules[pattern].items() if k != EXCLUDE}
        return LayerPrecision(**widths)  # type: ignore[arg-type]

    def check_rules(self, layers: Mapping[str, object]) -> None:
        """Raises InvalidOption for a rule that applies to none of the layers."""
        for pattern in self.rules:
            if not any(applies(pattern, name, layer) for name, layer in layers.items()):
                raise InvalidOption(
                    f"the rule '{pattern}' applies to no layer; there are: {', '.join(layers)}."
                )

    def excluded(self, layers: Mapping[str, object]) -> tuple[str, ...]:
        """Names of the layers that the rules exclude."""
        anything = LayerPrecision()
        return tuple(n for n, layer in layers.items() if self.ruled(n, layer, anything) is None)

    def to_yaml(self) -> str:
        """Text that `from_yaml` reads.

        Raises:
            InvalidOption: a method that is not registered, and so has no name.
        """
        content: dict[str, Any] = {"format": _FORMAT}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in _ROOMS and self._specs(f.name):
                value = self._each(f.name, partial(_named, _ROOMS[f.name]))
            elif f.name == "rules":
                value = {pattern: dict(rule) for pattern, rule in value.items()}
            elif f.name == "transforms":
                value = []
            elif f.name == "budget":
                value = dict(value)
            content[f.name] = value
        return yaml.safe_dump(content, sort_keys=False, width=100)

    @staticmethod
    def share(text: str) -> float:
        """The number that a share of a budget stands for: "80%" is 0.8; NaN for other text."""
        try:
            return float(text.removesuffix("%")) / 100 if text.endswith("%") else math.nan
        except ValueError:
            return math.nan

    def save(self, path: str | Path) -> None:
        """Writes the YAML file, whole or not at all."""
        write_whole(path, self.to_yaml().encode())

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """Parses strict YAML; what is left out has its default.

        Raises:
            InvalidOption: an unknown key, a key twice, or a value that cannot be used.
        """
        try:
            data = yaml.load(text, Loader=StrictLoader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            # The parser's message has several lines and names the place.
            reason = " ".join(str(error).split()).rstrip(".") or "it is nested too deeply"
            raise InvalidOption(f"the recipe is not valid YAML: {reason}.") from None
        known = [f.name for f in fields(cls)]
        data = {} if data is None else data
        if not isinstance(data, dict):
            raise InvalidOption(f"a recipe is a mapping with keys among {', '.join(known)}.")
        unknown = [key for key in data if key not in ("format", *known)]
        if unknown:
            raise InvalidOption(
                f"'{unknown[0]}' is no key of a recipe; there are: {', '.join(known)}."
            )
        form = data.pop("format", _FORMAT)
        if form != _FORMAT:
            raise InvalidOption(f"the recipe's format is {form!r}, expected {_FORMAT!r}.")
        return cls(**data)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Reads a YAML file."""
        return cls.from_yaml(read_text(path, "recipe", InvalidOption))

    @classmethod
    def preset(cls, name: str) -> Recipe:
        """A recipe to start from: "fpga", "transformer" or "fast"."""
        if name not in _PRESETS:
            raise InvalidOption(f"there is no recipe '{name}'; choose from {', '.join(_PRESETS)}.")
        return cls(**_PRESETS[name])

    @classmethod
    def of(cls, recipe: Recipe | str | Path | None) -> Recipe:
        """The recipe itself, or the one that a preset's name or a file's path stands for."""
        if isinstance(recipe, cls):
            return recipe
        if recipe is None:
            return cls()
        if isinstance(recipe, str) and recipe in _PRESETS:
            return cls.preset(recipe)
        if not isinstance(recipe, str | Path):
            raise InvalidOption(f"a recipe is a Recipe, not a {type(recipe).__name__}.")
        if not Path(recipe).exists():
            raise InvalidOption(
                f"there is no recipe '{recipe}'; give a YAML file, or one of {', '.join(_PRESETS)}."
            )
        return cls.load(recipe)


@dataclass(frozen=True)
class Run:
    """Settings of a run that change no integer.

    Attributes:
        state: folder for progress; a run that was killed continues from it to the same integers.
        offload: folder to which solved blocks move, by accelerate; load the model with its
            `device_map` to keep the others on the disk until their turn.
        workers: tasks at a time, through the joblib backend that `joblib.parallel_config` chose
            (processes, Dask, Ray), -1 for as many as it has; None for threads of torch.
        progress: show progress bars.
        log: called with name, value and step of every number that a long run tells, such as
            `SummaryWriter("runs").add_scalar` of TensorBoard or `mlflow.log_metric`.

    Raises:
        InvalidOption: no workers.
    """

    state: str | Path | None = None
    offload: str | Path | None = None
    workers: int | None = None
    progress: bool = True
    log: Log | None = None

    def __post_init__(self) -> None:
        if self.workers == 0:
            raise InvalidOption("workers is 0; give the number of tasks at a time, or -1 for all.")


def _one_of(key: str, value: object, choices: Iterable[object]) -> None:
    choices = list(choices)
    # Compared by type too: 1 == True, but is no boolean.
    if not any(
        value is choice or (isinstance(value, str) and value == choice) for choice in choices
    ):
        listed = ", ".join("null" if c is None else str(c).lower() for c in choices)
        raise InvalidOption(f"{key} '{value}' is unknown; choose from {listed}.")


def _check_budget(widths: Widths | None, budget: object) -> None:
    if not isinstance(budget, Mapping):
        raise InvalidOption("a budget is a mapping from costs to limits, such as {finn_lut: 80%}.")
    if budget and widths is None:
        raise InvalidOption("a budget is for widths that are chosen; set widths to auto, too.")
    for name, limit in budget.items():
        number = Recipe.share(limit) if isinstance(limit, str) else limit
        known = type(number) in (int, float) and math.isfinite(number) and number > 0
        if name == MAX_CYCLES and (type(limit) is not int or limit < 1):
            raise InvalidOption(f"{MAX_CYCLES} must be an integer of at least 1, not {limit!r}.")
        if not isinstance(name, str) or not known:
            raise InvalidOption(
                f"the budget of {name!r} must be a positive number, or a share such as '80%', not "
                f"{limit!r}."
            )


def _named(room: str, spec: Spec) -> str:
    """A method as text; raises InvalidOption for one that is not registered."""
    return spec if isinstance(spec, str) else spec_of(room, spec)


def _found(room: str, spec: Spec) -> Spec:
    """A method looked up, and written in full."""
    return _written(room, method(room, spec))


def _written(room: str, found: Any) -> Spec:
    """A method as text; one that is not registered has no text and is returned as it is."""
    try:
        return found if isinstance(found, str) else spec_of(room, found)
    except InvalidOption:
        return found
