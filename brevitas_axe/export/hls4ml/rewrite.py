"""Rewrites a QONNX graph into the form in which hls4ml computes exactly.

hls4ml turns a quantizer into a fixed-point type if its scale is one power of two. Weights with
other scales are written as plain integers, and their exact scale follows behind the accumulator,
with batch norms and with biases that are no multiples of the accumulator's unit: one
BatchNormalization
with the gain and the offset of each channel. Nothing else changes, except names: a node gets the
name of its layer.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper
from qonnx.core.modelwrapper import ModelWrapper

from brevitas_axe.export.hls4ml.averages import QUANT_DOMAIN, averages_as_convolutions
from brevitas_axe.export.hls4ml.fixed import power_of_two
from brevitas_axe.proof.certificate.dot_products import find
from brevitas_axe.proof.certificate.proof import Integers
from brevitas_axe.proof.graph.flow import analyse
from brevitas_axe.proof.graph.grid import Fact, Grid, Unprovable, covering_type, is_constant
from brevitas_axe.proof.graph.modelfile import ModelFile, Node, read
from brevitas_axe.proof.graph.names import Names
from brevitas_axe.proof.graph.quantizers import constant_values

_NOT_IN_NAMES = re.compile(r"\W+")
_EXACT = 2.0**-40


@dataclass(frozen=True, eq=False)
class Dot:
    """A dot product of the rewritten graph.

    Attributes:
        name: its node.
        layer: its module, or its node in the original file.
        integers: of its accumulator; `step` is one unit of its accumulator, `bias` in these units.
        exponent: one unit is 2^exponent.
        weight_exponent: one unit of the weights is 2^weight_exponent.
        gain, offset: float64 [rows], applied behind the accumulator; None where nothing is.
        affine: name of the node that applies them.
    """

    name: str
    layer: str
    integers: Integers
    exponent: int
    weight_exponent: int
    gain: np.ndarray | None = None
    offset: np.ndarray | None = None
    affine: str = ""


class Rewriting:
    """One pass over the dot products of a graph, which is changed in place."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.model = ModelWrapper(proto)
        self.file: ModelFile = read(proto)
        with np.errstate(all="ignore"):
            self.facts: dict[str, Fact] = analyse(self.file)
        self.names = Names(self.file)
        self.found = {found.name: found for found in find(self.file, self.facts)}
        self._taken: set[str] = set()
        self._uses = {t: 0 for node in self.file.nodes for t in node.inputs}
        for node in self.file.nodes:
            for tensor in node.inputs:
                self._uses[tensor] += 1
        for output in self.file.graph.output:
            self._uses[output.name] = self._uses.get(output.name, 0) + 2

    def name(self, wish: str) -> str:
        """A valid C++ name, which differs from all others in more than upper and lower case."""
        plain = _NOT_IN_NAMES.sub("_", wish).strip("_") or "layer"
        plain = f"layer_{plain}" if plain[0].isdigit() else plain
        chosen, number = plain, 1
        while chosen.lower() in self._taken:
            number += 1
            chosen = f"{plain}_{number}"
        self._taken.add(chosen.lower())
        return chosen

    def readers(self, tensor: str) -> int:
        """Number of nodes that read a tensor."""
        return sum(tensor in node.inputs for node in self.file.nodes)

    def constant(self, name: str, values: np.ndarray) -> str:
        """A new initializer."""
        self.model.set_initializer(name, np.asarray(values, np.float32))
        return name

    def affine_after(self, node: Node) -> tuple[np.ndarray, np.ndarray, list[Node]]:
        """Gain and offset per channel of the constants that follow a dot product.

        Returns:
            (gain [rows] or scalar, offset likewise, the nodes that they replace), possibly none.
        """
        gain, offset, chain = np.ones(1), np.zeros(1), []
        tensor = node.outputs[0]
        while self._uses.get(tensor) == 1:
            follower = next(n for n in self.file.nodes if tensor in n.inputs)
            change = self._affine(follower, tensor)
            if change is None:
                break
            gain, offset = gain * change[0], offset * change[0] + change[1]
            chain.append(follower)
            tensor = follower.outputs[0]
        return gain, offset, chain

    def _affine(self, node: Node, tensor: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Gain and offset of one node per channel; None if it is no such node."""
        others = [name for name in node.inputs if name != tensor]
        if node.op not in ("Add", "Sub", "Mul", "Div", "BatchNormalization") or not all(
            is_constant(self.facts[name]) for name in others
        ):
            return None
        constants = [
            constant_values(self.facts[name], name).astype(np.float64).reshape(-1)
            for name in others
        ]
        if node.op == "BatchNormalization":
            gamma, beta, mean, variance = constants
            gain = gamma / np.sqrt(variance + node.attribute("epsilon", 1e-5))
            return gain, beta - gain * mean
        value = constants[0]
        if value.size not in (1, self._channels(node.outputs[0])):
            return None
        if node.op == "Add":
            return np.ones(1), value
        if node.op == "Mul":
            return value, np.zeros(1)
        if node.inputs[0] != tensor:
            return None  # constant - x, constant / x
        return (np.ones(1), -value) if node.op == "Sub" else (1 / value, np.zeros(1))

    def _channels(self, tensor: str) -> int:
        shape = self.model.get_tensor_shape(tensor) or [0, 0]
        return shape[-1] if len(shape) == 2 else shape[1]


def rewrite(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Dot]]:
    """A graph whose dot products have integers on power-of-two grids.

    Args:
        proto: a streamlined QONNX graph that `check_hls4ml` accepts; not modified.

    Returns:
        (the graph, its dot products in execution order).
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # qonnx warns about opsets newer than its table
        averages_as_convolutions(copied)
        state = Rewriting(copied)
        dots = [
            _rewrite(node, state)
            for node in state.file.nodes
            if node.name in state.found and state.found[node.name].integers is not None
        ]
        _rename(state, {dot.name for dot in dots} | {dot.affine for dot in dots})
        _drop_unused(copied)
    return copied, dots


def _rewrite(node: Node, state: Rewriting) -> Dot:
    found = state.found[node.name]
    integers, weights = found.integers, state.facts[node.inputs[1]]
    if integers is None or not isinstance(weights, Grid):
        raise Unprovable(f"'{node.name}' has no integers")
    rows = integers.weights.shape[0]
    gain, offset, chain = state.affine_after(node)
    source = state.facts[node.inputs[0]]
    input_exponent = power_of_two(source.scale) if isinstance(source, Grid) else None
    scale = np.asarray(weights.scale, np.float64)
    exponent = power_of_two(scale)
    name = state.name(found.layer or node.name)
    units = None
    if exponent is not None and input_exponent is not None and bool(np.all(gain == 1)):
        units = _whole(offset / 2.0 ** (exponent + input_exponent), rows)
    forked = node.op == "MatMul" and bool(chain) and state.readers(chain[-1].outputs[0]) > 1
    inside = units is not None and not forked
    written = exponent if inside and exponent is not None else 0
    _write_weight(node, name, weights, written, state)
    unit = written + (input_exponent or 0)
    placed = Integers(integers.weights, integers.low, integers.high, units, step=2.0**unit)
    node.proto.name = name
    layer = found.layer or found.name
    if inside:
        _bias_inside(node, name, chain, offset, rows, state)
        return Dot(name, layer, placed, unit, written)
    per_row = _per_row(scale, weights.constant.shape, node, rows)
    total = np.broadcast_to(gain, rows) * per_row
    affine = state.name(f"{name}_scale")
    _affine_behind(node, affine, chain, total, np.broadcast_to(offset, rows), state)
    placed = Integers(integers.weights, integers.low, integers.high, None, step=2.0**unit)
    exact = total.astype(np.float32).astype(np.float64), offset.astype(np.float32)
    return Dot(
        name,
        layer,
        placed,
        unit,
        written,
        exact[0],
        np.broadcast_to(exact[1], rows).astype(np.float64),
        affine,
    )


def _whole(units: np.ndarray, rows: int) -> np.ndarray | None:
    """A bias in units of the accumulator, float64 [rows]; None unless all are integers."""
    nearest = np.rint(units)
    if bool(np.any(np.abs(units - nearest) > _EXACT * np.maximum(np.abs(units), 1))):
        return None
    return np.broadcast_to(nearest, rows).copy()


def _per_row(scale: np.ndarray, shape: tuple[int, ...], node: Node, rows: int) -> np.ndarray:
    """Weight scale of each output channel, float64 [rows]."""
    if scale.size == 1:
        return np.full(rows, float(scale.reshape(-1)[0]))
    full = np.broadcast_to(scale, shape)
    return full.reshape(rows, -1)[:, 0] if node.op == "Conv" else full.reshape(-1, rows)[0]


def _write_weight(node: Node, name: str, weights: Grid, exponent: int, state: Rewriting) -> None:
    """Integers × 2^exponent, behind a quantizer that gives exactly these integers."""
    integers = weights.constant
    kind = covering_type(min(int(integers.min()), -1), int(integers.max()))
    bits = max(int(kind.removeprefix("INT")), 2)
    values = np.ldexp(integers.astype(np.float64), exponent)
    inputs = [
        state.constant(f"{name}.weight", values),
        state.constant(f"{name}_weight_unit", np.asarray(2.0**exponent)),
        state.constant(f"{name}_weight_zero", np.asarray(0.0)),
        state.constant(f"{name}_weight_bits", np.asarray(float(bits))),
    ]
    quantizer = helper.make_node(
        "Quant",
        inputs,
        [f"{name}_weight_quantized"],
        name=f"{name}_weights",
        domain=QUANT_DOMAIN,
        narrow=0,
        signed=1,
        rounding_mode="ROUND",
    )
    state.model.set_tensor_shape(quantizer.output[0], list(integers.shape))
    graph = state.model.graph
    graph.node.insert(list(graph.node).index(node.proto), quantizer)
    node.proto.input[1] = quantizer.output[0]


def _bias_inside(
    node: Node, name: str, chain: list[Node], offset: np.ndarray, rows: int, state: Rewriting
) -> None:
    """A bias that hls4ml adds in the accumulator: of the convolution, or behind the product."""
    if not chain:
        return
    graph = state.model.graph
    end = chain[-1].outputs[0]
    if not offset.any():
        node.proto.output[0] = end
        for old in chain:
            graph.node.remove(old.proto)
        return
    bias = state.constant(f"{name}_bias", np.broadcast_to(offset, rows))
    if node.op == "Conv":
        node.proto.input.append(bias)
        node.proto.output[0] = end
    else:
        add = helper.make_node("Add", [node.outputs[0], bias], [end], name=f"{name}_plus_bias")
        graph.node.insert(list(graph.node).index(node.proto) + 1, add)
    for old in chain:
        graph.node.remove(old.proto)


def _affine_behind(
    node: Node,
    name: str,
    chain: list[Node],
    gain: np.ndarray,
    offset: np.ndarray,
    state: Rewriting,
) -> None:
    """One BatchNormalization instead of the chain, or behind a product without a chain."""
    graph = state.model.graph
    accumulated = node.outputs[0]
    end = chain[-1].outputs[0] if chain else accumulated
    if not chain:
        accumulated = f"{name}_accumulated"
        shape = state.model.get_tensor_shape(end) or []
        node.proto.output[0] = accumulated
        state.model.set_tensor_shape(accumulated, shape)
    inputs = [
        accumulated,
        state.constant(f"{name}_gain", gain),
        state.constant(f"{name}_offset", offset),
        state.constant(f"{name}_mean", np.zeros_like(gain)),
        state.constant(f"{name}_variance", np.ones_like(gain)),
    ]
    norm = helper.make_node("BatchNormalization", inputs, [end], name=name, epsilon=0.0)
    graph.node.insert(list(graph.node).index(node.proto) + 1, norm)
    for old in chain:
        graph.node.remove(old.proto)


def _rename(state: Rewriting, kept: set[str]) -> None:
    """Valid C++ names for all other nodes, and for inputs and outputs of the graph."""
    model = state.model
    for index, value in enumerate(list(model.graph.input)):
        model.rename_tensor(value.name, f"input_{index}")
    for index, value in enumerate(list(model.graph.output)):
        if value.name not in {v.name for v in model.graph.input}:
            model.rename_tensor(value.name, f"output_{index}")
    for node in model.graph.node:
        if node.name not in kept:
            node.name = state.name(node.name)


def _drop_unused(proto: onnx.ModelProto) -> None:
    """Old weights, quantizers and transposes that nothing reads any more."""
    graph = proto.graph
    outputs = {value.name for value in graph.output}
    while True:
        used = outputs | {tensor for node in graph.node for tensor in node.input}
        dead = [node for node in graph.node if not used & set(node.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    for value in [v for v in graph.value_info if v.name not in used]:
        graph.value_info.remove(value)
    del graph.quantization_annotation[:]
