"""Where benchmarks find their data, keep what they have measured, and print it.

A record is a JSON file named after the content of its key, so a killed run continues where it
stopped and a changed setting, model or solver is measured anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("BREVITAS_AXE_DATA", REPOSITORY.parent / "shared" / "data"))
CACHE = Path(os.environ.get("BREVITAS_AXE_CACHE", REPOSITORY / ".cache"))


def add_arguments(parser: argparse.ArgumentParser, threads: int = 2) -> None:
    """Options that every benchmark shares."""
    parser.add_argument("--quick", action="store_true", help="a small run that proves it works")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    parser.add_argument("--threads", type=int, default=threads)


def recorded(benchmark: str, key: dict, measure: Callable[[], dict]) -> dict:
    """The record of `key`, measured only if the cache does not hold it.

    Args:
        benchmark: folder of the cache.
        key: everything that the measurement depends on, JSON-serializable.
        measure: returns the values to record.

    Returns:
        The values that `measure` returned, now or in an earlier run.
    """
    text = json.dumps(key, sort_keys=True)
    path = CACHE / benchmark / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
    if path.exists():
        return json.loads(path.read_text())["values"]
    values = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"key": key, "values": values}, indent=1))
    partial.replace(path)
    return values


def print_table(title: str, rows: Iterable[dict]) -> None:
    """Prints rows that share their keys; None is printed as a dash."""
    rows = list(rows)
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    Console(width=140).print(table)


def write_json(path: Path | None, content: dict) -> None:
    """Writes the result file of a benchmark, if the user asked for one."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1))


@contextmanager
def drawing(path: Path, title: str, x: str, y: str, legend_size: int = 8) -> Iterator[Axes]:
    """Axes to draw on, written to a PNG file afterwards.

    Args:
        path: of the file.
        title: above the axes.
        x: label of the horizontal axis.
        y: label of the vertical one.
        legend_size: in points.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    yield axes
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=legend_size)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
