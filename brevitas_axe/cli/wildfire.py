"""`brevitas-axe wildfire`: two nets that see fires from a drone, in all arms, and one table."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brevitas_axe.applications.wildfire.arms import Settings

# Option → what it says; each is a field of Settings.
_NUMBERS = {
    "size": (int, "pixels of each side of a picture, a multiple of 4"),
    "pictures": (int, "to train on"),
    "epochs": (int, "of the float nets"),
    "tuned_epochs": (int, "of quantization-aware training"),
    "seeds": (int, "how many times everything is done"),
    "fps": (float, "frames per second that every layer is folded for"),
    "clock": (float, "of the hardware, in MHz"),
    "tune_trials": (int, "of one more arm, which `tune` searches; 0 for none"),
}


def add(commands) -> None:
    parser = commands.add_parser(
        "wildfire",
        help="a classifier and a U-Net for fires seen from a drone, quantized in many ways",
        description="Trains both nets, quantizes them in all arms, and writes one table, one page, "
        "and a proven file for FINN of each net. What the folder has already is not made again. "
        "Exit status 0: both files are proven. 1: not.",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="with FLAME's folder `frames`; left out, pictures are drawn, and the table says so",
    )
    parser.add_argument("--output", default="wildfire", metavar="DIR", help="default: wildfire")
    parser.add_argument(
        "--quick", action="store_true", help="few small pictures and one seed, in a minute or two"
    )
    for name, (kind, text) in _NUMBERS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", dest=name, type=kind, metavar="N", help=text
        )
    parser.add_argument(
        "--accumulator-bits", type=int, dest="accumulator", metavar="P",
        help="width of narrow accumulators; default 16",
    )  # fmt: skip
    parser.add_argument(
        "--budget",
        metavar="SHARE",
        help="of the look-up tables of W4A4 that mixed arms may take; default 80%%",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from brevitas_axe.applications.wildfire.run import wildfire
    from brevitas_axe.cli.screen import Screen, command, shows_progress

    summary = wildfire(arguments.output, _settings(arguments), shows_progress(arguments))
    screen = Screen(arguments)
    screen.json(summary)
    screen.line((Path(arguments.output) / "report.md").read_text(encoding="utf-8"))
    screen.files(summary["files"])
    screen.next(command("check", f"{arguments.output}/classifier.onnx"))
    return 0 if summary["proven"] else 1


def _settings(arguments: argparse.Namespace) -> Settings:
    from brevitas_axe.applications.wildfire.arms import QUICK, USUAL

    names = (*_NUMBERS, "accumulator", "budget", "data")
    given = {name: getattr(arguments, name) for name in names}
    changed = {name: value for name, value in given.items() if value is not None}
    return replace(QUICK if arguments.quick else USUAL, **changed)
