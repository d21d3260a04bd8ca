"""`brevitas-axe emulate`: runs a QONNX file with P-bit accumulators."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from brevitas_axe.cli import folders, options
from brevitas_axe.errors import InvalidOption


def add(commands) -> None:
    parser = commands.add_parser("emulate", help="run a QONNX file with P-bit accumulators")
    parser.add_argument("model", help="a QONNX file, or a folder that `quantize` wrote")
    parser.add_argument("--inputs", required=True, metavar="X.npy", help="one batch of inputs")
    parser.add_argument("--output", required=True, metavar="Y.npy", help="where the result goes")
    options.add_accumulator(parser)
    options.add_tile(parser)
    options.add_plan(parser)
    parser.add_argument(
        "--overflow",
        choices=["wrap", "saturate"],
        default="wrap",
        help="what an accumulator does with a sum out of its range (default wrap)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import numpy as np

    from brevitas_axe.files import write_whole
    from brevitas_axe.proof.emulator import emulate

    arguments.plan = folders.planned(arguments.model, arguments)
    if arguments.accumulator_bits is None and arguments.plan is None:
        raise InvalidOption("give --accumulator-bits, or --plan with a width per layer.")
    widths = {}
    if arguments.accumulator_bits is not None:
        widths["accumulator_bit_width"] = arguments.accumulator_bits
    inputs = _load(arguments.inputs)
    result = emulate(
        folders.model_file(arguments.model),
        inputs,
        **widths,
        tile_size=arguments.tile_size,
        overflow=arguments.overflow,
        plan=options.plan_of(arguments),
    )
    buffer = io.BytesIO()
    np.save(buffer, result.output)
    write_whole(arguments.output, buffer.getvalue())
    for name, reason in result.float_nodes.items():
        print(f"{name}: in floating point, {reason}")
    for name, count in result.overflow_counts.items():
        print(f"{name}: {count} overflows, largest sum {result.largest_sums[name]}")
    print(f"{arguments.output}: {result.output.dtype} {list(result.output.shape)}")
    return 0


def _load(path: str):
    import numpy as np

    if not Path(path).is_file():
        raise InvalidOption(f"--inputs {path} does not exist.")
    try:
        # Pickles could run any code.
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InvalidOption(f"--inputs {path} is not a plain .npy array: {error}.") from None
    if not isinstance(array, np.ndarray):
        raise InvalidOption(f"--inputs {path} is an archive; give one .npy array.")
    return array
