"""`brevitas-axe tune`: the best model within a limit, searched by the user's own measure."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from brevitas_axe.cli import folders, options
from brevitas_axe.cli.quantize import exported
from brevitas_axe.cli.usercode import batches_of
from brevitas_axe.errors import InvalidOption

if TYPE_CHECKING:
    from pathlib import Path

    from brevitas_axe.proof.certificate import Certificate
    from brevitas_axe.run.tune import TuneResult, Tuning


def add(commands) -> None:
    parser = commands.add_parser(
        "tune",
        help="search widths and recipe for the best model within a limit",
        description="Solves and judges one configuration after another, plain widths first, and "
        "writes the best model as `quantize` does, with trials.html beside it. Exit status 0: "
        "proven, and within --max-drop where it is given. 1: not.",
    )
    folders.add_model_and_data(parser)
    parser.add_argument(
        "--validate",
        required=True,
        metavar="FILE.py:FUNCTION",
        help="a function of the model that returns how good it is, larger is better; it chooses, "
        "so judge the result on data that it does not see",
    )
    options.add_accumulator(parser)
    options.add_tile(parser)
    parser.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="most that a cost may be for one sample, or a share of what W4A4 takes, such as "
        "finn_lut=80%%; may be repeated; costs: see `methods`",
    )
    parser.add_argument(
        "--max-drop",
        metavar="DROP",
        help="look for the cheapest model that is no further below the float one: a number, or a "
        "share of the float model's value, such as 1%%",
    )
    _add_search(parser)
    parser.add_argument(
        "--recipe", metavar="FILE", help="to start from: a recipe.yaml, or a preset"
    )
    options.add_picked(parser)
    parser.add_argument(
        "--train",
        metavar="FILE.py:FUNCTION",
        help="returns (inputs, labels) batches, on which the best model is fine-tuned in the end",
    )
    parser.add_argument(
        "--epochs", type=int, default=10, metavar="N", help="of training, at most; default 10"
    )
    options.add_run(
        parser,
        "folder for all trials; a killed run continues from it, and one with more minutes goes on",
        "solve the rows of a layer in N processes, -1 for one per core",
    )
    parser.add_argument("--output", default="tuned", metavar="DIR", help="default: tuned")
    parser.set_defaults(run=run)


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="for all trials; default 60, or no limit where "
        "--trials is given"
    )  # fmt: skip
    parser.add_argument("--trials", type=int, metavar="N", help="most trials")
    parser.add_argument(
        "--searcher", metavar="NAME", help="method that asks for configurations; see `methods`"
    )
    parser.add_argument(
        "--decide",
        action="append",
        default=[],
        metavar="NAME=VALUE,VALUE",
        help="what to choose from, instead of the usual, such as solver=qronos,gptq, or "
        "calibration=1.0; may be repeated",
    )
    parser.add_argument(
        "--earlier",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of --state of another model, from which the searcher may learn",
    )
    parser.add_argument(
        "--cost",
        metavar="NAME",
        help="beside which trials are shown, and which --max-drop makes least; default finn_lut",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")


def run(arguments: argparse.Namespace) -> int:
    from brevitas_axe.cli.screen import Screen
    from brevitas_axe.registry import method
    from brevitas_axe.run.checks import check_saving
    from brevitas_axe.run.saving.folder import INSIDE, check_place
    from brevitas_axe.run.saving.save import save
    from brevitas_axe.run.tune import tune
    from brevitas_axe.show import open_folder, write_folder
    from brevitas_axe.show.tuning import write_tuning

    screen, tuning = Screen(arguments), _tuning(arguments)
    budget = options.budgets_of(arguments, options.limit)
    validate = options.validation_of(arguments)
    folder = open_folder(arguments.output)
    kept = check_place(folder / INSIDE)
    model = folders.model_from(arguments.model, arguments)
    batches = batches_of(arguments.calibration)
    check_saving(model, arguments.output)
    tuning = replace(tuning, exclude=options.left_out(arguments, model))
    if options.going_on(arguments):
        screen.line(f"trials that {arguments.state} has are not made again")
    start = time.perf_counter()
    found = tune(
        model,
        batches,
        validate=validate,
        accumulator_bit_width=arguments.accumulator_bits,
        tile_size=arguments.tile_size,
        budget=budget,
        max_drop=_drop(arguments.max_drop),
        training=None if arguments.train is None else batches_of(arguments.train),
        tuning=tuning,
        run=options.run_of(arguments),
    )
    save(found.result, kept)
    exclude = found.result.exclude
    path, certificate, resources = exported(found.result, batches[0], folder, exclude, "qonnx")
    summary = _summary(arguments, found, resources)
    summary["seconds"] = round(time.perf_counter() - start, 1)
    files = write_folder(folder, summary, certificate, found.plan, found.result.recipe)
    page = folder / "trials.html"
    write_tuning(page, found, tuning.cost, method("cost", tuning.cost).unit)
    written = [str(file) for file in (page, path, *files, kept)]
    screen.json({**summary, "proven": certificate.ok, "files": written})
    _report(screen, found, certificate, tuning.cost)
    screen.files(written)
    screen.next(*_next(arguments, folder))
    return 0 if certificate.ok and found.met else 1


def _tuning(arguments: argparse.Namespace) -> Tuning:
    from brevitas_axe.run.tune import Tuning

    minutes = arguments.minutes
    if minutes is None and arguments.trials is None:
        minutes = Tuning.minutes
    tuning = Tuning(
        minutes=minutes,
        trials=arguments.trials,
        decisions=dict(map(_decision, arguments.decide)),
        recipe=arguments.recipe,
        earlier=tuple(arguments.earlier),
        epochs=arguments.epochs,
        seed=arguments.seed,
    )
    given = {name: getattr(arguments, name) for name in ("searcher", "cost")}
    return replace(tuning, **{name: value for name, value in given.items() if value is not None})


def _decision(text: str) -> tuple[str, tuple[Any, ...]]:
    """Name and values of one --decide; what YAML takes for numbers are numbers."""
    import yaml

    name, equals, values = text.partition("=")
    if not name or not equals or not values:
        raise InvalidOption(
            f"--decide is NAME=VALUE,VALUE, such as solver=qronos,gptq, not '{text}'."
        )
    return name, tuple(yaml.safe_load(value) for value in values.split(","))


def _drop(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text  # a share, or what tune refuses


def _summary(
    arguments: argparse.Namespace, found: TuneResult, resources: list[Any]
) -> dict[str, Any]:
    """What summary.json tells of the run."""
    recipe = found.result.recipe
    return {
        "title": f"{arguments.model}, tuned for narrow accumulators",
        "accumulator": arguments.accumulator_bits,
        "tile": arguments.tile_size,
        "arms": [],
        "layers": getattr(found.result, "layers", []),
        "resources": resources,
        "trials": [asdict(trial) for trial in found.trials],
        "best": asdict(found.best),
        "plain": asdict(found.plain),
        "unquantized": found.unquantized,
        "met": found.met,
        "assumptions": list(getattr(found.result, "assumptions", ())),
        "environment": {} if recipe is None else {"solver": str(recipe.solver)},
    }


def _report(screen: Any, found: TuneResult, certificate: Certificate, cost: str) -> None:
    from rich.table import Table

    from brevitas_axe.run.tune.decisions import told

    table = Table(title=f"{len(found.trials)} trials")
    for heading in ("model", "bits"):
        table.add_column(heading)
    for heading in ("value", cost):
        table.add_column(heading, justify="right")
    table.add_row("float", "–", f"{found.unquantized:.6g}", "–")
    for name, trial in (("plain widths", found.plain), ("best", found.best)):
        price = f"{trial.costs[cost]:,.6g}" if cost in trial.costs else "–"
        value = "refused" if trial.refused else f"{trial.value:.6g}"
        table.add_row(name, trial.bits or "–", value, price)
    screen.table(table)
    screen.line(f"best: {told(found.best.configuration)}")
    if not found.met:
        screen.line("no trial is within --max-drop; this is the nearest.")
    screen.table(certificate.table())


def _next(arguments: argparse.Namespace, folder: Path) -> list[str]:
    from brevitas_axe.cli.screen import command

    own = folders.own_model(arguments)
    other = ("--validate", "FILE.py:FUNCTION")
    return [command("compare", folder, *own, *other), command("mend", folder, *own)]
