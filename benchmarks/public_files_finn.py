"""Widths of certificates of public quantized ONNX files beside those that FINN builds.

    python benchmarks/public_files_finn.py FOLDER [--seconds 300] [--json RESULTS.json]

Every file in FOLDER for which `check` expects that FINN builds it goes through FINN's own steps, in
FINN's environment (see tests/finn; the first run builds it). Each of FINN's matrix units is found
among the dot products of the file by its integers, in any order and with any signs of rows, since
FINN moves channels last and flips rows. "equal" counts units as wide as the certificate says,
"narrower" those for which FINN uses that the range is not symmetric, "wider" those where the claim
would not hold; the last unit of a file is rounded up to whole bytes by FINN, and is judged before
that by its integers. public_files.py says where such files are.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from qonnx.core.datatype import DataType

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.public_files import Bounds, Unknown, rows_of
from brevitas_axe.errors import AxeError
from brevitas_axe.export import check_finn
from brevitas_axe.proof.certificate import certify_file
from tests.finn.environment import NoFinn, python
from tests.finn.layers import accumulator_bits
from tests.finn.runner import Finn, through_finn

# The lists of steps that are tried, the first first.
RECIPES = ("default", "resnet")
HARDWARE = "fpgadataflow"

Signature = tuple[tuple[int, ...], ...]


def signature(rows: np.ndarray) -> Signature:
    """Of integers [outputs, inputs]: the same for every order and every sign of rows."""
    ordered = np.sort(np.abs(np.rint(rows).astype(np.int64)), 1)
    return tuple(sorted(map(tuple, ordered.tolist())))


def products(path: Path) -> dict[Signature, list[Any]]:
    """The proven entries of a file's certificate by the integers of their weights."""
    model = onnx.load(path)
    bounds, found = Bounds(model), {}
    nodes = {node.name or node.output[0]: node for node in model.graph.node}
    for entry in certify_file(path, fixed_initializers=True).entries:
        node = nodes.get(entry.name)
        if not entry.proven or node is None:
            continue
        try:
            rows = rows_of(node, bounds.weights(node.input[1]))
        except Unknown:
            continue
        if node.op_type == "XnorPopcountMatMul":
            rows = 2 * rows - 1
        found.setdefault(signature(rows), []).append(entry)
    return found


def built(path: Path, seconds: int) -> tuple[Finn, str]:
    """What FINN makes of a file by the first list of steps that comes through, and which it is."""
    finn = None
    for recipe in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            finn = through_finn(path, Path(folder), seconds=seconds, stages=(), recipe=recipe)
        if not finn.errors and finn.matrix_units:
            return finn, recipe
        if any(error["type"] == "NoAnswer" for error in finn.errors):
            break
    assert finn is not None
    return finn, ""


def reason(finn: Finn, seconds: int) -> str:
    """Why FINN did not come through."""
    if not finn.errors:
        return "no matrix unit"
    error = finn.errors[-1]
    if error["type"] == "NoAnswer":
        return f"no answer in {seconds} s"
    return f"{error['step']}: {' '.join(error['message'].split())[-200:]}"


def unit_rows(unit: dict[str, Any], weights: np.ndarray) -> np.ndarray:
    """A unit's weights [outputs, inputs]; of units that count equal bits, what the bits mean."""
    rows = weights.reshape(len(weights), -1)
    rows = rows if unit["op_type"].startswith("VVAU") else rows.T
    return 2 * rows - 1 if unit["attributes"].get("binaryXnorMode") else rows


def needed(unit: dict[str, Any], weights: np.ndarray) -> int:
    """Bits of a unit's accumulator by its integers."""
    if unit["attributes"].get("binaryXnorMode"):
        return unit_rows(unit, weights).shape[1].bit_length()  # it counts from 0 to all inputs
    return accumulator_bits(weights, unit)


def compare(path: Path, seconds: int) -> dict[str, Any]:
    """FINN's widths beside the certificate's, of one file."""
    result: dict[str, Any] = {"file": path.name, "differs": []}
    if any(HARDWARE in node.domain for node in onnx.load(path).graph.node):
        return {**result, "skipped": "it is FINN's hardware already"}
    hard = [f for f in check_finn(path, notes=True) if f.severity != "note"]
    if hard:
        return {**result, "skipped": hard[0].sentence}
    claimed = products(path)
    finn, result["recipe"] = built(path, seconds)
    if not result["recipe"]:
        return {**result, "failed": reason(finn, seconds)}
    counts = Counter()
    for unit in finn.matrix_units:
        rows = unit_rows(unit, finn.weights[unit["name"]])
        entries = claimed.get(signature(rows))
        if not entries:
            counts["without a claim"] += 1
            continue
        entry = entries.pop(0) if len(entries) > 1 else entries[0]
        bits = DataType[unit["attributes"]["accDataType"]].bitwidth()
        if unit is finn.matrix_units[-1]:
            bits = min(bits, needed(unit, finn.weights[unit["name"]]))
        counts["equal"] += bits == entry.width
        counts["narrower"] += bits < entry.width
        if bits > entry.width:
            counts["wider"] += 1
            result["differs"].append(f"{entry.name}: claimed {entry.width}, FINN has {bits}")
    return {**result, **counts}


def show(result: dict[str, Any]) -> None:
    keys = ("equal", "narrower", "wider", "without a claim")
    counts = ", ".join(f"{result[key]} {key}" for key in keys if result.get(key))
    verdict = result.get("failed") or counts
    recipe = f" ({result['recipe']})" if result.get("recipe") else ""
    print(f"{result['file']}{recipe}: {verdict}", *result["differs"], sep="\n    ", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=300, help="for each file and list of steps")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    try:
        python()
    except NoFinn as reason:
        sys.exit(str(reason))
    results, total = [], Counter()
    for path in sorted(arguments.folder.glob("*.onnx")):
        try:
            result = compare(path, arguments.seconds)
        except AxeError as error:
            result = {"file": path.name, "skipped": f"{type(error).__name__}: {error}"}
        total["not for FINN by our check"] += "skipped" in result
        if "skipped" in result:
            continue
        results.append(result)
        show(result)
        total["files built"] += "failed" not in result
        total["files that FINN does not build, or not in time"] += "failed" in result
        for key in ("equal", "narrower", "wider", "without a claim"):
            total[key] += result.get(key, 0)
    print(*(f"{key}: {value}" for key, value in total.items()), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
