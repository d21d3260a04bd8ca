"""`brevitas-axe quickstart`: the whole job on bundled data in under two minutes."""

from __future__ import annotations

import argparse

from brevitas_axe.cli import options


def add(commands) -> None:
    parser = commands.add_parser(
        "quickstart", help="train, quantize, prove and export a small model, in two minutes"
    )
    parser.add_argument("--output", default="quickstart", metavar="DIR", help="default: quickstart")
    parser.add_argument("--seed", type=int, default=0)
    options.add_accumulator(parser, default=8)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from contextlib import nullcontext, redirect_stdout
    from io import StringIO
    from pathlib import Path

    from brevitas_axe.applications.quickstart import quickstart
    from brevitas_axe.cli.screen import Screen, shows_progress

    silent = arguments.quiet or arguments.json
    with redirect_stdout(StringIO()) if silent else nullcontext():
        proven = quickstart(
            arguments.output,
            arguments.accumulator_bits,
            arguments.seed,
            progress=shows_progress(arguments),
        )
    screen = Screen(arguments)
    screen.json((Path(arguments.output) / "summary.json").read_text(encoding="utf-8"))
    screen.next(
        "open the page report.html, and take a model of your own: brevitas-axe quantize "
        "my_model.py:build --calibration my_model.py:data --accumulator-bits 16"
    )
    return 0 if proven else 1
