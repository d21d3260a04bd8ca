"""The emulator: with wide accumulators the plain execution, with proven ones the same again."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes

from brevitas_axe.errors import AccumulatorTooNarrow, InvalidModelFile, InvalidOption, InvalidPlan
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import certify_file
from brevitas_axe.proof.emulator import emulate
from tests.proof.certificate.graphs import QONNX, Graph, linear


def plain(model: onnx.ModelProto, inputs: np.ndarray) -> np.ndarray:
    """What qonnx itself computes."""
    wrapper = ModelWrapper(model, make_deepcopy=True)
    wrapper = wrapper.transform(InferShapes())
    with warnings.catch_warnings(action="ignore"):
        outputs = execute_onnx(wrapper, {wrapper.graph.input[0].name: np.float32(inputs)})
    return next(iter(outputs.values()))


def images(graph: Graph, seed: int = 0) -> np.ndarray:
    shape = [d.dim_value for d in graph.inputs[0].type.tensor_type.shape.dim]
    return np.random.default_rng(seed).uniform(-8, 64, shape).astype(np.float32)


def same_as_plain(graph: Graph) -> None:
    model, x = graph.model(), images(graph)
    result = emulate(model, x, 64)
    assert result.overflows == 0
    assert result.float_nodes == {}
    np.testing.assert_allclose(result.output, plain(model, x), rtol=1e-5, atol=1e-4)
    assert result.output.dtype == np.float32


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": 2, "dilations": 2, "pads": (1, 2)},
        {"strides": 2, "auto_pad": "SAME_UPPER"},
        {"strides": 2, "auto_pad": "SAME_LOWER"},
        {"auto_pad": "VALID"},
    ],
)
def test_convolutions(dims, group, attributes) -> None:
    attributes = dict(attributes)
    for name in ("strides", "dilations"):
        if name in attributes:
            attributes[name] = [attributes[name]] * dims
    if "pads" in attributes:
        attributes["pads"] = [p for p in attributes["pads"] for _ in range(dims)]
    rng = np.random.default_rng(dims)
    graph = Graph(2, 4, *(7, 6, 5)[:dims])
    scale = rng.uniform(0.1, 1, (8, *(1,) * (dims + 1)))
    weight = graph.weight(rng.integers(-7, 8, (8, 4 // group, *(3, 2, 2)[:dims])), scale)
    bias = graph.constant(rng.normal(size=8).astype(np.float32))
    graph.op("Conv", graph.quant(graph.input, 6, 1), weight, bias, group=group, **attributes)
    same_as_plain(graph)


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": 2, "dilations": 2, "pads": (1, 2)},
        {"strides": 3, "output_padding": 1, "pads": (2, 0)},
    ],
)
def test_transposed_convolutions(dims, group, attributes) -> None:
    attributes = {
        name: [p for p in value for _ in range(dims)] if name == "pads" else [value] * dims
        for name, value in attributes.items()
    }
    rng = np.random.default_rng(dims)
    graph = Graph(2, 4, *(4, 5)[:dims])
    scale = rng.uniform(0.1, 1, (1, 3, *(1,) * dims)) if group == 1 else 0.5
    weight = graph.weight(rng.integers(-7, 8, (4, 3, *(3, 2)[:dims])), scale)
    quantized = graph.quant(graph.input, 6, 1)
    graph.op("ConvTranspose", quantized, weight, group=group, **attributes)
    same_as_plain(graph)


def test_a_scale_per_channel_in_a_depthwise_convolution() -> None:
    graph = Graph(1, 4, 6, 6)
    scale = np.arange(1, 5).reshape(1, 4, 1, 1) / 8
    weight = graph.weight(np.random.default_rng(0).integers(-7, 8, (8, 1, 3, 3)))
    graph.op("Conv", graph.quant(graph.input, scale=scale), weight, group=4)
    same_as_plain(graph)


@pytest.mark.parametrize("side", ["right", "left", "both"])
def test_matmul_on_every_side(side) -> None:
    rng = np.random.default_rng(0)
    graph = Graph(2, 3, 4)
    x = graph.quant(graph.input, 6, 1)
    if side == "right":
        graph.op("MatMul", x, graph.weight(rng.integers(-7, 8, (4, 5)), rng.uniform(1, 2, (1, 5))))
    elif side == "left":
        graph.op("MatMul", graph.weight(rng.integers(-7, 8, (5, 3)), rng.uniform(1, 2, (5, 1))), x)
    else:
        graph.op("MatMul", x, graph.op("Transpose", x, perm=[0, 2, 1]))
    same_as_plain(graph)


def test_a_vector_of_weights() -> None:
    graph = Graph(2, 3, 4)
    graph.op("MatMul", graph.quant(graph.input), graph.weight([1, -2, 3, 4]))
    same_as_plain(graph)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed) -> None:
    rng = np.random.default_rng(0)
    graph = Graph(3, 4)
    scale = rng.uniform(1, 2, (5, 1))
    weight = rng.integers(-7, 8, (5, 4))
    weight = graph.weight(weight if transposed else weight.T, scale if transposed else scale.T)
    bias = graph.constant(rng.normal(size=5).astype(np.float32))
    x = graph.quant(graph.input)
    graph.op("Gemm", x, weight, bias, transB=transposed, alpha=0.5, beta=2.0)
    same_as_plain(graph)


def test_a_finn_file() -> None:
    graph = Graph(1, 4)
    graph.types["x"] = "UINT8"
    hidden = graph.op(
        "MatMul", graph.input, graph.constant(np.float32([[1, -8], [7, 7], [0, 0], [-1, 1]]))
    )
    thresholds = graph.constant(np.linspace(-500, 500, 15, dtype=np.float32).reshape(1, 15))
    hidden = graph.op(
        "MultiThreshold", hidden, thresholds, domain=QONNX, out_dtype="INT4", out_bias=-8.0
    )
    scaled = graph.op("Mul", hidden, graph.constant(np.float32(0.125)))
    graph.op("MatMul", scaled, graph.constant(np.float32([[3], [-4]]), "u", "INT4"))
    model, x = graph.model(), np.float32([[3, 200, 17, 255]])
    assert np.array_equal(emulate(model, x, 64).output, plain(model, x))
    with pytest.raises(InvalidModelFile, match="its input is not on the grid"):
        emulate(model, x + 0.5, 64)
    with pytest.raises(InvalidModelFile, match="leaves the range UINT8"):
        emulate(model, x - 4, 64)


class Net(torch.nn.Module):
    """A small convolutional net, exported by Brevitas."""

    def __init__(self) -> None:
        import brevitas.nn as qnn
        from brevitas.quant import Int8WeightPerChannelFloat as Weight
        from brevitas.quant import Uint8ActPerTensorFloat as Act

        super().__init__()
        weight = {"weight_quant": Weight, "weight_bit_width": 4}
        self.layers = torch.nn.Sequential(
            qnn.QuantIdentity(Act, return_quant_tensor=True),
            qnn.QuantConv2d(1, 8, 3, padding=1, **weight),
            torch.nn.BatchNorm2d(8),
            qnn.QuantReLU(bit_width=4, return_quant_tensor=True),
            qnn.QuantConv2d(8, 8, 3, groups=8, stride=2, **weight),
            qnn.QuantReLU(bit_width=4, return_quant_tensor=True),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            qnn.QuantLinear(8, 10, **weight),
        )

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> tuple[str, np.ndarray, np.ndarray]:
    """(path, images, outputs of torch)."""
    from brevitas.export import export_qonnx
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    x = torch.tensor(load_digits().images[:120, None] / 16, dtype=torch.float32)
    net = Net()
    net(x)
    net.eval()
    path = tmp_path_factory.mktemp("digits") / "digits.onnx"
    with warnings.catch_warnings(action="ignore"):
        export_qonnx(net, args=x[:1], export_path=str(path), dynamo=False)
    with torch.no_grad():
        outputs = net(x)
    return str(path), x.numpy(), getattr(outputs, "value", outputs).numpy()


def test_wide_accumulators_are_the_plain_execution(digits) -> None:
    path, x, outputs = digits
    result = emulate(path, x, 64)
    assert result.outputs[next(iter(result.outputs))].shape == (120, 10)
    assert result.overflows == 0
    # A value on the edge between two integers may round either way: a step of a few outputs.
    close = np.isclose(result.output, outputs, atol=1e-4)
    assert close.mean() > 0.99
    one = emulate(path, x[:1], 64).output
    np.testing.assert_allclose(one, plain(onnx.load(path), x[:1]), atol=1e-5)


@pytest.mark.parametrize("tile_size", [None, 4])
@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_a_certified_width_changes_nothing_and_fewer_bits_do(digits, overflow, tile_size) -> None:
    path, x, _ = digits
    need = max(
        e.width for e in certify_file(path, tile_size=tile_size, fixed_initializers=True).entries
    )
    assert certify_file(path, need, tile_size, fixed_initializers=True).ok
    wide = emulate(path, x, 64)
    proven = emulate(path, x, need, tile_size, overflow)
    assert np.array_equal(proven.output, wide.output)
    assert proven.overflows == 0
    narrow = emulate(path, x, need - 4, tile_size, overflow)
    assert not certify_file(path, need - 4, tile_size, fixed_initializers=True).ok
    assert narrow.overflows > 0
    assert not np.array_equal(narrow.output, wide.output)


def test_no_sum_passes_the_proof(digits) -> None:
    path, x, _ = digits
    certificate = certify_file(path, tile_size=4, fixed_initializers=True)
    largest = emulate(path, x, 64, tile_size=4).largest_sums
    assert set(largest) == {e.name for e in certificate.entries}
    for entry in certificate.entries:
        assert 0 < largest[entry.name] <= max(-entry.minimum, entry.maximum)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.integers(-7, 7), min_size=3, max_size=3), min_size=1, max_size=3),
    st.integers(4, 12),
    st.sampled_from(["wrap", "saturate"]),
)
def test_a_model_overflows_on_some_input_if_and_only_if_it_is_not_certified(
    rows, bits, overflow
) -> None:
    graph = Graph("batch", 3)
    matrix = np.array(rows).T
    graph.op("MatMul", graph.quant(graph.input, 2, scale=1.0), graph.weight(matrix, 1.0))
    model = graph.model()
    corners = np.array(np.meshgrid([0, 3], [0, 3], [0, 3]), np.float32).reshape(3, -1).T
    result = emulate(model, corners, bits, overflow=overflow)
    # Hardware also holds -2^(P-1), which the symmetric range leaves out.
    asymmetric = (3 * np.minimum(matrix, 0).sum(axis=0) == -(2 ** (bits - 1))).any()
    if not asymmetric:
        assert certify_file(model, bits).ok == (result.overflows == 0)
    wide = emulate(model, corners, 64).output
    assert (result.overflows == 0) <= np.array_equal(result.output, wide)


def test_a_plan_narrows_one_layer(digits) -> None:
    path, x, _ = digits
    layer = certify_file(path, fixed_initializers=True).entries[0].layer
    result = emulate(path, x[:20], 64, plan=Plan({layer: LayerPrecision(accumulator=8)}))
    counts = list(result.overflow_counts.values())
    assert counts[0] > 0
    assert counts[1:] == [0, 0]
    with pytest.raises(InvalidPlan, match="gone"):
        emulate(path, x[:1], 64, plan=Plan({"gone": LayerPrecision()}))


def test_what_is_no_integer_product_runs_in_floating_point_and_is_named() -> None:
    graph = Graph(1, 3)
    graph.op("MatMul", graph.input, graph.constant(np.float32([[0.3], [1], [2]])), name="float")
    model, x = graph.model(), np.float32([[1, 2, 3]])
    result = emulate(model, x, 4)
    np.testing.assert_allclose(result.output, plain(model, x))
    assert list(result.float_nodes) == ["float"]


def test_batches_other_than_the_exported_one() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 64, (6, 3)).astype(np.float32)
    outputs = []
    for batch in (1, 2, 3, 6, "batch"):
        graph = Graph(batch, 3)
        graph.op("MatMul", graph.quant(graph.input), graph.weight([[1, -2], [3, 4], [5, 6]]))
        outputs.append(emulate(graph.model(), x, 64)["MatMul_2.out"])
    assert all(np.array_equal(outputs[0], other) for other in outputs)
    graph = Graph(4, 3)
    graph.op("MatMul", graph.quant(graph.input), graph.weight([[1], [3], [5]]))
    with pytest.raises(InvalidOption, match="does not divide into the model's batch of 4"):
        emulate(graph.model(), x, 64)


def test_several_inputs_and_outputs() -> None:
    graph = Graph(1, 2)
    graph.inputs.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2]))
    weight = graph.weight([[1], [2]])
    first = graph.op("MatMul", graph.quant(graph.input), weight)
    second = graph.op("MatMul", graph.quant("y"), weight)
    model = graph.model(first, second)
    x, y = np.float32([[1, 2], [3, 4]]), np.float32([[5, 6], [7, 8]])
    result = emulate(model, {"x": x, "y": y}, 64)
    assert result[first].ravel().tolist() == [2.5, 5.5]
    assert result[second].ravel().tolist() == [8.5, 11.5]
    for inputs, says in (
        (x, "2 inputs"),
        ({"x": x}, "inputs are x, y"),
        ({"x": x, "y": y[:1]}, "different batch"),
    ):
        with pytest.raises(InvalidOption, match=says):
            emulate(model, inputs, 64)
    with pytest.raises(InvalidOption, match="name one"):
        assert result.output is None


def test_inputs_whose_first_axes_are_no_batch() -> None:
    graph = Graph(6, 3)
    graph.inputs.append(helper.make_tensor_value_info("levels", TensorProto.FLOAT, [3, 7]))
    graph.op("MultiThreshold", graph.input, "levels", domain=QONNX, out_dtype="UINT3")
    x, levels = np.zeros((6, 3), np.float32), np.arange(-3, 4, dtype=np.float32)[None].repeat(3, 0)
    result = emulate(graph.model(), {"x": x, "levels": levels})
    assert np.array_equal(result.output, np.full((6, 3), 4))


def test_bad_arguments() -> None:
    model, x = linear([[1], [1]]), np.float32([[1, 2]])
    with pytest.raises(InvalidOption, match="'wrap' or 'saturate'"):
        emulate(model, x, 16, overflow="clip")
    with pytest.raises(AccumulatorTooNarrow):
        emulate(model, x, 1)
    with pytest.raises(InvalidOption, match=r"shape \[1, 3\], but the model takes \[1, 2\]"):
        emulate(model, np.zeros((1, 3)), 16)
    with pytest.raises(InvalidModelFile, match="not on the grid"):
        emulate(model, np.float32([[np.nan, 1]]), 16)
    with pytest.raises(InvalidModelFile, match="cannot be read"):
        emulate("none.onnx", x, 16)


def test_a_node_that_cannot_run_is_named() -> None:
    graph = Graph(1, 2)
    graph.op("Sigmoid", graph.op("Reshape", graph.input, graph.constant(np.array([7]))), name="s")
    with pytest.raises(InvalidModelFile, match="Reshape 'Reshape_0' cannot be executed") as raised:
        emulate(graph.model(), np.float32([[1, 2]]), 16)
    assert "\n" not in str(raised.value)
