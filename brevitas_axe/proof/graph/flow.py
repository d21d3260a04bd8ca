"""What is known of every tensor of a graph, in one pass over its nodes.

The pass is in execution order, not back from each dot product: no recursion, and every tensor is
judged once. An operator that is not listed here, or that carries an attribute or input which its
definition does not have, makes its outputs Unknown, never wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from brevitas_axe.errors import InvalidModelFile, InvalidOption
from brevitas_axe.proof.graph.arithmetic import ARITHMETIC
from brevitas_axe.proof.graph.grid import Constant, Fact, Grid, Unknown, Unprovable, exact_integers
from brevitas_axe.proof.graph.minifloats import float_quant
from brevitas_axe.proof.graph.modelfile import ModelFile, Node, plain_domain, shown
from brevitas_axe.proof.graph.moves import MOVES, QONNX_MOVES, Rule, split_parts
from brevitas_axe.proof.graph.operators import CHANNELS_LAST, QONNX, fault, operator_set
from brevitas_axe.proof.graph.quantizers import (
    QUANTIZERS,
    STANDARD_QUANTIZERS,
    Reading,
    datatype_range,
)

_STANDARD: dict[str, Rule] = {**STANDARD_QUANTIZERS, **MOVES, **ARITHMETIC}
_TABLES: dict[str, dict[str, Rule]] = {
    "": _STANDARD,
    QONNX: {**QUANTIZERS, "FloatQuant": float_quant, **QONNX_MOVES},
    CHANNELS_LAST: {"MaxPool": MOVES["MaxPool"]},
}
# Rules that can handle an omitted input in front of a given one.
_GAPS = ("Clip", "Dropout", "Resize", "Pad", "Slice")
_MAX_ASSUMPTIONS = 64
# By the bytes of a scale; QONNX's operators give float32 even where a scale is more precise.
_LARGEST = {2: 65504.0, 4: float(np.finfo(np.float32).max), 8: float(np.finfo(np.float32).max)}


def analyse(
    file: ModelFile,
    honour_narrow: bool = False,
    input_types: Mapping[str, str] | None = None,
    fixed_initializers: bool = True,
) -> dict[str, Fact]:
    """Facts of every tensor of the main graph.

    Args:
        file: the checked model.
        honour_narrow: see Reading.
        input_types: graph input → qonnx integer DataType that its values are known to have.
        fixed_initializers: no caller replaces an initializer that is a graph input too.

    Returns:
        tensor name → Grid, Constant or Unknown.

    Raises:
        InvalidOption: input_types names no graph input, or no integer type.
    """
    facts = _given(file, input_types or {}, fixed_initializers)
    imports = {o.domain: o.version for o in file.model.opset_import}
    reading = Reading(honour_narrow, file.opset(), file.budget, imports)
    functions = local_functions(file)
    with np.errstate(all="ignore"):
        for node in file.nodes:
            if (node.domain, node.op) in functions:
                judged = [Unknown(f"it comes from local function '{node.name}'")]
            else:
                judged = _judge(node, facts, reading, file)
            for index, output in enumerate(node.outputs):
                unknown = Unknown(f"it is output {index} of {shown(node.op)} '{node.name}'")
                facts[output] = judged[index] if index < len(judged) else unknown
    return facts


def local_functions(file: ModelFile) -> dict[tuple[str, str], onnx.FunctionProto]:
    """(domain, name) → function that the file defines itself; it may shadow an operator."""
    return {(plain_domain(f.domain), f.name): f for f in file.model.functions}


def _given(file: ModelFile, input_types: Mapping[str, str], fixed: bool) -> dict[str, Fact]:
    """Facts of initializers and graph inputs."""
    facts: dict[str, Fact] = {}
    for value in file.graph.input:
        facts[value.name] = _graph_input(value, file, input_types.get(value.name, ""))
    for name in input_types:
        if name not in facts:
            raise InvalidOption(
                f"an input type is given for '{name}', but the inputs of {file.subject} are: "
                f"{', '.join(map(shown, facts)) or 'none'}."
            )
    for sparse in file.graph.sparse_initializer:
        facts[sparse.values.name] = Unknown(f"'{shown(sparse.values.name)}' is sparse")
    for tensor in file.graph.initializer:
        constant = Constant(file.array(tensor), shown(tensor.name), tensor.data_type)
        # Since IR version 4 a caller may pass a graph input, which then replaces its initializer.
        if tensor.name in facts and file.model.ir_version >= 4 and not fixed:
            facts[tensor.name] = Unknown(
                f"'{shown(tensor.name)}' is a graph input too, so that a caller may replace its "
                "values; take it off the graph's inputs, or say fixed_initializers"
            )
        else:
            facts[tensor.name] = _annotated(constant, file.types.get(tensor.name, ""))
    return facts


def _graph_input(value: onnx.ValueInfoProto, file: ModelFile, given_type: str) -> Fact:
    name, declared = shown(value.name), file.types.get(value.name, "")
    if given_type:
        try:
            low, high = datatype_range(given_type, "datatype")
        except Unprovable:
            raise InvalidOption(
                f"the type of input '{name}' is '{given_type[:40]}', but it must be an integer "
                "type of qonnx, such as UINT8 or INT4."
            ) from None
        promise = f"graph input '{name}' holds {given_type} integers, as the caller declares"
        return Grid(
            np.ones(()), low, high, given_type, assumptions=(promise,), wraps=_integral(value)
        )
    kind = value.type.tensor_type.elem_type
    stored = onnx.TensorProto.DataType.Name(kind) if kind in range(1, 26) else ""
    try:
        # An integer element type is a guarantee; an annotation is only a promise.
        low, high = datatype_range(stored, "element type")
        return Grid(np.ones(()), low, high, stored, wraps=True)
    except Unprovable:
        pass
    try:
        low, high = datatype_range(declared, "datatype")
    except Unprovable:
        return Unknown(f"graph input '{name}' is not quantized")
    promise = f"graph input '{name}' holds {declared} integers, as the file annotates"
    return Grid(np.ones(()), low, high, declared, assumptions=(promise,))


def _integral(value: onnx.ValueInfoProto) -> bool:
    """True when a graph input has an element type in which arithmetic wraps around."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    return value.type.tensor_type.elem_type not in floats


