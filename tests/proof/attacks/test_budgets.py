"""Small files that ask for much: refused or named before it is spent."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from brevitas_axe.errors import InvalidModelFile, InvalidOption
from brevitas_axe.proof.certificate import certify_file
from brevitas_axe.proof.emulator import emulate
from tests.proof.certificate.graphs import QONNX, Graph, linear


def test_a_range_of_2_to_the_40_beside_a_product() -> None:
    graph = Graph(1, 2)
    numbers = (graph.constant(np.array(n)) for n in (0, 2**40, 1))
    x = graph.quant(graph.input)
    graph.op("MatMul", x, graph.op("Expand", x, graph.op("Range", *numbers)))
    certify_file(graph.model())


def test_functions_that_call_each_other_twice() -> None:
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("l", 1)]
    functions = []
    for index in range(40):
        called = f"f{index + 1}"
        pairs = (("a", "c"), ("c", "b"))
        nodes = [helper.make_node(called, [a], [b], domain="l") for a, b in pairs]
        functions.append(helper.make_function("l", f"f{index}", ["a"], ["b"], nodes, opsets))
    graph = Graph(1, 2)
    graph.op("MatMul", graph.op("f0", graph.quant(graph.input), domain="l"), graph.input)
    assert not certify_file(graph.model(functions=functions)).ok


def test_doubling_constants_share_one_budget() -> None:
    graph = Graph(1, 2)
    weight = graph.weight([[1], [1]])
    for _ in range(22):
        weight = graph.op("Concat", weight, weight, axis=1)
    for _ in range(40):
        graph.op("Concat", weight, weight, axis=1)
    graph.op("MatMul", graph.quant(graph.input), weight)
    assert "too large" in certify_file(graph.model()).entries[0].reason


def test_factors_that_broadcast_against_each_other() -> None:
    graph = Graph(1, 1)
    row = graph.constant(np.arange(1, 10**5, dtype=np.float32).reshape(1, -1))
    column = graph.constant(np.arange(1, 10**5, dtype=np.float32).reshape(-1, 1))
    x = graph.op("Mul", graph.op("Mul", graph.quant(graph.input), row), column)
    graph.op("MatMul", x, graph.weight([[1]]))
    assert "too large" in certify_file(graph.model()).entries[0].reason


def test_a_scale_that_broadcasts_against_its_weights() -> None:
    graph = Graph(1, 10**5)
    row = np.arange(1, 10**5, dtype=np.float32).reshape(1, -1)
    graph.op("MatMul", graph.quant(graph.input), graph.quant(
        graph.constant(np.ones((10**5, 1), np.float32)), 4, 1, row))  # fmt: skip
    assert "does not fit" in certify_file(graph.model()).entries[0].reason


def test_many_quantizers_of_one_weight() -> None:
    graph = Graph(1, 300)
    x, weight = graph.quant(graph.input), graph.constant(np.ones((300, 300), np.float32))
    parameters = [graph.constant(np.float32(v)) for v in (1, 0, 4)]
    for _ in range(400):
        graph.op("MatMul", x, graph.op("Quant", weight, *parameters, domain=QONNX))
    assert any("too large" in e.reason for e in certify_file(graph.model()).entries)


def test_an_absurd_bit_width() -> None:
    assert "bit width" in certify_file(linear([[1]], bits=10**9)).entries[0].reason


def test_weights_behind_a_cast() -> None:
    graph = Graph(1, 2)
    weight = graph.op("Cast", graph.constant(np.int8([[3], [4]])), to=TensorProto.FLOAT)
    graph.op("MatMul", graph.quant(graph.input), weight)
    assert certify_file(graph.model()).entries[0].maximum == 7 * 255


def test_a_negative_length() -> None:
    model = linear([[1], [1]])
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -1
    for use in (certify_file, lambda m: emulate(m, np.ones((1, 2), np.float32))):
        with pytest.raises(InvalidModelFile, match="negative length"):
            use(model)


def doubling(graph: Graph) -> str:
    x = graph.quant(graph.input)
    for _ in range(30):
        x = graph.op("Concat", x, x, axis=1)
    return x


GROWING = {
    "concat": doubling,
    "tile": lambda g: g.op("Tile", g.input, g.constant(np.array([2**20, 2**10]))),
    "expand": lambda g: g.op("Expand", g.input, g.constant(np.array([2**33, 1, 2]))),
    "constant": lambda g: g.op("ConstantOfShape", g.constant(np.array([2**33]))),
    "range": lambda g: g.op("Range", *(g.constant(np.array(n)) for n in (0, 2**33, 1))),
    "pad": lambda g: g.op("Pad", g.input, g.constant(np.array([0, 2**32, 0, 0]))),
    "random": lambda g: g.op("RandomNormal", shape=[2**33]),
    "one hot": lambda g: g.op(
        "OneHot", g.constant(np.array([1])), g.constant(np.array(2**33)), g.constant([0.0, 1.0])
    ),
    "transposed": lambda g: g.op(
        "ConvTranspose", g.op("Reshape", g.input, g.constant(np.array([1, 1, 1, 2]))),
        g.constant(np.ones((1, 1, 1, 1), np.float32)), strides=[1, 2**33],
    ),
    "padded": lambda g: g.op(
        "Conv", g.op("Reshape", g.input, g.constant(np.array([1, 1, 1, 2]))),
        g.constant(np.ones((1, 1, 1, 1), np.float32)), pads=[2**16] * 4,
    ),
}  # fmt: skip


def test_many_nodes_that_read_much_are_refused() -> None:
    graph = Graph(1, 2**16)
    turned = graph.op("Transpose", graph.quant(graph.input))
    for _ in range(4000):
        graph.op("MatMul", graph.input, turned)
    with pytest.raises(InvalidModelFile, match=r"read more than|more nodes"):
        emulate(graph.model(), np.ones((1, 2**16), np.float32))


def test_branches_of_many_inputs_are_refused() -> None:
    graph = Graph(1, 2)
    flag, values = graph.constant(np.array(True)), [f"v{index}" for index in range(3000)]
    for name in values:
        graph.nodes.append(helper.make_node("Relu", [graph.input], [name]))
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Sum", values, ["y"])], "b", [], [value])
    for _ in range(8):
        graph.op("If", flag, then_branch=branch, else_branch=branch)
    with pytest.raises(InvalidModelFile, match="more nodes"):
        emulate(graph.model(), np.ones((1, 2), np.float32))


@pytest.mark.parametrize("name", GROWING)
def test_results_that_grow_are_refused_before_they_are_computed(name) -> None:
    graph = Graph(1, 2)
    output = GROWING[name](graph)
    with pytest.raises(InvalidModelFile, match=r"too much memory|too many products|not known"):
        emulate(graph.model(output), np.ones((1, 2), np.float32))


@pytest.mark.parametrize("types", [{"y": "UINT8"}, {"x": "FLOAT32"}, {"x": "INT99999999999"}])
def test_declared_types_that_mean_nothing(types) -> None:
    with pytest.raises(InvalidOption, match="input"):
        certify_file(linear([[1], [1]]), input_types=types)
