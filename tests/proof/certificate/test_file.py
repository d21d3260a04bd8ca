"""The proof from a file: exact against brute force and qonnx, for every kind of dot product."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qonnx.core.datatype import DataType
from qonnx.util.basic import calculate_matvec_accumulator_range

from brevitas_axe.accumulator import outer_bit_width, required_bit_width
from brevitas_axe.proof.certificate import certify_file
from tests.proof.certificate.graphs import QONNX, Graph, linear

WEIGHTS = st.integers(1, 4).flatmap(
    lambda k: st.lists(st.lists(st.integers(-7, 7), min_size=k, max_size=k), min_size=1, max_size=3)
)


@settings(deadline=None, max_examples=60)
@given(WEIGHTS, st.integers(1, 2), st.booleans())
def test_sums_are_those_of_all_inputs(rows, bits, signed) -> None:
    entry = certify_file(linear(np.array(rows).T, bits, int(signed))).entries[0]
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    # QONNX reads a signed one-bit quantizer as bipolar.
    low, high = (-1, 1) if signed and bits == 1 else (low, high)
    inputs = np.array(list(itertools.product(range(low, high + 1), repeat=len(rows[0]))))
    sums = inputs @ np.array(rows).T
    assert (entry.minimum, entry.maximum) == (min(sums.min(), 0), max(sums.max(), 0))
    assert entry.width == required_bit_width(sums.min(), sums.max())
    assert entry.proven
    assert entry.fits


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.integers(-7, 7), min_size=9, max_size=9), min_size=1, max_size=5),
    st.sampled_from(["UINT2", "UINT8", "INT4", "INT8"]),
)
def test_agrees_with_qonnx(rows, name) -> None:
    datatype, matrix = DataType[name], np.array(rows).T
    entry = certify_file(linear(matrix, datatype.bitwidth(), int(datatype.signed()))).entries[0]
    assert (entry.minimum, entry.maximum) == calculate_matvec_accumulator_range(matrix, datatype)
    assert (entry.input_type, entry.weight_type) == (name, "INT4")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-7, 7), min_size=1, max_size=9), st.integers(1, 10), st.integers(2, 20))
def test_tiles_and_the_outer_accumulator(row, tile, target) -> None:
    entry = certify_file(linear(np.array([row]).T), target, tile_size=tile).entries[0]
    tiles = [row[i : i + tile] for i in range(0, len(row), tile)]
    assert entry.maximum == max(255 * sum(q for q in t if q > 0) for t in tiles)
    assert entry.minimum == min(255 * sum(q for q in t if q < 0) for t in tiles)
    assert entry.fits == (entry.width <= target)
    assert entry.margin_bits == target - entry.width
    assert (entry.margin_units >= 0) == entry.fits
    if tile >= len(row):
        assert (entry.tile_size, entry.outer_width, entry.outer_bound) == (None, None, None)
        return
    ends = (255 * sum(q for q in row if q < 0), 255 * sum(q for q in row if q > 0))
    assert entry.outer_width == required_bit_width(*ends)
    assert entry.outer_bound == outer_bit_width(max(entry.width, target), len(row), tile)
    assert entry.outer_width <= entry.outer_bound


def test_conv_grouped_and_depthwise() -> None:
    rng = np.random.default_rng(0)
    for group, channels in ((1, 4), (2, 4), (4, 4)):
        integers = rng.integers(-7, 8, (8, channels // group, 3, 3))
        graph = Graph(1, channels, 6, 6)
        quantized = graph.quant(graph.input)
        weight = graph.weight(integers, np.full((8, 1, 1, 1), 0.5), name="net.conv.weight")
        graph.op("Conv", quantized, weight, group=group, pads=[1, 1, 1, 1])
        entry = certify_file(graph.model()).entries[0]
        rows = integers.reshape(8, -1)
        assert entry.maximum == 255 * np.maximum(rows, 0).sum(axis=1).max()
        assert entry.minimum == 255 * np.minimum(rows, 0).sum(axis=1).min()
        assert (entry.inputs, entry.layer, entry.shape) == (
            rows.shape[1], "net.conv", integers.shape,
        )  # fmt: skip


@pytest.mark.parametrize("dims", [1, 3])
def test_conv_of_any_dimension(dims) -> None:
    integers = np.random.default_rng(dims).integers(-7, 8, (2, 3, *(2,) * dims))
    graph = Graph(1, 3, *(4,) * dims)
    graph.op("Conv", graph.quant(graph.input), graph.weight(integers))
    entry = certify_file(graph.model()).entries[0]
    assert entry.maximum == 255 * np.maximum(integers.reshape(2, -1), 0).sum(axis=1).max()


def test_transposed_conv_is_bounded_per_output_channel() -> None:
    integers = np.random.default_rng(3).integers(-7, 8, (4, 3, 2, 2))
    scale = np.array([0.5, 0.25, 1.0]).reshape(1, 3, 1, 1)
    graph = Graph(1, 4, 5, 5)
    graph.op("ConvTranspose", graph.quant(graph.input), graph.weight(integers, scale), group=2)
    entry = certify_file(graph.model()).entries[0]
    rows = integers.reshape(2, 2, 3, 4).swapaxes(1, 2).reshape(6, 8)
    assert entry.proven
    assert entry.maximum == 255 * np.maximum(rows, 0).sum(axis=1).max()
    assert entry.minimum == 255 * np.minimum(rows, 0).sum(axis=1).min()


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_either_way_round(transposed) -> None:
    integers = np.array([[1, -7, 3], [7, 7, 7]])
    graph = Graph(1, 3)
    scale = np.array([[0.5], [0.25]])
    weight = graph.weight(integers if transposed else integers.T, scale if transposed else scale.T)
    graph.op("Gemm", graph.quant(graph.input), weight, transB=transposed)
    entry = certify_file(graph.model()).entries[0]
    assert (entry.minimum, entry.maximum, entry.inputs) == (-7 * 255, 21 * 255, 3)


def test_weights_on_the_left() -> None:
    graph = Graph(3, 5)
    graph.op("MatMul", graph.weight([[1, -2, 3], [7, 7, 7]]), graph.quant(graph.input))
    entry = certify_file(graph.model()).entries[0]
    assert (entry.minimum, entry.maximum, entry.inputs) == (-2 * 255, 21 * 255, 3)


def test_a_transposed_and_reshaped_weight_is_followed() -> None:
    graph = Graph(1, 3)
    weight = graph.weight([[1, -2, 3], [7, 7, 7]], np.array([[0.5], [0.25]]))
    weight = graph.op("Transpose", weight, perm=[1, 0])
    weight = graph.op("Reshape", weight, graph.constant(np.array([3, 2])))
    graph.op("MatMul", graph.quant(graph.input), graph.op("Identity", weight))
    entry = certify_file(graph.model()).entries[0]
    assert (entry.minimum, entry.maximum, entry.layer) == (-2 * 255, 21 * 255, "fc")


def test_packed_weights_are_split() -> None:
    graph = Graph(1, 2)
    x = graph.quant(graph.input)
    packed = graph.weight([[1, 1], [2, 2], [3, 3]], np.array([[0.5], [0.25], [1.0]]))
    for part in graph.op("Split", packed, axis=0, outputs=3):
        graph.op("MatMul", x, graph.op("Transpose", part))
    certificate = certify_file(graph.model())
    assert [e.maximum for e in certificate.entries] == [2 * 255, 4 * 255, 6 * 255]


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=6),
    st.sampled_from(["ROUND", "FLOOR", "CEIL", "DOWN", "UP", "HALF_UP", "HALF_DOWN"]),
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
    st.floats(0.0625, 1, width=32),
)
def test_weights_are_those_that_qonnx_computes(values, mode, bits, signed, narrow, scale) -> None:
    from qonnx.custom_op.general.intquant import int_quant

    weight, scale = np.float32(values), np.float32(scale)
    theirs = int_quant(weight, scale, np.float32(0), np.float32(bits), signed, narrow, mode)
    integers = np.rint(theirs / scale)
    graph = Graph(1, len(values))
    quantized = graph.quant(
        graph.constant(weight[:, None]), bits, int(signed), scale, 0, int(narrow),
        rounding_mode=mode,
    )  # fmt: skip
    graph.op("MatMul", graph.quant(graph.input, 1), quantized)
    entry = certify_file(graph.model()).entries[0]
    assert entry.maximum == np.maximum(integers, 0).sum()
    assert entry.minimum == np.minimum(integers, 0).sum()


def test_integer_weights_of_a_finn_file() -> None:
    graph = Graph(1, 4)
    graph.types["x"] = "UINT8"
    weight = graph.constant(np.float32([[1, -8], [7, 7], [0, 0], [-1, 1]]), "w", "INT4")
    hidden = graph.op("MatMul", graph.input, weight, name="mm0")
    thresholds = graph.constant(np.arange(15, dtype=np.float32).reshape(1, 15), "t")
    hidden = graph.op(
        "MultiThreshold", hidden, thresholds, domain=QONNX, out_dtype="INT4", out_bias=-8.0
    )
    scaled = graph.op("Mul", hidden, graph.constant(np.float32(0.125)))
    graph.op("MatMul", scaled, graph.constant(np.float32([[3], [-4]]), "u", "INT4"), name="mm1")
    first, second = certify_file(graph.model()).entries
    assert (first.minimum, first.maximum, first.weight_type) == (-8 * 255, 8 * 255, "INT4")
    assert first.assumptions == ("graph input 'x' holds UINT8 integers, as the file annotates",)
    assert (second.minimum, second.maximum) == (-3 * 8 - 4 * 7, 3 * 7 + 4 * 8)
    assert second.input_type == "INT4"


def test_integer_graph_inputs_need_no_assumption() -> None:
    graph = Graph(1, 2, kind=onnx.TensorProto.UINT8)
    x = graph.op("Cast", graph.input, to=onnx.TensorProto.FLOAT)
    graph.op("MatMul", x, graph.constant(np.float32([[2], [-1]])))
    entry = certify_file(graph.model()).entries[0]
    assert (entry.minimum, entry.maximum, entry.assumptions) == (-255, 510, ())


def test_bipolar_both_ways() -> None:
    graph = Graph(1, 5)
    one = graph.constant(np.float32(1))
    weight = graph.constant(np.float32([[1], [-1], [0.5], [-0.1], [0]]))
    weight = graph.op("BipolarQuant", weight, one, domain=QONNX)
    graph.op("MatMul", graph.op("BipolarQuant", graph.input, one, domain=QONNX), weight)
    entry = certify_file(graph.model()).entries[0]
    assert (entry.minimum, entry.maximum, entry.weight_type) == (-5, 5, "BIPOLAR")


@pytest.mark.parametrize(("zero_point", "ends"), [(0, (0, 255)), (128, (-128, 127))])
def test_qdq(zero_point, ends) -> None:
    graph = Graph(1, 2)
    parameters = graph.constant(np.float32(0.1)), graph.constant(np.uint8(zero_point))
    x = graph.op("QuantizeLinear", graph.input, *parameters)
    x = graph.op("DequantizeLinear", x, *parameters)
    weight = graph.constant(np.array([[2, -128], [-1, 127]], np.int8))
    scales, zeros = graph.constant(np.float32([0.5, 0.25])), graph.constant(np.int8([0, 0]))
    weight = graph.op("DequantizeLinear", weight, scales, zeros, axis=1)
    graph.op("MatMul", x, weight)
    entry = certify_file(graph.model()).entries[0]
    low, high = ends
    assert entry.input_range == ends
    assert entry.maximum == max(2 * high - low, 127 * high - 128 * low)
    assert entry.minimum == min(2 * low - high, 127 * low - 128 * high)
    assert (entry.input_type, entry.weight_type) == ("UINT8", "INT8")
    assert bool(entry.assumptions) == (zero_point != 0)


def test_qdq_with_fewer_bits_by_clip() -> None:
    graph = Graph(1, 2)
    parameters = graph.constant(np.float32(0.1)), graph.constant(np.uint8(0))
    x = graph.op("QuantizeLinear", graph.input, *parameters)
    x = graph.op("Clip", x, graph.constant(np.uint8(0)), graph.constant(np.uint8(15)))
    x = graph.op("DequantizeLinear", x, *parameters)
    graph.op("MatMul", x, graph.weight([[3], [-2]]))
    entry = certify_file(graph.model()).entries[0]
    assert (entry.minimum, entry.maximum) == (-30, 45)


def moved(graph: Graph, x: str, how: str) -> str:
    """X [1, 4, 6, 6] through one value-preserving operator."""
    numbers = graph.constant
    return {
        "Relu": lambda: graph.op("Relu", x),
        "MaxPool": lambda: graph.op("MaxPool", x, kernel_shape=[2, 2], pads=[1, 1, 1, 1]),
        "Transpose": lambda: graph.op("Transpose", x, perm=[0, 1, 3, 2]),
        "Pad": lambda: graph.op("Pad", x, numbers(np.array([0, 0, 1, 1, 0, 0, 1, 1]))),
        "Slice": lambda: graph.op("Slice", x, *(numbers(np.array([n])) for n in (1, 4, 2))),
        "Split": lambda: graph.op("Split", x, axis=2, outputs=2)[1],
        "Gather": lambda: graph.op("Gather", x, numbers(np.array([0, 2])), axis=2),
        "Concat": lambda: graph.op("Concat", x, x, axis=2),
        "Reshape": lambda: graph.op("Reshape", x, numbers(np.array([1, 4, 4, 9]))),
        "Resize": lambda: graph.op(
            "Resize", x, "", numbers(np.float32([1, 1, 2, 2])), mode="nearest"
        ),
    }[how]()


@pytest.mark.parametrize(
    ("how", "low"),
    [
        *((how, -8) for how in ("MaxPool", "Transpose", "Pad", "Slice", "Split", "Gather")),
        *((how, -8) for how in ("Concat", "Reshape", "Resize")),
        ("Relu", 0),
    ],
)
def test_operators_that_keep_values(how, low) -> None:
    graph = Graph(1, 4, 6, 6)
    x = moved(graph, graph.quant(graph.input, 4, 1), how)
    graph.op("Conv", x, graph.weight(np.ones((1, 4, 1, 1))))
    entry = certify_file(graph.model()).entries[0]
    assert (entry.minimum, entry.maximum) == (4 * low, 4 * 7)


def test_a_sum_of_two_branches_on_one_scale() -> None:
    graph = Graph(1, 2)
    branches = graph.quant(graph.input, 4, 1), graph.quant(graph.input, 3, 0)
    graph.op("MatMul", graph.op("Add", *branches), graph.weight([[1], [1]]))
    entry = certify_file(graph.model()).entries[0]
    assert (entry.input_range, entry.input_type) == ((-8, 14), "INT5")
    assert (entry.minimum, entry.maximum) == (-16, 28)


@pytest.mark.parametrize("finest", [0.25, 0.3])
@pytest.mark.parametrize("doublings", [1, 4])
def test_a_sum_of_scales_in_a_ratio_of_a_power_of_two(finest, doublings) -> None:
    graph, ratio = Graph(1, 2), 2**doublings
    branches = [
        graph.quant(graph.input, 3, 0, scale=ratio * np.float32(finest)),
        graph.quant(graph.input, 3, 1, scale=np.float32(finest)),
    ]
    graph.op("MatMul", graph.op("Add", *branches), graph.weight([[1], [-1]]))
    entry = certify_file(graph.model()).entries[0]
    assert entry.input_range == (-4, 3 + 7 * ratio)
    assert (entry.minimum, entry.maximum) == (-7 - 7 * ratio, 7 + 7 * ratio)


@pytest.mark.parametrize(
    ("scales", "zero_point"), [((0.25, 0.75), 0), ((0.25, -0.5), 0), ((0.25, 0.5), 1)]
)
def test_other_sums_of_two_scales_are_not_proven(scales, zero_point) -> None:
    graph = Graph(1, 2)
    branches = [
        graph.quant(graph.input, 4, 1, scale=scale, zero_point=zero_point) for scale in scales
    ]
    graph.op("MatMul", graph.op("Add", *branches), graph.weight([[1], [1]]))
    assert not certify_file(graph.model()).entries[0].proven


def test_a_concatenation_takes_the_union() -> None:
    graph = Graph(1, 2)
    branches = graph.quant(graph.input, 4, 1), graph.quant(graph.input, 5, 0)
    graph.op("MatMul", graph.op("Concat", *branches, axis=1), graph.weight([[1]] * 4))
    entry = certify_file(graph.model()).entries[0]
    assert (entry.input_range, entry.input_type) == ((-8, 31), "INT6")


def test_depthwise_tells_channels_apart_and_a_full_conv_does_not() -> None:
    for group, proven in ((4, True), (1, False), (2, False)):
        graph = Graph(1, 4, 6, 6)
        x = graph.quant(graph.input, scale=np.arange(1, 5).reshape(1, 4, 1, 1) / 8)
        graph.op("Conv", x, graph.weight(np.ones((4, 4 // group, 3, 3))), group=group)
        entry = certify_file(graph.model()).entries[0]
        assert entry.proven == proven
        assert proven or "scale per channel" in entry.reason


def test_the_narrow_range_counts_only_on_demand() -> None:
    graph = Graph(1, 1)
    graph.op("MatMul", graph.quant(graph.input, 4, 1, narrow=1), graph.weight([[-1]]))
    model = graph.model()
    assert certify_file(model).entries[0].maximum == 8
    assert certify_file(model, honour_narrow=True).entries[0].maximum == 7


def test_an_input_zero_point_is_subtracted_and_stated() -> None:
    graph = Graph(1, 1)
    graph.op("MatMul", graph.quant(graph.input, 4, 0, zero_point=5), graph.weight([[1]]))
    entry = certify_file(graph.model()).entries[0]
    assert entry.input_range == (-5, 10)
    assert "zero point 5" in entry.assumptions[0]


def test_padding_extends_a_range_to_zero() -> None:
    graph = Graph(1, 1)
    graph.op("MatMul", graph.quant(graph.input, 4, 0, zero_point=-3), graph.weight([[1]]))
    assert certify_file(graph.model()).entries[0].input_range == (0, 18)


def test_padded_zeros_join_a_range_that_excludes_them() -> None:
    graph = Graph(1, 2)
    shifted = graph.op("Add", graph.quant(graph.input, 4), graph.constant([0.75]))
    padded = graph.op("Pad", shifted, graph.constant(np.array([0, 1, 0, 1])))
    x = graph.op("Sub", padded, graph.constant([0.75]))
    graph.op("MatMul", x, graph.weight([[1]] * 4))
    assert certify_file(graph.model()).entries[0].input_range == (-3, 15)


def test_two_activations_are_bounded_by_length_times_worst_product() -> None:
    graph = Graph(2, 3, 7)
    left = graph.quant(graph.input, 4, 1)
    right = graph.op("Transpose", graph.quant(graph.input, 8, 0), perm=[0, 2, 1])
    graph.op("MatMul", left, right, name="scores")
    entry = certify_file(graph.model(), 16).entries[0]
    assert (entry.inputs, entry.minimum, entry.maximum) == (7, -8 * 255 * 7, 7 * 255 * 7)
    assert "length is 7" in entry.assumptions[-1]


def test_two_activations_of_open_length_are_not_proven() -> None:
    graph = Graph("batch", 3, "length")
    x = graph.quant(graph.input, 4, 1)
    graph.op("MatMul", x, graph.op("Transpose", x, perm=[0, 2, 1]))
    # A lie in the file's own shapes must not fake a length.
    model = graph.model()
    lie = onnx.helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, [1, 3, 2])
    model.graph.value_info.append(lie)
    certificate = certify_file(model, 30)
    assert not certificate.ok
    assert "length is not fixed" in certificate.entries[0].reason


@pytest.mark.parametrize(("bias", "width"), [(0.0, 10), (0.125, 10), (0.25, 11), (-64.0, 11)])
def test_width_with_bias(bias, width) -> None:
    # One unit of the accumulator is 0.25 · 0.5 = 0.125; the row reaches 2 · 255 = 510.
    graph = Graph(1, 2)
    graph.op("Gemm", graph.quant(graph.input), graph.weight([[1], [1]]), graph.constant([bias]))
    by_gemm = certify_file(graph.model()).entries[0]
    graph = Graph(1, 2)
    hidden = graph.op("MatMul", graph.quant(graph.input), graph.weight([[1], [1]]))
    graph.op("Add", hidden, graph.constant([bias]))
    by_add = certify_file(graph.model()).entries[0]
    units = int(bias / 0.125)
    assert by_gemm.width == 10
    assert by_gemm.width_with_bias == by_add.width_with_bias == width
    assert width == required_bit_width(min(units, 0), 510 + max(units, 0))


def test_a_bias_meets_the_whole_row_not_a_tile() -> None:
    graph = Graph(1, 4)
    weight = graph.weight([[1], [1], [1], [1]])
    graph.op("Gemm", graph.quant(graph.input), weight, graph.constant([0.125]))
    entry = certify_file(graph.model(), tile_size=1).entries[0]
    assert (entry.width, entry.outer_width) == (9, 11)
    assert entry.width_with_bias == required_bit_width(0, 4 * 255 + 1)


def test_a_bias_off_the_grid_is_rounded_away_from_zero_and_said_so() -> None:
    graph = Graph(1, 2)
    bias = graph.constant([0.125 * 1.01])
    graph.op("Gemm", graph.quant(graph.input), graph.weight([[1], [1]]), bias)
    entry = certify_file(graph.model()).entries[0]
    assert entry.width_with_bias == required_bit_width(0, 512)
    assert "bias is not an integer" in entry.assumptions[-1]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 5), st.integers(0, 2), st.integers(-7, 7))
def test_tampering_with_a_weight_turns_the_verdict(row, column, value) -> None:
    integers = np.zeros((6, 3), int)
    integers[:, 0] = 1
    integers[:, 1] = -1
    model = linear(integers)
    need = certify_file(model).entries[0].width
    assert certify_file(model, need).ok
    weights = np.array(integers) * 0.5
    weights[row, column] = value * 0.5
    tampered = onnx.ModelProto()
    tampered.CopyFrom(model)
    for tensor in tampered.graph.initializer:
        if tensor.name == "fc.weight":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(weights), tensor.name))
    positive, negative = (np.maximum(sign * weights, 0).sum(0).max() for sign in (1, -1))
    reach = 255 * max(positive, negative) / 0.5
    certificate = certify_file(tampered, need)
    assert certificate.ok == (reach <= 2 ** (need - 1) - 1)
    if (weights != integers * 0.5).any():
        assert certificate.sha256 != certify_file(model, need).sha256
