"""What is known of every tensor of a graph, in one pass over its nodes.

A walk in execution order, not back from each dot product: no recursion, and every tensor is
judged once. An operator that is not listed here makes its outputs Unknown, never wrong.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from brevitas_axe.errors import InvalidModelFile
from brevitas_axe.proof.graph.arithmetic import ARITHMETIC
from brevitas_axe.proof.graph.grid import Constant, Fact, Grid, Unknown, Unprovable, exact_integers
from brevitas_axe.proof.graph.modelfile import ModelFile, Node, plain_domain, shown
from brevitas_axe.proof.graph.moves import MOVES, QONNX_MOVES, Rule, split_parts
from brevitas_axe.proof.graph.quantizers import (
    QUANTIZERS,
    STANDARD_QUANTIZERS,
    Reading,
    datatype_range,
)

QONNX_DOMAINS = (
    "qonnx.custom_op.general",
    "finn.custom_op.general",
    "onnx.brevitas",
    "finn",
)
_STANDARD: dict[str, Rule] = {**STANDARD_QUANTIZERS, **MOVES, **ARITHMETIC}
_QONNX: dict[str, Rule] = {**QUANTIZERS, **QONNX_MOVES}


def analyse(file: ModelFile, honour_narrow: bool = False) -> dict[str, Fact]:
    """Facts of every tensor of the main graph.

    Args:
        file: the checked model.
        honour_narrow: see Reading.

    Returns:
        tensor name → Grid, Constant or Unknown.
    """
    facts = _given(file)
    reading = Reading(honour_narrow, file.opset())
    functions = local_functions(file)
    with np.errstate(all="ignore"):
        for node in file.nodes:
            if (node.domain, node.op) in functions:
                judged = [Unknown(f"it comes from local function '{node.name}'")]
            else:
                judged = _judge(node, [facts[i] for i in node.inputs if i], reading, file)
            for index, output in enumerate(node.outputs):
                unknown = Unknown(f"it is output {index} of {shown(node.op)} '{node.name}'")
                facts[output] = judged[index] if index < len(judged) else unknown
    return facts


def local_functions(file: ModelFile) -> dict[tuple[str, str], onnx.FunctionProto]:
    """(domain, name) → function that the file defines itself; it may shadow an operator."""
    return {(plain_domain(f.domain), f.name): f for f in file.model.functions}


def _given(file: ModelFile) -> dict[str, Fact]:
    """Facts of initializers and graph inputs."""
    facts: dict[str, Fact] = {}
    for value in file.graph.input:
        facts[value.name] = _graph_input(value, file)
    for sparse in file.graph.sparse_initializer:
        facts[sparse.values.name] = Unknown(f"'{shown(sparse.values.name)}' is sparse")
    for tensor in file.graph.initializer:
        constant = Constant(file.array(tensor), shown(tensor.name), tensor.data_type)
        facts[tensor.name] = _annotated(constant, file.types.get(tensor.name, ""))
    return facts


def _graph_input(value: onnx.ValueInfoProto, file: ModelFile) -> Fact:
    name, declared = shown(value.name), file.types.get(value.name, "")
    kind = value.type.tensor_type.elem_type
    stored = onnx.TensorProto.DataType.Name(kind) if kind in range(1, 26) else ""
    try:
        # An integer element type is a guarantee; an annotation is only a promise.
        low, high = datatype_range(stored, "element type")
        return Grid(np.ones(()), low, high, stored)
    except Unprovable:
        pass
    try:
        low, high = datatype_range(declared, "datatype")
    except Unprovable:
        return Unknown(f"graph input '{name}' is not quantized")
    promise = f"graph input '{name}' holds {declared} integers, as the file annotates"
    return Grid(np.ones(()), low, high, declared, assumptions=(promise,))


def _annotated(constant: Constant, declared: str) -> Fact:
    """A constant whose integer annotation is true is a grid of scale 1."""
    if declared.startswith("SCALEDINT"):
        return replace(
            constant,
            note=f"'{constant.name}' is annotated {declared}, but its scale is not in the file",
        )
    try:
        low, high = datatype_range(declared, "datatype")
    except Unprovable:
        return constant
    integers = exact_integers(constant.values)
    if integers is None or integers.min() < low or integers.max() > high:
        note = f"'{constant.name}' is annotated {declared}, but holds other values"
        return replace(constant, note=note)
    ends = int(integers.min()), int(integers.max())
    return Grid(np.ones(()), *ends, declared, integers, weight=constant.name)


def _judge(node: Node, facts: list[Fact], reading: Reading, file: ModelFile) -> list[Fact]:
    """Facts of a node's first outputs; the others are Unknown."""
    if node.domain == "" and node.op == "Constant":
        return [_constant_node(node, file)]
    table = _QONNX if node.domain in QONNX_DOMAINS else _STANDARD if node.domain == "" else {}
    try:
        if node.domain == "" and node.op == "Split":
            return split_parts(node, facts, reading)
        if node.op not in table:
            raise Unprovable(f"it comes from {shown(node.op)} '{node.name}', no quantizer")
        return [table[node.op](node, facts, reading)]
    except Unprovable as reason:
        return [Unknown(str(reason))]
    except InvalidModelFile:
        raise
    except Exception as error:  # a malformed node must become a named entry, not a crash
        return [Unknown(f"{shown(node.op)} '{node.name}' is malformed ({type(error).__name__})")]


def _constant_node(node: Node, file: ModelFile) -> Fact:
    for attribute in node.proto.attribute:
        if attribute.name == "value" and attribute.HasField("t"):
            constant = Constant(file.array(attribute.t), node.name, attribute.t.data_type)
        elif attribute.name in ("value_float", "value_floats"):
            numbers = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            values = np.asarray(numbers, np.float32)
            constant = Constant(values, node.name, onnx.TensorProto.FLOAT)
        elif attribute.name in ("value_int", "value_ints"):
            numbers = attribute.i if attribute.name == "value_int" else list(attribute.ints)
            constant = Constant(np.asarray(numbers, np.int64), node.name, onnx.TensorProto.INT64)
        else:
            continue
        return _annotated(constant, file.types.get(node.outputs[0], ""))
    return Unknown(f"constant '{node.name}' is neither tensor nor number")
