"""`brevitas-axe check`: what FINN or hls4ml would refuse or get wrong, from a QONNX file alone."""

from __future__ import annotations

import argparse

from brevitas_axe.cli import folders

_NAMES = {"finn": "FINN", "hls4ml": "hls4ml"}


def add(commands) -> None:
    parser = commands.add_parser(
        "check",
        help="find what FINN or hls4ml would refuse or get wrong in a QONNX file",
        description="Exit status 0: accepted, with notes at most. 1: findings. 2: the input cannot "
        "be used.",
    )
    parser.add_argument("model", help="a QONNX file, of any origin, or a folder with model.onnx")
    parser.add_argument(
        "--target", choices=[*_NAMES], default="finn", help="the tool that builds it"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from rich.table import Table
    from rich.text import Text

    from brevitas_axe.cli.screen import Screen, command
    from brevitas_axe.export import check_finn, check_hls4ml

    check = {"finn": check_finn, "hls4ml": check_hls4ml}[arguments.target]
    target = _NAMES[arguments.target]
    file = folders.model_file(arguments.model)
    findings = check(file, notes=True)
    status = int(any(finding.severity != "note" for finding in findings))
    screen = Screen(arguments)
    screen.json({"target": arguments.target, "findings": [f.to_dict() for f in findings]})
    name = Path(file).name
    if not findings:
        screen.line(f"{name}: {target} builds it as it is.")
    else:
        count = f"{len(findings)} {'finding' if status else 'note'}{'s' * (len(findings) > 1)}"
        table = Table(title=Text(f"{name}: {count} for {target}"))
        for column in ("layer", "severity", "rule", "problem", "way out"):
            table.add_column(column)
        for f in findings:
            cells = (f.layer, f.severity, f.rule, f.problem, f.way_out)
            table.add_row(*map(Text, cells))  # names in a file may look like markup
        screen.table(table)
    if status == 0:
        screen.next(f"give {file} to {target}")
    elif folders.is_folder(arguments.model) and arguments.target == "finn":
        screen.next(command("mend", arguments.model))
    else:
        screen.next("change the model as the way out says, and export it again")
    return status
