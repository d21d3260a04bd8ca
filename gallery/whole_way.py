"""Takes a model the whole way by the commands that a user would type, and notes one row about it.

    python gallery/digits.py       # or another script of this folder: one model, one row
    python gallery/whole_way.py    # writes the table in README.md from all rows

A script has three functions, as for any model on the command line: `build` returns the float model,
`data` batches to calibrate with, and `accuracy` how good a model is. The way is quantize, certify
and compare, for FINN with prepare before it and mend, export and check behind it; the folder that
is left is one that `load` reads.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from brevitas_axe import __version__
from brevitas_axe.cli import main
from brevitas_axe.files import json_text, write_whole
from brevitas_axe.show.tables import markdown, percent

HERE = Path(__file__).parent
ROWS, MODELS, PAGE = HERE / "rows", HERE / "models", HERE / "README.md"
START, END = "<!-- table -->\n", "<!-- end -->"
HEADINGS = (
    *("model", "measure", "float", "any accumulator", "quantized", "bits", "P", "needs"),
    *("overflow", "LUT", "FINN", "minutes", "made by"),
)
NUMBERS = (*range(2, 5), 6, 7, 9, 11)


def benchmark(name: str) -> ModuleType:
    """A module of the benchmarks, which have these nets and their data already."""
    folder = str(HERE.parent / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def whole_way(
    script: str, title: str, options: str, measure: str = "accuracy", finn: str | None = None
) -> None:
    """Runs all commands on a script's model, writes the row, and prints it.

    Args:
        script: file with `build`, `data` and `accuracy`.
        title: of the model and its data.
        options: of `quantize`.
        measure: what `accuracy` returns.
        finn: options of `prepare`, for a model that is for FINN.
    """
    path, begun, findings = Path(script).resolve(), time.perf_counter(), None
    build, data, accuracy = (f"{path}:{name}" for name in ("build", "data", "accuracy"))
    validate, own, final = ("--validate", accuracy), ("--model", build), MODELS / path.stem
    with tempfile.TemporaryDirectory() as place:
        model, solved, calibration = build, final, ("--calibration", data)
        if finn is not None:
            model, solved = Path(place) / "prepared", Path(place) / "solved"
            told("prepare", build, *calibration, *finn.split(), "--output", model)
            options += " --target finn"
        given = (*calibration, *validate, *options.split(), "--output", solved)
        summary = told("quantize", model, *own, *given)
        if finn is not None:
            told("mend", solved, *own, "--output", final)
            told("export", final, final / "model.onnx", *own)
            found = told("check", final, may_fail=True)["findings"]
            findings = [f["rule"] for f in found if f["severity"] != "note"]
    told("certify", final, *own)
    [found] = told("compare", final, *own, *validate)
    [before] = summary["validation"].values()
    row = {
        "model": title,
        "measure": measure,
        "float": before["unquantized"],
        "unlimited": before["unlimited"],
        "quantized": found["validation"],
        "weight_bits": found["mean weight bits"],
        "input_bits": found["mean input bits"],
        "accumulator": summary["accumulator"],
        "needs": found["widest accumulator"],
        "proven": found["proven"],
        "lut": found["finn_lut"],
        "finn": findings,
        "minutes": (time.perf_counter() - begun) / 60,
        "command": f"python gallery/{path.name}",
        "version": __version__,
    }
    write_whole(ROWS / f"{path.stem}.json", json_text(row).encode())
    print(" | ".join(cells(row)))


def told(*words: object, may_fail: bool = False) -> Any:
    """What a command tells as JSON.

    Raises:
        SystemExit: with its exit status, where that is no success.
    """
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = main([*map(str, words), "--json"])
    if status > int(may_fail):
        raise SystemExit(status)
    return json.loads(output.getvalue())


def cells(row: dict[str, Any]) -> list[str]:
    """One row of the table."""
    script = row["command"].rpartition("/")[2]
    finn = {None: "–", True: "builds it", False: "see check"}
    return [
        row["model"],
        row["measure"],
        *(percent(row[key]) for key in ("float", "unlimited", "quantized")),
        f"W{row['weight_bits']:.3g}A{row['input_bits']:.3g}",
        str(row["accumulator"]),
        str(row["needs"]),
        "impossible" if row["proven"] else "possible",
        "–" if row["lut"] is None else f"{row['lut']:,.0f}",
        finn[None if row["finn"] is None else not row["finn"]],
        f"{row['minutes']:.1f}",
        f"[{script}]({script})",
    ]


def table() -> str:
    """The table of all rows, as Markdown."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(ROWS.glob("*.json"))]
    return markdown(HEADINGS, ((cells(row), False) for row in rows), NUMBERS)


def with_table(text: str) -> str:
    """The page with the present table."""
    before, rest = text.split(START)
    return f"{before}{START}{table()}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    write_whole(PAGE, with_table(PAGE.read_text(encoding="utf-8")).encode())
