"""Classes and functions by name, and those alone that a saved structure may name."""

from __future__ import annotations

import importlib
import math
import operator
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from brevitas.inject import ExtendedInjector

from brevitas_axe.errors import InvalidOption, InvalidState

# Where classes are looked up by name; all others come from the user's own model.
_CLASSES = (
    "torch.nn",
    "torch.fx",
    "brevitas",
    "brevitas_axe.model",
    "brevitas_axe.methods",
    "brevitas_axe.plan",
)
_OWN_FUNCTIONS = ("brevitas.core", "brevitas.function", "brevitas.utils", "brevitas_axe.model")
# What computes nothing, or does more than compute.
_NO_FUNCTIONS = ("from_file", "attrgetter", "itemgetter", "methodcaller", "call")
_BUILTINS = (getattr, len, slice, int, float, bool, abs, max, min, round, sum, tuple, list)
_PLAIN_CLASSES = (int, float, bool, str, tuple, list, dict, type(None))


def _full_name(found: Any) -> str:
    return f"{found.__module__}:{found.__qualname__}"


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _looked_up(name: str) -> Any:
    """What "module:qualname" names; None where there is no such thing."""
    module, _, path = name.partition(":")
    try:
        found = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError):
        return None
    return found


def class_name(kind: type) -> str | None:
    """The name by which `class_of` finds a class; None for one of the user's own."""
    if kind in _PLAIN_CLASSES:
        return _full_name(kind)
    if kind is ExtendedInjector:
        return "brevitas.inject:ExtendedInjector"  # where it says that it is, another one is
    name = _full_name(kind)
    known = _within(kind.__module__, _CLASSES) and _looked_up(name) is kind
    return name if known else None


def class_of(name: str) -> type:
    """The class of a name.

    Raises:
        InvalidState: no class that a folder may name.
    """
    plain = {_full_name(kind): kind for kind in _PLAIN_CLASSES}
    if name in plain:
        return plain[name]
    found = _looked_up(name) if _within(name.partition(":")[0], _CLASSES) else None
    if not isinstance(found, type):
        raise InvalidState(
            f"the saved structure names the class '{name}', which this version does not know; load "
            "it with the version that wrote it, which manifest.json names."
        )
    return found


@cache
def _functions() -> Mapping[str, Any]:
    """Functions that compute, by name."""
    rooms = {"torch": vars(torch), "torch.nn.functional": vars(F), "operator": vars(operator)}
    rooms |= {f"torch.{n}": vars(getattr(torch, n)) for n in ("linalg", "fft", "special")}
    rooms |= {"math": vars(math), "builtins": {kind.__name__: kind for kind in _BUILTINS}}
    functions: Any = torch._C
    computing = set(dir(functions._VariableFunctions)) | set(torch.functional.__all__)
    return {
        f"{room}:{name}": function
        for room, content in rooms.items()
        for name, function in content.items()
        if callable(function)
        and not name.startswith("_")
        and name not in _NO_FUNCTIONS
        and (room != "torch" or name in computing)
        and (room == "builtins" or not isinstance(function, type))
    }


@cache
def _names_of_functions() -> Mapping[int, str]:
    return {id(function): name for name, function in _functions().items()}


def function_name(function: Any, where: str) -> str:
    """The name by which `function_of` finds a function.

    Raises:
        InvalidOption: one that has none, such as a lambda.
    """
    if id(function) in _names_of_functions():
        return _names_of_functions()[id(function)]
    module = getattr(function, "__module__", None) or ""
    name = f"{module}:{getattr(function, '__qualname__', '')}"
    if _within(module, _OWN_FUNCTIONS) and _looked_up(name) is function:
        return name
    raise InvalidOption(
        f"{where} holds the function {getattr(function, '__qualname__', function)!r} of "
        f"{module or 'nowhere'}, which a saved folder cannot name; use one of torch or a module."
    )


def function_of(name: str) -> Any:
    """The function of a name.

    Raises:
        InvalidState: no function that a folder may name.
    """
    if name in _functions():
        return _functions()[name]
    found = _looked_up(name) if _within(name.partition(":")[0], _OWN_FUNCTIONS) else None
    if not callable(found):
        raise InvalidState(
            f"the saved structure names the function '{name}', which this version does not know; "
            "load it with the version that wrote it, which manifest.json names."
        )
    return found
