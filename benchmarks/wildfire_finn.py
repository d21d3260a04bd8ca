"""What FINN builds of the two files of `brevitas-axe wildfire`.

    python benchmarks/wildfire_finn.py FOLDER [--seconds 600]

Both files go through FINN's own steps up to its estimates, in FINN's environment (see tests/finn;
the first run builds it). For each it prints what is left to the host, the widest accumulator that
FINN gives a matrix unit beside the widest that the certificate proves, what FINN's hardware
computes otherwise than the file on random pictures, and the resources without folding. FINN rounds
the last unit up to whole bytes, so it is judged by its integers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parents[1]))

from brevitas_axe.proof.certificate import certify_file
from tests.finn.layers import accumulator_bits
from tests.finn.runner import through_finn

RECIPES = {"classifier": "resnet", "unet": "unet"}
PICTURES = 2


def built(file: Path, recipe: str, seconds: int) -> str:
    """One sentence for each fact of a file."""
    shape = [d.dim_value for d in onnx.load(file).graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).random((PICTURES, *shape[1:]), np.float32)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        finn = through_finn(file, Path(folder), x, seconds=seconds, recipe=recipe)
    if finn.errors:
        return f"{file.name}: FINN ends at {finn.errors[0]['step']}: {finn.errors[0]['message']}"
    widths = [accumulator_bits(finn.weights[unit["name"]], unit) for unit in finn.matrix_units]
    proven = max(entry.width or 0 for entry in certify_file(file).judged)
    expected, found = finn.outputs["qonnx"], finn.outputs["minimized"]
    error = float(np.abs(found.reshape(expected.shape) - expected).max())
    used = [unit["resources"] or {} for unit in finn.nodes]
    sums = {
        kind: sum(int(each.get(kind, 0)) for each in used) for kind in ("LUT", "DSP", "BRAM_18K")
    }
    cycles = max(int(node["cycles"] or 0) for node in finn.nodes)
    return (
        f"{file.name}: {len(finn.nodes)} nodes, of which the host keeps {finn.unmapped}; "
        f"{len(widths)} matrix units with accumulators of at most {max(widths)} bits, {proven} are "
        f"proven; outputs differ by {error:.2g} of {np.abs(expected).max():.3g}; {sums}, "
        f"{cycles} cycles; {time.perf_counter() - start:.0f} s."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="that `brevitas-axe wildfire` wrote")
    parser.add_argument("--seconds", type=int, default=600, help="for one file; default 600")
    arguments = parser.parse_args()
    for name, recipe in RECIPES.items():
        print(built(arguments.folder / f"{name}.onnx", recipe, arguments.seconds), flush=True)


if __name__ == "__main__":
    main()
