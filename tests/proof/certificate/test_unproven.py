"""What cannot be proven is named, makes the verdict False, and never passes for proven."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from brevitas_axe.proof.certificate import certify_file
from tests.proof.certificate.graphs import QONNX, Graph, linear


def refuses(model: onnx.ModelProto, says: str, entries: int = 1) -> None:
    certificate = certify_file(model, 60)
    assert not certificate.ok
    assert len(certificate.entries) == entries
    reasons = [e.reason for e in certificate.failures]
    assert any(says in reason for reason in reasons), reasons
    assert all("\n" not in reason for reason in reasons)
    # A reason that someone accepts can be taken out by name, and only so.
    names = [e.name for e in certificate.failures]
    assert certify_file(model, 60, exclude=names).failures == ()


def matmul(prepare_input=None, prepare_weight=None) -> onnx.ModelProto:
    """One MatMul whose input or weight is prepared by a function of the graph."""
    graph = Graph(1, 2)
    x = prepare_input(graph) if prepare_input else graph.quant(graph.input)
    weight = prepare_weight(graph) if prepare_weight else graph.weight([[1], [1]])
    graph.op("MatMul", x, weight, name="fc")
    return graph.model()


@pytest.mark.parametrize(
    ("quantizer", "says"),
    [
        ({"bits": 0}, "bit width"),
        ({"bits": float("nan")}, "bit width"),
        ({"bits": 3.5}, "bit width"),
        ({"bits": -4}, "bit width"),
        ({"bits": 1000}, "bit width"),
        ({"scale": 0.0}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"zero_point": 0.5}, "zero point"),
        ({"zero_point": float("nan")}, "zero point"),
        ({"scale": [0.25, 0.5]}, "scale per channel"),
    ],
)
def test_an_input_quantizer_that_says_nothing(quantizer, says) -> None:
    refuses(matmul(lambda g: g.quant(g.input, **quantizer)), says)


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (lambda g: g.constant(np.float32([[0.3], [1]])), "not integers"),
        (lambda g: g.constant(np.float32([[np.nan], [1]])), "not integers"),
        (lambda g: g.weight([[np.nan], [1]]), "infinite or NaN"),
        (lambda g: g.weight([[np.inf], [1]]), "infinite or NaN"),
        (lambda g: g.constant(np.float32([[9], [1]]), "w", "INT4"), "holds other values"),
        (lambda g: g.constant(np.float32([[0.5], [1]]), "w", "SCALEDINT<4>"), "scale is not in"),
        (lambda g: g.quant(g.constant([[0.5], [1.0]]), 4, 1, 0.5, zero_point=1), "zero point"),
        (lambda g: g.weight([[1], [1]], scale=[[0.5], [0.25]]), "per group"),
        (lambda g: g.quant(g.constant([[0.5], [1.0]]), 4, 1, 0.0), "scale that is 0"),
        (lambda g: g.quant(g.constant([[0.5], [1.0]]), 40, 1), "wider than"),
        (lambda g: g.quant(g.constant([[0.5], [1.0]]), 4, rounding_mode="X"), "rounding mode"),
        (lambda g: g.constant(np.zeros((2, 0), np.float32)), ""),
    ],
)
def test_weights_that_are_no_integers(weight, says) -> None:
    refuses(matmul(prepare_weight=weight), says)


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda g: g.input, "graph input 'x' is not quantized"),
        (lambda g: g.op("Sigmoid", g.quant(g.input)), "it comes from Sigmoid"),
        (lambda g: g.op("Add", g.quant(g.input), g.quant(g.input, scale=0.3)), "different scales"),
        (
            lambda g: g.op("Add", g.quant(g.input, zero_point=1), g.quant(g.input, zero_point=1)),
            "zero points",
        ),
        (lambda g: g.op("Add", g.quant(g.input), g.constant([0.1])), "no whole number of steps"),
        (lambda g: g.op("Concat", g.quant(g.input), g.input, axis=0), "graph input 'x'"),
        (lambda g: g.op("Cast", g.quant(g.input), to=onnx.TensorProto.FLOAT16), "changes values"),
        (
            lambda g: g.op("Clip", g.quant(g.input), g.constant([0.0]), g.constant([0.3])),
            "no multiples of the scale",
        ),
        (
            lambda g: g.op(
                "Pad", g.quant(g.input), g.constant(np.array([0, 0, 0, 0])), g.constant([0.5])
            ),
            "other than 0",
        ),
        (
            lambda g: g.op(
                "Dropout", g.quant(g.input), g.constant([0.5]), g.constant(np.array(True))
            ),
            "training mode",
        ),
        (lambda g: g.op("Relu", g.quant(g.input, 4, 1, scale=-0.5)), "negative scale"),
        (lambda g: g.op("Quant", g.input, domain=QONNX), "inputs instead of 4"),
        (
            lambda g: g.op(
                "Trunc", g.input, *(g.constant([v]) for v in (1.0, 0.0, 8.0, 4.0)), domain=QONNX
            ),
            "version 1",
        ),
        (
            lambda g: g.op(
                "MultiThreshold", g.input, g.constant([[0.0]]), domain=QONNX, out_dtype="FLOAT32"
            ),
            "no integer datatype",
        ),
        (
            lambda g: g.op(
                "MultiThreshold", g.input, g.constant([[0.0]]), domain=QONNX, out_dtype="UINT1",
                out_scale=0.5, out_bias=0.3,
            ),
            "no multiple of its out_scale",
        ),
    ],
)  # fmt: skip
def test_inputs_that_leave_the_grid(prepare, says) -> None:
    refuses(matmul(prepare), says)


def test_interpolation_is_named_beside_what_it_feeds() -> None:
    resized = matmul(lambda g: g.op("Resize", g.quant(g.input), mode="linear"))
    refuses(resized, "interpolates", entries=2)


def test_the_rest_of_a_bad_file_is_still_proven() -> None:
    graph = Graph(1, 2)
    x = graph.op("MatMul", graph.quant(graph.input), graph.weight([[1], [1]]), name="good")
    graph.op("MatMul", x, graph.weight([[1]], name="b.weight"), name="bad")
    good, bad = certify_file(graph.model(), 16).entries
    assert good.fits
    assert (bad.name, bad.layer, bad.proven) == ("bad", "b", False)


@pytest.mark.parametrize(
    "op",
    [
        *("MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul", "Einsum"),
        *("LSTM", "GRU", "RNN", "DeformConv", "Attention"),
    ],
)
def test_other_operators_that_multiply(op) -> None:
    graph = Graph(1, 2)
    graph.op(op, graph.quant(graph.input), name="hidden")
    refuses(graph.model(), f"operator {op} is not supported")


@pytest.mark.parametrize(
    ("op", "domain"),
    [
        *(("FusedMatMul", "com.microsoft"), ("Conv", QONNX)),
        *(("LinearClassifier", "ai.onnx.ml"), ("NoSuchOp", ""), ("Quant", "ai.onnx" + QONNX)),
    ],
)
def test_unknown_operators_may_hide_products(op, domain) -> None:
    graph = Graph(1, 2)
    graph.op(op, graph.quant(graph.input), name="hidden", domain=domain)
    refuses(graph.model(), "unknown" if not domain else "may hide dot products")


def test_a_product_summed_by_hand() -> None:
    graph = Graph(1, 2)
    product = graph.op("Mul", graph.quant(graph.input), graph.constant(np.float32([[3, 4]])))
    graph.op("ReduceSum", product, graph.constant(np.array([1])))
    refuses(graph.model(), "it sums the products")


def branch(op: str) -> onnx.GraphProto:
    value = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node(op, ["x", "x"], ["y"])], "branch", [], [value])


def test_products_inside_control_flow() -> None:
    for op, hidden in (("MatMul", True), ("Add", False)):
        graph = Graph(2, 2)
        condition = graph.constant(np.array(True))
        graph.op("If", condition, name="if", then_branch=branch(op), else_branch=branch("Sub"))
        certificate = certify_file(graph.model(), 60)
        assert bool(certificate.entries) == hidden
        assert not certificate.ok
        if hidden:
            assert "subgraph contains 'MatMul'" in certificate.entries[0].reason


def function(name: str, op: str, domain: str = "local", inner: str = "") -> onnx.FunctionProto:
    node = helper.make_node(op, ["a", "a"], ["b"], domain=inner)
    opsets = [helper.make_opsetid(d, 13) for d in {"", "local", QONNX}]
    return helper.make_function(domain, name, ["a"], ["b"], [node], opsets)


@pytest.mark.parametrize(
    ("functions", "hidden"),
    [
        ([function("f", "MatMul")], True),
        ([function("f", "Add")], False),
        ([function("f", "g", inner="local"), function("g", "Add")], True),
        ([function("f", "f", inner="local")], True),
    ],
)
def test_products_inside_local_functions(functions, hidden) -> None:
    graph = Graph(2, 2)
    graph.op("f", graph.quant(graph.input), domain="local", name="call")
    entries = certify_file(graph.model(functions=functions), 60).entries
    assert bool(entries) == hidden
    if hidden:
        assert "inline it" in entries[0].reason


def test_a_local_function_cannot_pass_for_an_operator() -> None:
    # MatMul and Quant are redefined; what they do is no longer what their names say.
    refuses_as = [function("MatMul", "Conv", domain=""), function("MatMul", "Conv", "ai.onnx")]
    for shadow in refuses_as:
        model = linear([[1], [1]])
        model.functions.append(shadow)
        refuses(model, "local function 'MatMul' has the name of an operator")
    model = linear([[1], [1]])
    model.functions.append(function("Quant", "Add", domain=QONNX))
    refuses(model, "it comes from local function", entries=3)


def test_sparse_weights() -> None:
    model = linear([[1], [1]])
    sparse = onnx.SparseTensorProto(dims=[2, 1])
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(np.float32([1]), "sparse"))
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(np.array([0]), "indices"))
    model.graph.sparse_initializer.append(sparse)
    model.graph.node[-1].input[1] = "sparse"
    refuses(model, "")


def test_a_malformed_dot_product_is_named() -> None:
    for inputs in (["q"], ["q", "q", "q"]):
        graph = Graph(1, 2)
        graph.quant(graph.input, name="q")
        graph.nodes.append(helper.make_node("Conv", [f"{i}.out" for i in inputs], ["y"], name="c"))
        certificate = certify_file(graph.model(), 60)
        assert [(e.name, e.proven) for e in certificate.entries] == [("c", False)]


def test_a_constant_bomb_is_not_evaluated() -> None:
    graph = Graph(1, 2)
    weight = graph.weight([[1], [1]])
    for _ in range(64):
        weight = graph.op("Concat", weight, weight, axis=1)
    graph.op("MatMul", graph.quant(graph.input), weight)
    refuses(graph.model(), "too large")


def test_a_huge_expansion_is_not_evaluated() -> None:
    graph = Graph(1, 2)
    weight = graph.op("Expand", graph.weight([[1], [1]]), graph.constant(np.array([2, 2**40])))
    graph.op("MatMul", graph.quant(graph.input), weight)
    refuses(graph.model(), "of a constant is not followed")


def test_a_very_deep_graph() -> None:
    graph = Graph(1, 2)
    x = graph.quant(graph.input)
    for _ in range(5000):
        x = graph.op("Identity", x)
    graph.op("MatMul", x, graph.weight([[1], [1]]))
    assert certify_file(graph.model(), 16).ok
