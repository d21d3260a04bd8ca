"""Rules for operators between dot products: constants, branches, pools, moves and others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from brevitas_axe.export.finn.finding import Finding, Severity
from brevitas_axe.export.finn.signal import Graph, Host, Lost, Signal, Value
from brevitas_axe.proof.graph.modelfile import Node

Rule = Callable[[Node, list[Value], Graph], Value]
_ACTIVATIONS = (
    *("Elu", "Selu", "Celu", "LeakyRelu", "PRelu", "Clip", "Softplus"),
    *("HardSigmoid", "HardSwish", "Mish", "Erf", "Softsign", "ThresholdedRelu"),
)
# FINN does not build them, and moves the scale in front of them behind them.
_MOVERS = ("Upsample", "Slice", "Squeeze", "DepthToSpace", "SpaceToDepth")
_ALIKE = "quantize both operands alike for integers"
_SHARE = "give both one shared activation quantizer"


def lost(node: Node, graph: Graph, problem: str, way_out: str, rule: str = "operator") -> Lost:
    """Value of an operator that FINN does not build; reported only if FINN needs the value."""
    severity: Severity = "wrong" if node.op == "Selu" else "refused"
    return Lost(Finding(graph.name(node), rule, severity, problem, way_out))


def unknown(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """Any operator without a rule of its own: the host may compute it, but FINN cannot."""
    settled = _settled(inputs)
    if settled is not None:
        return settled
    name = graph.name(node)
    if node.op in _MOVERS:  # FINN fails on it even at the end of a model
        problem = f"'{name}' is a {node.op} of quantized values, which FINN cannot build"
        return Lost(graph.report(name, "operator", problem, "move it before or behind all layers"))
    problem = f"'{name}' is a {node.op} between layers, which FINN cannot build"
    if node.op in _ACTIVATIONS:
        return lost(node, graph, problem, "use nn.ReLU, or QuantReLU in a Brevitas model")
    return lost(node, graph, problem, "replace it, or move it before or behind all layers")


def _settled(inputs: list[Value]) -> Value | None:
    """Value of any node with a lost input, or with inputs that the host computes; else None."""
    lost_ones = (value for value in inputs if isinstance(value, Lost))
    return next(lost_ones, Host() if all(isinstance(value, Host) for value in inputs) else None)


def affine(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """Add, Sub, Mul, Div: with a constant, a scale and offset to fold; else two branches."""
    if len(inputs) == 2:
        return _branches(node, inputs, graph)
    source, constants = inputs[0], [graph.constant(tensor) for tensor in node.inputs]
    backwards = constants[0] is not None and node.op in ("Sub", "Div")
    constant = next((c.astype(np.float64) for c in constants if c is not None), None)
    if isinstance(source, Lost) or constant is None or backwards:
        return unknown(node, inputs, graph)
    shapes = [constant.shape, source.scale.shape]
    if isinstance(source, Signal):
        shapes += [source.offset.shape, source.size.shape]
    graph.file.budget.spend_on(shapes, f"what '{node.name}' scales or shifts")
    scale = source.scale
    if node.op == "Mul":
        scale = scale * constant
    elif node.op == "Div":
        scale = scale / constant
    if isinstance(source, Host):
        return Host(scale)
    offset, size = {
        "Mul": (source.offset * constant, source.size * np.abs(constant)),
        "Div": (source.offset / constant, source.size / np.abs(constant)),
        "Add": (source.offset + constant, source.size + np.abs(constant)),
        "Sub": (source.offset - constant, source.size + np.abs(constant)),
    }[node.op]
    return _folded(node, source, scale, offset, size, graph)


def batch_norm(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """BatchNormalization: one scale and offset per channel."""
    source, parameters = inputs[0], [graph.constant(tensor) for tensor in node.inputs[1:5]]
    if isinstance(source, Lost) or len(inputs) > 1:
        return unknown(node, inputs, graph)
    gain, shift, mean, variance = (p.astype(np.float64) for p in parameters if p is not None)
    before = graph.producer(node.inputs[0])
    added = before is not None and before.op == "Unsqueeze"  # FINN drops both
    rank = max(len(graph.shape(node.inputs[0])) - added, 2)
    factor = (gain / np.sqrt(variance + node.attribute("epsilon", 1e-5))).reshape(
        -1, *[1] * (rank - 2)
    )
    if isinstance(source, Host):
        return Host(source.scale * factor)
    shift, back = shift.reshape(factor.shape), mean.reshape(factor.shape) * factor
    offset = source.offset * factor + shift - back
    size = source.size * np.abs(factor) + np.abs(shift) + np.abs(back)
    return _folded(node, source, source.scale * factor, offset, size, graph)


def _folded(
    node: Node,
    source: Signal,
    scale: np.ndarray,
    offset: np.ndarray,
    size: np.ndarray,
    graph: Graph,
) -> Value:
    """The signal with another scale and offset, if FINN's thresholds can take them in."""
    axes = [n for n in np.broadcast_shapes(scale.shape, offset.shape) if n > 1]
    problem = ""
    if source.rectified:
        problem = "comes between a ReLU and its quantizer"
    elif len(axes) > 1 and graph.tokens:
        return float_unit(node, graph, _ALIKE)
    elif len(axes) > 1:
        problem = "has different values at different positions"
    elif not np.isfinite(scale).all() or not np.isfinite(offset).all():
        problem = "has values that are not finite"
    if problem:
        problem = f"the {node.op} '{graph.name(node)}' {problem}, so FINN cannot fold it"
        return lost(node, graph, problem, "scale and shift per channel, before the quantizer")
    shape = np.broadcast_shapes(scale.shape, offset.shape, source.low.shape)
    parts = {"scale": scale, "offset": offset, "size": size, "low": source.low}
    parts = {**parts, "high": source.high, "step": source.step}
    grown = {key: np.broadcast_to(value, shape) for key, value in parts.items()}
    return replace(source, **grown, quantizer=source.quantizer if scale.size == 1 else "")


