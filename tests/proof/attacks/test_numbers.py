"""Attacks on the integers: types, attributes and inputs that make a sum larger than it looks.

Each entry of `ATTACKS` is a file whose name says why a careless reader is wrong about it. It must
either stay unproven (None), or be proven with the range that its inputs really have.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from brevitas_axe.proof.certificate import certify_file
from tests.proof.certificate.graphs import QONNX, Graph

Attack = tuple[Callable[[], onnx.ModelProto], tuple[int, int] | None]


def product(
    prepare: Callable[[Graph, str], str],
    *shape: int,
    opset: int = 13,
    kind: int = TensorProto.FLOAT,
    domain_opset: int = 2,
) -> onnx.ModelProto:
    """What `prepare` makes of the graph input, times a weight of 1."""
    shape = shape or (1, 1)
    graph = Graph(*shape, kind=kind)
    x = prepare(graph, graph.input)
    if len(shape) > 2:
        graph.op("Conv", x, graph.weight(np.ones((1, 1, *[1] * (len(shape) - 2)))), name="fc")
    else:
        graph.op("MatMul", x, graph.weight(np.ones((1, 1))), name="fc")
    model = graph.model()
    model.opset_import[0].version, model.opset_import[1].version = opset, domain_opset
    if opset > 18:
        model.ir_version = 10
    return model


def quant(
    bits: object = np.float32(8), scale: object = np.float32(1), point: object = np.float32(0),
    signed: int = 0,
) -> Callable[[Graph, str], str]:  # fmt: skip
    """A Quant whose parameters have types of their own."""

    def prepare(graph: Graph, x: str) -> str:
        parameters = (graph.constant(np.asarray(v)) for v in (scale, point, bits))
        return graph.op("Quant", x, *parameters, domain=QONNX, signed=signed, narrow=0)

    return prepare


def after(op: str, *values: object, bits: int = 8, signed: int = 0, **attributes):
    """An operator with constants behind a Quant of step 1."""

    def prepare(graph: Graph, x: str) -> str:
        x = graph.quant(x, bits, signed, 1.0)
        constants = (graph.constant(np.asarray(v)) for v in values)
        return graph.op(op, x, *constants, **attributes)

    return prepare


def short(kind: int, *values: float) -> onnx.TensorProto:
    """A tensor of a floating-point type that numpy lacks."""
    return helper.make_tensor("short", kind, [], values)


def with_short_scale(kind: int, op: str) -> onnx.ModelProto:
    def prepare(graph: Graph, x: str) -> str:
        graph.constant(np.float32(1), "short")
        if op == "Quant":
            parameters = ["short", graph.constant(np.float32(0)), graph.constant(np.float32(8))]
            return graph.op("Quant", x, *parameters, domain=QONNX, signed=0, narrow=0)
        zero = graph.constant(np.uint16(0))
        stored = graph.op("QuantizeLinear", x, graph.constant(np.float32(1)), zero)
        return graph.op("DequantizeLinear", stored, "short", zero)

    model = product(prepare, opset=21)
    place = next(i for i, t in enumerate(model.graph.initializer) if t.name == "short")
    model.graph.initializer[place].CopyFrom(short(kind, 1.0))
    return model


def zero_point_from_outside(graph: Graph, x: str) -> str:
    graph.inputs.append(helper.make_tensor_value_info("zero", TensorProto.INT8, []))
    scale = graph.constant(np.float32(1))
    return graph.op("DequantizeLinear", graph.op("QuantizeLinear", x, scale, "zero"), scale)


def rows_of_two_steps(graph: Graph, x: str) -> str:
    """Channels are the last axis here, and the steps differ along the rows that are pooled."""
    x = graph.quant(x, scale=np.float32([1, 2.0**-6]).reshape(1, 2, 1, 1))
    return graph.op("MaxPoolNHWC", x, kernel_shape=[2, 1], strides=[1, 1], pads=[0, 0, 1, 0])


def depthwise(prepare: Callable[[Graph, str], str], *shape: int) -> onnx.ModelProto:
    graph = Graph(*shape)
    x = prepare(graph, graph.input)
    weight = graph.weight(np.ones((2, 1, 1, 1)), name="dw.weight")
    graph.op("Conv", x, weight, group=2, name="fc")
    return graph.model()


def truncated(graph: Graph, x: str) -> str:
    """Version 1 of Trunc takes the scale at the fifth place for its bit width."""
    x = graph.quant(x, 8, 0, 1.0)
    values = [graph.constant(np.float32(v)) for v in (1, 0, 8, 16, 4)]
    return graph.op("Trunc", x, *values, domain=QONNX, rounding_mode="FLOOR", signed=0, narrow=0)


def counted(count: int, **more) -> Callable[[Graph, str], str]:
    def prepare(graph: Graph, x: str) -> str:
        table = graph.constant(np.arange(count, dtype=np.float32).reshape(1, -1))
        return graph.op("MultiThreshold", x, table, domain=QONNX, **more)

    return prepare


def average(**more) -> onnx.ModelProto:
    def prepare(graph: Graph, x: str) -> str:
        attributes = {"ibits": 8, "obits": 4, "signed": 0, "kernel": 2, "stride": 1} | more
        return graph.op("QuantAvgPool2d", graph.quant(x, 8, 0, 1.0), domain=QONNX, **attributes)

    return product(prepare, 1, 1, 2, 2)


def given(kind: int) -> Callable[[Graph, str], str]:
    """A bound of Clip that a caller chooses."""

    def prepare(graph: Graph, x: str) -> str:
        graph.inputs.append(helper.make_tensor_value_info("top", kind, []))
        return graph.op("Clip", graph.quant(x, 8, 0, 1.0), "", "top")

    return prepare


def embedding(graph: Graph, x: str) -> str:
    table = graph.quant(graph.constant(np.float32([[3], [-5]])), 4, 1, 1.0)
    return graph.op("Gather", table, x)


BF16, FLOAT8 = TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN
ATTACKS: dict[str, Attack] = {
    "the zero point, and so its type, comes from outside": (
        lambda: product(zero_point_from_outside), None),
    "pooling without a domain has its channels last": (
        lambda: depthwise(rows_of_two_steps, 1, 2, 1, 1), None),
    "2^8 wraps in int8": (lambda: product(quant(np.int8(8))), None),
    "-2^7 wraps in uint8": (lambda: product(quant(np.uint8(8), signed=1)), None),
    "2^16 wraps in int16": (lambda: product(quant(np.int16(16))), None),
    "2^31 wraps in int32": (lambda: product(quant(np.int32(31))), None),
    "an int32 bit width that does not wrap": (lambda: product(quant(np.int32(8))), (0, 255)),
    "a bit width in float16 rounds 4095 up": (lambda: product(quant(np.float16(12))), (0, 4096)),
    "a zero point in float16 beside 12 bits": (
        lambda: product(quant(np.float32(12), point=np.float16(0))), (0, 4096)),
    "a scale in float64 is still handed on in float32": (
        lambda: product(quant(np.float64(25), np.float64(1), np.float64(0))), (0, 2**25)),
    "a zero point moves 255 to where float32 holds even numbers only": (
        lambda: product(quant(point=np.float32(-(2**24)))), (0, 2**24 + 256)),
    "a zero point outside its own range": (
        lambda: product(quant(point=np.float32(300))), (-300, 0)),
    "a negative scale turns the sign of values, not of integers": (
        lambda: product(quant(scale=np.float32(-1), signed=1)), (-128, 127)),
    "adding 2^24 rounds the sum": (lambda: product(after("Add", np.float32([2**24]))), None),
    "subtracting -2^24 rounds the difference": (
        lambda: product(after("Sub", np.float32([-(2**24)]))), None),
    "a factor rounds integers of 25 bits": (
        lambda: product(after("Mul", np.float32([0.3]), bits=25)), None),
    "doubling integers of 24 bits": (
        lambda: product(lambda g, x: g.op("Add", y := g.quant(x, 24, 0, 1.0), y)), None),
    "a factor of 0": (lambda: product(after("Mul", np.float32([0]))), None),
    "a factor that is infinite": (lambda: product(after("Mul", np.float32([np.inf]))), None),
    "a factor that is no number": (lambda: product(after("Mul", np.float32([np.nan]))), None),
    "a division by 0": (lambda: product(after("Div", np.float32([0]))), None),
    "a factor so small that the scale vanishes": (
        lambda: product(after("Mul", np.float32([1e-45]), bits=4)), (0, 15)),
    "a bfloat16 scale of Quant": (lambda: with_short_scale(BF16, "Quant"), None),
    "a float8 scale of Quant": (lambda: with_short_scale(FLOAT8, "Quant"), None),
    "a bfloat16 scale makes 65536 of 65535": (lambda: with_short_scale(BF16, "QDQ"), None),
    "Trunc of version 2 where version 1 is imported": (
        lambda: product(truncated, domain_opset=1), None),
    "Trunc of version 2": (lambda: product(truncated), (0, 15)),
    "more thresholds than the declared type has values": (
        lambda: product(counted(7, out_dtype="UINT2")), (0, 7)),
    "a negative out_scale": (
        lambda: product(counted(7, out_dtype="INT4", out_scale=-1.0)), (-8, 7)),
    "a count that is shifted far": (
        lambda: product(counted(3, out_dtype="UINT2", out_bias=100.0)), (0, 103)),
    "an out_scale of 0": (lambda: product(counted(3, out_dtype="UINT2", out_scale=0.0)), (0, 3)),
    "an out_scale that is no number": (
        lambda: product(counted(3, out_dtype="UINT2", out_scale=float("nan"))), None),
    "an out_bias between two counts": (
        lambda: product(counted(3, out_dtype="UINT2", out_scale=0.5, out_bias=0.3)), None),
    "no out_dtype": (lambda: product(counted(3)), None),
    "an average pool whose input has more bits than it says": (
        lambda: average(ibits=2), (0, 1020)),
    "an average pool of a window without end": (lambda: average(kernel=2**40), None),
    "a bound of Clip that the caller chooses": (lambda: product(given(TensorProto.FLOAT)), None),
    "bounds of Clip in the wrong order": (
        lambda: product(after("Clip", np.float32(6), np.float32(2))), None),
    "a bound of Clip that is no number": (
        lambda: product(after("Clip", np.float32(np.nan), np.float32(2))), None),
    "bounds of Clip above all values": (
        lambda: product(after("Clip", np.float32(300), np.float32(400))), None),
    "attributes of an old Clip in a new file": (
        lambda: product(after("Clip", min=0.0, max=1.0)), None),
    "inputs of a new Clip in an old file": (
        lambda: product(after("Clip", np.float32(0), np.float32(1)), opset=10), None),
    "padding with a value that the caller chooses": (
        lambda: product(lambda g, x: (
            g.inputs.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, [])),
            g.op("Pad", g.quant(x), g.constant(np.array([0, 0, 0, 0])), "v"))[1]), None),
    "padding with minus one": (
        lambda: product(after("Pad", np.array([0, 0, 0, 0]), np.float32(-1))), None),
    "padding with no number": (
        lambda: product(after("Pad", np.array([0, 0, 0, 0]), np.float32(np.nan))), None),
    "padding with an old attribute's value": (
        lambda: product(after("Pad", pads=[0, 0, 0, 0], value=9.0), opset=2), None),
    "dropout whose mode the caller chooses": (
        lambda: product(lambda g, x: (
            g.inputs.append(helper.make_tensor_value_info("t", TensorProto.BOOL, [])),
            g.op("Dropout", g.quant(x), "", "t"))[1]), None),
    "an old dropout that is told to test": (
        lambda: product(after("Dropout", is_test=1), opset=6), (0, 255)),
    "a factor beyond the largest float": (
        lambda: product(after("Mul", np.float32([3e38]))), None),
    "a step beyond the largest float": (
        lambda: product(quant(scale=np.float32(2e38), signed=1)), None),
    "pooling without a domain whose dilation qonnx does not heed": (
        lambda: product(lambda g, x: g.op(
            "MaxPoolNHWC", g.quant(x), kernel_shape=[1, 1], strides=[1, 1], pads=[0, 0, 0, 0],
            dilations=[2, 2]), 1, 1, 1, 1), None),
    "pooling without a domain, with the usual dilations": (
        lambda: product(lambda g, x: g.op(
            "MaxPoolNHWC", g.quant(x), kernel_shape=[1, 1], strides=[1, 1], pads=[0, 0, 0, 0],
            dilations=[1, 1]), 1, 1, 1, 1), (0, 255)),
    "a table that is looked up by integers from outside": (
        lambda: product(embedding, 1, kind=TensorProto.INT64), (-5, 3)),
    "integers from outside, dequantized without a zero point": (
        lambda: product(lambda g, x: g.op("DequantizeLinear", x, g.constant(np.float32(1))),
                        kind=TensorProto.INT8), (-128, 127)),
    "a dequantizer of blocks": (
        lambda: product(lambda g, x: g.op("DequantizeLinear", x, g.constant(np.float32([[1]])),
                        block_size=1), kind=TensorProto.INT8, opset=21), None),
    "a dequantizer with a scale per channel": (
        lambda: product(lambda g, x: g.op("DequantizeLinear", x, g.constant(np.float32([1, 2]))),
                        1, 2, kind=TensorProto.INT8), None),
    "a quantizer whose scale the caller chooses": (
        lambda: product(lambda g, x: (
            g.inputs.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [])),
            g.op("Quant", x, "s", *(g.constant(np.float32(v)) for v in (0, 8)), domain=QONNX,
                 signed=0, narrow=0))[1]), None),
    "a quantizer of FloatQuant": (
        lambda: product(lambda g, x: g.op("FloatQuant", x, g.constant(np.float32(1)),
                                          domain=QONNX)), None),
    "a sum of both signs of one tensor": (
        lambda: product(lambda g, x: g.op("Add", y := g.quant(x, 4, 1, 1.0), y)), (-16, 14)),
    "a maximum with a constant": (lambda: product(after("Max", np.float32([1000]))), None),
    "a choice between steps of two sizes": (
        lambda: product(lambda g, x: g.op("Where", g.constant(np.array(True)), g.quant(x),
                                          g.quant(x, scale=0.5))), None),
    "nearest neighbours, and zeros outside the picture": (
        lambda: product(lambda g, x: g.op(
            "Resize", g.quant(x), g.constant(np.float32([0, 0, 0, 0, 1, 1, 2, 2])),
            g.constant(np.float32([1, 1, 2, 2])), extrapolation_value=1e6,
            coordinate_transformation_mode="tf_crop_and_resize"), 1, 1, 2, 2), None),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_numbers_are_those_that_arrive(name) -> None:
    build, expected = ATTACKS[name]
    entry = next(e for e in certify_file(build(), 60).entries if e.name == "fc")
    if expected is None:
        assert not entry.proven
        assert entry.reason
    else:
        assert entry.proven, entry.reason
        assert (min(entry.minimum, 0), max(entry.maximum, 0)) == expected


_NO_INTEGERS = {
    "Sigmoid": {}, "Tanh": {}, "Exp": {}, "Sqrt": {}, "Abs": {}, "Neg": {}, "Floor": {},
    "Round": {}, "Sign": {}, "LeakyRelu": {}, "Elu": {}, "Selu": {}, "HardSigmoid": {},
    "Softplus": {},
    "Softsign": {}, "ThresholdedRelu": {}, "Reciprocal": {}, "Erf": {}, "Celu": {}, "HardSwish": {},
    "Sin": {}, "Cosh": {}, "Shrink": {}, "Mish": {"opset": 18}, "Gelu": {"opset": 20},
    "Softmax": {"axis": 1}, "LogSoftmax": {"axis": 1}, "Hardmax": {"axis": 1},
    "LpNormalization": {}, "ReduceSum": {}, "ReduceMean": {}, "ReduceL1": {}, "ReduceL2": {},
    "ReduceProd": {}, "ReduceSumSquare": {}, "ReduceLogSumExp": {}, "Mean": {}, "Sum": {},
    "Max": {}, "Min": {}, "NonZero": {}, "IsNaN": {}, "ArgMax": {}, "Size": {}, "Shape": {},
    "EyeLike": {}, "RandomNormalLike": {}, "RandomUniformLike": {}, "Bernoulli": {"opset": 15},
    "DynamicQuantizeLinear": {}, "MeanVarianceNormalization": {}, "Unique": {}, "Det": {},
}  # fmt: skip


@pytest.mark.parametrize("op", _NO_INTEGERS)
def test_an_operator_that_makes_other_numbers_ends_the_grid(op) -> None:
    """Whatever is computed here is no whole number of the quantizer's steps any more."""
    more = dict(_NO_INTEGERS[op])
    model = product(after(op, **{k: v for k, v in more.items() if k != "opset"}),
                    opset=more.get("opset", 13))  # fmt: skip
    entry = next(e for e in certify_file(model, 60).entries if e.name == "fc")
    assert not entry.proven


