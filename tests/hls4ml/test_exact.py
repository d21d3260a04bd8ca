"""hls4ml's C++ equals torch to the last bit, and its accumulators need every bit they have.

The C++ of hls4ml wraps around without a word, so it judges our proofs without sharing anything
with them. Each net of `nets` is met by one way to train it and one way to pass values on;
benchmarks/hls4ml_types.py crosses all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from brevitas_axe.export.hls4ml import check_hls4ml, export_hls4ml, export_layers_alone
from brevitas_axe.export.hls4ml.project import MODEL, Accumulator
from tests.hls4ml.nets import finished, samples
from tests.hls4ml.runner import through_hls4ml

pytestmark = [pytest.mark.slow, pytest.mark.hls4ml]
# Uniform widths come from the solver, mixed ones from the other two.
CASES = {
    "dense": "solved",
    "conv1d": "fine-tuned",
    "conv2d": "A2Q+",
    "depthwise": "solved",
    "residual": "fine-tuned",
    "concatenation": "A2Q+",
}
# Nets whose values follow one another; all values of the others are there at once.
STREAMED = ("conv1d", "depthwise", "concatenation")


def narrower(accumulator: Accumulator) -> dict[str, str]:
    """The type with one bit less, at the end that carries the sign."""
    width, integer = (int(part) for part in accumulator.type[6:-1].split(","))
    return {"accum": f"fixed<{width - 1},{integer - 1}>"}


@pytest.mark.parametrize("name", CASES)
def test_a_net_equals_torch_and_no_accumulator_is_wider_than_inferred(
    name: str, tmp_path: Path
) -> None:
    model, widths = finished(name, CASES[name])
    x = samples(name)
    io_type = "io_stream" if name in STREAMED else "io_parallel"
    project = export_hls4ml(model, tmp_path, x[:1], io_type=io_type)
    nodes = [accumulator.node for accumulator in project.accumulators]
    inferred = {node: {"accum": "auto"} for node in nodes}
    ours, theirs = through_hls4ml(
        tmp_path, [x.numpy()], [{}, {"changes": inferred, "compile": False}]
    )
    assert not ours.error
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_array_equal(ours.outputs[0], expected)
    bits = ours.accumulators(nodes)
    for accumulator in project.accumulators:
        assert bits[accumulator.node] == accumulator.width
        planned = widths.get(accumulator.layer)
        assert planned is None or accumulator.width <= planned + accumulator.bias_inside
        assert accumulator.width <= theirs.accumulators(nodes)[accumulator.node]


@pytest.mark.parametrize("name", ["depthwise", "residual"])
def test_a_layer_whose_bound_is_met_wraps_with_one_bit_less(name: str, tmp_path: Path) -> None:
    model, _ = finished(name, CASES[name])
    project, cases = export_layers_alone(model, tmp_path, samples(name)[:1])
    less = {a.node: narrower(a) for a in project.accumulators}
    enough, short = through_hls4ml(
        tmp_path, [case.inputs for case in cases], [{}, {"changes": less}]
    )
    assert not enough.error
    assert not short.error
    tight = 0
    for index, (accumulator, case) in enumerate(zip(project.accumulators, cases, strict=True)):
        exact = np.ldexp(case.sums.astype(float), case.exponent)
        np.testing.assert_array_equal(enough.outputs[index], exact)
        np.testing.assert_array_equal(short.outputs[index], case.outputs(accumulator.width - 1))
        assert case.needs(accumulator.width) == bool(np.any(short.outputs[index] != exact))
        tight += case.needs(accumulator.width)
    assert tight > len(cases) / 2


def test_a_file_gives_what_its_model_gives(tmp_path: Path) -> None:
    from brevitas_axe import export_qonnx

    model, _ = finished("dense", "solved", steps=2)
    x = samples("dense")[:1]
    export_qonnx(model, x, tmp_path / "given.onnx", target="qonnx")
    assert check_hls4ml(tmp_path / "given.onnx", notes=True) == []
    ours = export_hls4ml(model, tmp_path / "model", x)
    theirs = export_hls4ml(tmp_path / "given.onnx", tmp_path / "file")
    assert ours.configuration == theirs.configuration
    written = [(folder / MODEL).read_bytes() for folder in (ours.folder, theirs.folder)]
    assert written[0] == written[1]
