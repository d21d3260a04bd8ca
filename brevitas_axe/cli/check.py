"""`brevitas-axe check`: what FINN or hls4ml would refuse or get wrong, from a QONNX file alone."""

from __future__ import annotations

import argparse
import json

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
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from rich.table import Table
    from rich.text import Text

    from brevitas_axe.cli.screen import console
    from brevitas_axe.export import check_finn, check_hls4ml

    check = {"finn": check_finn, "hls4ml": check_hls4ml}[arguments.target]
    target = _NAMES[arguments.target]
    file = folders.model_file(arguments.model)
    findings = check(file, notes=True)
    status = int(any(finding.severity != "note" for finding in findings))
    if arguments.json:
        content = {"target": arguments.target, "findings": [f.to_dict() for f in findings]}
        print(json.dumps(content, indent=2))
        return status
    name = Path(file).name
    if not findings:
        print(f"{name}: {target} builds it as it is.")
        return 0
    count = f"{len(findings)} {'finding' if status else 'note'}{'s' * (len(findings) > 1)}"
    table = Table(title=Text(f"{name}: {count} for {target}"))
    for column in ("layer", "severity", "rule", "problem", "way out"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        cells = (finding.layer, finding.severity, finding.rule, finding.problem, finding.way_out)
        table.add_row(*map(Text, cells))  # names in a file may look like markup
    console().print(table)
    return status
