"""Attacks on the claims: files whose real sums were larger than what was once called proven."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from brevitas_axe.errors import InvalidModelFile
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import certify_file
from tests.proof.certificate.graphs import QONNX, Graph, linear


def only(model: onnx.ModelProto):
    """The one entry of a certificate."""
    (entry,) = certify_file(model, 60).entries
    return entry


def unproven(model: onnx.ModelProto, says: str = "", name: str = "") -> None:
    failed = {e.name: e.reason for e in certify_file(model, 60).failures}
    assert failed
    assert says in (failed[name] if name else " ".join(failed.values())), failed


def refused(model: onnx.ModelProto, says: str) -> None:
    with pytest.raises(InvalidModelFile, match=says):
        certify_file(model, 60)


@pytest.mark.parametrize(
    ("kind", "ends"),
    [(np.int16, (-(2**15) * 3, (2**15 - 1) * 3)), (np.int8, (-384, 381)), (np.uint8, (0, 765))],
)
def test_an_annotated_zero_point_keeps_its_element_type(kind, ends) -> None:
    graph = Graph(1, 3)
    zero = graph.constant(np.zeros((), kind), "zero", "INT4" if kind != np.uint8 else "UINT4")
    scale = graph.constant(np.float32(1))
    stored = graph.op("QuantizeLinear", graph.input, scale, zero)
    x = graph.op("DequantizeLinear", stored, scale, zero)
    graph.op("MatMul", x, graph.weight([[1], [1], [1]], scale=1.0))
    model = graph.model()
    model.opset_import[0].version = 21  # int16 zero points
    entry = only(model)
    assert (entry.minimum, entry.maximum) == ends


def test_two_types_of_one_quantizer() -> None:
    graph = Graph(1, 1)
    zero, scale = graph.constant(np.zeros((), np.int8)), graph.constant(np.float32(1))
    stored = graph.op("QuantizeLinear", graph.input, scale, zero, output_dtype=TensorProto.UINT8)
    graph.op("MatMul", graph.op("DequantizeLinear", stored, scale, zero), graph.weight([[1]]))
    model = graph.model()
    model.opset_import[0].version = 21
    unproven(model, "not made of integers")


def activations(scale: np.ndarray) -> onnx.ModelProto:
    graph = Graph(1, 1)
    graph.inputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [100, 1]))
    left = graph.quant(graph.input, 8, scale=scale)
    graph.op("MatMul", left, graph.quant("y", 8), name="product")
    return graph.model()


def test_a_scale_that_broadcasts_makes_a_product_longer() -> None:
    entry = only(activations(np.ones((1, 100), np.float32)))
    assert (entry.maximum, entry.width) == (100 * 255 * 255, 24)


@pytest.mark.parametrize("place", [1, 2, 3])
def test_every_parameter_of_a_quantizer_broadcasts(place) -> None:
    values = [np.float32(1), np.float32(0), np.float32(8)]
    values[place - 1] = np.full((1, 100), values[place - 1])
    graph = Graph(1, 1)
    graph.inputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [100, 1]))
    parameters = [graph.constant(v) for v in values]
    left = graph.op("Quant", graph.input, *parameters, domain=QONNX, signed=0)
    graph.op("MatMul", left, graph.quant("y", 8))
    assert only(graph.model()).maximum == 100 * 255 * 255


def test_a_free_batch_of_another_input_tells_no_length() -> None:
    """Reshape to (batch of y, -1): its second length follows from x and y together."""
    graph = Graph("N", 4)
    graph.inputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4]))
    first = graph.constant(np.array(0))
    batch = graph.op("Gather", graph.op("Shape", "y"), first)
    target = graph.op(
        "Concat", graph.op("Unsqueeze", batch, graph.constant(np.array([0]))),
        graph.constant(np.array([-1])), axis=0,
    )  # fmt: skip
    shaped = graph.op("Reshape", graph.quant(graph.input), target)
    graph.op("MatMul", shaped, graph.op("Transpose", shaped))
    unproven(graph.model(), "length is not fixed")


def test_a_free_batch_of_the_same_input_cancels() -> None:
    graph = Graph("N", 4, 2)
    batch = graph.op("Gather", graph.op("Shape", graph.input), graph.constant(np.array(0)))
    target = graph.op(
        "Concat", graph.op("Unsqueeze", batch, graph.constant(np.array([0]))),
        graph.constant(np.array([-1])), axis=0,
    )  # fmt: skip
    shaped = graph.op("Reshape", graph.quant(graph.input), target)
    graph.op("MatMul", shaped, graph.op("Transpose", shaped))
    assert only(graph.model()).maximum == 8 * 255 * 255


def test_an_activation_squeezed_along_no_axis() -> None:
    """Some readers leave [1, 100, 1] as it is, others make [100] of it: K is 1 or 100."""
    graph = Graph(1, 100, 1)
    graph.inputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    left = graph.op("Squeeze", graph.quant(graph.input), graph.constant(np.zeros(0, np.int64)))
    graph.op("MatMul", left, graph.quant("y", 8), name="product")
    unproven(graph.model(), "length is not fixed")


@pytest.mark.parametrize("op", ["Relu", "IntQuant"])
def test_a_function_with_the_name_of_an_operator(op) -> None:
    """It repeats its input a hundred times, which the operator does not; readers run either."""
    graph = Graph(1, 1)
    graph.inputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [100, 1]))
    more = [graph.constant(np.float32(v)) for v in (1, 0, 8)] if op == "IntQuant" else []
    domain = "qonnx" if more else ""
    x = graph.op(op, graph.input, *more, domain=domain, name="shadow")
    graph.op("MatMul", graph.quant(x), graph.quant("y"), name="product")
    repeats = numpy_helper.from_array(np.array([1, 100]))
    nodes = [
        helper.make_node("Constant", [], ["r"], value=repeats),
        helper.make_node("Tile", ["a", "r"], ["o"]),
    ]
    names = ["a", "b", "c", "d"][: 1 + len(more)]
    opsets = [helper.make_opsetid("", 13)]
    model = graph.model(functions=[helper.make_function(domain, op, names, ["o"], nodes, opsets)])
    unproven(model, "has the name of an operator", "shadow")
    unproven(model, "length is not fixed", "product")


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [("BOOL", "raw_data", b"\x05"), ("INT8", "int32_data", [300]), ("BOOL", "int32_data", [7])],
)
def test_values_that_their_type_does_not_have(kind, field, value) -> None:
    graph = Graph(1, 1)
    weight = graph.op("Cast", graph.constant(np.ones((1, 1), np.int8), "w"), to=TensorProto.FLOAT)
    graph.op("MatMul", graph.quant(graph.input), weight)
    model = graph.model()
    tensor = next(t for t in model.graph.initializer if t.name == "w")
    tensor.ClearField("raw_data")
    tensor.data_type = TensorProto.DataType.Value(kind)
    if field == "raw_data":
        tensor.raw_data = value
    else:
        tensor.int32_data.extend(value)
    refused(model, "does not hold what its type and shape say")


@pytest.mark.parametrize("op", ["MaxPool", "GlobalMaxPool", "Resize", "Flatten", "Transpose"])
def test_a_scale_that_varies_over_places_does_not_survive_a_move(op) -> None:
    graph = Graph(1, 1, 2, 1)
    x = graph.quant(graph.input, scale=np.float32([[[[1], [2.0**-10]]]]))
    attributes = {"kernel_shape": [2, 1]} if op == "MaxPool" else {}
    empty = ["", graph.constant(np.float32([1, 1, 2, 1]))] if op == "Resize" else []
    x = graph.op(op, x, *empty, **attributes)
    graph.op("MatMul", x, graph.weight([[1]]), name="fc")
    unproven(graph.model(), name="fc")


def test_a_scale_per_channel_survives_max_pooling_before_a_depthwise_convolution() -> None:
    graph = Graph(1, 2, 4, 4)
    x = graph.quant(graph.input, scale=np.float32([0.5, 0.25]).reshape(1, 2, 1, 1))
    x = graph.op("MaxPool", x, kernel_shape=[2, 2])
    weight = graph.weight(np.ones((2, 1, 1, 1)), name="dw.weight")
    graph.op("Conv", x, weight, group=2, name="dw")
    assert only(graph.model()).maximum == 255


def test_overridden_weights_are_bounded_by_their_quantizer() -> None:
    model = linear([[1], [1]])
    model.graph.input.append(helper.make_tensor_value_info("fc.weight", TensorProto.FLOAT, [2, 1]))
    assert only(model).maximum == 2 * 7 * 255
    assert only(model).minimum == -2 * 8 * 255


@pytest.mark.parametrize("what", ["c0", "c1", "c2"])
def test_a_caller_may_override_an_initializer_that_is_an_input(what) -> None:
    model = linear([[1], [1]])
    dims = next(i for i in model.graph.initializer if i.name == what).dims
    model.graph.input.append(helper.make_tensor_value_info(what, TensorProto.FLOAT, list(dims)))
    unproven(model)
    model.ir_version = 3  # where every initializer is an input, and none can be overridden
    assert certify_file(model, 60).ok


def test_weights_that_are_quantized_twice_next_to_a_tie() -> None:
    graph = Graph(1, 1)
    weight = graph.quant(graph.constant(np.float32([[19 * 0.07894737]])), 8, 1, 0.07894737)
    graph.op("MatMul", graph.quant(graph.input), graph.quant(weight, 8, 1, 1.0))
    unproven(graph.model(), "round them differently")


@pytest.mark.parametrize(("first", "second"), [(0.25, 0.25), (0.25, 0.5), (0.1, 0.1)])
def test_weights_that_are_quantized_twice_alike(first, second) -> None:
    graph = Graph(1, 2)
    values = np.float32([[3], [-2]]) * np.float32(first)
    weight = graph.quant(graph.constant(values), 8, 1, first)
    graph.op("MatMul", graph.quant(graph.input), graph.quant(weight, 8, 1, second))
    assert only(graph.model()).proven


def test_two_initializers_of_one_name() -> None:
    model = linear([[1], [1]])
    model.graph.initializer.append(numpy_helper.from_array(np.float32([[9], [9]]), "fc.weight"))
    refused(model, "initializer 'fc.weight' is given twice")


def test_a_dense_and_a_sparse_initializer_of_one_name() -> None:
    model = linear([[1], [1]])
    sparse = onnx.SparseTensorProto(dims=[2, 1])
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([9]), "fc.weight"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0]), "indices"))
    model.graph.sparse_initializer.append(sparse)
    refused(model, "initializer 'fc.weight' is given twice")


def test_two_attributes_of_one_name() -> None:
    model = linear([[1], [1]])
    model.graph.node[0].attribute.append(helper.make_attribute("signed", 1))
    refused(model, "'signed' is given twice")


def test_two_attributes_of_one_name_in_a_function() -> None:
    model = linear([[1], [1]])
    node = helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.1)
    node.attribute.append(helper.make_attribute("alpha", 9.0))
    opsets = [helper.make_opsetid("", 13)]
    model.functions.append(helper.make_function("local", "f", ["a"], ["b"], [node], opsets))
    refused(model, "'alpha' is given twice")


def test_two_versions_of_one_operator_set() -> None:
    model = linear([[1], [1]])
    model.opset_import.append(helper.make_opsetid("ai.onnx", 7))
    refused(model, "operator set 'ai.onnx' is given twice")


def test_two_functions_of_one_name() -> None:
    model = linear([[1], [1]])
    opsets = [helper.make_opsetid("", 13)]
    for op in ("Relu", "Abs"):
        node = helper.make_node(op, ["a"], ["b"])
        model.functions.append(helper.make_function("l", "f", ["a"], ["b"], [node], opsets))
    refused(model, "local function 'l.f' is given twice")


def test_two_datatypes_of_one_tensor() -> None:
    model = linear([[1], [1]])
    for kind in ("INT4", "INT8"):
        pair = onnx.StringStringEntryProto(key="finn_datatype", value=kind)
        model.graph.quantization_annotation.append(
            onnx.TensorAnnotation(tensor_name="x", quant_parameter_tensor_names=[pair])
        )
    refused(model, "datatype of tensor 'x' is given twice")


def test_two_graph_inputs_of_one_name() -> None:
    model = linear([[1], [1]])
    model.graph.input.append(model.graph.input[0])
    refused(model, "graph input 'x' is given twice")


def test_data_in_two_fields_of_one_tensor() -> None:
    model = linear([[1], [1]])
    weight = next(t for t in model.graph.initializer if t.name == "fc.weight")
    weight.float_data.extend([9.0, 9.0])
    refused(model, "data of tensor 'fc.weight' is given twice")


@pytest.mark.parametrize(
    ("bits", "signed", "largest"),
    [(24, 0, 2**24 - 1), (25, 0, 2**25), (26, 0, 2**26), (25, 1, 2**24 - 1), (26, 1, 2**25)],
)
def test_more_bits_than_float32_holds(bits, signed, largest) -> None:
    entry = only(linear([[1]], bits=bits, signed=signed))
    assert entry.maximum == largest


def test_more_bits_than_float16_holds() -> None:
    graph = Graph(1, 1)
    parameters = [graph.constant(np.float16(v)) for v in (1, 0, 12)]
    x = graph.op("Quant", graph.input, *parameters, domain=QONNX, signed=0)
    graph.op("MatMul", x, graph.weight([[1]]))
    assert only(graph.model()).maximum == 4096


def test_weights_at_a_bound_that_float32_does_not_hold() -> None:
    graph = Graph(1, 1)
    weight = graph.quant(graph.constant(np.float32([[2.0**40]])), 26, 1, 1.0)
    graph.op("MatMul", graph.quant(graph.input), weight)
    unproven(graph.model(), "cannot hold")


def test_a_zero_point_beside_more_bits_than_float32_holds() -> None:
    graph = Graph(1, 1)
    graph.op("MatMul", graph.quant(graph.input, 26, zero_point=3), graph.weight([[1]]))
    unproven(graph.model(), "float type")


@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.UINT32])
def test_an_integer_input_that_is_cast_rounds(kind) -> None:
    graph = Graph(1, 1, kind=kind)
    x = graph.op("Cast", graph.input, to=TensorProto.FLOAT)
    graph.op("MatMul", x, graph.weight([[1]]))
    assert only(graph.model()).maximum == (2**31 if kind == TensorProto.INT32 else 2**32)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_arithmetic_in_integer_types_wraps(op) -> None:
    graph = Graph(1, 1, kind=TensorProto.UINT8)
    x = graph.op(op, graph.input, graph.constant(np.uint8([128])))
    x = graph.op("Cast", x, to=TensorProto.FLOAT)
    graph.op("MatMul", x, graph.weight([[1]]))
    unproven(graph.model(), "wraps around")


def test_dropout_in_training_whose_ratio_is_left_out() -> None:
    graph = Graph(1, 1)
    x = graph.op("Dropout", graph.quant(graph.input), "", graph.constant(np.array(True)))
    graph.op("MatMul", x, graph.weight([[1]]))
    unproven(graph.model(), "training mode")


def test_dropout_of_old_versions_trains_unless_told() -> None:
    graph = Graph(1, 1)
    graph.op("MatMul", graph.op("Dropout", graph.quant(graph.input)), graph.weight([[1]]))
    model = graph.model()
    model.opset_import[0].version = 6
    unproven(model, "training mode")


def test_an_input_left_out_where_it_means_something_else() -> None:
    graph = Graph(1, 1)
    graph.op(
        "MatMul", graph.op("Concat", "", graph.quant(graph.input), axis=0), graph.weight([[1]])
    )
    unproven(graph.model(), "leaves an input out")


def test_clip_with_one_bound() -> None:
    for bounds, ends in ((["", "six"], (0, 6)), (["two"], (2, 255))):
        graph = Graph(1, 1)
        graph.constant(np.float32(6), "six")
        graph.constant(np.float32(2), "two")
        x = graph.op("Clip", graph.quant(graph.input, scale=1.0), *bounds)
        graph.op("MatMul", x, graph.weight([[1]]))
        assert only(graph.model()).input_range == (0, ends[1])


def pooled(**attributes) -> onnx.ModelProto:
    graph = Graph(1, 1, 1, 1)
    x = graph.op("MaxPool", graph.quant(graph.input, 4, 1), **attributes)
    graph.op("Conv", x, graph.weight(np.ones((1, 1, 1, 1))), name="conv")
    return graph.model()


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [2, 2], "dilations": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [2, 2], "pads": [2, 2, 0, 0]},
        {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [1, 1], "strides": [3, 3], "ceil_mode": 1},
    ],
)
def test_a_window_of_padding_alone_is_the_smallest_float(attributes) -> None:
    unproven(pooled(**attributes), "nothing but padding")


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"},
    ],
)
def test_usual_pools_are_followed(attributes) -> None:
    assert certify_file(pooled(**attributes), 60).ok


def test_what_finn_makes_of_a_shifted_input_is_said() -> None:
    graph = Graph(1, 31, kind=TensorProto.UINT8)
    x = graph.op("Cast", graph.input, to=TensorProto.FLOAT)
    x = graph.op("Add", x, graph.constant([-128.0]))
    graph.op("MatMul", x, graph.weight([[1]] * 31))
    entry = only(graph.model())
    assert (entry.minimum, entry.maximum) == (-128 * 31, 127 * 31)
    assert any("needs 14 bits" in a for a in entry.assumptions), entry.assumptions


def test_a_layer_that_no_width_was_asked_for_is_visible() -> None:
    graph = Graph(1, 1)
    x = graph.op("MatMul", graph.quant(graph.input), graph.weight([[1]], name="a.weight"))
    graph.op("MatMul", graph.quant(x), graph.weight([[1]], name="b.weight"))
    certificate = certify_file(graph.model(), plan=Plan({"a": LayerPrecision(accumulator=16)}))
    assert certificate.ok
    assert certificate.unlimited == ("b",)
    assert "b" in str(certificate.table().caption)
    assert '"unlimited": [\n    "b"' in certificate.to_json()
    assert certify_file(graph.model()).unlimited == ()


def test_a_declared_count_that_its_shift_turns_into_the_declared_type() -> None:
    graph = Graph(1, 15)
    thresholds = graph.constant(np.arange(255, dtype=np.float32).reshape(1, -1))
    x = graph.op("MultiThreshold", graph.input, thresholds, domain=QONNX, out_dtype="INT8")
    x = graph.op("Add", x, graph.constant([-128.0]))
    graph.op("MatMul", x, graph.weight([[2]] * 15))
    assert only(graph.model()).width == 13
    assert only(graph.model()).minimum == -128 * 30


def test_a_count_counts_as_both_what_it_is_and_what_it_is_declared_to_be() -> None:
    graph = Graph(1, 1)
    thresholds = graph.constant(np.arange(2, dtype=np.float32).reshape(1, -1))
    x = graph.op("MultiThreshold", graph.input, thresholds, domain=QONNX, out_dtype="INT2")
    graph.op("MatMul", x, graph.weight([[1]]))
    assert only(graph.model()).input_range == (-2, 2)


def test_declared_input_types() -> None:
    graph = Graph(1, 2)
    graph.op("MatMul", graph.input, graph.weight([[1], [1]]), name="fc")
    unproven(graph.model(), "not quantized")
    certificate = certify_file(graph.model(), 60, input_types={"x": "UINT8"})
    assert certificate.ok
    assert certificate.entries[0].maximum == 510
    assert "UINT8" in certificate.assumptions[0]
    assert "UINT8" in certificate.entries[0].assumptions[0]
