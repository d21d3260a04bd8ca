"""What is known of every tensor of a graph, in one pass over its nodes.

A walk in execution order, not back from each dot product: no recursion, and every tensor is
judged once. An operator that is not listed here makes its outputs Unknown, never wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from brevitas_axe.certify.grid import (
    Constant,
    Fact,
    Grid,
    Unknown,
    Unprovable,
    checked_scale,
    exact_integers,
)
from brevitas_axe.certify.modelfile import ModelFile, Node, shown
from brevitas_axe.certify.quantizers import (
    QUANTIZERS,
    STANDARD_QUANTIZERS,
    Reading,
    constant_values,
    datatype_range,
)
from brevitas_axe.errors import InvalidModelFile

QONNX_DOMAINS = (
    "qonnx.custom_op.general",
    "finn.custom_op.general",
    "onnx.brevitas",
    "finn",
)
_MAX_FOLDED = 2**27

Rule = Callable[[Node, list[Fact], Reading], Grid]


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
    functions = {(f.domain, f.name) for f in file.model.functions}
    with np.errstate(all="ignore"):
        for node in file.nodes:
            local = (node.proto.domain, node.op) in functions
            fact = Unknown(f"'{node.name}' is a local function") if local else None
            fact = fact or _judge(node, [facts[i] for i in node.inputs if i], reading, file)
            for index, output in enumerate(node.outputs):
                if output:
                    first = index == 0 or (node.op == "Split" and not isinstance(fact, Constant))
                    facts[output] = fact if first else Unknown(f"a second output of {node.op}")
            if node.op == "Split" and isinstance(fact, Grid) and fact.integers is not None:
                facts.update(_split_constant(node, facts, reading))
    return facts


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
    return Grid(
        np.ones(()), *ends, declared, integers, weight=constant.name, hints=(constant.name,)
    )


def _judge(node: Node, facts: list[Fact], reading: Reading, file: ModelFile) -> Fact:
    """Fact of a node's first output."""
    if node.op == "Constant" and node.domain == "":
        return _constant_node(node, file)
    rule = _rule(node)
    if rule is None:
        return Unknown(f"it comes from {shown(node.op)} '{node.name}', which is no quantizer")
    try:
        return rule(node, facts, reading)
    except Unprovable as reason:
        return Unknown(str(reason))
    except InvalidModelFile:
        raise
    except Exception as error:  # a malformed node must become a named entry, not a crash
        return Unknown(f"{shown(node.op)} '{node.name}' is malformed ({type(error).__name__})")


def _rule(node: Node) -> Rule | None:
    if node.domain in QONNX_DOMAINS:
        return QUANTIZERS.get(node.op) or _QONNX_MOVES.get(node.op)
    if node.domain != "":
        return None
    if node.op in STANDARD_QUANTIZERS:
        return STANDARD_QUANTIZERS[node.op]
    return _RULES.get(node.op)


def _constant_node(node: Node, file: ModelFile) -> Fact:
    for attribute in node.proto.attribute:
        if attribute.name == "value" and attribute.HasField("t"):
            constant = Constant(file.array(attribute.t), node.name, attribute.t.data_type)
        elif attribute.name in ("value_float", "value_floats"):
            numbers = [attribute.f] if attribute.name == "value_float" else attribute.floats
            constant = Constant(np.float32(numbers), node.name, onnx.TensorProto.FLOAT)
        elif attribute.name in ("value_int", "value_ints"):
            numbers = attribute.i if attribute.name == "value_int" else list(attribute.ints)
            constant = Constant(np.asarray(numbers, np.int64), node.name, onnx.TensorProto.INT64)
        else:
            continue
        return _annotated(constant, file.types.get(node.outputs[0], ""))
    return Unknown(f"constant '{node.name}' is neither tensor nor number")


def _split_constant(node: Node, facts: dict[str, Fact], reading: Reading) -> dict[str, Fact]:
    """Every part of a constant grid that is split (packed query, key and value weights)."""
    source = facts[node.inputs[0]]
    more = [constant_values(facts[i], "the split") for i in node.inputs[1:] if i]
    parts = {}
    for index, output in enumerate(node.outputs):
        parts[output] = source.mapped(
            lambda array, i=index: _run(node, [array, *more], reading)[i]
        )
    return parts


def _run(node: Node, arrays: list[np.ndarray], reading: Reading) -> list[np.ndarray]:
    """A standard operator on constants, by onnx's reference implementation."""
    names = [i for i in node.inputs if i]
    inputs = [onnx.helper.make_tensor_value_info(n, 0, None) for n in dict.fromkeys(names)]
    outputs = [onnx.helper.make_tensor_value_info(n, 0, None) for n in node.outputs]
    graph = onnx.helper.make_graph([node.proto], "one", inputs, outputs)
    opset = onnx.helper.make_opsetid("", reading.opset)
    model = onnx.helper.make_model(graph, opset_imports=[opset])
    return ReferenceEvaluator(model).run(None, dict(zip(names, arrays, strict=True)))


