"""`brevitas-axe quantize --dry-run`: what would be done, without doing it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brevitas_axe.run.preview import LayerPreview, Preview

_ROWS_OF_FINN = 6


def run(arguments: argparse.Namespace, model: Any, batches: list[Any], keywords: Any) -> int:
    """Looks, and prints; exit status 0, as nothing is asked.

    Args:
        arguments: of the command.
        model, batches: as `quantize` takes them.
        keywords: all that `quantize` is asked for, by name.
    """
    from brevitas_axe.cli.screen import Screen
    from brevitas_axe.run.preview import preview

    found = preview(model, batches, **keywords)
    screen = Screen(arguments)
    screen.json(found.to_dict())
    screen.table(_layers(found, arguments.model))
    for name, reason in found.floats.items():
        screen.line(f"in float: {name}, {reason}")
    for finding in (found.finn or ())[:_ROWS_OF_FINN]:
        said = f"{finding['problem']}; {finding['way_out']}"
        screen.line(f"FINN, {finding['severity']}: {said}")
    if found.finn is not None and len(found.finn) > _ROWS_OF_FINN:
        screen.line(f"FINN: {len(found.finn) - _ROWS_OF_FINN} more, all of them with --json")
    if found.finn == ():
        screen.line("FINN: nothing is in its way")
    memory = f"{-(-found.memory // 2**20):,} MiB for copies of the model and the largest layer"
    screen.line(f"about {_duration(found.seconds)}, and {memory}")
    screen.next("the same command without --dry-run")
    return 0


def _layers(found: Preview, title: str) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{title}, nothing solved yet"))
    table.add_column("layer")
    headings = ("groups", "rows", "K", "tile", "weights", "inputs", "clips below", "P", "clipped")
    for heading in headings:
        table.add_column(heading, justify="right")
    for layer in found.layers:
        table.add_row(*map(Text, _cells(layer)))
    table.caption = Text(
        "Clips below: the accumulators, row by row, in which weights rounded to nearest would fit."
    )
    return table


def _cells(layer: LayerPreview) -> tuple[str, ...]:
    least, most = min(layer.needed), max(layer.needed)
    return (
        layer.name,
        *map(str, layer.shape),
        "–" if layer.tile is None else str(layer.tile),
        _range(layer.weight),
        _range(layer.input),
        str(most) if least == most else f"{least}…{most}",
        "any" if layer.accumulator is None else str(layer.accumulator),
        f"{layer.clipped} of {len(layer.needed)}",
    )


def _range(ends: tuple[int, int]) -> str:
    return f"{ends[0]}…{ends[1]}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
