"""The form of a transformer's file in which FINN builds it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from brevitas_axe.errors import ExportRefused
from brevitas_axe.export import check_finn, export_qonnx, qonnx
from brevitas_axe.export.execution import Execution
from brevitas_axe.export.finn.tokens import in_tokens
from brevitas_axe.proof.certificate import certify_file
from tests.export.finn.cases import CASES
from tests.export.finn.models import write
from tests.export.finn.vit import PRODUCTS, P, pictures, solved


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("vit") / "model.onnx"
    return export_qonnx(solved().model, pictures(1), path, target="qonnx")


def test_it_computes_the_same_with_the_same_accumulators(plain: onnx.ModelProto) -> None:
    moved = in_tokens(plain)
    before, after = (certify_file(proto, P).require() for proto in (plain, moved))
    assert len(before.judged) == len(after.judged) == PRODUCTS
    widths = [sorted((e.width, e.inputs) for e in c.judged) for c in (before, after)]
    assert widths[0] == widths[1]
    runs = Execution(plain), Execution(moved)
    for picture in pictures(4).split(1):
        one, other = (next(iter(run({run.inputs[0]: picture.numpy()}).values())) for run in runs)
        assert np.abs(one - other).max() < 1e-5 * np.abs(one).max()


def test_what_finn_cannot_move_is_where_it_belongs(plain: onnx.ModelProto) -> None:
    moved = in_tokens(plain)
    made = {name: node for node in moved.graph.node for name in node.output}
    constants = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in moved.graph.initializer
    }
    for node in moved.graph.node:
        before = made.get(node.input[0])
        if node.op_type == "Quant" and before is not None:
            assert before.op_type not in ("Reshape", "Transpose")
        if node.op_type == "LayerNormalization":
            gain, bias = (constants[name] for name in node.input[1:])
            assert (gain == 1).all()
            assert not bias.any()
    kinds = Counter(node.op_type for node in moved.graph.node)
    assert kinds["Conv"] == 0
    assert kinds["Concat"] == 1


def test_the_check_refuses_the_plain_file_and_takes_the_other(plain: onnx.ModelProto) -> None:
    refused = check_finn(plain)
    assert {finding.severity for finding in refused} == {"refused"}
    for name in ("attention", "layernorm_before"):
        assert f"vit.vit.layers.0.{name}" in {finding.layer for finding in refused}
    moved = in_tokens(plain)
    assert not check_finn(moved)
    notes = Counter(finding.rule for finding in check_finn(moved, notes=True))
    assert notes["product"] == 1  # of one module that multiplies twice
    # Positions, softmax and GELU; sums of the stream that are float already need no unit to say so.
    assert notes["float_unit"] >= 3


def test_a_float_product_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model = solved().model
    products = model.get_submodule("vit.vit.layers.0.attention.attention_products")
    quantizer = products.k_transposed_quant.act_quant
    quantizer.disable_quant = True
    try:
        file = export_qonnx(model, pictures(1), tmp_path / "model.onnx", target="qonnx")
    finally:
        quantizer.disable_quant = False
    [refused] = [f for f in check_finn(in_tokens(file)) if f.rule == "product"]
    assert "attention_products" in refused.problem
    assert "attention: quantized" in refused.way_out


def test_a_form_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(proto: onnx.ModelProto) -> onnx.ModelProto:
        moved = in_tokens(proto)
        norm = next(n for n in moved.graph.node if n.op_type == "LayerNormalization")
        [bias] = [t for t in moved.graph.initializer if t.name == norm.input[2]]
        values = np.ones_like(onnx.numpy_helper.to_array(bias))
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return moved

    monkeypatch.setattr(qonnx, "in_tokens", shifted)
    monkeypatch.setattr(qonnx, "_check_finn", lambda proto: None)
    with pytest.raises(ExportRefused, match="in the form that FINN builds computes something else"):
        export_qonnx(solved().model, pictures(1), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_other_files_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write(next(iter(CASES.values())), path)
    proto = onnx.load(path)
    assert in_tokens(proto) is proto
