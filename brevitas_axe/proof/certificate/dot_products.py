"""Finds the dot products of a graph, each as integer rows and an input range.

A convolution's row is its weights in PyTorch's order (input channel, kernel position); tiles are
cut in that order. A transposed convolution is the convolution of its input
with zeros inserted: every output is a sub-sum of the row, so the row's bounds hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from brevitas_axe.accumulator import required_bit_width, worst_case_sums
from brevitas_axe.errors import InvalidModelFile
from brevitas_axe.proof.certificate.hidden import Hidden, hardware
from brevitas_axe.proof.certificate.proof import Found, Integers
from brevitas_axe.proof.graph.grid import (
    Constant,
    Fact,
    Grid,
    Unknown,
    Unprovable,
    integer_constant,
    is_constant,
)
from brevitas_axe.proof.graph.modelfile import ModelFile, Node
from brevitas_axe.proof.graph.names import Names
from brevitas_axe.proof.graph.operators import CHANNELS_LAST, QONNX, fault, operator_set
from brevitas_axe.proof.graph.quantizers import constant_values
from brevitas_axe.proof.graph.shapes import Shapes

TensorFacts = dict[str, Fact]
DOT_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_MAX_DYNAMIC_INPUTS = 2**24
# Cost of Python integers, which sums beyond int64 need, relative to int64.
_OBJECT_COST = 32


def find(file: ModelFile, facts: TensorFacts) -> Iterator[Found]:
    """Every dot product of the main graph, and every node that may hide one."""
    names, shapes = Names(file), Shapes(file, facts)
    hidden = Hidden(file, facts, shapes)
    finn = hardware(file)
    if finn is not None:
        yield finn
    for node in file.nodes:
        shadowed = (node.domain, node.op) in hidden.functions
        if is_dot_product(node) and not shadowed:
            yield _describe(node, facts, names, shapes, file)
        else:
            yield from hidden.products(node)


def is_dot_product(node: Node) -> bool:
    """Whether a node is a dot product, by its operator."""
    group = operator_set(node)
    if group == QONNX:
        return node.op == "XnorPopcountMatMul"
    return node.op in DOT_PRODUCTS if group == "" else (group, node.op) == (CHANNELS_LAST, "Conv")


def operand(tensor: str, facts: TensorFacts) -> Grid:
    """A tensor as integers times a scale; raises Unprovable where it is not."""
    fact = facts[tensor]
    if isinstance(fact, Unknown):
        raise Unprovable(fact.reason)
    return integer_constant(fact) if isinstance(fact, Constant) else fact.widened


def weight_side(node: Node, facts: TensorFacts) -> int | None:
    """Index of a dot product's weight input: 1, 0, or None for two activations."""
    if node.op in ("Conv", "ConvTranspose") or is_constant(facts[node.inputs[1]]):
        return 1
    return 0 if is_constant(facts[node.inputs[0]]) else None


