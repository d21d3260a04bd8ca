"""The methods of a room by name: one file each, plus what other packages register.

A file of the room is a method if it defines an object that bears the file's own name:
`cost/bops.py` defines `bops`. Other files of the room are its tools and stay unregistered.
Another package adds a method through an entry point, in its pyproject.toml:

    [project.entry-points."brevitas_axe.cost"]
    my_cost = "my_package.costs:my_cost"
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from brevitas_axe.errors import InvalidOption


@cache
def installed(group: str) -> tuple[EntryPoint, ...]:
    """What other packages register, by name; looked up once, for that reads many files."""
    return tuple(sorted(entry_points(group=group), key=lambda entry: entry.name))


def registered(group: str, package: ModuleType) -> dict[str, Any]:
    """All methods of one room, its own files first, in alphabetical order.

    Args:
        group: entry-point group, for example "brevitas_axe.cost".
        package: the room, for example `brevitas_axe.methods.cost`.

    Returns:
        Registered name → method.

    Raises:
        InvalidOption: two methods of one name, or an entry point that cannot be loaded.
    """
    methods: dict[str, Any] = {}
    for name in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        module = importlib.import_module(f"{package.__name__}.{name}")
        if hasattr(module, name):
            methods[name] = getattr(module, name)
    for entry in installed(group):
        if entry.name in methods:
            raise InvalidOption(
                f"'{entry.name}' ({entry.value}) is registered twice in '{group}'; rename the "
                "entry point or uninstall the package that brings it."
            )
        try:
            methods[entry.name] = entry.load()
        except Exception as error:
            raise InvalidOption(
                f"'{entry.name}' ({entry.value}) of '{group}' cannot be loaded: {error!r}; repair "
                "or uninstall the package that brings it."
            ) from error
    return methods


def chosen(group: str, package: ModuleType, name: str) -> Any:
    """One method by its registered name.

    Raises:
        InvalidOption: there is none of that name; the message lists those there are.
    """
    methods = registered(group, package)
    if name not in methods:
        raise InvalidOption(
            f"'{name}' is not registered in '{group}'; choose one of: {', '.join(methods)}."
        )
    return methods[name]