def _moves(pads_zero: bool = False, selects: bool = False, folds: bool = True) -> Rule:
    """Rule of an operator that only moves, repeats or drops elements of its first input.

    Args:
        pads_zero: it may insert zeros.
        selects: it keeps elements apart by channel, so a scale per channel survives.
        folds: constants go through it too (an operator that can blow them up does not).
    """

    def rule(node: Node, facts: list[Fact], reading: Reading) -> Fact:
        source = facts[0]
        if isinstance(source, Unknown):
            return source
        constant = isinstance(source, Constant) or source.integers is not None
        if constant:
            arrays = [constant_values(f, f"an input of '{node.name}'") for f in facts[1:]]
            size = source.values.size if isinstance(source, Constant) else source.integers.size
            size *= max((a.size for a in arrays), default=1) if node.op == "Gather" else 1
            if not folds or size > _MAX_FOLDED:
                raise Unprovable(f"{node.op} '{node.name}' of a constant is not followed")

            def run(array: np.ndarray) -> np.ndarray:
                return np.asarray(_run(node, [array, *arrays], reading)[0])

            if isinstance(source, Constant):
                return replace(source, values=run(source.values))
            return source.mapped(run)
        if not source.scalar and not selects:
            raise Unprovable(f"{node.op} '{node.name}' mixes channels of different scales")
        if not pads_zero:
            return source
        return replace(source, low=min(source.low, 0), high=max(source.high, 0))

    return rule