def rows_of(node: Node, side: int, shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Function that arranges weights as [rows, K], one row per accumulator.

    Args:
        node: the dot product.
        side: which input the weights are.
        shape: of the weights.
    """
    if node.op == "Conv" and operator_set(node) == CHANNELS_LAST:
        return lambda w: np.moveaxis(w, -1, 1).reshape(shape[0], -1)
    if node.op == "Conv":
        return lambda w: w.reshape(shape[0], -1)
    if node.op == "ConvTranspose":
        group = node.attribute("group", 1)
        if group < 1 or shape[0] % group:
            raise Unprovable(f"group {group} does not divide its {shape[0]} input channels")
        split = (group, shape[0] // group, shape[1], -1)
        return lambda w: w.reshape(split).swapaxes(1, 2).reshape(group * shape[1], -1)
    transposed = node.op == "Gemm" and node.attribute(("transA", "transB")[side], 0)
    if len(shape) == 1:
        return lambda w: w.reshape(1, -1)
    if bool(transposed) != (side == 0):
        return lambda w: w.reshape(-1, shape[-1])
    return lambda w: np.swapaxes(w, -1, -2).reshape(-1, shape[-2])


def _describe(
    node: Node, facts: TensorFacts, names: Names, shapes: Shapes, file: ModelFile
) -> Found:
    """A dot product with its integers, or with the reason why it has none."""
    found = Found(node.name, node.op)
    try:
        if len(node.inputs) < 2 or not all(node.inputs[:2]):
            raise Unprovable("it lacks an input")
        if reason := fault(node, file.opset()):
            raise Unprovable(reason)
        side = weight_side(node, facts)
        if side is None and isinstance(facts[node.inputs[1]], Unknown):
            side = 1 if names.initializer(node.inputs[1]) else None
        if side is None:
            found = replace(found, layer=names.product(node))
            return _of_activations(found, node, facts, shapes, file)
        tensor = node.inputs[side]
        found = replace(found, layer=names.layer(node, tensor), weight=names.initializer(tensor))
        weights = _labelled("weights", tensor, facts)
        if weights.integers is None:
            raise Unprovable("its weights are not constants of the file")
        found = replace(found, shape=weights.constant.shape, weight_type=weights.type)
        inputs = _labelled("input", node.inputs[1 - side], facts)
        found = replace(found, input_type=inputs.type, assumptions=inputs.assumptions)
        if node.op == "XnorPopcountMatMul":
            return replace(found, integers=_popcount(weights, inputs))
        if weights.asymmetric:
            raise Unprovable(
                "its weights have a zero point, and hardware multiplies the stored integers; use "
                "symmetric weights"
            )
        wide = max(weights.high, -weights.low) * max(inputs.high, -inputs.low) >= 2**40
        cost = weights.constant.size * (_OBJECT_COST if wide else 1)
        file.budget.spend(cost, "the sum of its products")
        integers = _integers(node, side, weights, inputs, facts, names)
        note = _moved_shift(integers, inputs)
        assumptions = (*found.assumptions, *note)
        return replace(found, integers=integers, assumptions=assumptions)
    except Unprovable as reason:
        return replace(found, reason=str(reason))
    except InvalidModelFile:
        raise
    except Exception as error:  # a malformed node must become a named entry, not a crash
        return replace(found, reason=f"it is malformed ({type(error).__name__})")


def _labelled(what: str, tensor: str, facts: TensorFacts) -> Grid:
    try:
        return operand(tensor, facts)
    except Unprovable as reason:
        verb = "are" if what == "weights" else "is"
        raise Unprovable(f"its {what} {verb} not quantized: {reason}") from None


def _integers(
    node: Node, side: int, weights: Grid, inputs: Grid, facts: TensorFacts, names: Names
) -> Integers:
    shape = weights.constant.shape
    if node.op in ("Conv", "ConvTranspose") and len(shape) < 3:
        raise Unprovable(f"its weights have the impossible shape {list(shape)}")
    lay = rows_of(node, side, shape)
    matrix = lay(weights.constant)
    scale = lay(np.broadcast_to(weights.scale, shape)) if not weights.scalar else weights.scale
    if scale.ndim == 2:
        if np.any(scale != scale[:, :1]):
            raise Unprovable("its weight scale varies inside one dot product (per group)")
        scale = scale[:, 0]
    step = scale.astype(np.float64) * _input_scale(node, side, shape, inputs)
    last = side == 1 or len(shape) < 2
    axis = -1 if last else -2
    if "Conv" in node.op and operator_set(node) != CHANNELS_LAST:
        axis = 1 - len(shape)
    gain = node.attribute("alpha", 1.0) if node.op == "Gemm" else 1.0
    return Integers(
        weights=matrix,
        low=min(inputs.low, 0),
        high=max(inputs.high, 0),
        bias=_bias(node, facts, names, matrix.shape[0], step, axis),
        rows_last=last,
        step=step * gain if gain else np.nan,
    )


def _popcount(weights: Grid, inputs: Grid) -> Integers:
    """XnorPopcountMatMul counts the positions in which its operands of zeros and ones agree."""
    for what, grid in (("weights", weights), ("input", inputs)):
        if grid.low < 0 or grid.high > 1 or not grid.scalar or grid.scale != 1:
            raise Unprovable(f"its {what} are not zeros and ones")
    if weights.constant.ndim != 2:
        raise Unprovable("its weights are no matrix")
    return Integers(weights=np.ones_like(weights.constant.T), low=0, high=1)


def _moved_shift(integers: Integers, inputs: Grid) -> tuple[str, ...]:
    """Assumption: the width needed where the Add in front of a product is moved behind it."""
    if inputs.unshifted is None:
        return ()
    low, high = min(inputs.unshifted[0], 0), max(inputs.unshifted[1], 0)
    here = worst_case_sums(integers.weights, integers.low, integers.high)
    there = worst_case_sums(integers.weights, low, high)
    bits, other = (required_bit_width(int(a.min()), int(b.max())) for a, b in (here, there))
    if other <= bits:
        return ()
    return (
        f"the Add before it is computed before the product; moved behind it, as FINN may do, the "
        f"accumulator needs {other} bits",
    )


def _input_scale(node: Node, side: int, shape: tuple[int, ...], inputs: Grid) -> np.ndarray:
    """Input scale per row (or scalar); NaN where it varies between outputs of one row."""
    scale = inputs.scale.astype(np.float64)
    if inputs.scalar:
        return scale.reshape(())
    mixed = Unprovable("its input has a scale per channel, so products of different scales meet")
    if node.op == "Conv" and node.domain == "":
        axes = (1,) * (len(shape) - scale.ndim) + scale.shape
        depthwise = shape[1] == 1 and node.attribute("group", 1) == scale.size == axes[1]
        if not depthwise or shape[0] % scale.size:
            raise mixed
        return np.repeat(scale.reshape(-1), shape[0] // scale.size)
    if node.op != "MatMul" or len(shape) < 2 or scale.ndim < 2 - side or scale.shape[side - 2] != 1:
        raise mixed
    return np.full((), np.nan)


def _bias(
    node: Node, facts: TensorFacts, names: Names, rows: int, step: np.ndarray, axis: int
) -> np.ndarray | None:
    """Bias in units of the accumulator, float64 [rows]; None when there is none for each row.

    Args:
        node: the dot product.
        facts: of all tensors.
        names: for the Add behind it.
        rows: how many there are.
        step: of the accumulator.
        axis: of the result, negative, along which the rows lie.
    """
    factor, tensor = 1.0, node.inputs[2] if len(node.inputs) > 2 else ""
    if node.op == "Gemm":
        factor = node.attribute("beta", 1.0) / node.attribute("alpha", 1.0)
    if not tensor:
        tensor, factor = names.added_after(node, facts), 1.0
    if not tensor:
        return None
    try:
        bias = constant_values(facts[tensor], "the bias").astype(np.float64)
    except Unprovable:
        return None
    if "Conv" in node.op and tensor == "".join(node.inputs[2:3]):
        axis = -1  # a convolution's own bias is a vector
    along = bias.shape[axis] if bias.ndim >= -axis else 1
    if bias.size not in (1, along) or bias.size not in (1, rows):
        return None
    return np.broadcast_to(bias.reshape(-1) * factor / step, rows)


def _of_activations(
    found: Found, node: Node, facts: TensorFacts, shapes: Shapes, file: ModelFile
) -> Found:
    """Product of two activations: K times the worst product."""
    left, right = (
        _labelled(f"{which} input", tensor, facts)
        for which, tensor in zip(("left", "right"), node.inputs[:2], strict=True)
    )
    found = replace(found, weight_type=right.type, input_type=left.type)
    if not (left.scalar and right.scalar):
        return replace(found, reason="its inputs have a scale per channel")
    transposed = node.op == "Gemm" and node.attribute("transA", 0)
    length = shapes.dimension(node.inputs[0], -2 if transposed else -1)
    if length is None or not 1 <= length <= _MAX_DYNAMIC_INPUTS:
        return replace(
            found,
            reason="it multiplies two activations and its length is not fixed by the input shape",
        )
    file.budget.spend(length, "the sum of its products")
    corners = [x * y for x in (left.low, left.high) for y in (right.low, right.high)]
    note = f"its length is {length}, as the declared input shape implies"
    return replace(
        found,
        integers=Integers(
            np.broadcast_to(np.int8(1), (1, length)), min(*corners, 0), max(*corners, 0)
        ),
        assumptions=tuple(dict.fromkeys((*left.assumptions, *right.assumptions, note))),
    )