def _annotated(constant: Constant, declared: str) -> Fact:
    """A constant as a grid of scale 1, if its integer annotation is true."""
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
    return Grid(
        *(np.ones(()), *ends, declared, integers),
        weight=constant.name,
        stored=constant.onnx_type,
        wraps=constant.values.dtype.kind != "f",
    )


def _judge(node: Node, facts: Mapping[str, Fact], reading: Reading, file: ModelFile) -> list[Fact]:
    """Facts of a node's first outputs; the others are Unknown."""
    group = operator_set(node)
    if group == "" and node.op == "Constant":
        return [_constant_node(node, file)]
    table = _TABLES.get(group, {})
    try:
        if node.op not in table and not (group == "" and node.op == "Split"):
            raise Unprovable(f"it comes from {shown(node.op)} '{node.name}', no quantizer")
        if reason := fault(node, reading.opset):
            raise Unprovable(reason)
        given = _given_inputs(node, facts)
        reading.budget.spend(sum(map(_size, given)), f"what '{node.name}' takes")
        if group == "" and node.op == "Split":
            return split_parts(node, given, reading)
        return [_bounded(table[node.op](node, given, reading), node)]
    except Unprovable as reason:
        return [Unknown(str(reason))]
    except InvalidModelFile:
        raise
    except Exception as error:  # a malformed node must become a named entry, not a crash
        return [Unknown(f"{shown(node.op)} '{node.name}' is malformed ({type(error).__name__})")]


def _given_inputs(node: Node, facts: Mapping[str, Fact]) -> list[Any]:
    """Facts of a node's inputs; None for one that is omitted in front of others."""
    names = node.inputs
    while names and not names[-1]:
        names.pop()
    given = [facts[name] if name else None for name in names]
    if None in given[:1] or (None in given and node.op not in _GAPS):
        raise Unprovable(f"{shown(node.op)} '{node.name}' leaves an input out")
    # Only a shift of the whole tensor can make the counted and the declared range agree.
    shift = node.op in ("Add", "Sub")
    return [f.widened if isinstance(f, Grid) and not shift else f for f in given]


def _size(fact: Fact | None) -> int:
    """Elements that a rule may look at."""
    if isinstance(fact, Grid):
        return fact.scale.size + (0 if fact.integers is None else fact.integers.size)
    return fact.values.size if isinstance(fact, Constant) else 0


def _bounded(fact: Fact, node: Node) -> Fact:
    if isinstance(fact, Grid) and len(fact.assumptions) > _MAX_ASSUMPTIONS:
        raise Unprovable(f"'{node.name}' rests on more than {_MAX_ASSUMPTIONS} assumptions")
    if isinstance(fact, Grid):
        largest = max(-fact.low, fact.high) * float(np.abs(fact.scale).max(initial=0))
        if not largest <= _LARGEST[fact.scale.dtype.itemsize]:
            raise Unprovable(f"'{node.name}' has values that its floating-point type cannot hold")
    return fact


def _constant_node(node: Node, file: ModelFile) -> Fact:
    if len(node.proto.attribute) != 1:
        return Unknown(f"constant '{node.name}' does not have exactly one value")
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
