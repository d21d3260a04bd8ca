"""`brevitas-axe quantize`: the whole job on the user's own model and data."""

from __future__ import annotations

import argparse
import inspect
import time
from typing import Any

from brevitas_axe.cli import language, options
from brevitas_axe.cli.usercode import batches_of, model_of
from brevitas_axe.errors import InvalidOption
from brevitas_axe.registry import method

_LEAST_WEIGHT_BITS = 2  # symmetric and narrow: from -1 to 1


def add(commands) -> None:
    parser = commands.add_parser(
        "quantize",
        help="quantize, prove and export your own model",
        description="Writes model.onnx, plan.json, certificate.json, summary.json and report.html; "
        "for a language model (--hf), rows.json and a folder per row, with integers.npz instead of "
        "model.onnx.",
    )
    parser.add_argument(
        "model", nargs="?", metavar="FILE.py:FUNCTION", help="returns the torch model"
    )
    parser.add_argument(
        "--calibration", metavar="FILE.py:FUNCTION", help="returns an iterable of input batches"
    )
    language.add_options(parser)
    options.add_accumulator(parser)
    parser.add_argument("--weight-bits", type=int, default=4, metavar="N", help="default 4")
    parser.add_argument("--input-bits", type=int, default=8, metavar="N", help="default 8")
    options.add_tile(parser)
    options.add_plan(parser)
    parser.add_argument(
        "--algorithm",
        default="qronos",
        metavar="NAME",
        help="solver, see `brevitas-axe methods`; default qronos",
    )
    parser.add_argument(
        "--quality",
        choices=["fast", "best"],
        default="best",
        help="fast: the algorithm as published; best (default): far less loss, same guarantee",
    )
    parser.add_argument(
        "--act-order",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="solve the columns with the largest inputs first",
    )
    options.add_exclude(parser)
    parser.add_argument(
        "--state", metavar="DIR", help="progress is kept here; a run that was killed continues"
    )
    parser.add_argument("--output", default="results", metavar="DIR", help="default: results")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    method("solvers", arguments.algorithm)  # an unknown name is refused before any work
    if arguments.weight_bits < _LEAST_WEIGHT_BITS:
        raise InvalidOption(
            f"--weight-bits {arguments.weight_bits} leaves no weight but zero; give "
            f"{_LEAST_WEIGHT_BITS} or more."
        )
    from brevitas_axe.methods.solvers import solver

    solver(arguments.algorithm)  # an unknown name is refused before the model is loaded
    if arguments.hf is not None:
        return language.run(arguments)
    stray = language.given(arguments)
    if stray:
        raise InvalidOption(
            f"{', '.join(stray)}: for language models only; give --hf PATH_OR_NAME, or leave out."
        )
    if arguments.model is None or arguments.calibration is None:
        raise InvalidOption(
            "give FILE.py:FUNCTION and --calibration FILE.py:FUNCTION, or --hf and --text."
        )
    if arguments.accumulator_bits is None and arguments.plan is None:
        raise InvalidOption("give --accumulator-bits, or --plan with a width per layer.")
    import brevitas_axe
    from brevitas_axe.cli.screen import console
    from brevitas_axe.methods.cost import resource_rows
    from brevitas_axe.proof.certificate import certify_file
    from brevitas_axe.show import open_folder, write_folder

    plan = options.plan_of(arguments)
    folder = open_folder(arguments.output)
    model = model_of(arguments.model)
    batches = batches_of(arguments.calibration)

    start = time.perf_counter()
    result = brevitas_axe.quantize(
        model,
        batches,
        accumulator_bit_width=arguments.accumulator_bits,
        weight_bit_width=arguments.weight_bits,
        input_bit_width=arguments.input_bits,
        tile_size=arguments.tile_size,
        plan=plan,
        algorithm=arguments.algorithm,
        quality=arguments.quality,
        act_order=arguments.act_order,
        exclude=tuple(arguments.exclude),
        state=arguments.state,
    )
    path = folder / "model.onnx"
    example = _example(result.model, batches[0])
    brevitas_axe.export_qonnx(result.model, example, path)
    # The proof that counts is the one that reads the file, as the next tool will.
    certificate = certify_file(path, plan=result.plan, exclude=tuple(arguments.exclude))
    summary = {
        "title": f"{arguments.model}, quantized for narrow accumulators",
        "accumulator": arguments.accumulator_bits,
        "tile": arguments.tile_size,
        "arms": [],
        "layers": result.layers,
        "resources": resource_rows(result.model, example, result.plan, tuple(arguments.exclude)),
        "seconds": round(time.perf_counter() - start, 1),
        "environment": {"algorithm": arguments.algorithm, "quality": arguments.quality},
    }
    files = write_folder(folder, summary, certificate, result.plan)
    console().print(certificate.table())
    for file in [path, *files]:
        print(file)
    return 0 if certificate.ok else 1


def _example(model: Any, batch: Any) -> tuple[Any, ...]:
    """One sample of a calibration batch as export arguments, which are positional."""
    from brevitas_axe.model.prepare import as_batches, one_sample

    [batch] = as_batches([batch])
    args, kwargs = one_sample(batch)
    return inspect.signature(model.forward).bind(*args, **kwargs).args