def _pad(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    value = node.attribute("value", 0.0)
    if len(facts) > 2:
        value = constant_values(facts[2], f"the value of Pad '{node.name}'")
    if node.attribute("mode", "constant") == "constant" and np.any(np.asarray(value) != 0):
        raise Unprovable(f"Pad '{node.name}' pads with a value other than 0")
    return _moves(pads_zero=True, folds=False)(node, facts, reading)


def _im2col(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    if node.attribute("pad_value", 0) != 0:
        raise Unprovable(f"Im2Col '{node.name}' pads with a value other than 0")
    return _moves(pads_zero=True, folds=False)(node, facts, reading)


def _resize(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    crop = node.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    if node.attribute("mode", "nearest") != "nearest" or crop:
        raise Unprovable(f"{node.op} '{node.name}' interpolates between values")
    return _moves(selects=True, folds=False)(node, facts, reading)


def _cast(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
    if node.attribute("to", 0) not in kinds:
        raise Unprovable(f"Cast '{node.name}' changes values")
    return _moves(selects=True)(node, facts, reading)


def _relu(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    source = _dynamic(node, facts[0])
    if np.any(source.scale < 0):
        raise Unprovable(f"Relu '{node.name}' of a negative scale is not followed")
    return replace(source, low=max(source.low, 0), high=max(source.high, 0))


def _clip(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    source = facts[0]
    bounds = [constant_values(f, f"a bound of Clip '{node.name}'") for f in facts[1:]]
    if not bounds and reading.opset < 11:
        bounds = [np.float32(node.attribute(k, d)) for k, d in (("min", -3e38), ("max", 3e38))]
    if len(bounds) != 2 or any(b.size != 1 for b in bounds):
        raise Unprovable(f"Clip '{node.name}' has no two constant bounds")
    if isinstance(source, Constant):
        return replace(source, values=np.clip(source.values, *bounds))
    if not isinstance(source, Grid) or not source.scalar or source.scale < 0:
        raise Unprovable(f"Clip '{node.name}' of this tensor is not followed")
    low, high = (float(b.reshape(-1)[0]) / float(source.scale) for b in bounds)
    low, high = max(low, float(source.low)), min(high, float(source.high))
    if low != int(low) or high != int(high) or low > high:
        raise Unprovable(f"the bounds of Clip '{node.name}' are no multiples of the scale")
    if source.integers is None:
        return replace(source, low=int(low), high=int(high))
    return source.mapped(lambda array: np.clip(array, int(low), int(high)))


def _concat(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    grids = [_grid(node, fact) for fact in facts]
    if all(grid.integers is not None for grid in grids):
        if sum(grid.integers.size for grid in grids) > _MAX_FOLDED:
            raise Unprovable(f"Concat '{node.name}' of constants is too large")
        integers = _run(node, [grid.integers for grid in grids], reading)[0]
        scales = [np.broadcast_to(grid.scale, grid.integers.shape) for grid in grids]
        scale = checked_scale(_run(node, scales, reading)[0], node.name)
        return replace(
            grids[0],
            integers=integers,
            scale=scale,
            low=min(grid.low for grid in grids),
            high=max(grid.high for grid in grids),
            asymmetric=any(grid.asymmetric for grid in grids),
        )
    return _united(node, grids)


def _where(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    return _united(node, [_grid(node, fact) for fact in facts[1:]])


def _united(node: Node, grids: list[Grid]) -> Grid:
    """Smallest range that holds every one of them, on their common scale."""
    _same_scale(node, grids)
    widest = max(grids, key=lambda grid: grid.high - grid.low)
    return Grid(
        scale=grids[0].scale,
        low=min(grid.low for grid in grids),
        high=max(grid.high for grid in grids),
        type=widest.type,
        asymmetric=any(grid.asymmetric for grid in grids),
        assumptions=tuple(dict.fromkeys(a for grid in grids for a in grid.assumptions)),
    )


def _add(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    left, right = facts
    if isinstance(left, Constant):
        left, right = right, left
    if isinstance(right, Constant):
        return _shifted(node, left, right)
    grids = [_grid(node, left), _grid(node, right)]
    _same_scale(node, grids)
    if any(grid.asymmetric for grid in grids):
        raise Unprovable(f"Add '{node.name}' adds tensors with zero points")
    low, high = sum(grid.low for grid in grids), sum(grid.high for grid in grids)
    united = _united(node, grids)
    ends = np.array([low, high], dtype=object)
    bits = max(int(ends[1]).bit_length(), (-int(ends[0]) - 1).bit_length() if low < 0 else 0)
    return replace(
        united, low=low, high=high, type=f"INT{bits + 1}" if low < 0 else f"UINT{max(bits, 1)}"
    )


def _shifted(node: Node, fact: Fact, constant: Constant, sign: int = 1) -> Grid:
    """A grid plus whole steps of it, as FINN writes signed activations."""
    source = _dynamic(node, fact)
    if not source.scalar:
        raise Unprovable(f"{node.op} '{node.name}' shifts a tensor with several scales")
    steps = exact_integers(sign * constant.values.astype(np.float64) / float(source.scale))
    if steps is None:
        raise Unprovable(f"{node.op} '{node.name}' shifts by no whole number of steps")
    low, high = source.low + int(steps.min()), source.high + int(steps.max())
    return replace(source, low=low, high=high)


def _sub(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    if not isinstance(facts[1], Constant):
        raise Unprovable(f"Sub '{node.name}' of two activations is not followed")
    return _shifted(node, facts[0], facts[1], sign=-1)


def _mul(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    """A grid times constants keeps its integers: only the scale changes."""
    left, right = facts
    if not isinstance(left, Grid):
        left, right = right, left
    if isinstance(left, Grid) and isinstance(right, Grid) and left.integers is None:
        # Of two grids the constant one is the scale, unless the other is constant too.
        left, right = (left, right) if right.integers is not None else (right, left)
    source, factor = _grid(node, left), constant_values(right, f"a factor of '{node.name}'")
    return _rescaled(node, source, source.scale * factor)


def _div(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    divisor = constant_values(facts[1], f"the divisor of '{node.name}'")
    source = _grid(node, facts[0])
    return _rescaled(node, source, source.scale / divisor)


def _rescaled(node: Node, source: Grid, scale: np.ndarray) -> Grid:
    scale = checked_scale(np.asarray(scale, np.result_type(scale, np.float32)), f"'{node.name}'")
    if source.integers is not None and np.broadcast_shapes(
        scale.shape, source.integers.shape
    ) != source.integers.shape:
        raise Unprovable(f"the factor of '{node.name}' does not fit its tensor")
    return replace(source, scale=scale)


def _same_scale(node: Node, grids: list[Grid]) -> None:
    if any(not g.scalar or g.scale.reshape(()) != grids[0].scale.reshape(-1)[0] for g in grids):
        raise Unprovable(
            f"{node.op} '{node.name}' joins tensors of different scales; share one quantizer"
        )


def _grid(node: Node, fact: Fact) -> Grid:
    if isinstance(fact, Unknown):
        raise Unprovable(fact.reason)
    if isinstance(fact, Constant):
        raise Unprovable(f"{node.op} '{node.name}' takes an unquantized constant")
    return fact


def _dynamic(node: Node, fact: Fact) -> Grid:
    grid = _grid(node, fact)
    if grid.integers is not None:
        raise Unprovable(f"{node.op} '{node.name}' of a constant is not followed")
    return grid


_RULES: dict[str, Rule] = {
    **{op: _moves() for op in ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")},
    **{op: _moves() for op in ("Slice", "Gather", "Split")},
    **{op: _moves(folds=False) for op in ("Expand", "Tile", "DepthToSpace", "SpaceToDepth")},
    **{op: _moves(folds=False) for op in ("GatherElements", "GatherND", "ReduceMax", "ReduceMin")},
    **{op: _moves(selects=True) for op in ("Identity", "Dropout")},
    **{op: _moves(selects=True, folds=False) for op in ("MaxPool", "GlobalMaxPool")},
    "Trilu": _moves(pads_zero=True, folds=False),
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
    "Cast": _cast,
    "Relu": _relu,
    "Clip": _clip,
    "Concat": _concat,
    "Where": _where,
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
}
_QONNX_MOVES: dict[str, Rule] = {"Im2Col": _im2col, "MaxPoolNHWC": _moves(folds=False)}
