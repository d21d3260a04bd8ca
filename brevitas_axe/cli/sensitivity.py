"""`brevitas-axe sensitivity`: which layer hurts, and at which bits."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from brevitas_axe.cli import allocate, folders, options
from brevitas_axe.cli.usercode import batches_of

if TYPE_CHECKING:
    from brevitas_axe.methods.sensitivity import Scores
    from brevitas_axe.plan import LayerPrecision

_SIGNS = {"weight": "W", "input": "A", "accumulator": "P"}


def add(commands) -> None:
    parser = commands.add_parser(
        "sensitivity",
        help="tell which layer hurts, and at which bits",
        description="Scores every choice of every layer, and allocates nothing. In the table one "
        "width is narrowed at a time, and the others have the most bits that are offered; --json "
        "has all choices.",
    )
    folders.add_model_and_data(parser)
    allocate.add_choices(parser)
    allocate.add_scorer(parser)
    parser.add_argument(
        "--metric", default="kl", metavar="NAME", help="kl (default), mse or cross_entropy"
    )
    options.add_run(parser, "folder for scores", "trials at a time")
    options.add_picked(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from brevitas_axe.cli.screen import Screen, command
    from brevitas_axe.run.allocate import check_scoring, sensitivity

    check_scoring(arguments.scorer, [arguments.metric])
    model = folders.model_from(arguments.model, arguments)
    scores = sensitivity(
        model,
        batches_of(arguments.calibration),
        allocate.choices_of(arguments),
        scorer=arguments.scorer,
        metric=arguments.metric,
        exclude=options.left_out(arguments, model),
        run=options.run_of(arguments),
    )
    screen = Screen(arguments)
    screen.json(_content(scores, arguments.metric))
    screen.table(_table(scores, arguments))
    data = ("--calibration", arguments.calibration, "--budget", "bops=80%")
    screen.next(command("allocate", arguments.model, *data))
    return 0


def _content(scores: Scores, metric: str) -> dict[str, Any]:
    rows = {
        name: [
            {**asdict(choice), "harm": float(harm)}
            for choice, harm in zip(options, scores.harm[name], strict=True)
        ]
        for name, options in scores.choices.layers.items()
    }
    return {"metric": metric, "layers": rows}


def _table(scores: Scores, arguments: argparse.Namespace) -> Any:
    """One row per layer, worst first; one column for each width that is narrowed."""
    from rich.table import Table
    from rich.text import Text

    columns = list(
        dict.fromkeys(
            (name, getattr(choice, name))
            for name in _SIGNS
            for options in scores.choices.layers.values()
            for choice in sorted(options, key=lambda c: getattr(c, name) or 99)
            if len({getattr(c, name) for c in options}) > 1
        )
    )
    table = Table(title=Text(f"{arguments.model}: rise of {arguments.metric} by one layer alone"))
    table.add_column("layer")
    for name, bits in columns:
        table.add_column("any P" if bits is None else f"{_SIGNS[name]}{bits}", justify="right")
    for layer in sorted(scores.harm, key=lambda n: -float(scores.harm[n].max())):
        found = {c: float(h) for c, h in zip(
            scores.choices.layers[layer], scores.harm[layer], strict=True)}  # fmt: skip
        cells = (_harm(found, name, bits) for name, bits in columns)
        table.add_row(Text(layer), *("–" if h is None else f"{h:.3g}" for h in cells))
    return table


def _harm(found: dict[LayerPrecision, float], name: str, bits: int | None) -> float | None:
    """Harm of a layer where one width is so, and all others are as wide as they may be."""
    others = [other for other in _SIGNS if other != name]
    fitting = [choice for choice in found if getattr(choice, name) == bits]
    widest = max(fitting, key=lambda c: tuple(getattr(c, o) or 99 for o in others), default=None)
    return None if widest is None else found[widest]
