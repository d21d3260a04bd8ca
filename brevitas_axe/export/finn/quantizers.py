"""Rules for activation quantizers, which FINN turns into thresholds, and for their ties."""

from __future__ import annotations

import numpy as np

from brevitas_axe.export.finn.finding import Finding, Severity
from brevitas_axe.export.finn.signal import Graph, Host, Lost, Signal, Value
from brevitas_axe.export.finn.ties import find_sign_ties, find_ties
from brevitas_axe.proof.graph.grid import quantizer_range
from brevitas_axe.proof.graph.modelfile import Node

_WIDEST = 8
# They differ from FINN's rounding, half up, only halfway between two levels.
_NEAREST = ("ROUND", "HALF_EVEN", "HALF_UP", "HALF_DOWN")
_POOL = "use TruncAvgPool2d with trunc_quant=TruncTo8bit, or AdaptiveAvgPool2d(1) and a quantizer"
_SWAP = "use a symmetric one (Int8ActPerTensorFloat, Uint8ActPerTensorFloat)"


def quant(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """A quantizer of computed values: thresholds, then a scale for what follows."""
    name = graph.name(node)
    source = graph.demand(inputs[0])
    scale, zero_point, bit_width = (graph.constant(tensor) for tensor in node.inputs[1:4])
    if scale is None or zero_point is None or bit_width is None:
        problem = f"{_what(name)} computes its scale, zero point or bits, which FINN must know"
        way_out = "export the model in evaluation mode, with a static quantizer"
        return Lost(graph.report(name, "dynamic_quantizer", problem, way_out))
    if np.any(zero_point != 0):
        problem = f"{_what(name)} has a non-zero zero point, which FINN refuses"
        graph.report(name, "zero_point", problem, _SWAP)
    bits = int(bit_width.max())
    if bits > _WIDEST:
        problem = f"{_what(name)} has {bits} bits, and FINN takes at most {_WIDEST}"
        graph.report(name, "activation_bits", problem, "lower its bit_width")
    elif bits == 1:
        _report_binary(name, graph)
    signed, narrow = bool(node.attribute("signed", 1)), bool(node.attribute("narrow", 0))
    if _follows_relu(node, graph) and (signed or narrow):
        problem = f"{_what(name)} is signed or narrow behind a ReLU, which FINN refuses"
        graph.report(name, "relu_quantizer", problem, "use QuantReLU, or Uint8ActPerTensorFloat")
    _check_rounding(node, name, graph)
    # 2^bits of a broken file could take all memory.
    low, high = quantizer_range(min(bits, 32), signed, narrow)
    if isinstance(source, Host) and np.any(source.scale < 0):
        problem = f"the input of {_what(name)} has a negative scale, which FINN gives a float unit"
        graph.report(
            name, "negative_scale", problem, "negate the weights of the next layer instead", "note"
        )
    if isinstance(source, Signal):
        check_source(name, source, graph)
    if isinstance(source, Signal) and scale.size == 1 and bits <= _WIDEST:
        graph.file.budget.spend(source.elements * (high - low) // 4, f"the levels of '{name}'")
        ties = find_ties(source, float(scale.max()), low, high)
        if ties is not None:
            graph.report_ties(name, source, ties)
    return _levels(scale, low, high, name)


def bipolar_quant(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """+1 or -1 by sign, inside a matrix unit, or before layers of one bit (XNOR and popcount)."""
    name = graph.name(node)
    source, scale = graph.demand(inputs[0]), graph.constant(node.inputs[1])
    check_sign(node, source, scale, graph)
    if isinstance(source, Signal):
        ties = find_sign_ties(source)
        if ties is not None:
            graph.report_ties(name, source, ties)
    scale = np.ones(()) if scale is None else np.asarray(scale, np.float64).reshape(-1)[0]
    one = np.ones((), np.int64)
    return Signal(scale, np.zeros(()), -one, one, one, scale, quantizer=name, bipolar=True)


def check_sign(node: Node, source: Value, scale: np.ndarray | None, graph: Graph) -> None:
    """Reports a sign that FINN builds neither inside a matrix unit nor as a single bit."""
    matrix = isinstance(source, Signal) and source.dot is not None and not source.rectified
    one = scale is not None and scale.size == 1
    if not one or not (graph.feeds_bipolar(node) or (matrix and np.all(scale == 1))):
        _report_binary(graph.name(node), graph)


def average_pool(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """Average pooling, which FINN reads together with the Trunc behind it."""
    name, source = graph.name(node), inputs[0]
    if isinstance(source, Host):
        return source
    after = graph.consumers(node.outputs[0])
    if len(after) != 1 or after[0].op != "Trunc" or graph.uses(node.outputs[0]) != 1:
        problem = f"the average pooling '{name}' is not followed by a truncation"
        return Lost(
            Finding(name, "average_pool", "refused", f"{problem}, so FINN cannot build it", _POOL)
        )
    source = graph.demand(source)
    kernel = node.attribute("kernel_shape", [], "INTS")
    strides = node.attribute("strides", [1, 1], "INTS")
    problem = ""
    if len(kernel) != 2 or len({*kernel}) != 1 or len({*strides}) != 1:
        problem = "has a window or a stride that is not square"
    elif strides[0] > kernel[0]:
        problem = "has a stride that is larger than its window"
    elif any(node.attribute("pads", [0], "INTS")):
        problem = "pads its input"
    elif isinstance(source, Signal) and not source.integral:
        problem = "does not average the integers of one quantizer"
    if problem:
        problem = f"the average pooling '{name}' {problem}, which FINN refuses"
        graph.report(name, "average_pool", problem, _POOL)
    return source


def trunc(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """The right shift behind an average pooling."""
    name, source, pool = graph.name(node), inputs[0], graph.producer(node.inputs[0])
    if pool is None or pool.op != "AveragePool" or not isinstance(source, Signal):
        problem = f"the truncation of '{name}' does not follow an average pooling of fixed window"
        return Lost(Finding(name, "trunc", "refused", f"{problem}, so FINN cannot build it", _POOL))
    constants = [c for t in node.inputs[1:] if (c := graph.constant(t)) is not None and c.size == 1]
    if len(constants) != 5:
        problem = f"the truncation of '{name}' is not written as FINN needs it"
        return Lost(
            Finding(name, "trunc", "refused", problem, "export with Brevitas 0.12 or newer")
        )
    scale, _, bits, out_scale, out_bits = (float(c.reshape(-1)[0]) for c in constants)
    if node.attribute("rounding_mode", "FLOOR").upper() != "FLOOR":
        problem = f"the average pooling '{name}' rounds, and FINN only cuts bits off"
        graph.report(name, "trunc_rounding", problem, "use trunc_quant=TruncTo8bit")
    elif not _shifts_alike(pool, scale, int(bits), out_scale, int(out_bits)):
        problem = f"FINN would shift the sums of the average pooling '{name}' by other bits"
        way_out = "give its trunc_quant the bit_width of its input"
        graph.report(name, "trunc_bits", problem, way_out, "wrong")
    signed = bool(np.any(source.low < 0))
    return _levels(np.asarray(out_scale), *quantizer_range(int(out_bits), signed, False), name)


def _shifts_alike(pool: Node, scale: float, bits: int, out_scale: float, out_bits: int) -> bool:
    """FINN derives the shift from bit widths, QONNX from scales."""
    window = int(np.prod(pool.attribute("kernel_shape", [1], "INTS")))
    inputs = int(np.floor(np.log2(2**bits / window)))
    shift = max(((2**inputs - 1) * window).bit_length() - out_bits, 0)
    return shift == round(np.log2(out_scale / scale))


def _levels(scale: np.ndarray, low: int, high: int, name: str) -> Signal:
    """Signal behind a quantizer."""
    low_, high_, one = (np.asarray(value, np.int64) for value in (low, high, 1))
    scale, size = scale.astype(np.float64), np.abs(scale) * max(-low, high)
    return Signal(scale, np.zeros(()), low_, high_, one, size, quantizer=name)


def check_source(name: str, source: Signal, graph: Graph) -> None:
    """Reports why a signal cannot be compared with thresholds."""
    if source.needs_copies:
        problem = f"sums in front of {_what(name)} are used elsewhere too, so FINN scales them in"
        problem += " float units"
        way_out = "quantize them once, before they are shared"
        graph.report(name, "split_sums", problem, way_out)
    if source.flattened:
        problem = f"a Flatten or Reshape stands before {_what(name)}, and FINN builds it only"
        way_out = "put the quantizer before it"
        graph.report(name, "flatten", f"{problem} before a linear layer", way_out)
    if source.dot is not None and np.any((source.scale < 0) & source.dot.lowest):
        layer, way_out = source.dot.layer, "use a narrow weight quantizer (narrow_range=True)"
        problem = f"FINN cannot flip the sign of weights of layer '{layer}', as their full range"
        problem += " has no positive counterpart, and gives its sums a unit that multiplies by -1"
        graph.report(layer, "full_range", problem, way_out, "note")


def _follows_relu(node: Node, graph: Graph) -> bool:
    before = graph.producer(node.inputs[0])
    return before is not None and before.op == "Relu"


def _check_rounding(node: Node, name: str, graph: Graph) -> None:
    mode = node.attribute("rounding_mode", "ROUND").upper()
    if mode in _NEAREST:
        return
    severity: Severity = "wrong" if mode in ("CEIL", "FLOOR", "UP", "DOWN") else "refused"
    problem = f"{_what(name)} rounds by {mode.lower()}, and FINN to the nearest whatever it says"
    graph.report(name, "rounding", problem, "use float_to_int_impl_type='round'", severity)


def _report_binary(name: str, graph: Graph) -> None:
    graph.report(
        name,
        "binary_activation",
        f"{_what(name)} has one bit, which FINN builds only as a sign: of scale 1"
        " behind a layer, or of any scale before layers whose weights are signs too",
        "use 2 bits or more",
    )


def _what(name: str) -> str:
    return f"the activation quantizer of '{name}'"
