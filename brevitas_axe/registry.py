"""How methods of every room are found, configured and listed.

A room is a package of `brevitas_axe.methods`. A file of the room is a method if it defines an
object that bears the file's own name: `methods/cost/bops.py` defines `bops`. Every method is an
instance of a frozen dataclass with `facts`, the line of the catalogue that describes it; its
options are the fields of the dataclass that have a default. Other files of a room are shared code
of its methods. Another package adds a method through an entry point, in its pyproject.toml:

    [project.entry-points."brevitas_axe.cost"]
    my_cost = "my_package.costs:my_cost"

Wherever a method is named, on the command line, in a recipe or in Python, it may be given options
after a colon, `key=value` separated by commas: "decoupled:content=attn".
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from brevitas_axe.errors import AxeError, InvalidOption

# Every room, in the order in which a run goes through them.
ROOMS = (
    "transforms",
    "inputs",
    "ranges",
    "cost",
    "sensitivity",
    "allocate",
    "splits",
    "solvers",
    "caches",
    "search",
)
_METHODS = "brevitas_axe.methods"

Kind = Literal["MPW", "MPW+UPA", "MPW+MPA", "KV", "–"]
Export = Literal["finn", "qonnx", "none", "–"]


@dataclass(frozen=True)
class Facts:
    """A method's line in the catalogue.

    Attributes:
        kind: class of the survey arXiv 2510.16805: MPW gives widths to weights only, MPW+UPA has
            one width for all activations, MPW+MPA gives widths to both, KV to cached keys and
            values; "–" for a method that chooses no widths.
        granularity: the unit that is treated separately: "model", "block", "layer", "row",
            "channel", ...
        signal: the data on which the method bases its decisions.
        export: "finn" (FINN builds the result), "qonnx" (it runs in QONNX, FINN refuses), "none",
            or "–" for a method whose result is not in the file.
        source: paper, or "ours".
        gradients: whether it differentiates the model.
        labels: whether it needs labelled calibration data.
        baseline: whether the other methods of its room are compared with it.
    """

    kind: Kind
    granularity: str
    signal: str
    export: Export
    source: str
    gradients: bool = False
    labels: bool = False
    baseline: bool = False


@cache
def installed(group: str) -> tuple[EntryPoint, ...]:
    """What other packages register, by name; looked up once, since it reads many files."""
    return tuple(sorted(entry_points(group=group), key=lambda entry: entry.name))


def methods(room: str) -> dict[str, Any]:
    """All methods of one room by name: its own files, then those of other packages.

    Args:
        room: one of `ROOMS`; its entry-point group is `brevitas_axe.<room>`.

    Raises:
        InvalidOption: no such room, two methods of one name, an entry point that cannot be loaded,
            or an object that is no method (see `check_method`).
    """
    if room not in ROOMS:
        raise InvalidOption(f"'{room}' is no room of methods; there are: {', '.join(ROOMS)}.")
    package, group = importlib.import_module(f"{_METHODS}.{room}"), f"brevitas_axe.{room}"
    found: dict[str, Any] = {}
    for name in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        module = importlib.import_module(f"{package.__name__}.{name}")
        if hasattr(module, name):
            found[name] = check_method(room, name, getattr(module, name))
    for entry in installed(group):
        if entry.name in found:
            raise InvalidOption(
                f"'{entry.name}' ({entry.value}) is registered twice in '{group}'; rename the "
                "entry point or uninstall the package that brings it."
            )
        try:
            loaded = entry.load()
        except Exception as error:
            raise InvalidOption(
                f"'{entry.name}' ({entry.value}) of '{group}' cannot be loaded: {error!r}; repair "
                "or uninstall the package that brings it."
            ) from error
        found[entry.name] = check_method(room, entry.name, loaded)
    return found


def baselines(room: str) -> tuple[str, ...]:
    """Names of the methods that the others of a room are compared with."""
    return tuple(name for name, found in methods(room).items() if found.facts.baseline)


def check_method(room: str, name: str, found: Any) -> Any:
    """The object itself, if it is a method: an instance of a frozen dataclass with `facts`.

    Raises:
        InvalidOption: it is something else, so that nothing becomes a method by accident.
    """
    frozen = is_dataclass(found) and not isinstance(found, type) and _is_frozen(found)
    if not frozen or not isinstance(getattr(found, "facts", None), Facts):
        raise InvalidOption(
            f"'{name}' of the room '{room}' is no method: methods are instances of a frozen "
            "dataclass with `facts`; give it facts, or another name than its file's."
        )
    return found


def _is_frozen(found: Any) -> bool:
    return bool(type(found).__dataclass_params__.frozen)


def method(room: str, spec: str | Any) -> Any:
    """One method, with its options.

    Args:
        room: one of `ROOMS`.
        spec: "NAME", "NAME:key=value,key=value", or a method itself, which is returned.

    Raises:
        InvalidOption: there is no method of that name, or no option, or its value cannot be used;
            the message lists what there is.
    """
    if not isinstance(spec, str):
        return check_method(room, type(spec).__name__, spec)
    name, _, options = spec.partition(":")
    known = methods(room)
    if name not in known:
        raise InvalidOption(
            f"'{name}' is not registered in 'brevitas_axe.{room}'; choose one of: "
            f"{', '.join(known)}."
        )
    return with_options(known[name], name, options)


def with_options(found: Any, name: str, options: str) -> Any:
    """A method with the options of "key=value,key=value"; the method itself where there are none.

    A comma ends a value only where another option follows it, so that a regular expression may
    contain commas.
    """
    if not options:
        return found
    names = option_names(found)
    parts = re.split(r",(?=\s*[A-Za-z_]\w*\s*=)", options)
    given: dict[str, Any] = {}
    kinds = get_type_hints(type(found))
    for part in parts:
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals or key not in names:
            there = f"it has: {', '.join(names)}" if names else "it has none"
            raise InvalidOption(
                f"'{part.strip()}' is no option of '{name}'; {there} (written {name}:key=value)."
            )
        if key in given:
            raise InvalidOption(f"option '{key}' of '{name}' is given twice; give it once.")
        given[key] = _value(f"option '{key}' of '{name}'", text, kinds[key])
    try:
        return replace(found, **given)
    except AxeError:
        raise
    except (TypeError, ValueError, re.error) as error:
        raise InvalidOption(f"'{name}:{options}' cannot be used: {error}.") from None


def option_names(found: Any) -> list[str]:
    """Fields of a method that have a default and can be written as text.

    A field without a default defines the method itself (the function of a formula, its unit); one
    whose value has no text form (a function, an object) can only be given in Python.
    """
    kinds = get_type_hints(type(found))
    return [f.name for f in fields(found) if _has_default(f) and _is_text(kinds[f.name])]


def _has_default(field: Field) -> bool:
    return field.init and not (field.default is MISSING and field.default_factory is MISSING)


def option_texts(found: Any) -> dict[str, str]:
    """Option → its value as text."""
    return {name: _text(getattr(found, name)) for name in option_names(found)}


def _is_text(kind: Any) -> bool:
    if get_origin(kind) in (Union, types.UnionType, tuple, list):
        return all(map(_is_text, get_args(kind)))
    plain = kind in (int, float, str, bool, type(None), Ellipsis)
    return plain or get_origin(kind) is Literal


def _value(what: str, text: str, kind: Any) -> Any:
    """Text as a value of an annotated type."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if type(None) in inner and text in ("none", "None", "null"):
            return None
        others = [part for part in inner if part is not type(None)]
        for part in others[:-1]:
            try:
                return _value(what, text, part)
            except InvalidOption:
                continue
        return _value(what, text, others[-1])
    if origin is Literal:
        choices = {_text(choice): choice for choice in inner}
        if text in choices:
            return choices[text]
        raise InvalidOption(f"{what} is one of {', '.join(choices)}, not '{text}'.")
    if origin in (tuple, list):
        return tuple(_value(what, item, inner[0]) for item in re.split(r"[;\s]+", text) if item)
    if kind is bool:
        if text.lower() in ("true", "false", "yes", "no"):
            return text.lower() in ("true", "yes")
        raise InvalidOption(f"{what} is true or false, not '{text}'.")
    if kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if math.isnan(number):
            raise InvalidOption(f"{what} is a number ({kind.__name__}), not '{text}'.")
        return number
    if kind is str:
        return text
    raise InvalidOption(f"{what} cannot be written as text; pass a method object in Python.")


