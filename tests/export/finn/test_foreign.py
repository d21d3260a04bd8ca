"""Files that others wrote: what a check says of them, and that none of them costs much."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper

from brevitas_axe.errors import AxeError, InvalidModelFile
from brevitas_axe.export import check_finn
from tests.proof.certificate.graphs import Graph

SECONDS, MEBIBYTES = 10, 1024


def thresholds(graph: Graph, x: str, **attributes) -> str:
    levels = graph.constant(np.arange(3, dtype=np.float32).reshape(1, 3))
    return graph.op("MultiThreshold", x, levels, domain="qonnx.custom_op.general", **attributes)


def rules(graph: Graph, **options) -> set[str]:
    return {finding.rule for finding in check_finn(graph.model(), **options)}


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        ({"out_dtype": "UINT2"}, set()),
        ({"out_dtype": "INT2", "out_bias": -2.0}, set()),
        ({"out_dtype": "UINT2", "out_scale": 0.5}, {"thresholds"}),
    ],
)
def test_thresholds_of_a_file(attributes: dict, found: set[str]) -> None:
    graph = Graph(1, 4)
    graph.op("MatMul", thresholds(graph, graph.input, **attributes), graph.weight([[1], [1]] * 2))
    assert rules(graph) == found


def test_an_annotated_input_is_integers() -> None:
    graph = Graph(1, 2)
    graph.op("MatMul", graph.input, graph.weight([[1], [1]]))
    assert rules(graph) == {"float_input"}
    model = graph.model()
    entry = onnx.TensorAnnotation(tensor_name=graph.input)
    entry.quant_parameter_tensor_names.add(key="finn_datatype", value="UINT8")
    model.graph.quantization_annotation.append(entry)
    assert check_finn(model) == []


def test_nodes_that_are_hardware_already() -> None:
    graph = Graph(1, 2)
    graph.op("MVAU_hls", graph.input, domain="finn.custom_op.fpgadataflow.hls")
    (note,) = check_finn(graph.model(), notes=True)
    assert (note.rule, note.severity) == ("hardware", "note")
    assert "already FINN hardware" in note.problem


def huge_range(graph: Graph) -> None:
    numbers = (graph.constant(np.array(n)) for n in (0, 2**40, 1))
    x = graph.quant(graph.input)
    graph.op("MatMul", x, graph.op("Expand", x, graph.op("Range", *numbers)))


def doubling(graph: Graph) -> None:
    weight = graph.constant(np.ones((2, 1), np.float32))
    for _ in range(26):
        weight = graph.op("Concat", weight, weight, axis=1)
    graph.op("MatMul", graph.quant(graph.input), weight)


def shared_constant(graph: Graph) -> None:
    weight = graph.constant(np.ones((2, 2**16), np.float32))
    for _ in range(2000):
        graph.op("MatMul", graph.input, weight)


def many_products(graph: Graph) -> None:
    x, weight = graph.quant(graph.input), graph.weight(np.ones((2, 2**15)))
    for _ in range(2000):
        graph.op("MatMul", x, weight)


def outer_product(graph: Graph) -> None:
    row = graph.constant(np.arange(1, 10**5, dtype=np.float32).reshape(1, -1))
    column = graph.constant(np.arange(1, 10**5, dtype=np.float32).reshape(-1, 1))
    x = graph.op("Mul", graph.op("Mul", graph.quant(graph.input), row), column)
    graph.op("MatMul", x, graph.weight([[1]]))


def wide_quantizer(graph: Graph) -> None:
    x = graph.op("MatMul", graph.quant(graph.input), graph.weight([[1], [1]]))
    scale, zero, bits = (graph.constant(np.float32(v)) for v in (0.5, 0, 31))
    graph.op("Quant", x, scale, zero, bits, domain="qonnx.custom_op.general", signed=1)


def many_levels(graph: Graph) -> None:
    x = graph.op("MatMul", graph.quant(graph.input), graph.weight(np.ones((2, 2**15))))
    scale, zero, bits = (graph.constant(np.float32(v)) for v in (0.5, 0, 8))
    graph.op("Quant", x, scale, zero, bits, domain="qonnx.custom_op.general", signed=1)


def forks(graph: Graph) -> None:
    x, zero = graph.input, graph.constant(np.float32(0))
    scale = graph.constant(np.float32(1))
    x = graph.op("BipolarQuant", x, scale, domain="qonnx.custom_op.general")
    for _ in range(60):
        x = graph.op("Reshape", x, x)
    graph.op("Add", x, zero)


def channels_last(graph: Graph) -> None:
    weight = graph.constant(np.ones((2**16, 1), np.float32))
    for _ in range(4):
        kernel: dict = {
            "kernel_shape": [1],
            "strides": [1],
            "pads": [2**24, 2**24],
            "dilations": [1],
        }
        graph.op(
            "Conv", graph.input, weight, domain="qonnx.custom_op.channels_last", group=1, **kernel
        )


@pytest.mark.parametrize(
    "attack",
    [
        *(huge_range, doubling, shared_constant, many_products, outer_product, wide_quantizer),
        *(many_levels, forks, channels_last),
    ],
)
def test_small_files_cost_little(attack: Callable[[Graph], None]) -> None:
    graph = Graph(1, 2)
    attack(graph)
    model, start = graph.model(), time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(AxeError):
        check_finn(model)
    assert time.process_time() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEBIBYTES * 1024


def test_functions_that_call_each_other_twice() -> None:
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("l", 1)]
    functions = []
    for index in range(40):
        pairs = (("a", "c"), ("c", "b"))
        nodes = [helper.make_node(f"f{index + 1}", [a], [b], domain="l") for a, b in pairs]
        functions.append(helper.make_function("l", f"f{index}", ["a"], ["b"], nodes, opsets))
    graph = Graph(1, 2)
    one = graph.constant(np.ones((2, 1), np.float32))
    x = graph.quant(graph.op("f0", graph.input, domain="l"))
    graph.op("MatMul", x, graph.op("f0", one, domain="l"))
    start = time.process_time()
    with contextlib.suppress(AxeError):
        check_finn(graph.model(functions=functions))
    assert time.process_time() - start < SECONDS


def test_more_nodes_than_a_file_of_its_size_may_have() -> None:
    graph = Graph(1, 2)
    x = graph.quant(graph.input)
    for _ in range(5000):
        x = graph.op("Relu", x)
    with pytest.raises(InvalidModelFile, match="5001 nodes"):
        check_finn(graph.model())
