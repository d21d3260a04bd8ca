"""`brevitas-axe finetune`: trains a quantized model on, proven after every epoch."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brevitas_axe.cli import folders, options
from brevitas_axe.cli.usercode import batches_of, function_of, model_of
from brevitas_axe.errors import InvalidOption

if TYPE_CHECKING:
    from brevitas_axe.run.validated import Validated


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
    options.add_validate(
        parser, ", as far as the folder tells; the epoch that is best by it is kept"
    )
    parser.add_argument(
        "--loss",
        metavar="FILE.py:FUNCTION",
        help="takes (output, batch) and returns the loss; default: cross-entropy with the labels",
    )
    parser.add_argument(
        "--search",
        metavar="SEARCHER",
        help="choose the widths of all layers while their weights are trained, such as "
        "reinforce:rate=0.05; accumulators stay as they are; draws policy.png",
    )
    parser.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="with --search, what a cost is to be for one sample, or a share of what W4A4 takes, "
        "such as bops=80%%",
    )
    options.add_picked(parser)
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
    options.add_log(parser)
    parser.add_argument("--output", default="finetuned", metavar="DIR", help="default: finetuned")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from brevitas_axe.cli.screen import Screen, command, shows_progress
    from brevitas_axe.files import json_text, write_whole
    from brevitas_axe.run.checks import check_saving
    from brevitas_axe.run.finetune import finetune
    from brevitas_axe.run.saving.folder import INSIDE, check_place
    from brevitas_axe.run.saving.save import save
    from brevitas_axe.run.validated import number
    from brevitas_axe.show import write_folder

    screen = Screen(arguments)
    validation, validate = arguments.validation, options.validation_of(arguments)
    if validation is not None and validate is not None:
        raise InvalidOption("give either --validation or --validate; each tells the best epoch.")
    if arguments.search is None and arguments.budget:
        raise InvalidOption("--budget goes with --search, which comes near to it; leave it out.")
    if arguments.search is not None and validation is not None:
        raise InvalidOption("--search keeps the last epoch, so it takes no --validation.")
    if validation is not None:
        validation = batches_of(validation)
    start = folders.result_of(arguments.folder, arguments)
    place = check_place(Path(arguments.output) / INSIDE).parent
    check_saving(start.model, place)
    if options.going_on(arguments):
        screen.line(f"goes on from the last whole epoch in {arguments.state}")

    def judged(model: Any) -> float:
        assert validate is not None  # given only then
        return number(validate, model)

    data, exclude = batches_of(arguments.data), options.left_out(arguments, start.model)
    loss = None if arguments.loss is None else function_of(arguments.loss)
    drawing: dict[str, bytes] = {}
    if arguments.search is not None:
        result, drawing["policy.png"] = _searched(arguments, start, data, loss, exclude)
    else:
        result = finetune(
            start,
            data,
            epochs=arguments.epochs,
            learning_rate=arguments.learning_rate,
            loss=loss,
            exclude=exclude,
            validation=judged if validate is not None else validation,
            state=arguments.state,
            seed=arguments.seed,
            progress=shows_progress(arguments),
            log=arguments.log,
        )
    save(result, place / INSIDE)
    write_whole(place / "history.json", json_text(result.history).encode())
    numbers = {} if validate is None else _numbers(arguments, validate, start, result)
    content = {
        "title": f"{arguments.folder}, trained on",
        "history": result.history,
        "validation": {name: asdict(row) for name, row in numbers.items()},
    }
    written = write_folder(place, content, result.certificate, result.plan, result.recipe)
    for name, content_of in drawing.items():
        write_whole(place / name, content_of)
    files = [*map(str, written), *(str(place / n) for n in (INSIDE, "history.json", *drawing))]
    proven, best = result.certificate.ok, result.best_epoch
    screen.json({"proven": proven, "best_epoch": best, **content, "files": files})
    screen.table(_table(result.history, result.best_epoch))
    screen.table(result.certificate.table())
    screen.numbers(numbers)
    screen.files(files)
    own = folders.own_model(arguments)
    file = place / folders.MODEL_FILE
    screen.next(command("mend", place, *own), command("export", place, file, *own))
    return 0 if result.certificate.ok else 1


def _searched(
    arguments: argparse.Namespace, start: Any, data: Any, loss: Any, exclude: tuple[str, ...]
) -> tuple[Any, bytes]:
    """The model with the widths that a search preferred, and a drawing of how it came to them."""
    from brevitas_axe.cli.screen import shows_progress
    from brevitas_axe.recipe import Run
    from brevitas_axe.run.finetune.shared_weights import Training
    from brevitas_axe.run.search_widths import search_widths
    from brevitas_axe.show import plots

    epochs, rate, seed = arguments.epochs, arguments.learning_rate, arguments.seed
    found = search_widths(
        start,
        data,
        options.budgets_of(arguments, options.limit),
        searcher=arguments.search,
        training=Training(epochs, rate, loss=loss, seed=seed),
        exclude=exclude,
        run=Run(arguments.state, progress=shows_progress(arguments), log=arguments.log),
    )
    return found.trained, plots.png(plots.policy(found.values, list(found.course())))


def _numbers(
    arguments: argparse.Namespace, validate: Any, start: Any, result: Any
) -> dict[str, Validated]:
    """Numbers before and after; those that only the solve could tell are from its summary."""
    from brevitas_axe.run.validated import Validated, in_float, number

    earlier = folders.validation_in(arguments.folder, arguments.validate)
    unquantized = None if earlier is None else earlier.unquantized
    if unquantized is None and arguments.architecture is not None:
        unquantized = in_float(validate, model_of(arguments.architecture))
    unlimited = None if earlier is None else earlier.unlimited
    return {
        name: Validated(arguments.validate, unquantized, unlimited, number(validate, each.model))
        for name, each in ((arguments.folder, start), (arguments.output, result))
    }


def _table(history: list[dict], best: int):
    from rich.table import Table

    shown = ("reward", "cost") if "reward" in history[0] else ("score", "accumulator_bits")
    headings = (key.replace("_", " ") for key in ("epoch", "loss", *shown))
    table = Table(*headings, title=f"epoch {best} is kept")
    for entry in history:
        numbers = (entry[key] for key in ("loss", *shown))
        cells = ("–" if number is None else f"{number:.6g}" for number in numbers)
        table.add_row(str(entry["epoch"]), *cells)
    return table
