"""Folders that commands write and other commands take."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brevitas_axe.errors import InvalidOption

if TYPE_CHECKING:
    from brevitas_axe.run.saving.save import Result
    from brevitas_axe.run.validated import Validated

MODEL_FILE, PLAN_FILE, SUMMARY_FILE = "model.onnx", "plan.json", "summary.json"


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        dest="architecture",
        metavar="FILE.py:FUNCTION",
        help="for a folder: builds the model that was quantized, where classes of your own are "
        "left in it",
    )


def add_model_and_data(parser: argparse.ArgumentParser) -> None:
    """A model, or a folder with one, and the data that it is judged on."""
    parser.add_argument(
        "model",
        metavar="FILE.py:FUNCTION",
        help="returns the torch model; or a folder that another command wrote",
    )
    add_model(parser)
    parser.add_argument(
        "--calibration",
        required=True,
        metavar="FILE.py:FUNCTION",
        help="returns an iterable of input batches, or of (inputs, labels)",
    )


def own_model(arguments: argparse.Namespace) -> tuple[str, ...]:
    """What `add_model` was given, for the command that comes next."""
    return ("--model", arguments.architecture) if arguments.architecture else ()


def check_file(path: str | None, option: str) -> None:
    """Refuses, before the work, a file that cannot be written where it is to go.

    Args:
        path: of the file; None where none is asked for.
        option: that names it.

    Raises:
        InvalidOption: it is a folder, or it lies in none that may be written.
    """
    if path is None:
        return
    place = Path(path).absolute()
    if place.is_dir():
        raise InvalidOption(f"{option} {path} is a folder; name a file.")
    there = next(parent for parent in place.parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InvalidOption(
            f"{option} {path} cannot be written, for {there} is no folder in which you may write; "
            "choose another place."
        )


def is_folder(path: str) -> bool:
    """Whether a command was given a folder instead of a file or a function."""
    return Path(path).is_dir()


def result_of(path: str, arguments: argparse.Namespace) -> Result:
    """The saved model of a folder, proven again."""
    from brevitas_axe.cli.usercode import model_of
    from brevitas_axe.run.saving.load import load

    if not is_folder(path):
        what = "is no folder" if Path(path).exists() else "does not exist"
        raise InvalidOption(f"{path} {what}; give one that another command wrote by --output.")
    reference = arguments.architecture
    return load(path, None if reference is None else model_of(reference))


def model_from(reference: str, arguments: argparse.Namespace) -> Any:
    """The model that a function returns, or the one in a folder."""
    from brevitas_axe.cli.usercode import model_of

    if is_folder(reference):
        return result_of(reference, arguments).model
    if ":" not in reference and not Path(reference).exists():
        raise InvalidOption(
            f"{reference} does not exist; give FILE.py:FUNCTION, or a folder that another command "
            "wrote."
        )
    return model_of(reference)


def is_only_prepared(reference: str) -> bool:
    """Whether this is a folder whose model has calibrated quantizers, and nothing solved."""
    from brevitas_axe.run.saving.folder import INSIDE, read_json
    from brevitas_axe.run.saving.save import RESULT

    place = Path(reference) / INSIDE
    return (place / RESULT).is_file() and read_json(place, RESULT).get("layers") == []


def model_and_example(result: Result) -> tuple[Any, tuple[Any, ...]]:
    """A saved model with one sample as export takes it; with no sample where it has float parts."""
    import inspect

    from brevitas_axe.model.prepare import one_sample
    from brevitas_axe.model.stack import left_in_float

    if left_in_float(result.model):
        return result.model, ()
    assert result.example is not None
    args, kwargs = one_sample(result.example)
    return result.model, inspect.signature(result.model.forward).bind(*args, **kwargs).args


def model_file(path: str) -> str:
    """A QONNX file: the one that is named, or the one in the folder that is.

    Raises:
        InvalidOption: a folder without one.
    """
    if not is_folder(path):
        if not Path(path).exists():
            raise InvalidOption(f"{path} does not exist; give a QONNX file, or a folder with one.")
        return path
    file = Path(path) / MODEL_FILE
    if not file.is_file():
        raise InvalidOption(
            f"the folder {path} has no {MODEL_FILE}; write it first: brevitas-axe export {path} "
            f"{file}."
        )
    return str(file)


def validation_in(path: str, function: str) -> Validated | None:
    """What a folder's summary tells of the user's function; None where it tells nothing."""
    import json

    from brevitas_axe.run.validated import Validated

    try:
        rows = json.loads((Path(path) / SUMMARY_FILE).read_text(encoding="utf-8"))["validation"]
        found = [Validated(**row) for row in rows.values()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return next((row for row in reversed(found) if row.function == function), None)


def planned(path: str, arguments: argparse.Namespace) -> str | None:
    """The plan of --plan, or that of the folder where no width is given."""
    if arguments.plan is None and arguments.accumulator_bits is None and is_folder(path):
        file = Path(path) / PLAN_FILE
        return str(file) if file.is_file() else None
    return arguments.plan
