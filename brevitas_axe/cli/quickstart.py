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
    from brevitas_axe.applications.quickstart import quickstart

    return 0 if quickstart(arguments.output, arguments.accumulator_bits, arguments.seed) else 1
