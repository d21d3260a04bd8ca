"""Models and data from functions that a user names as `file.py:function`."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from brevitas_axe.errors import EmptyCalibration, InvalidOption

# Name of a loaded module → the user's file.
_FILES: dict[str, Path] = {}


def model_of(reference: str) -> Any:
    """The model that a function returns; raises InvalidOption for anything else."""
    import torch

    model = _call(_function(reference), reference)
    if not isinstance(model, torch.nn.Module):
        raise InvalidOption(
            f"{reference} must return a torch.nn.Module, but it returned {type(model).__name__}."
        )
    return model


def batches_of(reference: str) -> list[Any]:
    """The calibration batches that a function returns or yields.

    Raises:
        InvalidOption: it returns nothing that can be iterated.
        EmptyCalibration: there is no batch.
    """
    function = _function(reference)
    batches = _call(lambda: _listed(function()), reference)
    if batches is None:
        raise InvalidOption(
            f"{reference} must return an iterable of input batches, such as a DataLoader or [x]."
        )
    if not batches:
        raise EmptyCalibration(f"{reference} yields no batch; calibration needs at least one.")
    return batches


def function_of(reference: str) -> Callable[..., Any]:
    """A function with arguments; what it raises becomes one sentence with file and line."""
    function = _function(reference)
    return lambda *given: _call(lambda: function(*given), reference)


def _listed(value: object) -> list[Any] | None:
    """The items; None of what holds something else than batches, or nothing."""
    import torch

    one = isinstance(value, torch.Tensor | torch.nn.Module | str | bytes | dict)
    return list(value) if isinstance(value, Iterable) and not one else None


def _function(reference: str) -> Callable[..., Any]:
    """Imports the file, with its folder on the path, and returns the function.

    Raises:
        InvalidOption: the reference, the file or the function does not exist, or importing fails.
    """
    path_text, _, name = reference.rpartition(":")
    path = Path(path_text).resolve()
    if not path_text or not name.isidentifier():
        raise InvalidOption(f"'{reference}' is not of the form my_model.py:function.")
    if not path.is_file():
        raise InvalidOption(f"'{reference}' names the file {path_text}, which does not exist.")
    module = _load(path, reference)
    function = getattr(module, name, None)
    if not callable(function):
        raise InvalidOption(f"{path_text} has no function named '{name}'.")
    return function


def _call(function: Callable[..., Any], reference: str) -> Any:
    """Calls the user's function; what it raises becomes one sentence with file and line."""
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise InvalidOption(f"{reference} failed: {_describe(error)}.") from error


def failure_of_the_user(error: Exception) -> str | None:
    """One sentence for an error that a user's file raised later on, such as in a forward.

    None for an error that came from elsewhere.
    """
    files = {str(path) for path in _FILES.values()}
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if frame.filename in files]
    if not mine:
        return None
    where = f"{Path(mine[-1].filename).name}, line {mine[-1].lineno}"
    return f"{where} ({mine[-1].name}) failed: {type(error).__name__}: {_first_line(error)}."


def _load(path: Path, reference: str) -> Any:
    # The same file may have the functions of both model and data: it is imported once.
    name = f"_brevitas_axe_user_{path.stem}_{abs(hash(str(path)))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidOption(f"'{reference}' does not name a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _FILES[name] = path
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InvalidOption(f"{path} cannot be imported: {_describe(error)}.") from error
    return module


def _describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {_first_line(error)}{where}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else "no message"
