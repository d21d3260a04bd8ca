"""`brevitas-axe quantize --hf`: language models of transformers, generating or encoding."""

from __future__ import annotations

import argparse
import io
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brevitas_axe.cli import options, pretrained
from brevitas_axe.errors import InvalidOption

if TYPE_CHECKING:
    from brevitas_axe.plan import LayerPrecision

_DEFAULTS = {
    "text": None,
    "characters": False,
    "rows": None,
    "context": 128,
    "windows": 128,
    "activations": None,
    "asymmetric": None,
    "smooth": None,
    "rotate": None,
    "tile_scales": None,
    "offload": None,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    # Options that are not given get no attribute, so that `given` can tell them from defaults.
    group = parser.add_argument_group(
        "language models", "only with --hf", argument_default=argparse.SUPPRESS
    )
    group.add_argument(
        "--hf",
        metavar="PATH_OR_NAME",
        default=None,
        help="a local or cached transformers model",
    )
    group.add_argument(
        "--text", metavar="FILE", help="UTF-8; nine tenths calibrate, the last tenth is evaluated"
    )
    group.add_argument(
        "--characters", action="store_true", help="one token per character; no tokenizer"
    )
    group.add_argument(
        "--rows",
        nargs="+",
        metavar="TxP",
        help="tile sizes and accumulator widths to compare, such as 64x16 wholex14 64xany: "
        "'whole' is one tile per row of weights, 'any' sets no limit",
    )
    group.add_argument("--context", type=int, metavar="N", help="tokens per window; default 128")
    group.add_argument(
        "--windows", type=int, metavar="N", help="windows to calibrate with; default 128"
    )
    group.add_argument(
        "--activations",
        metavar="NAME",
        help="scale of the inputs: static (calibrated, default), or found at run time, dynamic or "
        "per_token",
    )
    group.add_argument("--asymmetric", action="store_true", help="inputs with a zero point")
    group.add_argument(
        "--smooth", type=float, metavar="ALPHA", help="SmoothQuant, 0.5 as published"
    )
    group.add_argument("--rotate", action="store_true", help="rotate inputs by Hadamard matrices")
    group.add_argument(
        "--tile-scales", action="store_true", help="a weight scale for every tile, not every output"
    )
    group.add_argument("--offload", metavar="DIR", help="solved blocks move here, out of memory")


def given(arguments: argparse.Namespace) -> list[str]:
    """The options for language models that the user wrote, --hf left out."""
    return [f"--{name.replace('_', '-')}" for name in _DEFAULTS if hasattr(arguments, name)]


def run(arguments: argparse.Namespace) -> int:
    arguments = argparse.Namespace(**{**_DEFAULTS, **vars(arguments)})
    others = (arguments.model, arguments.calibration, arguments.plan)
    if arguments.text is None or others != (None, None, None):
        raise InvalidOption(
            "--hf goes with --text FILE, and without FILE.py:FUNCTION, --calibration and --plan."
        )
    rows = _rows(arguments)
    transformers = pretrained.transformers_package()
    from brevitas_axe.cli.screen import Screen, command
    from brevitas_axe.files import json_text, write_whole
    from brevitas_axe.run.checks import check_saving
    from brevitas_axe.run.logs import log_numbers
    from brevitas_axe.run.request import requested
    from brevitas_axe.show import open_folder

    # Each of these refuses unusable options before anything is loaded.
    for row in rows:
        requested(
            row,
            options.recipe_of(arguments),
            (),
            options.run_of(arguments),
            _keywords(arguments),
        )
    batches, judged = pretrained.data_of(transformers, arguments)
    model = pretrained.model_of(transformers, arguments.hf)
    # Only after everything that may be wrong with the input has been checked.
    check_saving(model, arguments.output, len(rows))
    folder = open_folder(arguments.output)
    measure = pretrained.measure_of(transformers, arguments.hf, model, judged)
    before = measure.of(model)
    results: list[dict[str, Any]] = [{"row": "float", measure.name: before}]
    for index, row in enumerate(rows):
        model = pretrained.model_of(transformers, arguments.hf) if index else model
        results.append(_solved(model, batches, measure, row, arguments, before))
        log_numbers(arguments.log, "row", results[-1], index)
    write_whole(folder / "rows.json", json_text(results).encode())
    screen = Screen(arguments)
    screen.json(results)
    screen.table(_table(arguments.hf, measure.name, results))
    screen.files([folder / "rows.json"])
    best = measure.best(results[1:], key=lambda row: row[measure.name])["row"]
    screen.next(command("export", folder / best, folder / best / "layers"))
    return 0 if all(row.get("proven", True) for row in results) else 1


def _keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """The recipe's options that the user gave, as keywords of `quantize_blocks`."""
    names = ("activations", "smooth", "rotate", "tile_scales")
    written = {name: getattr(arguments, name) for name in names}
    written["symmetric"] = False if arguments.asymmetric else None
    own = {name: value for name, value in written.items() if value is not None}
    return {**own, **options.recipe_keywords(arguments)}


def _solved(
    model: Any,
    batches: list[Any],
    measure: pretrained.Measure,
    row: LayerPrecision,
    arguments: argparse.Namespace,
    before: float,
) -> dict[str, Any]:
    """Solves and evaluates one row of the table, and writes its folder."""
    from brevitas_axe.files import write_whole
    from brevitas_axe.run.quantize_blocks import quantize_blocks
    from brevitas_axe.run.saving.folder import INSIDE
    from brevitas_axe.run.saving.save import save
    from brevitas_axe.show import open_folder, write_folder

    name = f"{row.tile or 'whole'}x{row.accumulator or 'any'}"
    folders = {
        key: None if folder is None else Path(folder) / name
        for key, folder in (("state", arguments.state), ("offload", arguments.offload))
    }
    start = time.perf_counter()
    result = quantize_blocks(
        model,
        batches,
        row,
        options.recipe_of(arguments),
        exclude=options.named(arguments),
        run=replace(options.run_of(arguments), **folders),
        **_keywords(arguments),
    )
    seconds = round(time.perf_counter() - start, 1)
    place = open_folder(Path(arguments.output) / name)
    save(result, place / INSIDE)
    after = measure.of(result.model)
    summary = {
        "title": f"{arguments.hf}, quantized for narrow accumulators",
        "accumulator": row.accumulator,
        "tile": row.tile,
        "arms": [],
        "layers": result.layers,
        "seconds": seconds,
        "validation": {
            name: {
                "function": f"{measure.name}, on the last tenth of {arguments.text}",
                "unquantized": before,
                "unlimited": None,
                "limited": after,
            }
        },
        "assumptions": list(result.assumptions),
        "environment": {"solver": str(result.recipe.solver), "quality": result.recipe.quality},
    }
    write_whole(place / "integers.npz", integers(result.model))
    write_folder(place, summary, result.certificate, result.plan, result.recipe)
    return {
        "row": name,
        measure.name: after,
        "tile": row.tile,
        "accumulator": row.accumulator,
        "inner": max(entry["inner_bits"] for entry in result.layers),
        "outer": None if result.recipe.weights == "tile" else _outer_bits(result.layers),
        "proven": result.certificate.ok,
        "seconds": seconds,
    }


def _outer_bits(layers: list[dict[str, Any]]) -> int:
    """The widest sum of a whole row; with one tile it is that of the tile."""
    return max(entry["outer_bits"] or entry["inner_bits"] for entry in layers)


def _rows(arguments: argparse.Namespace) -> list[LayerPrecision]:
    """The rows of the table, from --rows or from the options for one accumulator."""
    from brevitas_axe.plan import LayerPrecision

    if arguments.rows is None:
        if arguments.accumulator_bits is None:
            raise InvalidOption("give --accumulator-bits, or --rows such as 64x16.")
        pairs = [(arguments.tile_size, arguments.accumulator_bits)]
    elif (arguments.accumulator_bits, arguments.tile_size) != (None, None):
        raise InvalidOption("give either --rows or one accumulator and tile, not both.")
    else:
        pairs = [_row(text) for text in arguments.rows]
    if arguments.tile_scales and any(tile is None for tile, _ in pairs):
        raise InvalidOption("--tile-scales needs tiles: --tile-size 64, or --rows such as 64x16.")
    # Builds a plan, which checks the widths, for all rows before the first is solved.
    widths = {"weight": arguments.weight_bits, "input": arguments.input_bits}
    return [LayerPrecision(tile=tile, accumulator=bits, **widths) for tile, bits in pairs]


def _row(text: str) -> tuple[int | None, int | None]:
    """Tile size and accumulator bits of '64x16', where 'whole' and 'any' are None."""
    tile, _, bits = text.partition("x")
    if not (tile == "whole" or tile.isdecimal()) or not (bits == "any" or bits.isdecimal()):
        raise InvalidOption(
            "--rows takes tile size x accumulator bits, such as 64x16, wholex16 or 64xany, not "
            f"'{text}'."
        )
    return None if tile == "whole" else int(tile), None if bits == "any" else int(bits)


def integers(model: Any) -> bytes:
    """A NumPy archive: <layer>.integers [outputs, inputs] and <layer>.scale.

    Scales are [outputs], or [outputs, inputs] where every tile has its own.
    """
    import numpy as np

    from brevitas_axe.export.layers import on_cpu
    from brevitas_axe.model.layers import find_layers, integer_weight

    arrays: dict[str, Any] = {}
    for name, layer in find_layers(model, tile_scales=True).items():
        integers, scale = integer_weight(name, on_cpu(layer))
        arrays[f"{name}.integers"] = integers.numpy().astype(np.int32)
        arrays[f"{name}.scale"] = (scale.flatten() if scale.shape[-1] == 1 else scale).numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _table(name: str, measured: str, results: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(name))
    headings = ("tile × P", measured, "P_I needed", "P_O needed", "overflow", "seconds")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in results:
        overflow = {True: "impossible", False: "possible", None: "–"}[row.get("proven")]
        needed = (str(row.get(key) or "–") for key in ("inner", "outer"))
        seconds = str(row.get("seconds", "–"))
        cells = (row["row"], f"{row[measured]:.4g}", *needed, overflow, seconds)
        table.add_row(*map(Text, cells))
    return table
