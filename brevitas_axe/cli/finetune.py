"""`brevitas-axe finetune`: trains a quantized model on, proven after every epoch."""

from __future__ import annotations

import argparse
from pathlib import Path

from brevitas_axe.cli import folders
from brevitas_axe.cli.usercode import batches_of, function_of


def add(commands) -> None:
    parser = commands.add_parser(
        "finetune",
        help="train a quantized model on, with every accumulator kept and proven at every epoch",
        description="Takes the folder that `quantize` wrote, and writes one like it.",
    )
    parser.add_argument("folder", metavar="DIR", help="written by `quantize` or by this command")
    folders.add_model(parser)
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE.py:FUNCTION",
        help="returns an iterable of (inputs, labels) batches",
    )
    parser.add_argument(
        "--validation",
        metavar="FILE.py:FUNCTION",
        help="returns such batches; the epoch with the best accuracy is kept, number 0 included",
    )
    parser.add_argument(
        "--loss",
        metavar="FILE.py:FUNCTION",
        help="takes (output, batch) and returns the loss; default: cross-entropy with the labels",
    )
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="default 10")
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=1e-3,
        metavar="RATE",
        help="of biases and norms; weights follow their scales; default 0.001",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument(
        "--state", metavar="DIR", help="progress is kept here; a run that was killed continues"
    )
    parser.add_argument("--output", default="finetuned", metavar="DIR", help="default: finetuned")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from brevitas_axe.cli.screen import console
    from brevitas_axe.files import json_text, write_whole
    from brevitas_axe.run.finetune import finetune
    from brevitas_axe.run.saving.folder import INSIDE, check_place
    from brevitas_axe.run.saving.save import save

    place = check_place(Path(arguments.output) / INSIDE).parent
    start = folders.result_of(arguments.folder, arguments)
    validation = arguments.validation
    result = finetune(
        start,
        batches_of(arguments.data),
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        loss=None if arguments.loss is None else function_of(arguments.loss),
        validation=None if validation is None else batches_of(validation),
        state=arguments.state,
        seed=arguments.seed,
    )
    save(result, place / INSIDE)
    result.plan.save(place / folders.PLAN_FILE)
    write_whole(place / "certificate.json", result.certificate.to_json().encode())
    write_whole(place / "history.json", json_text(result.history).encode())
    console().print(_table(result.history, result.best_epoch))
    console().print(result.certificate.table())
    for name in (INSIDE, folders.PLAN_FILE, "certificate.json", "history.json"):
        print(place / name)
    return 0 if result.certificate.ok else 1


def _table(history: list[dict], best: int):
    from rich.table import Table

    table = Table("epoch", "loss", "score", "accumulator bits", title=f"epoch {best} is kept")
    for entry in history:
        numbers = (entry["loss"], entry["score"])
        cells = ("–" if number is None else f"{number:.6g}" for number in numbers)
        table.add_row(str(entry["epoch"]), *cells, str(entry["accumulator_bits"]))
    return table
