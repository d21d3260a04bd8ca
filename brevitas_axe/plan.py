"""Which widths each layer gets, or may get: frozen, JSON in and out, strict keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from brevitas_axe.accumulator import check_bit_width, tile_starts
from brevitas_axe.display import html_table, span
from brevitas_axe.errors import InvalidPlan
from brevitas_axe.files import parse_object, read_text, write_whole
from brevitas_axe.formats import Format, bits_of, minifloat

_FORMAT = "brevitas_axe.plan.v2"
_OLDER_FORMATS = ("brevitas_axe.plan.v1",)
_CHOICES_FORMAT = "brevitas_axe.choices.v1"
# Begins a pattern that means a type of layers instead of names.
OF_TYPE = "type:"
# Fields of LayerPrecision that hold a format, not a number alone.
_FORMATTED = ("weight", "input")


def name_matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches a layer's name.

    Args:
        pattern: shell-style for the whole name ("encoder.*.fc1"), or a regular expression between
            slashes, found anywhere in the name ("/fc[12]$/").
        name: of a layer.

    Raises:
        InvalidPlan: the regular expression cannot be compiled.
    """
    if len(pattern) > 1 and pattern[0] == pattern[-1] == "/":
        try:
            return re.search(pattern[1:-1], name) is not None
        except re.error as error:
            raise InvalidPlan(
                f"the pattern '{pattern}' is no regular expression: {error}."
            ) from None
    return fnmatchcase(name, pattern)


# Part of a bit map → the pattern of the layers that it names; numbers are as they are written.
_BIT_MAP = {
    r"main_(\d+)": "*",
    r"attn_(\d+)": "/attn/",
    r"exp_l(\d+)e(\d+)_(\d+)": r"/layers\.{0}\..*experts\.{1}\./",
    r"layer_(\d+)_(\d+)": r"/layers\.{0}\..*experts\./",
    r"keyword__(\w+)__(\d+)": "*{0}*",
}


def bit_map_rules(text: str) -> dict[str, dict[str, int]]:
    """Rules that a bit map of QuantMoE-Bench stands for, in the order in which they apply.

    Args:
        text: parts with dots between them: "main_2" for all layers, "attn_4" for attention,
            "exp_l1e3_4" for expert 3 of block 1, "layer_16_4" for the experts of a block, and
            "keyword__gate_proj__4" for layers with that in their names. As in the authors' code
            (arXiv 2406.08155) they apply in this order of kinds.

    Returns:
        Pattern (see `name_matches`) → {"weight": bits}.

    Raises:
        InvalidPlan: a part that is none of these, or no "main".
    """
    found: dict[str, list[tuple[str, int]]] = {kind: [] for kind in _BIT_MAP}
    for part in text.split("."):
        kind, match = next(
            ((kind, match) for kind in _BIT_MAP if (match := re.fullmatch(kind, part))),
            (None, None),
        )
        if kind is None or match is None:
            raise InvalidPlan(
                f"'{part}' is no part of a bit map; there are main_2, attn_4, exp_l1e3_4, "
                "layer_16_4 and keyword__gate_proj__4, with dots between them."
            )
        *names, bits = match.groups()
        # Leading zeros, as in "l01", are no part of a layer's name.
        names = [str(int(name)) if name.isdigit() else name for name in names]
        found[kind].append((_BIT_MAP[kind].format(*names), int(bits)))
    if not found[next(iter(_BIT_MAP))]:
        raise InvalidPlan(
            f"the bit map '{text}' says nothing of all layers; begin with main_2, say."
        )
    rules: dict[str, dict[str, int]] = {}
    for pattern, bits in (pair for pairs in found.values() for pair in pairs):
        rules.pop(pattern, None)  # said again, it applies at its later place
        rules[pattern] = {"weight": bits}
    return rules