_MISUSED = {
    ("Squeeze", 13): {"axes": [0]},
    ("Unsqueeze", 13): {"axes": [0]},
    ("Split", 13): {"split": [1]},
    ("Split", 17): {"num_outputs": 1},
    ("Pad", 13): {"pads": [0, 0, 0, 0]},
    ("Slice", 13): {"starts": [0], "ends": [1]},
    ("Upsample", 9): {"scales": [1.0, 1.0]},
    ("Dropout", 13): {"ratio": 0.5},
    ("Dropout", 6): {"is_test": 0},
    ("Relu", 13): {"alpha": 0.1},
    ("MaxPool", 9): {"kernel_shape": [1], "dilations": [2]},
    ("MaxPool", 7): {"kernel_shape": [1], "ceil_mode": 1},
    ("Reshape", 13): {"shape": [1, 1]},
    ("Tile", 13): {"repeats": [1]},
    ("Transpose", 13): {"axes": [1, 0]},
    ("Flatten", 13): {"dim": 1},
    ("Concat", 13): {"dim": 1},
    ("Cast", 13): {"to": TensorProto.FLOAT, "saturate": 1},
    ("Trilu", 13): {},
    ("Identity", 13): {"value": 1},
    ("Gather", 13): {"dim": 0},
}  # fmt: skip


