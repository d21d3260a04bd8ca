"""Folders that commands write and other commands take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brevitas_axe.errors import InvalidOption

if TYPE_CHECKING:
    from brevitas_axe.run.saving.save import Result

MODEL_FILE, PLAN_FILE = "model.onnx", "plan.json"


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        dest="architecture",
        metavar="FILE.py:FUNCTION",
        help="for a folder: builds the model that was quantized, where classes of your own are "
        "left in it",
    )


def is_folder(path: str) -> bool:
    """Whether a command was given a folder instead of a file or a function."""
    return Path(path).is_dir()


def result_of(path: str, arguments: argparse.Namespace) -> Result:
    """The saved model of a folder, proven again."""
    from brevitas_axe.cli.usercode import model_of
    from brevitas_axe.run.saving.load import load

    reference = arguments.architecture
    return load(path, None if reference is None else model_of(reference))


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
        return path
    file = Path(path) / MODEL_FILE
    if not file.is_file():
        raise InvalidOption(
            f"the folder {path} has no {MODEL_FILE}; write it first: brevitas-axe export {path} "
            f"{file}."
        )
    return str(file)


def planned(path: str, arguments: argparse.Namespace) -> str | None:
    """The plan of --plan, or that of the folder where no width is given."""
    if arguments.plan is None and arguments.accumulator_bits is None and is_folder(path):
        file = Path(path) / PLAN_FILE
        return str(file) if file.is_file() else None
    return arguments.plan