def _layer_objects(data: dict[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(data["layers"], dict):
        raise InvalidPlan(f"'layers' of a {what} must be a JSON object.")
    return data["layers"]


@dataclass(frozen=True)
class LayerPrecision:
    """Widths of one layer. None leaves what the model already has.

    Attributes:
        weight: bits of integer weights, or the name of a floating-point format (see `formats`).
        input: bits of the input activations, or such a name.
        accumulator: bits P of the (inner) accumulator; None means not constrained. Sums of
            floating-point numbers are exact, and their accumulator is one of fixed point.
        tile: inputs per tile T; None means one accumulator for the whole dot product.
    """

    weight: Format | None = None
    input: Format | None = None
    accumulator: int | None = None
    tile: int | None = None

    def __post_init__(self) -> None:
        for name in ("weight", "input"):
            bits = getattr(self, name)
            if isinstance(bits, str):
                minifloat(bits)
            elif bits is not None and (type(bits) is not int or not 1 <= bits <= 32):
                raise InvalidPlan(f"{name} bits must be an integer in [1, 32], not {bits!r}.")
        if self.accumulator is not None:
            check_bit_width(self.accumulator)
        tile_starts(1, self.tile)

    @property
    def weight_bits(self) -> int | None:
        """Bits that a weight is stored in, whatever its format."""
        return None if self.weight is None else bits_of(self.weight)

    @property
    def input_bits(self) -> int | None:
        """Bits that an input is stored in, whatever its format."""
        return None if self.input is None else bits_of(self.input)

    def check_integers(self, name: str, what: str, of: Sequence[str] = _FORMATTED) -> None:
        """Raises InvalidPlan for a floating-point format, where only integers are handled.

        Args:
            name: of the layer, for the message.
            what: that handles only integers, as the subject of a sentence.
            of: "weight", "input" or both.
        """
        floats = {f for key in of if isinstance(f := getattr(self, key), str)}
        if floats:
            raise InvalidPlan(
                f"layer '{name}' is planned in {' and '.join(sorted(floats))}, but {what} only "
                "integers; plan bits, such as 4, for its weights and inputs, or exclude it."
            )


def precision_of(subject: str, entry: Mapping[str, Any]) -> LayerPrecision:
    """Widths from the values that a file has for the fields of LayerPrecision.

    Args:
        subject: what they are of, at the beginning of messages.
        entry: field → value; no other keys.

    Raises:
        InvalidPlan: a value of another type, or one that cannot be.
    """
    for key, value in entry.items():
        if value is None or type(value) is int:
            continue
        if key not in _FORMATTED:
            raise InvalidPlan(f"{subject}: {key} must be an integer or null.")
        if type(value) is not str:
            raise InvalidPlan(
                f'{subject}: {key} must be an integer, a format such as "e4m3", or null.'
            )
    try:
        return LayerPrecision(**entry)
    except InvalidPlan as error:
        raise InvalidPlan(f"{subject}: {error}") from None


def _precision(name: str, entry: object) -> LayerPrecision:
    """A layer's JSON object, strictly."""
    known = {f.name for f in fields(LayerPrecision)}
    if not isinstance(entry, dict) or not set(entry) <= known:
        raise InvalidPlan(
            f"layer '{name}' of the plan must be an object with keys among "
            f"{', '.join(sorted(known))}."
        )
    return precision_of(f"layer '{name}'", entry)


@dataclass(frozen=True)
class Plan:
    """Layer name → LayerPrecision.

    Layer names are those of `model.named_modules()`. A part of a layer that was split is a layer
    with a name of its own ("fc1.low"); the split itself is in the recipe. Files of the format's
    first version have the same content and are read too.
    """

    layers: Mapping[str, LayerPrecision] = field(default_factory=dict)

    @classmethod
    def uniform(cls, names: Iterable[str], precision: LayerPrecision) -> Plan:
        """The same precision for every name."""
        return cls(dict.fromkeys(names, precision))

    def __repr__(self) -> str:
        widths = ", ".join(
            f"{f.name} {span(getattr(layer, f.name) for layer in self.layers.values())}"
            for f in fields(LayerPrecision)
            if any(getattr(layer, f.name) is not None for layer in self.layers.values())
        )
        count = f"{len(self.layers)} layer{'s' * (len(self.layers) != 1)}"
        return f"Plan({count}: {widths})" if widths else f"Plan({count})"

    def _repr_html_(self) -> str:
        headings = [f.name for f in fields(LayerPrecision)]
        rows = [
            (name, *(getattr(layer, key) for key in headings))
            for name, layer in self.layers.items()
        ]
        return html_table(repr(self), ["layer", *headings], rows)

    def __getitem__(self, name: str) -> LayerPrecision:
        return self.layers[name]

    def within(self, prefix: str) -> Plan:
        """The layers of one block, by their names inside it: "h.0.fc" is "fc" within "h.0"."""
        start = f"{prefix}."
        return Plan(
            {n.removeprefix(start): p for n, p in self.layers.items() if n.startswith(start)}
        )

    def check_integers(self, what: str, of: Sequence[str] = _FORMATTED) -> None:
        """Raises InvalidPlan for a layer in a floating-point format, see `LayerPrecision`."""
        for name, precision in self.layers.items():
            precision.check_integers(name, what, of)

    def missing(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of the names for which nothing is planned, in their order."""
        return tuple(name for name in names if name not in self.layers)

    def check_names(self, names: Iterable[str]) -> None:
        """Raises InvalidPlan when a planned layer is not among names."""
        names = list(names)
        unknown = [name for name in self.layers if name not in names]
        if unknown:
            unsplit = [name for name in names if any(n.startswith(f"{name}.") for n in unknown)]
            hint = ""
            if unsplit:
                hint = f" ('{unsplit[0]}' is not split; apply the recipe's split first)"
            raise InvalidPlan(
                f"the plan names layers that the model does not have: {', '.join(unknown)}{hint}; "
                f"its layers are: {', '.join(names)}."
            )

    def to_json(self) -> str:
        layers = {name: asdict(precision) for name, precision in self.layers.items()}
        return json.dumps({"format": _FORMAT, "layers": layers}, indent=2) + "\n"

    def save(self, path: str | Path) -> None:
        """Writes the JSON file, whole or not at all."""
        write_whole(path, self.to_json().encode())

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Parses strict JSON; any unknown key or wrong type raises InvalidPlan."""
        data = parse_object(text, "plan", _FORMAT, ["layers"], _OLDER_FORMATS)
        layers = _layer_objects(data, "plan")
        return cls({name: _precision(name, entry) for name, entry in layers.items()})

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        return cls.from_json(read_text(path, "plan"))

    def diff(self, other: Plan) -> dict[str, tuple[LayerPrecision | None, LayerPrecision | None]]:
        """Layers whose precision differs, as name → (mine, other's)."""
        names = dict.fromkeys([*self.layers, *other.layers])
        pairs = {name: (self.layers.get(name), other.layers.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True)
class Choices:
    """What an allocator may give to each layer.

    Attributes:
        layers: layer name → the precisions it may get, at least one, none twice.
        same_input: groups of layers that read the same activation and so share its bits.

    Raises:
        InvalidPlan: no choice, a choice twice, an unknown or repeated name in `same_input`, or a
            group without layers or without a width that all its layers may get.
    """

    layers: Mapping[str, tuple[LayerPrecision, ...]]
    same_input: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        for name, options in self.layers.items():
            if not options or len(set(options)) != len(options):
                raise InvalidPlan(
                    f"layer '{name}' needs at least one choice, and none of them twice."
                )
        grouped = [name for group in self.same_input for name in group]
        for name in grouped:
            if name not in self.layers or grouped.count(name) > 1:
                raise InvalidPlan(
                    f"'same_input' names '{name}', which has no choices or is named twice."
                )
        for group in self.same_input:
            if not group:
                raise InvalidPlan("'same_input' has a group without layers; leave it out.")
            if not set.intersection(*({c.input for c in self.layers[n]} for n in group)):
                raise InvalidPlan(
                    f"layers {', '.join(group)} read the same activation, but no choice of input "
                    "bits is common to all of them; give them one."
                )

    def check_integers(self, what: str) -> None:
        """Raises InvalidPlan for a choice in a floating-point format, see `LayerPrecision`."""
        for name, options in self.layers.items():
            for choice in options:
                choice.check_integers(name, what)

    def restricted(self, rules: Mapping[str, Mapping[str, Sequence[Format | None]]]) -> Choices:
        """Only the choices that the rules allow.

        Args:
            rules: name pattern (see `name_matches`) → "weight", "input", "accumulator" or "tile" →
                the values that these layers may get; widths that no rule names are not restricted.

        Raises:
            InvalidPlan: an unknown width, a pattern that no layer has, a layer without a choice
                that is allowed, or layers that read one activation without a width in common.
        """
        known = [f.name for f in fields(LayerPrecision)]
        layers = dict(self.layers)
        for pattern, allowed in rules.items():
            unknown = [key for key in allowed if key not in known]
            if unknown:
                raise InvalidPlan(
                    f"the rule '{pattern}' restricts '{unknown[0]}', which is no width; there are: "
                    f"{', '.join(known)}."
                )
            names = [name for name in layers if name_matches(pattern, name)]
            if not names:
                raise InvalidPlan(
                    f"the rule '{pattern}' matches no layer; there are: {', '.join(layers)}."
                )
            for name in names:
                layers[name] = tuple(
                    choice
                    for choice in layers[name]
                    if all(getattr(choice, key) in values for key, values in allowed.items())
                )
                if not layers[name]:
                    raise InvalidPlan(
                        f"the rule '{pattern}' leaves no choice for layer '{name}'; offer widths "
                        "that it allows."
                    )
        return replace(self, layers=layers)

    def to_json(self) -> str:
        layers = {name: [asdict(c) for c in options] for name, options in self.layers.items()}
        groups = [list(group) for group in self.same_input]
        content = {"format": _CHOICES_FORMAT, "layers": layers, "same_input": groups}
        return json.dumps(content, indent=2) + "\n"

    def save(self, path: str | Path) -> None:
        """Writes the JSON file, whole or not at all."""
        write_whole(path, self.to_json().encode())

    @classmethod
    def from_json(cls, text: str) -> Choices:
        """Parses strict JSON; any unknown key or wrong type raises InvalidPlan."""
        data = parse_object(text, "choices file", _CHOICES_FORMAT, ["layers", "same_input"])
        layers = _layer_objects(data, "choices file")
        groups = data["same_input"]
        if not all(isinstance(options, list) for options in layers.values()):
            raise InvalidPlan("every layer of a choices file must have a list of objects.")
        if not isinstance(groups, list) or not all(
            isinstance(group, list) and group and all(isinstance(name, str) for name in group)
            for group in groups
        ):
            raise InvalidPlan("'same_input' must be a list of lists of layer names.")
        return cls(
            {name: tuple(_precision(name, c) for c in o) for name, o in layers.items()},
            tuple(tuple(group) for group in groups),
        )

    @classmethod
    def load(cls, path: str | Path) -> Choices:
        return cls.from_json(read_text(path, "choices file"))