def check_ranges(found: Any, **ranges: tuple[float, float]) -> None:
    """For a method's `__post_init__`: checks that numeric options are within their ranges.

    Args:
        found: the method.
        ranges: option → least and greatest value, `math.inf` for none.

    Raises:
        InvalidOption: one does not.
    """
    for name, (least, greatest) in ranges.items():
        value = getattr(found, name)
        if not least <= value <= greatest:
            limit = f"at least {least:g}" if greatest == math.inf else f"{least:g} to {greatest:g}"
            raise InvalidOption(f"{name} of {type(found).__name__} must be {limit}, not {value}.")


def check_expressions(found: Any, *names: str) -> None:
    """For a method's `__post_init__`: checks that options are regular expressions, or None.

    Args:
        found: the method.
        names: of the options.

    Raises:
        InvalidOption: one is not.
    """
    for name in names:
        try:
            re.compile(getattr(found, name) or "")
        except re.error as error:
            raise InvalidOption(
                f"{name}='{getattr(found, name)}' is no regular expression: {error}."
            ) from None


def spec_of(room: str, found: Any) -> str:
    """A method as text, "NAME:key=value", with the options that differ from the defaults.

    Raises:
        InvalidOption: it is not registered in the room, or one of its options is no text that
            `method` would read back as the same value.
    """
    for name, known in methods(room).items():
        if type(known) is not type(found):
            continue
        usual, given = option_texts(known), option_texts(found)
        changed = [f"{key}={text}" for key, text in given.items() if text != usual[key]]
        spec = f"{name}:{','.join(changed)}" if changed else name
        with suppress(InvalidOption):
            if method(room, spec) == found:
                return spec
    raise InvalidOption(
        f"{found!r} cannot be written as NAME:key=value of 'brevitas_axe.{room}', so it cannot be "
        "kept in a file; register it by an entry point, and give it options that are plain text."
    )


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ";".join(map(_text, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def catalogue() -> Mapping[str, Mapping[str, Any]]:
    """Room → name → method, of every room."""
    return {room: methods(room) for room in ROOMS}
