"""Streamlined graphs are those that qonnx's own steps give, at a cost that grows linearly."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.extract_conv_bias import ExtractBiasFromConv
from qonnx.transformation.fold_constants import FoldConstants
from qonnx.transformation.gemm_to_matmul import GemmToMatMul
from qonnx.transformation.general import GiveUniqueNodeNames, RemoveStaticGraphInputs
from qonnx.transformation.infer_shapes import InferShapes

from brevitas_axe.export import execution, indexed
from brevitas_axe.export.execution import Execution
from brevitas_axe.export.indexed import IndexedGraph
from brevitas_axe.export.streamline import streamlined

QONNX = "qonnx.custom_op.general"
FLAGS = {"signed": 1, "narrow": 1, "rounding_mode": "ROUND"}


class Net:
    """A graph that is written node by node."""

    def __init__(self, *shape: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.values = np.random.default_rng(0)
        self.shape, self.last = shape, "x"

    def constant(self, name: str, values) -> str:
        if all(tensor.name != name for tensor in self.constants):
            self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def random(self, name: str, *shape: int) -> str:
        return self.constant(name, self.values.normal(size=shape).astype(np.float32))

    def add(self, op: str, *inputs: str, **attributes) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [*inputs], [output], **attributes))
        self.last = output
        return output

    def quant(self, tensor: str, scale: str = "scale") -> str:
        self.constant("scale", np.float32(0.25))
        self.constant("zero", np.float32(0))
        self.constant("bits", np.float32(4))
        return self.add("Quant", tensor, scale, "zero", "bits", domain=QONNX, **FLAGS)

    def conv(self, channels: int, outputs: int, bias: str = "constant") -> None:
        n = len(self.nodes)
        image = self.quant(self.last)
        weight = self.quant(self.random(f"w{n}", outputs, channels, 3, 3))
        inputs = [image, weight]
        if bias != "none":
            inputs.append(self.random(f"b{n}", outputs))
        if bias == "quantized":
            inputs[2] = self.quant(inputs[2])
        self.add("Conv", *inputs, pads=[1, 1, 1, 1])

    def model(self, inputs: list | None = None) -> onnx.ModelProto:
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        output = helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)
        graph = helper.make_graph(
            self.nodes, "g", [value, *(inputs or [])], [output], self.constants
        )
        opsets = [helper.make_opsetid("", 13), helper.make_opsetid(QONNX, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def by_qonnx(proto: onnx.ModelProto) -> onnx.ModelProto:
    wrapped = ModelWrapper(proto, make_deepcopy=True)
    known = {name for node in proto.graph.node for name in (*node.input, *node.output)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in (
            *(RemoveStaticGraphInputs(), InferShapes(), FoldConstants(), GiveUniqueNodeNames()),
            *(GemmToMatMul(), ExtractBiasFromConv(), InferShapes(), GiveUniqueNodeNames()),
        ):
            wrapped = wrapped.transform(step)
    for node in wrapped.graph.node:
        for index, name in enumerate(node.input):
            if name and name not in known:
                known.add(f"{node.name}_input_{index}")
                wrapped.rename_tensor(name, f"{node.name}_input_{index}")
    return wrapped.model


def content(proto: onnx.ModelProto) -> dict:
    """Everything of a graph but the order of its tables."""

    def types(values) -> dict:
        kinds = {value.name: value.type.tensor_type for value in values}
        return {
            name: (kind.elem_type, [d.dim_value for d in kind.shape.dim])
            for name, kind in kinds.items()
        }

    def attributes(node) -> dict:
        return {a.name: helper.get_attribute_value(a) for a in node.attribute}

    graph = proto.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    return {
        "nodes": [
            (n.name, n.op_type, n.domain, [*n.input], [*n.output], attributes(n))
            for n in graph.node
        ],
        "constants": {n: (v.dtype, v.shape, v.tolist()) for n, v in constants.items()},
        "types": types(graph.value_info),
        "inputs": types(graph.input),
        "outputs": types(graph.output),
    }


def same_values(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    shape = [d.dim_value for d in before.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    expected = Execution(before)({"x": x})
    found = Execution(after)({"x": x})
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judged = execute_onnx(ModelWrapper(after), {"x": x})
    for name, values in judged.items():
        np.testing.assert_array_equal(found[name], values)


def convolutions(bias: str) -> Net:
    net = Net(1, 2, 5, 5)
    net.conv(2, 3, bias)
    first = net.add("Relu", net.last)
    net.conv(3, 3, bias)
    net.add("Add", net.constant("one", np.float32([1.0])), net.add("Add", first, net.last))
    return net


def reshaped() -> Net:
    """A shape that is computed from another shape, which is known only after the first is."""
    net = convolutions("constant")
    whole = net.add("Shape", net.last)
    batch = net.add("Gather", whole, net.constant("first", np.int64([0])), axis=0)
    shape = net.add("Concat", batch, net.constant("rest", np.int64([-1])), axis=0)
    flat = net.add("Reshape", net.nodes[-4].output[0], shape)
    again = net.add("Concat", net.add("Shape", flat), net.constant("end", np.int64([1])), axis=0)
    net.add("Reshape", flat, again)
    return net


@pytest.mark.parametrize("bias", ["none", "constant"])
def test_convolutions_are_as_qonnx_separates_them(bias):
    proto = convolutions(bias).model()
    found = streamlined(proto)
    assert content(found) == content(by_qonnx(proto))
    assert all(len(n.input) == 2 for n in found.graph.node if n.op_type == "Conv")
    same_values(proto, found)


def test_a_quantized_bias_becomes_the_constant_it_is():
    proto = convolutions("quantized").model()
    found = streamlined(proto)
    same_values(proto, found)
    assert sum(node.op_type == "Quant" for node in found.graph.node) == 4, "weights and images"
    assert all(len(n.input) == 2 for n in found.graph.node if n.op_type == "Conv")


def test_shapes_that_are_computed_are_constants_as_in_qonnx():
    proto = reshaped().model()
    found = streamlined(proto)
    assert content(found) == content(by_qonnx(proto))
    assert not any(node.op_type in ("Shape", "Gather", "Concat") for node in found.graph.node)
    same_values(proto, found)


@given(
    flags=st.tuples(st.booleans(), st.booleans()),
    alpha=st.sampled_from([1.0, 0.5]),
    beta=st.sampled_from([1.0, -2.0]),
    bias=st.sampled_from(["none", "zero", "constant", "computed"]),
)
@settings(max_examples=40, deadline=None)
def test_a_general_product_becomes_one_node_a_step(flags, alpha, beta, bias):
    net = Net(4, 4)
    image, weight = net.quant("x"), net.quant(net.random("w", 4, 4))
    inputs = [image, weight]
    if bias == "constant":
        inputs.append(net.random("b", 4))
    elif bias == "zero":
        inputs.append(net.constant("b", np.zeros(4, np.float32)))
    elif bias == "computed":
        inputs.append(net.add("Relu", "x"))
    net.add("Gemm", *inputs, transA=flags[0], transB=flags[1], alpha=alpha, beta=beta)
    proto = net.model()
    found = streamlined(proto)
    assert not any(node.op_type == "Gemm" for node in found.graph.node)
    same_values(proto, found)
    if bias == "constant" and alpha == beta == 1:  # of others qonnx makes float64 constants
        assert content(found) == content(by_qonnx(proto))


def test_a_constant_that_two_nodes_read_is_changed_for_neither():
    net = Net(1, 3, 5, 5)
    image, shared = net.quant("x"), net.random("b", 3)
    weight = net.quant(net.random("w", 3, 3, 3, 3))
    net.add("Conv", image, weight, shared, pads=[1, 1, 1, 1])
    shape = net.constant("shape", np.int64([3, 1, 1]))
    net.add("Mul", net.last, net.add("Reshape", shared, shape))
    proto = net.model()
    found = streamlined(proto)
    assert not any(node.op_type == "Reshape" for node in found.graph.node)
    same_values(proto, found)


def test_weights_that_are_listed_as_inputs_are_constants():
    net = convolutions("constant")
    listed = [
        helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        for t in net.constants
        if t.name.startswith("w")
    ]
    found = streamlined(net.model(listed))
    assert [value.name for value in found.graph.input] == ["x"]
    assert content(found) == content(streamlined(net.model()))


def deep(layers: int) -> onnx.ModelProto:
    net = Net(1, 2, 5, 5)
    for _ in range(layers):
        net.conv(2, 2)
        net.add("Relu", net.last)
        shape = net.add("Concat", net.constant("s", np.int64([1, 2])), "e", axis=0)
        net.constant("e", np.int64([5, 5]))
        net.add("Reshape", net.nodes[-2].output[0], shape)
    return net.model()


def test_twice_the_layers_need_twice_the_steps(monkeypatch):
    counts = {"nodes": 0, "passes": 0}

    def counted(name, function):
        def call(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(indexed, "run_node", counted("nodes", execution.run_node))
    infer = IndexedGraph.infer_shapes
    monkeypatch.setattr(IndexedGraph, "infer_shapes", counted("passes", infer))
    seen = []
    for layers in (10, 20):
        counts.update(nodes=0, passes=0)
        found = streamlined(deep(layers))
        assert len(found.graph.node) == layers * 6
        seen.append(dict(counts))
    assert seen[1]["nodes"] == 2 * seen[0]["nodes"] == 20
    assert seen[1]["passes"] == seen[0]["passes"] <= 4
