"""Which widths each layer gets: frozen, JSON in and out, strict keys."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from brevitas_axe.accumulator import check_bit_width, tile_starts
from brevitas_axe.errors import InvalidPlan
from brevitas_axe.files import write_whole

_FORMAT = "brevitas_axe.plan.v1"


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return result


@dataclass(frozen=True)
class LayerPrecision:
    """Widths of one layer. None leaves what the model already has.

    Attributes:
        weight: bits of the weights.
        input: bits of the input activations.
        accumulator: bits P of the (inner) accumulator; None means not constrained.
        tile: inputs per tile T; None means one accumulator for the whole dot product.
    """

    weight: int | None = None
    input: int | None = None
    accumulator: int | None = None
    tile: int | None = None

    def __post_init__(self) -> None:
        for name in ("weight", "input"):
            bits = getattr(self, name)
            if bits is not None and (type(bits) is not int or not 1 <= bits <= 32):
                raise InvalidPlan(f"{name} bits must be an integer in [1, 32], not {bits!r}.")
        if self.accumulator is not None:
            check_bit_width(self.accumulator)
        tile_starts(1, self.tile)


@dataclass(frozen=True)
class Plan:
    """Layer name → LayerPrecision.

    Layer names are those of `model.named_modules()`.
    """

    layers: Mapping[str, LayerPrecision] = field(default_factory=dict)

    @classmethod
    def uniform(cls, names: Iterable[str], precision: LayerPrecision) -> Plan:
        """The same precision for every name."""
        return cls(dict.fromkeys(names, precision))

    def __getitem__(self, name: str) -> LayerPrecision:
        return self.layers[name]

    def check_names(self, names: Iterable[str]) -> None:
        """Raises InvalidPlan when a planned layer is not among names."""
        names = list(names)
        unknown = [name for name in self.layers if name not in names]
        if unknown:
            raise InvalidPlan(
                f"the plan names layers that the model does not have: {', '.join(unknown)}; "
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
        try:
            data = json.loads(text, object_pairs_hook=_without_duplicates)
        except (ValueError, RecursionError) as error:
            raise InvalidPlan(f"the plan is not valid JSON: {error}.") from None
        if not isinstance(data, dict) or set(data) != {"format", "layers"}:
            raise InvalidPlan("a plan is a JSON object with exactly the keys 'format', 'layers'.")
        if data["format"] != _FORMAT:
            raise InvalidPlan(f"the plan's format is {data['format']!r}, expected {_FORMAT!r}.")
        if not isinstance(data["layers"], dict):
            raise InvalidPlan("'layers' of a plan must be a JSON object.")
        known = {f.name for f in fields(LayerPrecision)}
        layers = {}
        for name, entry in data["layers"].items():
            if not isinstance(entry, dict) or not set(entry) <= known:
                raise InvalidPlan(
                    f"layer '{name}' of the plan must be an object with keys among "
                    f"{', '.join(sorted(known))}."
                )
            for key, value in entry.items():
                if value is not None and type(value) is not int:
                    raise InvalidPlan(f"layer '{name}': {key} must be an integer or null.")
            layers[name] = LayerPrecision(**entry)
        return cls(layers)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidPlan(f"the plan {path} cannot be read: {error}.") from None
        return cls.from_json(text)

    def diff(self, other: Plan) -> dict[str, tuple[LayerPrecision | None, LayerPrecision | None]]:
        """Layers whose precision differs, as name → (mine, other's)."""
        names = dict.fromkeys([*self.layers, *other.layers])
        pairs = {name: (self.layers.get(name), other.layers.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
