"""What hardware can compute, as a file that constrains every allocator.

After HAGO (arXiv 2103.14949). A specification is JSON with exactly these keys:

    format: "brevitas_axe.backend.v1"
    name: of the backend
    power_of_two: true where weight scales must be powers of two
    types: list of what it can compute, each with
        kinds: among "linear", "convolution" (over one or two axes), "depthwise", "grouped",
            "volumetric" (over three axes) and "transposed"
        weight, input, accumulator: [fewest, most] bits
        tiles: true where a dot product may be cut in tiles
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from torch import nn

from brevitas_axe.errors import InvalidOption, InvalidPlan, UnsupportedLayer
from brevitas_axe.files import parse_object, read_text
from brevitas_axe.methods.allocate.tables import check_shapes
from brevitas_axe.methods.cost import LayerShape, widths
from brevitas_axe.model.apply.weights import is_power_of_two, make_accumulator_aware
from brevitas_axe.model.layers import Layer
from brevitas_axe.plan import Choices, LayerPrecision

_FORMAT = "brevitas_axe.backend.v1"
_KINDS = ("linear", "convolution", "depthwise", "grouped", "volumetric", "transposed")
_SHIPPED = files("brevitas_axe.methods.allocate") / "backends"
Range = tuple[int, int]


@dataclass(frozen=True)
class Types:
    """Layers that a backend computes, and with which widths.

    Attributes:
        kinds: of layers.
        weight, input, accumulator: (fewest, most) bits.
        tiles: a dot product may be cut in tiles.
    """

    kinds: tuple[str, ...]
    weight: Range
    input: Range
    accumulator: Range
    tiles: bool

    def admits(self, shape: LayerShape, choice: LayerPrecision) -> bool:
        """True when a layer of this shape may get the choice.

        Without a given accumulator, the one that the data types need counts.
        """
        if isinstance(choice.weight, str) or isinstance(choice.input, str):
            return False  # ranges of bits are those of integers
        if layer_kind(shape) not in self.kinds or (choice.tile is not None and not self.tiles):
            return False
        need = choice.accumulator
        if need is None:
            need = max(widths(shape, choice).outer, self.accumulator[0])
        pairs = ((choice.weight, self.weight), (choice.input, self.input), (need, self.accumulator))
        return all(bits is not None and low <= bits <= high for bits, (low, high) in pairs)


@dataclass(frozen=True)
class Backend:
    """A specification; see the module for its file."""

    name: str
    power_of_two: bool
    types: tuple[Types, ...]

    def constrain(
        self, choices: Choices, shapes: Mapping[str, LayerShape], model: nn.Module
    ) -> Choices:
        """The choices that this backend can compute.

        Args:
            choices: every one needs weight and input bits.
            shapes: of the layers, see `brevitas_axe.methods.cost.layer_shapes`.
            model: contains the layers, with the scales that they will have.

        Raises:
            UnsupportedLayer: the backend cannot compute a layer at any width.
            InvalidPlan: none of a layer's choices can be computed, or a layer has no shape.
        """
        check_shapes(choices, shapes)
        kept = {}
        for name, options in choices.layers.items():
            shape = shapes[name]
            if not any(layer_kind(shape) in types.kinds for types in self.types):
                raise UnsupportedLayer(
                    f"the backend '{self.name}' computes no {layer_kind(shape)} layers, but "
                    f"'{name}' is one; replace it, or exclude it."
                )
            if self.power_of_two and not _has_power_of_two(name, model):
                raise UnsupportedLayer(
                    f"the backend '{self.name}' needs weight scales that are powers of two, but "
                    f"layer '{name}' has others; give it a fixed-point weight quantizer."
                )
            kept[name] = tuple(
                choice for choice in options if any(t.admits(shape, choice) for t in self.types)
            )
            if not kept[name]:
                raise InvalidPlan(
                    f"the backend '{self.name}' computes none of the choices of layer '{name}'; "
                    f"it has {self._offer(shape)}."
                )
        return Choices(kept, choices.same_input)

    def _offer(self, shape: LayerShape) -> str:
        return " or ".join(
            ", ".join(
                f"{low} to {high} {what} bits"
                for what, (low, high) in (
                    ("weight", types.weight),
                    ("input", types.input),
                    ("accumulator", types.accumulator),
                )
            )
            for types in self.types
            if layer_kind(shape) in types.kinds
        )


def layer_kind(shape: LayerShape) -> str:
    """Kind of layer in the terms of a specification."""
    if not shape.kernel:
        return "linear"
    if shape.kind == "transposed":
        return "transposed"
    if len(shape.kernel) > 2:
        return "volumetric"
    if shape.kind == "depthwise":
        return "depthwise"
    return "grouped" if shape.groups > 1 else "convolution"


def load_backend(name: str | Path) -> Backend:
    """A backend that ships with the package, by name, or a specification of your own, by path.

    Raises:
        InvalidOption: neither a shipped name nor a file.
        InvalidPlan: the file does not follow the format.
    """
    shipped = {path.name.removesuffix(".json"): path for path in _SHIPPED.iterdir()}
    if str(name) in shipped:
        return parse_backend(shipped[str(name)].read_text(encoding="utf-8"))
    if not Path(name).is_file():
        raise InvalidOption(
            f"there is no backend '{name}'; choose from {', '.join(sorted(shipped))}, or give the "
            "path of a specification."
        )
    return parse_backend(read_text(name, "backend file"))


def parse_backend(text: str) -> Backend:
    """Parses strict JSON; any unknown key or wrong type raises InvalidPlan."""
    data = parse_object(text, "backend file", _FORMAT, ["name", "power_of_two", "types"])
    if not isinstance(data["name"], str) or type(data["power_of_two"]) is not bool:
        raise InvalidPlan("a backend file's 'name' is text and its 'power_of_two' true or false.")
    if not isinstance(data["types"], list) or not data["types"]:
        raise InvalidPlan("'types' of a backend file must be a list of at least one object.")
    types = tuple(_types(entry) for entry in data["types"])
    return Backend(data["name"], data["power_of_two"], types)


def _types(entry: Any) -> Types:
    known = {field.name for field in fields(Types)}
    if not isinstance(entry, dict) or set(entry) != known:
        raise InvalidPlan(
            f"each of a backend file's 'types' must have exactly the keys {', '.join(known)}."
        )
    kinds = entry["kinds"]
    if not isinstance(kinds, list) or not kinds or not all(kind in _KINDS for kind in kinds):
        raise InvalidPlan(f"'kinds' of a backend file lists some of: {', '.join(_KINDS)}.")
    if type(entry["tiles"]) is not bool:
        raise InvalidPlan("'tiles' of a backend file is true or false.")
    ranges = {}
    for name in ("weight", "input", "accumulator"):
        value = entry[name]
        if (
            not isinstance(value, list)
            or len(value) != 2
            or not all(type(bits) is int for bits in value)
            or not 1 <= value[0] <= value[1] <= 64
        ):
            raise InvalidPlan(f"'{name}' of a backend file is [fewest, most] bits, in 1 to 64.")
        ranges[name] = (value[0], value[1])
    return Types(kinds=tuple(kinds), tiles=entry["tiles"], **ranges)


def _has_power_of_two(name: str, model: nn.Module) -> bool:
    layer = cast(Layer, copy.deepcopy(model.get_submodule(name)))
    make_accumulator_aware(name, layer)
    return is_power_of_two(layer)