def _branches(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """Two computed values are combined."""
    settled = _settled(inputs)
    if settled is not None:
        return settled
    left, right = inputs
    if isinstance(left, Signal) and isinstance(right, Signal):
        parts = [part.shape for s in (left, right) for part in (s.scale, s.offset, s.low, s.size)]
        graph.file.budget.spend_on(parts, f"what meets in '{node.name}'")
    name = graph.name(node)
    if _is_silu(node, graph):
        return Host()  # a unit of its own, of which the Sigmoid's rule has spoken
    if graph.tokens and node.op == "Add" and not _one_grid(left, right):
        return float_unit(node, graph, _ALIKE)
    if not isinstance(left, Signal) or not isinstance(right, Signal):
        problem = f"quantized and unquantized values meet in '{name}', which FINN refuses"
        return Lost(graph.report(name, "branches", problem, _SHARE))
    if node.inputs[0] == node.inputs[1]:
        problem = f"'{name}' combines a tensor with itself, which qonnx cannot follow"
        return lost(node, graph, problem, "write it as a product with a constant", "same_operand")
    if not left.joinable or not right.joinable:
        problem = f"the branches that meet in '{name}' are not both quantized, and FINN cannot"
        return lost(node, graph, f"{problem} combine them as integers", _SHARE, "branches")
    if node.op == "Mul" and left.integral and right.integral:
        return _product(node, left, right, graph)
    if node.op != "Add":
        problem = f"'{name}' is a {node.op} of two branches, which FINN cannot build"
        return lost(node, graph, problem, "use an addition", "branches")
    if left.scale.max() != right.scale.max():
        graph.unequal.append((left.quantizer, right.quantizer))
        problem = f"the branches that meet in '{name}' have different scales, and FINN cannot add"
        return lost(node, graph, f"{problem} them as integers", _SHARE, "branches")
    return Signal(
        left.scale,
        left.offset + right.offset,
        left.low + right.low,
        left.high + right.high,
        np.gcd(left.step, right.step),
        left.size + right.size,
    )


def float_unit(node: Node, graph: Graph, way_out: str, where: str = "") -> Host:
    """What FINN computes in float32, which a note says."""
    name = graph.name(node)
    problem = f"FINN computes the {node.op} '{name}' in float32{where}"
    graph.report(name, "float_unit", problem, way_out, "note")
    return Host()


def _one_grid(left: Value, right: Value) -> bool:
    """Whether two values can be added as integers."""
    return (
        isinstance(left, Signal)
        and isinstance(right, Signal)
        and left.joinable
        and right.joinable
        and left.scale.max() == right.scale.max()
    )


def _is_silu(node: Node, graph: Graph) -> bool:
    """Whether a product is x · sigmoid(x)."""
    made = {tensor: graph.producer(tensor) for tensor in node.inputs}
    return node.op == "Mul" and any(
        before is not None and before.op == "Sigmoid" and before.inputs[0] in node.inputs
        for before in made.values()
    )


def _product(node: Node, left: Signal, right: Signal, graph: Graph) -> Value:
    """Two activations multiplied element by element."""
    if graph.shape(node.inputs[0]) != graph.shape(node.inputs[1]):
        problem = f"'{graph.name(node)}' multiplies branches of different shapes, which FINN leaves"
        return lost(node, graph, f"{problem} in float", "give both one shape", "branches")
    ends = [a * b for a in (left.low, left.high) for b in (right.low, right.high)]
    low, high = np.minimum.reduce(ends), np.maximum.reduce(ends)
    scale = left.scale * right.scale
    step = np.gcd(left.step, left.low) * np.gcd(right.step, right.low)
    return Signal(scale, np.zeros(()), low, high, step, left.size * right.size)


def concat(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """Concat along the channels, of integers of one scale."""
    settled = _settled(inputs)
    if settled is not None:
        return settled
    if len(inputs) == 1 and _pads_tokens(node, inputs[0], graph):
        return inputs[0]
    name, signals = graph.name(node), [v for v in inputs if isinstance(v, Signal)]
    rank = len(graph.shape(node.outputs[0]))
    if len(signals) < len(node.inputs) or not all(s.integral for s in signals):
        problem = f"the branches that meet in '{name}' are not all quantized, and FINN cannot join"
        return lost(node, graph, f"{problem} them", _SHARE, "branches")
    if len({float(s.scale.max()) for s in signals}) > 1:
        problem = f"the branches that meet in '{name}' have different scales, and FINN cannot join"
        return lost(node, graph, f"{problem} them as integers", _SHARE, "branches")
    if node.attribute("axis", 1) not in (1, 1 - rank):
        problem = f"'{name}' joins tensors along another axis than the channels, which FINN cannot"
        return lost(node, graph, problem, "join along axis 1")
    scale = signals[0].scale.reshape(-1)[0]
    low, high = min(s.low.min() for s in signals), max(s.high.max() for s in signals)
    size, one = np.max([s.size.max() for s in signals]), np.ones((), np.int64)
    return Signal(scale, np.zeros(()), np.asarray(low), np.asarray(high), one, size)


def _pads_tokens(node: Node, value: Value, graph: Graph) -> bool:
    """Whether zeros of an integer type are put before or behind tokens, as FINN's Pad1D does."""
    constants = [name for name in node.inputs if graph.constant(name) is not None]
    return (
        isinstance(value, Signal)
        and value.integral
        and len(graph.shape(node.outputs[0])) == 3
        and node.attribute("axis", 1) == 1
        and all(name in graph.file.types for name in constants)
        and not any(np.any(graph.constant(name) != 0) for name in constants)
    )


def relu(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """ReLU, which FINN folds into the one quantizer behind it."""
    source = inputs[0]
    if not isinstance(source, Signal):
        return source
    name = graph.name(node)
    consumers = graph.consumers(node.outputs[0])
    if source.rectified or source.pooled:
        problem = f"the ReLU '{name}' does not follow a layer, so FINN cannot fold it"
        return lost(node, graph, problem, "put it right behind the layer", "float_relu")
    if len(consumers) > 1 and any(c.op in ("Quant", "IntQuant", "BipolarQuant") for c in consumers):
        quantizer = graph.name(next(c for c in consumers if "Quant" in c.op))
        problem = f"the ReLU of '{quantizer}' feeds several quantizers, of which FINN converts one"
        way_out = "quantize it once and use that in every branch"
        graph.report(quantizer, "shared_relu", problem, way_out, "wrong")
    return replace(source, rectified=True)


def max_pool(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """MaxPool of integers."""
    source = inputs[0]
    if not isinstance(source, Signal):
        return source
    name, shape = graph.name(node), graph.shape(node.inputs[0])
    kernel = node.attribute("kernel_shape", [], "INTS")
    strides = node.attribute("strides", [1] * len(kernel), "INTS")
    pads = node.attribute("pads", [0] * 2 * len(kernel), "INTS")
    whole = [
        (n + a + b - k) // s + 1
        for n, k, s, a, b in zip(
            shape[2:], kernel, strides, pads, pads[len(kernel) :], strict=False
        )
    ]
    problem, way_out = "", "use a plain one: 2-D, no dilation, no ceil_mode, stride ≤ window"
    if source.shifted or source.rectified or source.pooled or bool(np.any(source.scale <= 0)):
        problem, way_out = "comes before the quantizer", "pool behind the activation quantizer"
    elif any(pads) and (bool(np.any(source.low < 0)) or source.bipolar):
        problem, way_out = "pads signed values", "pool unsigned ones, behind a QuantReLU"
    elif len(kernel) != 2:
        problem = f"is {len(kernel)}-D"
    elif any(d != 1 for d in node.attribute("dilations", [1], "INTS")):
        problem = "is dilated"
    elif any(s > k for k, s in zip(kernel, strides, strict=True)):
        problem = "has a stride larger than its window"
    elif shape and list(graph.shape(node.outputs[0])[2:]) != whole:
        problem = "rounds its size up"
    if problem:
        problem = f"the max pooling '{name}' {problem}, which FINN cannot build"
        return lost(node, graph, problem, way_out, "max_pool")
    return source


def global_average_pool(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """GlobalAveragePool: a sum over the image; the division goes into the thresholds behind it."""
    source = inputs[0]
    if not isinstance(source, Signal):
        return source
    pixels = int(np.prod(graph.shape(node.inputs[0])[2:]))
    if not source.integral or pixels < 1:
        problem = f"the average pooling '{graph.name(node)}' comes before the quantizer"
        way_out = "pool behind the activation quantizer"
        return lost(node, graph, f"{problem}, which FINN cannot build", way_out, "average_pool")
    source = _without_channels(source)
    sums = {"low": source.low * pixels, "high": source.high * pixels}
    return replace(source, **sums, scale=source.scale / pixels, quantizer="", pooled=True)


def move(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """Flatten, Reshape, Transpose: the same values, but channels move."""
    source = inputs[0]
    if not isinstance(source, Signal):
        return source
    if not source.one_scale or (source.offset.size > 1 and np.ptp(source.offset) != 0):
        problem = f"'{graph.name(node)}' moves channels whose scale or bias is not folded yet"
        way_out = "put the activation quantizer before it"
        return lost(node, graph, f"{problem}, which FINN cannot follow", way_out, "move")
    flattens = node.op != "Transpose" and len(graph.shape(node.inputs[0])) > 2
    return replace(_without_channels(source), flattened=flattens or source.flattened)


def stay(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """Identity, Dropout: nothing changes."""
    return inputs[0]


def unsqueeze(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """Unsqueeze around a batch norm, which FINN takes away; any other moves values."""
    after = graph.consumers(node.outputs[0])
    behind = graph.consumers(after[0].outputs[0]) if len(after) == 1 else []
    if [n.op for n in (*after, *behind)] == ["BatchNormalization", "Squeeze"]:
        return inputs[0]
    return unknown(node, inputs, graph)


def squeeze(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """The Squeeze behind such a batch norm."""
    norm = graph.producer(node.inputs[0])
    first = graph.producer(norm.inputs[0]) if norm is not None else None
    ops = [n.op for n in (first, norm) if n is not None]
    if ops == ["Unsqueeze", "BatchNormalization"]:
        return inputs[0]
    return unknown(node, inputs, graph)


def resize(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """Resize that repeats every pixel of integers; FINN's own list of steps leaves it out."""
    source = inputs[0]
    if not isinstance(source, Signal):
        return source
    name, before, after = graph.name(node), *map(graph.shape, (node.inputs[0], node.outputs[0]))
    whole = len(before) == len(after) == 4 and tuple(before[:2]) == tuple(after[:2])
    whole = whole and all(b and a % b == 0 for b, a in zip(before, after, strict=True))
    kinds = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
    repeats = whole and node.attribute("nearest_mode", "round_prefer_floor") == "floor"
    repeats = repeats and all(node.attribute(key, "") == kind for key, kind in kinds.items())
    readers = graph.consumers(node.outputs[0])
    problem, way_out = "", "use nn.Upsample(scale_factor=2), say, behind the quantizer"
    if not source.integral or not repeats:
        problem = "does not repeat every pixel of integers a whole number of times"
    elif not readers or any(reader.inputs[0] != node.outputs[0] for reader in readers):
        # AbsorbTransposeIntoResize writes its result to the first input of what follows.
        problem, way_out = "is not the first operand of a node behind it", "name it first there"
    if problem:
        problem = f"the Resize '{name}' {problem}, which FINN cannot build"
        return Lost(graph.report(name, "upsampling", problem, way_out))
    problem = (
        f"the Resize '{name}' is built by transformations that FINN's lists of steps leave out"
    )
    graph.report(name, "upsampling", problem, "add the step in docs/finn.md", "note")
    return source


def pad(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """Pad as an operator of its own."""
    if node.attribute("mode", "constant") != "constant":
        return unknown(node, inputs, graph)
    name = graph.name(node)
    problem = f"'{name}' pads outside a convolution, which FINN refuses"
    graph.report(name, "pad", problem, "use the convolution's own padding")
    return inputs[0]


def end(value: Value, output: str, graph: Graph) -> None:
    """Output of the model: FINN puts the last scale behind it, so it may not be a Flatten."""
    node = graph.producer(output)
    if isinstance(value, Signal) and value.flattened and node is not None:
        problem = f"'{graph.name(node)}' flattens the output, and FINN builds that only before a"
        way_out = "return the image, and flatten it outside"
        graph.report(graph.name(node), "flatten", f"{problem} linear layer", way_out)


def _without_channels(signal: Signal) -> Signal:
    """The signal as one range and scale for all channels."""
    return Signal(
        scale=signal.scale.reshape(-1)[0],
        offset=signal.offset.reshape(-1)[0],
        low=signal.low.min(),
        high=signal.high.max(),
        step=np.gcd.reduce(np.gcd(signal.step, signal.low), axis=None),
        size=signal.size.max(),
        quantizer=signal.quantizer,
        rectified=signal.rectified,
        pooled=signal.pooled,
        flattened=signal.flattened,
        bipolar=signal.bipolar,
    )
