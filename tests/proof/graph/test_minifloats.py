"""FloatQuant in a file: the integers that qonnx's own execution gives, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from qonnx.custom_op.general.floatquant import float_quant as reference

from brevitas_axe.proof.graph.flow import analyse
from brevitas_axe.proof.graph.grid import Constant, Grid, Unknown
from brevitas_axe.proof.graph.modelfile import read

# Name → exponent, mantissa, bias, largest number, the same over the finest step.
FORMATS = {
    "e2m1": (2, 1, 1, 6.0, 12),
    "e2m3": (2, 3, 1, 7.5, 60),
    "e3m2": (3, 2, 3, 28.0, 448),
    "e4m3": (4, 3, 7, 448.0, 229376),
    "e5m2": (5, 2, 15, 57344.0, 3758096384),
}


def fact(values, format=FORMATS["e4m3"], scale=0.125, largest=None, **attributes) -> object:
    """What is known of a FloatQuant's output; values None for an input of the graph."""
    exponent, mantissa, bias, most, _ = format
    numbers = (scale, exponent, mantissa, bias, most if largest is None else largest)
    constants = {f"c{i}": np.asarray(n, np.float32) for i, n in enumerate(numbers)}
    if values is not None:
        constants["x"] = np.asarray(values, np.float32)
    node = helper.make_node(
        "FloatQuant",
        ["x", *(f"c{i}" for i in range(5))],
        ["y"],
        domain="qonnx.custom_op.general",
        **{"saturation": 1, "has_subnormal": 1, "has_inf": 0, "has_nan": 0, **attributes},
    )
    shape = [4] if values is None else list(constants["x"].shape)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(
        [node],
        "g",
        inputs if values is None else [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("qonnx.custom_op.general", 1)]
    return analyse(read(helper.make_model(graph, opset_imports=opsets, ir_version=8)))["y"]


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_weights_are_what_qonnx_executes(format) -> None:
    exponent, mantissa, bias, most, whole = format
    values = np.random.default_rng(0).normal(0, most / 24, 4096).astype(np.float32)
    values = np.concatenate([values, [most, -most, 0.0]]).astype(np.float32)
    found = fact(values, format)
    assert isinstance(found, Grid)
    ours = found.integers * found.scale.astype(np.float64)
    theirs = reference(values, np.float32(0.125), exponent, mantissa, bias, True, most)
    np.testing.assert_array_equal(ours.astype(np.float32), theirs)
    assert np.abs(found.integers).max() == whole
    assert found.type == f"FLOAT<{exponent},{mantissa},{bias}>"


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_activations_are_bounded_by_the_largest_number(format) -> None:
    found = fact(None, format)
    assert isinstance(found, Grid)
    assert (found.low, found.high) == (-format[4], format[4])
    assert found.scale == 0.125 * 2.0 ** (1 - format[2] - format[1])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"saturation": 0}, "does not saturate"),
        ({"rounding_mode": "FLOOR"}, "does not round to nearest"),
        ({"largest": 447.9}, "largest number .* is none of its format"),
        ({"largest": np.inf}, "has no largest number"),
        ({"largest": [1.0, 2.0]}, "has no largest number"),
        ({"format": (8, 3, 127, 448.0, 0)}, "the exponent width is 8"),
        ({"format": (4, 2.5, 7, 448.0, 0)}, "the mantissa width is 2.5"),
        ({"scale": 0.0}, "scale that is 0"),
        ({"scale": 1e-45}, "scale too small"),
        ({"values": [0.125 * 2.0**-10]}, "near to the middle"),
        ({"values": [np.nan]}, "infinite or NaN"),
    ],
    ids=str,
)
def test_what_is_not_known_is_not_proven(options, reason) -> None:
    found = fact(**{"values": [1.0], **options})
    assert isinstance(found, Unknown)
    assert re.search(reason, found.reason), found.reason
    assert not isinstance(found, Constant)
