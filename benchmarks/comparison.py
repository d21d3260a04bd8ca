"""The table that every quality benchmark prints: published AXE against ours.

The two are compared at equal bits, and each at its best weight and input widths for the
accumulator. "Published" is then swept with our `fast` quality, which returns the integers of
Brevitas's own code many times sooner; one setting per benchmark is solved by both and the
differing integers are counted. The best widths of either side are chosen by the reported metric.
"""

from __future__ import annotations

import argparse
from collections.abc import Container, Sequence
from dataclasses import replace
from itertools import product

import records
from arms import Experiment, Setting
from records import print_table, write_json

OWNERS = ("none", "brevitas", "fast", "best")
UNLIMITED = (
    ("none nearest", False),
    ("brevitas gptq", False),
    ("fast gptq", False),
    ("best qronos", True),
)  # arm, act_order; our `best` quality orders its columns by default
PUBLISHED = (("gptq", False), ("gpfq", False), ("gpfq", True))  # solver, act_order
SOLVERS = ("gpfq", "gptq", "qronos")
Widths = Sequence[tuple[int, int]]
Published = Sequence[tuple[str, bool]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every comparison."""
    records.add_arguments(parser)
    parser.add_argument("--owners", nargs="+", choices=OWNERS, default=OWNERS, help="arms to run")


def compare(
    experiment: Experiment,
    arguments: argparse.Namespace,
    bits: Widths,
    accumulators: Sequence[int],
    tiles: Sequence[int | None],
    sweep: Widths,
    solvers: Sequence[str] = SOLVERS,
    reference: Container[int] | None = None,
    published: Published = PUBLISHED,
    own_code: Published = PUBLISHED,
) -> dict:
    """Measures every row, prints the tables and writes the JSON.

    Args:
        experiment: what to quantize and how to judge it.
        arguments: the options of `add_arguments`.
        bits: pairs (weight bits, input bits) of the equal-bits rows.
        accumulators: widths P.
        tiles: tile sizes, None for whole rows.
        sweep: pairs (weight bits, input bits) among which each side has its best.
        solvers: ours at equal bits and quality `best`.
        reference: widths P at which Brevitas's own code runs, None for all.
        published: the published algorithms that `fast` runs, as (solver, act_order).
        own_code: those that Brevitas's own code runs.

    Returns:
        The content of the JSON file.
    """
    owners, measure = arguments.owners, experiment.measure
    rows = [measure(Setting("none float"))] if "none" in owners else []
    rows += [
        measure(setting)
        for setting in at_widths(Setting(""), UNLIMITED, bits)
        if setting.arm.split()[0] in owners
    ]
    winners = []
    for tile, limit in product(tiles, accumulators):
        point = Setting("", accumulator_bits=limit, tile_size=tile)
        fast = [(f"fast {solver}", order) for solver, order in published]
        theirs = [(f"brevitas a2{solver}", order) for solver, order in own_code]
        if reference is not None and limit not in reference:
            theirs = []
        settings = at_widths(point, [*theirs, *fast], bits)
        settings += at_widths(point, [(f"best {s}", True) for s in solvers], bits)
        here = [measure(s) for s in settings if s.arm.split()[0] in owners]
        rows += here
        if not arguments.quick and {"fast", "best"} <= set(owners):
            wider = at_widths(point, fast, sweep)
            ours = at_widths(point, [("best qronos", True)], sweep)
            for side, owner, settings in (("published AXE", "fast", wider), ("ours", "best", ours)):
                pool = [row for row in here if row["arm"].startswith(owner)]
                pool += [measure(s) for s in settings if (s.weight_bits, s.input_bits) not in bits]
                winners.append({"side": f"{side}, best W/A", **experiment.best(pool)})
    content = {
        "benchmark": experiment.name,
        "content": experiment.content,
        "rows": rows,
        "best_widths": winners,
        "equality": [],
    }
    if {"brevitas", "fast"} <= set(owners):
        point = Setting("", *bits[0], accumulators[len(accumulators) // 2], tiles[-1])
        compared = dict.fromkeys(solver for solver, _ in own_code)
        content["equality"] = [equality(experiment, point, solver) for solver in compared]
    show(experiment, rows, winners)
    write_json(arguments.output, content)
    return content


def at_widths(point: Setting, arms: Sequence[tuple[str, bool]], widths: Widths) -> list[Setting]:
    """`point` for every pair of widths and every pair (arm, act_order)."""
    return [
        replace(point, arm=arm, act_order=order, weight_bits=w, input_bits=a)
        for (w, a), (arm, order) in product(widths, arms)
    ]


def equality(experiment: Experiment, point: Setting, solver: str) -> dict:
    """Counts the integers in which our `fast` quality differs from Brevitas's own code."""
    row = experiment.differing_integers(
        replace(point, arm=f"brevitas a2{solver}"), replace(point, arm=f"fast {solver}")
    )
    print(f"fast {solver}: {row['differing']} of {row['integers']} integers are not Brevitas's")
    return row


def show(experiment: Experiment, rows: Sequence[dict], winners: Sequence[dict]) -> None:
    """Prints the equal-bits table, then the one at best widths."""
    columns = {
        "side": "side",
        "arm": "arm",
        "W": "weight_bits",
        "A": "input_bits",
        "P": "accumulator_bits",
        "tile": "tile_size",
        "act-order": "act_order",
        experiment.metric: experiment.metric,
        "bits needed": "bits_needed",
        "fits": "fits",
        "certified": "certified",
        "seconds": "seconds",
    }
    for title, table in (("equal bits", rows), ("best W/A", winners)):
        if table:
            present = {c: key for c, key in columns.items() if any(key in row for row in table)}
            print_table(
                f"{experiment.name}: {title}",
                [{c: row.get(key) for c, key in present.items()} for row in table],
            )
