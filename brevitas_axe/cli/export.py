"""`brevitas-axe export`: the files that a hardware flow reads, with proven accumulators."""

from __future__ import annotations

import argparse
from pathlib import Path

from brevitas_axe.cli import folders


def add(commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write what hls4ml or FINN needs, with proven accumulators",
        description="Exit status 0: written. 2: the target would refuse the model or compute "
        "something else, said in one sentence.",
    )
    parser.add_argument(
        "model",
        help="a folder that `quantize` or `finetune` wrote; a QONNX file, of any origin; or a "
        "function my_model.py:function that returns a calibrated Brevitas model",
    )
    folders.add_model(parser)
    parser.add_argument(
        "output", help="folder for hls4ml and for models solved by blocks, otherwise a file"
    )
    parser.add_argument(
        "--target",
        choices=["hls4ml", "finn", "qonnx"],
        default="finn",
        help="tool that reads it",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE.py:FUNCTION",
        help="a function that gives input batches; the first is traced (for a function as model)",
    )
    parser.add_argument("--backend", default="Vitis", help="hls4ml: its backend (default Vitis)")
    parser.add_argument(
        "--io-type",
        choices=["io_parallel", "io_stream"],
        default="io_parallel",
        help="hls4ml: all values at once, or one after the other (default io_parallel)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.target == "hls4ml":
        return _hls4ml(arguments)
    from brevitas_axe.cli.screen import Screen, command
    from brevitas_axe.errors import InvalidOption
    from brevitas_axe.export import export_qonnx
    from brevitas_axe.export.layers import export_layers

    screen = Screen(arguments)
    model, args = _model_and_args(arguments)
    if args is None:
        raise InvalidOption(
            f"--target {arguments.target} writes a model, and {arguments.model} is a file already; "
            "give my_model.py:function and --calibration."
        )
    if args == ():  # blocks, which no one file holds
        files = export_layers(model, arguments.output, target=arguments.target).values()
        written = [str(file) for file in files]
        screen.json({"files": written})
        screen.files(written)
        screen.next(command("certify", written[0]))
        return 0
    export_qonnx(model, args, arguments.output, target=arguments.target)
    screen.json({"file": arguments.output})
    screen.files([arguments.output])
    plan = Path(arguments.model) / folders.PLAN_FILE
    planned = ("--plan", plan) if plan.is_file() else ()
    screen.next(command("certify", arguments.output, *planned))
    return 0


def _model_and_args(arguments: argparse.Namespace):
    """The model and its example inputs: none of blocks, None of a file."""
    if folders.is_folder(arguments.model):
        return folders.model_and_example(folders.result_of(arguments.model, arguments))
    from brevitas_axe.cli.usercode import batches_of, model_of
    from brevitas_axe.errors import InvalidOption
    from brevitas_axe.model.prepare import as_batches, one_sample

    if ".py:" not in arguments.model:
        folders.model_file(arguments.model)  # says so where there is none
        return arguments.model, None
    if arguments.calibration is None:
        raise InvalidOption(f"{arguments.model} is traced: give --calibration for an input batch.")
    model = model_of(arguments.model).eval()
    args, kwargs = one_sample(as_batches(batches_of(arguments.calibration), model)[0])
    return model, (*args, *kwargs.values())


def _hls4ml(arguments: argparse.Namespace) -> int:
    from rich.table import Table
    from rich.text import Text

    from brevitas_axe.cli.screen import Screen
    from brevitas_axe.export.hls4ml import export_hls4ml

    model, args = _model_and_args(arguments)
    project = export_hls4ml(
        model, arguments.output, args, backend=arguments.backend, io_type=arguments.io_type
    )
    rows = [
        {"layer": a.layer, "accum_t": a.type, "bits": a.width, "bias_inside": a.bias_inside}
        for a in project.accumulators
    ]
    screen = Screen(arguments)
    screen.json({"folder": str(project.folder), "accumulators": rows})
    table = Table(title=Text(f"{project.folder}: {len(rows)} proven accumulators"))
    for heading in ("layer", "accum_t", "bits", "bias"):
        table.add_column(heading, overflow="fold")
    for a in project.accumulators:
        cells = (a.layer, a.type, str(a.width), "inside" if a.bias_inside else "behind")
        table.add_row(*map(Text, cells))  # names in a file may look like markup
    screen.table(table)
    screen.next(f"give {project.folder}/hls4ml.yml to hls4ml.converters.convert_from_config")
    return 0
