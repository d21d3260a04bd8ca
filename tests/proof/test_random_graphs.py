"""Claims about random graphs hold when qonnx and ONNX Runtime execute them.

The long run is `benchmarks/proof_fuzz.py`, which tries 20,000.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.proof_fuzz import claim_of, survives, tried
from benchmarks.random_graphs.damage import damaged
from benchmarks.random_graphs.judge import Judge, build
from brevitas_axe.proof.certificate import certify_file

OPERATORS = {
    *("Quant", "IntQuant", "BipolarQuant", "Trunc", "MultiThreshold", "QuantizeLinear"),
    *("DequantizeLinear", "DebugMarker", "Relu", "Clip", "Identity", "Dropout", "Cast", "Add"),
    *("Sub", "Mul", "Div", "Concat", "Where", "Split", "Slice", "Pad", "Transpose", "Reshape"),
    *("Flatten", "Squeeze", "Unsqueeze", "Gather", "Tile", "Expand", "Trilu", "MaxPool"),
    *("GlobalMaxPool", "ReduceMax", "MaxPoolNHWC", "Resize", "DepthToSpace", "SpaceToDepth"),
    *("MatMul", "Gemm", "Conv", "ConvTranspose", "If", "ReduceSum", "Constant"),
}


def test_no_claim_is_exceeded_and_most_are_met() -> None:
    counts: Counter[str] = Counter()
    problems = {seed: found for seed in range(100) if (found := list(tried(seed, counts)))}
    assert problems == {}
    # The inputs are worst cases: otherwise nothing would have been tried.
    assert counts["tight"] > counts["claims"] / 2 > 30
    assert min(counts["emulated"], counts["run by execute_onnx"], counts["hidden"]) > 0


def test_the_graphs_have_all_operators() -> None:
    models = [build(seed)[1] for seed in range(300)]
    nodes = [node for model in models for node in model.graph.node]
    assert {node.op_type for node in nodes} >= OPERATORS
    assert any(model.functions for model in models)
    assert {"", "qonnx", "onnx.brevitas", "finn.custom_op.general"} <= {n.domain for n in nodes}
    assert len({model.opset_import[0].version for model in models}) > 6


@pytest.mark.parametrize("change", [{"maximum": -1}, {"minimum": 1}, {"width": -1}])
def test_a_claim_that_is_too_small_is_found(change) -> None:
    """The oracle finds claims that are one unit, or one bit, less than what is met."""
    found = 0
    for seed in range(40):
        b, model = build(seed)
        entries = {e.name: e for e in certify_file(model).entries}
        judge = Judge(b, model)
        judge.execute()
        for made in b.products:
            if entries[made.name].proven:
                claim = claim_of(entries[made.name])
                wrong = replace(claim, **{k: getattr(claim, k) + v for k, v in change.items()})
                found += bool(judge.compare(made, wrong).problems)
    assert found > 8


def test_damaged_files_give_an_answer_or_our_error() -> None:
    assert {seed: fault for seed in range(200) if (fault := survives(damaged(seed)))} == {}
