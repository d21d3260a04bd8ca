"""`brevitas-axe prepare`: a float model as FINN or hls4ml builds it, calibrated, not yet solved."""

from __future__ import annotations

import argparse
from pathlib import Path

from brevitas_axe.cli import folders
from brevitas_axe.cli.usercode import batches_of, model_of
from brevitas_axe.errors import InvalidOption


def add(commands) -> None:
    parser = commands.add_parser(
        "prepare",
        help="turn a float model into a calibrated one that FINN or hls4ml builds",
        description="Writes a folder that `allocate`, `quantize`, `cost` and `export` take. What "
        "the tool could not build is said now, before anything is solved.",
    )
    parser.add_argument("model", metavar="FILE.py:FUNCTION", help="returns the torch model")
    parser.add_argument(
        "--calibration",
        required=True,
        metavar="FILE.py:FUNCTION",
        help="returns an iterable of input batches",
    )
    parser.add_argument(
        "--target", choices=["finn", "hls4ml"], default="finn", help="the tool that builds it"
    )
    for name, bits, what in (
        ("weight", 4, "all weights"),
        ("input", 4, "all activations but the model's input"),
        ("model-input", 8, "the model's input"),
    ):
        parser.add_argument(
            f"--{name}-bits",
            type=int,
            default=bits,
            metavar="N",
            help=f"bits of {what}; default {bits}",
        )
    parser.add_argument("--output", default="prepared", metavar="DIR", help="default: prepared")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from brevitas_axe.cli.screen import Screen, command
    from brevitas_axe.export import prepare_for_finn, prepare_for_hls4ml
    from brevitas_axe.methods.cost import full_plan
    from brevitas_axe.model.prepare import as_batches
    from brevitas_axe.proof.certificate import certify
    from brevitas_axe.recipe import Recipe
    from brevitas_axe.run.result import QuantizeResult
    from brevitas_axe.run.saving.folder import INSIDE, check_place
    from brevitas_axe.run.saving.save import save

    place = check_place(Path(arguments.output) / INSIDE).parent
    model = model_of(arguments.model)
    given = batches_of(arguments.calibration)
    prepare = {"finn": prepare_for_finn, "hls4ml": prepare_for_hls4ml}[arguments.target]
    prepared = prepare(
        model,
        given,
        weight_bit_width=arguments.weight_bits,
        input_bit_width=arguments.input_bits,
        model_input_bit_width=arguments.model_input_bits,
    )
    args, kwargs = example = as_batches(given, model)[0]
    plan = full_plan(prepared, args, kwargs)
    if not plan.layers:
        raise InvalidOption(
            f"{arguments.model} returns a model without a linear or convolutional layer, so there "
            "is nothing to quantize."
        )
    certificate = certify(prepared, plan=plan, args=args, kwargs=kwargs)
    save(QuantizeResult(prepared, plan, certificate, [], Recipe(), example=example), place / INSIDE)
    plan.save(place / folders.PLAN_FILE)
    screen = Screen(arguments)
    files = [str(place / INSIDE), str(place / folders.PLAN_FILE)]
    needed = max((entry.width or 0 for entry in certificate.judged), default=0)
    screen.json({"accumulator_bits": needed, "files": files})
    screen.table(certificate.table())
    screen.files(files)
    target = "finn" if arguments.target == "finn" else "qonnx"
    data = ("--calibration", arguments.calibration)
    screen.next(command("quantize", place, *data, "--accumulator-bits", "P", "--target", target))
    return 0