@pytest.mark.parametrize(("op", "opset"), _MISUSED)
def test_an_attribute_of_another_version_is_no_attribute(op, opset) -> None:
    """A reader that skips what it does not know computes something else than one that heeds it."""
    model = product(after(op, **_MISUSED[op, opset]), opset=opset)
    entry = next(e for e in certify_file(model, 60).entries if e.name == "fc")
    assert not entry.proven


def test_weights_of_strings_are_no_integers() -> None:
    model = product(after("Identity"))
    weight = next(t for t in model.graph.initializer if t.name == "fc.weight")
    weight.CopyFrom(helper.make_tensor("fc.weight", TensorProto.STRING, [1, 1], [b"1"]))
    assert not certify_file(model, 60).ok


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int32])
def test_weights_of_other_types_keep_their_values(kind) -> None:
    model = product(after("Identity"))
    node = next(n for n in model.graph.node if n.name == "fc")
    model.graph.initializer.append(numpy_helper.from_array(np.array([[7]], kind), "w"))
    node.input[1] = "w"
    assert certify_file(model, 60).entries[0].maximum == 7 * 255


@pytest.mark.parametrize("op", ["Unsqueeze", "Squeeze", "Slice"])
def test_weights_that_readers_move_differently(op) -> None:
    """Old axes that are not in order, no axes at all, steps that go back."""
    graph, opset = Graph(1, 3), 13
    values = graph.constant(
        np.float32(np.arange(15).reshape((3, 5) if op != "Squeeze" else (15, 1)))
    )
    if op == "Unsqueeze":
        weight, opset = graph.op(op, values, axes=[2, 0]), 7
    elif op == "Squeeze":
        weight = graph.op(op, values, graph.constant(np.zeros(0, np.int64)))
    else:
        ends = (np.array([n]) for n in (-5, -9, 0, -1))
        weight = graph.op(op, values, *(graph.constant(end) for end in ends))
    graph.op("MatMul", graph.quant(graph.input), weight, name="fc")
    model = graph.model()
    model.opset_import[0].version = opset
    (entry,) = certify_file(model).entries
    if op == "Unsqueeze":  # [3, 5] is [1, 3, 1, 5]: rows of one number
        assert entry.shape == (1, 3, 1, 5)
        assert entry.inputs == 1
    else:
        assert not entry.proven


def test_the_extreme_of_no_elements_is_infinite() -> None:
    """ReduceMax of an empty slice gives minus infinity, which no range of integers holds."""
    graph = Graph(1, 4)
    cut = [graph.constant(np.array([v])) for v in (0, 0, 1)]
    x = graph.op("Slice", graph.quant(graph.input), *cut)
    x = graph.op("ReduceMax", x, axes=[1], keepdims=1, name="nothing")
    graph.op("MatMul", x, graph.weight([[1]]))
    certificate = certify_file(graph.model(), 60)
    assert [e.name for e in certificate.failures] == ["nothing"]
