"""What FINN builds of a whole vision transformer, with and without limits on its accumulators.

    python benchmarks/vision_transformer_finn.py [--accumulators none 16] [--blocks 9]
        [--folder FOLDER]

The model is `vit_cifar10` of the shared data (vision_transformer.py), W4A8, everything that
multiplies as integers: the blocks' layers, their attention products, patch embedding and
classifier. Each accumulator has one row. The file for any QONNX tool and the one for FINN go
through FINN's own steps for a Versal device, which has units for GELU (see tests/finn; the first
run builds FINN's environment). The table tells how many nodes FINN leaves to the host of both
files, how many findings `check_finn` has about them, how wide the accumulators are that FINN gives
its matrix units beside those that are proven, how far its hardware is from the file on one image,
node by node, and its estimates without folding. FINN reports 0 LUT for MVAU_rtl. Its streamlining
visits the whole graph again after each change: one block takes minutes, and all nine were not
through after 45, so `--blocks` leaves out those behind the first ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from attention_products import BATCH, CALIBRATION
from records import print_table
from vision_transformer import Classifier, images_of

sys.path.insert(0, str(Path(__file__).parents[1]))

from brevitas_axe import export_qonnx, load, quantize, save
from brevitas_axe.export import check_finn
from brevitas_axe.proof.certificate import certify_file
from brevitas_axe.run.saving.save import Result
from tests.finn.runner import Finn, through_finn

FLOW = {
    "recipe": "transformer",
    "part": "xcvc1902-vsva2197-2MP-e-S",
    "standalone_thresholds": True,
}


def solved(accumulator: int | None, folder: Path) -> Result:
    """The quantized model, which is kept in the folder."""
    place = folder / f"vit_{accumulator or 'any'}"
    if place.exists():
        return load(place, Classifier)
    result = quantize(
        Classifier().eval(),
        [*images_of("train")[0][:CALIBRATION].split(BATCH)],
        accumulator_bit_width=accumulator,
        weight_bit_width=4,
        input_bit_width=8,
        attention="quantized",
        outside="quantized",
        progress=False,
    )
    save(result, place)
    return result


def row(accumulator: int | None, blocks: int, folder: Path, seconds: int) -> dict[str, str]:
    """One line of the table."""
    start = time.perf_counter()
    model, x = solved(accumulator, folder).model, images_of("val")[0][:1]
    model.get_submodule("vit.vit").layers = model.get_submodule("vit.vit.layers")[:blocks]
    files = {target: folder / f"vit_{accumulator or 'any'}_{target}.onnx" for target in TARGETS}
    for target, file in files.items():
        export_qonnx(model, x, file, target=target)
    with tempfile.TemporaryDirectory() as place:
        plain = through_finn(files["qonnx"], Path(place) / "qonnx", seconds=seconds, **FLOW)
        options = {**FLOW, "stages": ["qonnx", "minimized"]}
        finn = through_finn(
            files["finn"], Path(place) / "finn", x.numpy(), seconds=seconds, **options
        )
    if finn.errors:
        raise SystemExit(f"FINN ends at {finn.errors[0]['step']}: {finn.errors[0]['message']}")
    proven = certify_file(files["finn"], accumulator).require().judged
    widths = [int(unit["attributes"]["accDataType"][3:]) for unit in finn.matrix_units]
    error = float(np.abs(finn.outputs["minimized"].ravel() - finn.outputs["qonnx"].ravel()).max())
    return {
        "P": "any" if accumulator is None else str(accumulator),
        "to the host before": _left(plain, files["qonnx"]),
        "and after": _left(finn, files["finn"]),
        "refused before": str(len(check_finn(files["qonnx"]))),
        "and after ": str(len(check_finn(files["finn"]))),
        "matrix units": str(len(widths)),
        "widest": str(max(widths)),
        "proven": str(max(entry.width or 0 for entry in proven)),
        **{kind: f"{_sum(finn, kind):,}" for kind in ("LUT", "DSP", "BRAM_18K", "URAM")},
        "cycles": f"{max(int(node['cycles'] or 0) for node in finn.nodes):,}",
        "error": f"{error:.1g}",
        "s": f"{time.perf_counter() - start:.0f}",
    }


TARGETS = ("qonnx", "finn")


def _left(finn: Finn, file: Path) -> str:
    return f"{len(finn.unmapped)} of {len(onnx.load(file).graph.node)}"


def _sum(finn: Finn, kind: str) -> int:
    return sum(int((node["resources"] or {}).get(kind, 0)) for node in finn.nodes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--accumulators", nargs="+", default=["none", "16"], metavar="P")
    parser.add_argument("--blocks", type=int, default=9, help="the first ones of 9")
    parser.add_argument("--folder", type=Path, help="where models and files are kept")
    parser.add_argument("--seconds", type=int, default=3600, help="for one file; default 3600")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = arguments.folder or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            row(None if text == "none" else int(text), arguments.blocks, folder, arguments.seconds)
            for text in arguments.accumulators
        ]
    print_table(f"vit_cifar10, {arguments.blocks} blocks through FINN, W4A8", rows)


if __name__ == "__main__":
    main()
