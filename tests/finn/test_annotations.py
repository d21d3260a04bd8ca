"""What FINN makes of our annotations (docs/finn.md): nothing, it derives widths of its own."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from qonnx.core.datatype import DataType
from qonnx.core.modelwrapper import ModelWrapper

from brevitas_axe import export_qonnx, quantize
from brevitas_axe.export.qonnx import ACCUMULATORS_KEY
from tests.finn.nets import Style, build, digits
from tests.finn.runner import Finn, through_finn

BITS, TILE = 11, 8


def widths(finn: Finn) -> list[int]:
    """Accumulator bits of the matrix units; the last is rounded up to whole bytes."""
    assert not finn.errors
    return [DataType[unit["attributes"]["accDataType"]].bitwidth() for unit in finn.matrix_units]


@pytest.mark.finn
def test_finn_derives_its_widths_from_the_integers_alone(tmp_path: Path) -> None:
    model, _ = build("mlp", Style(), steps=10)
    images = digits("mlp")[0][:128]
    tiled = quantize(model, [images], accumulator_bit_width=BITS, tile_size=TILE, progress=False)
    path = tmp_path / "model.onnx"
    proto = export_qonnx(tiled.model, images[:1], path)
    with_annotations = through_finn(path, tmp_path / "with")
    annotated = json.loads(ModelWrapper(proto).get_metadata_prop(ACCUMULATORS_KEY) or "")
    proven = [entry["bit_width"] for entry in annotated.values()][:-1]
    derived = widths(with_annotations)[:-1]
    assert all(given <= bits for given, bits in zip(derived, proven, strict=True))
    # One accumulator adds up a whole dot product, so that it is wider than that of a tile.
    assert max(derived) > BITS

    del proto.graph.quantization_annotation[:]
    del proto.metadata_props[:]
    onnx.save(proto, path)
    assert widths(through_finn(path, tmp_path / "without")) == widths(with_annotations)

    # Weights that may be written at run time are not known, only their type.
    names = [unit["name"] for unit in with_annotations.matrix_units]
    folding = {name: {"runtime_writeable_weights": 1} for name in names}
    writable = widths(through_finn(path, tmp_path / "writable", folding=folding))
    assert all(wide > bits for wide, bits in zip(writable[:-1], proven, strict=True))
