"""`brevitas-axe emulate`: runs a QONNX file with P-bit accumulators."""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brevitas_axe.cli import folders, options
from brevitas_axe.errors import InvalidOption

if TYPE_CHECKING:
    from brevitas_axe.cli.screen import Screen
    from brevitas_axe.proof.emulator import EmulationResult
    from brevitas_axe.run.validated import Validated


def add(commands) -> None:
    parser = commands.add_parser("emulate", help="run a QONNX file with P-bit accumulators")
    parser.add_argument("model", help="a QONNX file, or a folder that `quantize` wrote")
    folders.add_model(parser)
    parser.add_argument("--inputs", metavar="X.npy", help="one batch of inputs")
    parser.add_argument("--output", metavar="Y.npy", help="where the result goes")
    options.add_accumulator(parser)
    options.add_tile(parser)
    options.add_plan(parser)
    options.add_picked(parser, "layers whose accumulators are not limited")
    parser.add_argument(
        "--overflow",
        choices=["wrap", "saturate"],
        default="wrap",
        help="what an accumulator does with a sum out of its range (default wrap)",
    )
    options.add_validate(parser, "; in float where --model or the folder's summary tells it")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from brevitas_axe.cli.screen import Screen
    from brevitas_axe.proof.emulator import emulate

    folders.check_file(arguments.output, "--output")
    validate = options.validation_of(arguments)
    paths = (arguments.inputs, arguments.output)
    if None in paths and (validate is None or paths != (None, None)):
        raise InvalidOption("give --inputs X.npy and --output Y.npy, or --validate, or all three.")
    arguments.plan = folders.planned(arguments.model, arguments)
    if arguments.accumulator_bits is None and arguments.plan is None:
        raise InvalidOption("give --accumulator-bits, or --plan with a width per layer.")
    file = folders.model_file(arguments.model)
    settings = {**_widths(arguments, file), "overflow": arguments.overflow}
    content: dict[str, Any] = {}
    result = None
    if arguments.inputs is not None:
        result = emulate(file, _load(arguments.inputs), **settings)
        content = _content(result, arguments.output)
    numbers = {} if validate is None else {arguments.model: _numbers(arguments, validate, settings)}
    content["validation"] = {name: asdict(row) for name, row in numbers.items()}
    screen = Screen(arguments)
    screen.json(content)
    if result is not None:
        _tell(screen, result, arguments.output)
    screen.numbers(numbers)
    screen.next(_next(arguments, result))
    return 0


def _widths(arguments: argparse.Namespace, file: str) -> dict[str, Any]:
    """Keywords of `emulate`: the widths of all dot products, or of those that are picked alone."""
    from brevitas_axe.plan import LayerPrecision, Plan
    from brevitas_axe.proof.certificate import certify_file

    width, tile, plan = arguments.accumulator_bits, arguments.tile_size, options.plan_of(arguments)
    if not arguments.include and not arguments.exclude:
        asked = {} if width is None else {"accumulator_bit_width": width}
        return {**asked, "tile_size": tile, "plan": plan}
    picked = certify_file(file, width, tile, plan).judging(arguments.include, arguments.exclude)
    layers = {
        entry.name: LayerPrecision(accumulator=entry.target, tile=entry.tile_size)
        for entry in picked.judged
        if entry.target is not None
    }
    return {"plan": Plan(layers)}


def _content(result: EmulationResult, output: str) -> dict[str, Any]:
    """Writes the result; returns what --json prints."""
    import numpy as np

    from brevitas_axe.files import write_whole

    buffer = io.BytesIO()
    np.save(buffer, result.output)
    write_whole(output, buffer.getvalue())
    overflows = {
        result.layers.get(name, name): {
            "overflows": count,
            "largest_sum": result.largest_sums[name],
        }
        for name, count in result.overflow_counts.items()
    }
    return {"layers": overflows, "overflows": result.overflows, "file": output}


def _tell(screen: Screen, result: EmulationResult, output: str) -> None:
    for name, reason in result.float_nodes.items():
        screen.line(f"{result.layers.get(name, name)}: in floating point, {reason}")
    for name, count in result.overflow_counts.items():
        sums = f"largest sum {result.largest_sums[name]}"
        screen.line(f"{result.layers.get(name, name)}: {count} overflows, {sums}")
    screen.line(f"{output}: {result.output.dtype} {list(result.output.shape)}")


def _next(arguments: argparse.Namespace, result: EmulationResult | None) -> str:
    from brevitas_axe.cli.screen import command

    bits = arguments.accumulator_bits
    widths = ("--plan", arguments.plan) if bits is None else ("--accumulator-bits", bits)
    if result is not None and result.overflows:
        data = ("--calibration", "FILE.py:FUNCTION")
        return command("quantize", "FILE.py:FUNCTION", *data, *widths)
    return command("certify", arguments.model, *widths)


def _numbers(
    arguments: argparse.Namespace, validate: Any, settings: Mapping[str, Any]
) -> Validated:
    """The user's number of the float model, of the file as it is, and on its accumulators."""
    from brevitas_axe.cli.usercode import model_of
    from brevitas_axe.run.validated import Emulated, Validated, in_float, number

    file = folders.model_file(arguments.model)
    earlier = folders.validation_in(arguments.model, arguments.validate)
    unquantized = None if earlier is None else earlier.unquantized
    if arguments.architecture is not None:
        unquantized = in_float(validate, model_of(arguments.architecture))
    return Validated(
        arguments.validate,
        unquantized,
        number(validate, Emulated(file)),
        number(validate, Emulated(file, **settings)),
    )


def _load(path: str):
    import numpy as np

    if not Path(path).is_file():
        raise InvalidOption(f"--inputs {path} does not exist.")
    try:
        # Pickles could run any code.
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise InvalidOption(f"--inputs {path} is not a plain .npy array.") from None
    if not isinstance(array, np.ndarray):
        raise InvalidOption(f"--inputs {path} is an archive; give one .npy array.")
    return array
