"""`brevitas-axe certify`: proves, from a QONNX file alone, that no accumulator overflows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brevitas_axe.cli import folders, options
from brevitas_axe.errors import InvalidOption

if TYPE_CHECKING:
    from brevitas_axe.proof.certificate import Certificate


def add(commands) -> None:
    parser = commands.add_parser(
        "certify",
        help="prove from a QONNX file that no accumulator can overflow",
        description="Exit status 0: proven, with --include or --exclude of the layers that these "
        "leave, which the verdict says. 1: not proven. 2: the input cannot be used.",
    )
    parser.add_argument(
        "model", help="a QONNX file, of any origin, or a folder that `quantize` wrote"
    )
    folders.add_model(parser)
    options.add_accumulator(parser)
    options.add_tile(parser)
    options.add_plan(parser)
    options.add_picked(parser)
    parser.add_argument(
        "--input-type",
        action="append",
        default=[],
        metavar="NAME=TYPE",
        help="integer type of a floating-point input, such as x=UINT8; may be repeated",
    )
    parser.add_argument(
        "--fixed-initializers",
        action="store_true",
        help="nobody replaces weights that are graph inputs too, as Brevitas's own export has them",
    )
    parser.add_argument(
        "--report", metavar="FILE", help="an HTML page: the verdict, all sums, and the file's graph"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from brevitas_axe.cli.screen import Screen
    from brevitas_axe.proof.certificate import certify_file

    folders.check_file(arguments.report, "--report")
    if folders.is_folder(arguments.model):
        certificate = _of_folder(arguments)
    else:
        certificate = certify_file(
            arguments.model,
            accumulator_bit_width=arguments.accumulator_bits,
            tile_size=arguments.tile_size,
            plan=options.plan_of(arguments),
            input_types=_input_types(arguments.input_type),
            fixed_initializers=arguments.fixed_initializers,
        )
    certificate = certificate.judging(arguments.include, arguments.exclude)
    screen = Screen(arguments)
    screen.json(certificate.to_json())
    screen.table(certificate.table())
    if arguments.report is not None:
        _write_page(arguments.report, arguments.model, certificate)
        screen.files([arguments.report])
    screen.next(_next(arguments.model, certificate))
    return 0 if certificate.ok else 1


def _write_page(path: str, model: str, certificate: Certificate) -> None:
    # Here, for it loads matplotlib, which a verdict does not need.
    from brevitas_axe.files import write_whole
    from brevitas_axe.show.graph import graph_view
    from brevitas_axe.show.origin import origin
    from brevitas_axe.show.page import page

    graph = "" if folders.is_folder(model) else graph_view(Path(model), certificate)
    summary = {"title": f"{model}, certified", "origin": origin()}
    write_whole(path, page(summary, certificate, graph=graph).encode())


def _next(model: str, certificate: Certificate) -> str:
    from brevitas_axe.cli.screen import command

    if certificate.ok and not certificate.unclaimed:
        return command("check", model, "--target", "finn")
    if certificate.ok:
        return f"nothing is claimed of the others; for the whole model: {command('certify', model)}"
    widths = [entry.width for entry in certificate.judged]
    if not widths or None in widths:
        return "give what is not proven another quantizer, or leave it out by --exclude NAME"
    return command("certify", model, "--accumulator-bits", max(w for w in widths if w))


def _of_folder(arguments: argparse.Namespace) -> Certificate:
    """Of a saved model: proven again as it was, or for the widths that are asked for."""
    from brevitas_axe.model.attention_products import with_products
    from brevitas_axe.proof.certificate import certify
    from brevitas_axe.run.saving.save import left_out

    result = folders.result_of(arguments.model, arguments)
    plan = options.plan_of(arguments)
    if (arguments.accumulator_bits, arguments.tile_size, plan) == (None, None, None):
        return result.certificate
    assert result.example is not None
    args, kwargs = result.example
    return certify(
        result.model,
        accumulator_bit_width=arguments.accumulator_bits,
        tile_size=arguments.tile_size,
        plan=None if plan is None else with_products(plan, result.model),
        exclude=left_out(result),
        args=args,
        kwargs=kwargs,
    )


def _input_types(given: Sequence[str]) -> dict[str, str]:
    """NAME=TYPE of every --input-type."""
    types = {}
    for pair in given:
        name, separator, kind = pair.rpartition("=")
        if not separator or not name or not kind:
            raise InvalidOption(f"--input-type is NAME=TYPE, such as x=UINT8, not '{pair}'.")
        types[name] = kind
    return types
