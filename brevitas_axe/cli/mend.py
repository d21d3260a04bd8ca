"""`brevitas-axe mend`: changes a quantized model where FINN would compute something else."""

from __future__ import annotations

import argparse
from pathlib import Path

from brevitas_axe.cli import folders
from brevitas_axe.errors import InvalidOption


def add(commands) -> None:
    parser = commands.add_parser(
        "mend",
        help="change a quantized model where FINN would refuse it or round otherwise",
        description="Branches of an addition get one quantizer, the most negative weight is left "
        "out where FINN flips signs, and sums are moved away from ties. Each change is told, and "
        "the model is proven again. Exit status 0: proven. 1: not proven with these changes.",
    )
    parser.add_argument("folder", metavar="DIR", help="written by `quantize` or `finetune`")
    folders.add_model(parser)
    parser.add_argument("--output", default="mended", metavar="DIR", help="default: mended")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from brevitas_axe.cli.screen import Screen, command
    from brevitas_axe.export import mend_for_finn
    from brevitas_axe.run.saving.folder import INSIDE, check_place
    from brevitas_axe.run.saving.save import left_out, proven, save

    result = folders.result_of(arguments.folder, arguments)
    place = check_place(Path(arguments.output) / INSIDE).parent
    model, example = folders.model_and_example(result)
    if not example:
        raise InvalidOption(
            f"{arguments.folder} was solved block by block, and FINN builds no such model as a "
            "whole; nothing can be mended for it."
        )
    mended, changes = mend_for_finn(model, example)
    result = replace(result, model=mended)
    assert result.example is not None  # folders have one
    certificate = proven(result, left_out(result), result.example)
    result = replace(result, certificate=certificate)
    save(result, place / INSIDE)
    result.plan.save(place / folders.PLAN_FILE)
    screen = Screen(arguments)
    told = [f"{change.rule}: {change.sentence}" for change in changes]
    files = [str(place / INSIDE), str(place / folders.PLAN_FILE)]
    screen.json({"proven": certificate.ok, "changes": told, "files": files})
    for sentence in told or ["nothing had to be mended."]:
        screen.line(sentence)
    screen.table(certificate.table())
    screen.files(files)
    screen.next(command("export", place, place / folders.MODEL_FILE))
    return 0 if certificate.ok else 1
