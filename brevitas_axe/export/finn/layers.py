"""Rules for dot products: integers in, sums of integers out."""

from __future__ import annotations

import numpy as np

from brevitas_axe.export.finn.finding import Finding
from brevitas_axe.export.finn.signal import Accumulation, Graph, Host, Lost, Signal, Value
from brevitas_axe.export.finn.ties import is_power_of_two
from brevitas_axe.proof.certificate.dot_products import rows_of
from brevitas_axe.proof.graph.grid import Grid
from brevitas_axe.proof.graph.modelfile import Node
from brevitas_axe.proof.graph.quantizers import datatype_range

# With wider weights, FINN's thresholds, computed in single precision, miss integers (measured).
_WIDEST_WEIGHTS = 22


def dot_product(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """Conv, ConvTranspose, MatMul or Gemm."""
    layer = graph.layer(node)
    if len(inputs) > 1 and node.op == "MatMul" and node.inputs[1] in graph.values:
        return _of_activations(node, inputs, graph)
    source = graph.demand(inputs[0])
    if isinstance(source, Lost):
        return source
    weights = graph.grid(node.inputs[1])
    if weights is None:
        return Lost(_without_integers(node, layer, graph))
    if isinstance(source, Host):
        problem = f"the input of layer '{layer}' is not quantized, so FINN would leave it in float"
        way_out = "give it an input_quant or a quantized predecessor"
        return Lost(graph.report(layer, "float_input", problem, way_out))
    graph.file.budget.spend(weights.constant.size, f"the weights of '{layer}'")
    _check_weights(node, layer, weights, graph)
    refused = _check_input(node, layer, source, graph)
    if refused is not None:
        return Lost(refused)
    if node.op in ("Conv", "ConvTranspose"):
        _check_convolution(node, layer, source, weights, graph)
    scales = _row_scales(node, weights)
    if scales is None:
        problem = f"layer '{layer}' has several weight scales in one dot product"
        way_out = "FINN needs one scale per tensor or per output channel"
        return Lost(graph.report(layer, "weight_scale", problem, way_out))
    return _sums(node, layer, source, weights, scales, graph)


def _of_activations(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """Product of two activations: a matrix unit whose weights arrive while it works."""
    name, (left, right) = graph.name(node), inputs
    if not (isinstance(left, Signal) and left.integral) or not (
        isinstance(right, Signal) and right.integral
    ):
        problem = f"'{name}' multiplies two activations that are not both integers of one scale, so"
        problem += " FINN would leave it in float"
        way_out = "quantize both (the recipe's attention: quantized), and export for FINN"
        return Lost(graph.report(name, "product", problem, way_out))
    problem = f"the product '{name}' of two activations is built behind a streamlining that FINN's"
    problem += " lists of steps leave out"
    graph.report(name, "product", problem, "add the step in docs/finn.md", "note")
    length = max(graph.shape(node.inputs[0])[-1:], default=1)
    first, second = ((int(s.low.min()), int(s.high.max())) for s in (left, right))
    corners = [length * a * b for a in first for b in second]
    low, high = np.asarray(min(corners), np.int64), np.asarray(max(corners), np.int64)
    scale = np.asarray(left.scale.reshape(-1)[0] * right.scale.reshape(-1)[0])
    size = np.asarray(scale * max(map(abs, corners)))
    return Signal(scale, np.zeros(()), low, high, np.ones((), np.int64), size)


def _without_integers(node: Node, layer: str, graph: Graph) -> Finding:
    if graph.constant(node.inputs[1]) is not None:
        problem = f"layer '{layer}' has no integer weights, so FINN cannot build it"
        way_out = "quantize it (brevitas_axe.quantize does)"
        return graph.report(layer, "float_weights", problem, way_out)
    if graph.names.initializer(node.inputs[1]) is None:
        problem = f"'{layer}' multiplies two activations, which FINN builds as a MatMul alone"
        return graph.report(layer, "product", problem, "write it as one")
    problem = f"the weight quantizer of layer '{layer}' is of a kind that FINN refuses"
    way_out = "use symmetric integers with one scale per tensor or per output channel"
    return graph.report(layer, "weight_quantizer", problem, way_out)


def _check_input(node: Node, layer: str, source: Signal, graph: Graph) -> Finding | None:
    """Reports why a signal cannot be multiplied as integers."""
    pads = node.attribute("pads", [0], "INTS") if node.op == "Conv" else [0]
    scalar_offset = source.offset.size == 1 or np.ptp(source.offset) == 0
    if source.rectified:
        problem = f"the ReLU before layer '{layer}' has no quantizer, so FINN leaves both in float"
        return graph.report(layer, "float_relu", problem, "use QuantReLU")
    if source.pooled:
        problem = f"the image average before layer '{layer}' is not quantized, so it stays in float"
        return graph.report(layer, "average_pool", problem, "put a QuantIdentity between them")
    if source.quantizer and not source.one_scale:
        name = source.quantizer
        problem = f"the activation quantizer of '{name}' has one scale per channel, and FINN"
        problem += f" would leave layer '{layer}' in float"
        return graph.report(name, "channel_scales", problem, "use a per-tensor one")
    offset = source.shifted and (any(pads) or not scalar_offset)
    if not source.one_scale or offset:
        problem = f"sums enter layer '{layer}' without being quantized, so FINN leaves it in float"
        way_out = "put an activation quantizer between them"
        return graph.report(layer, "float_sums", problem, way_out)
    return None


def _check_weights(node: Node, layer: str, weights: Grid, graph: Graph) -> None:
    if not np.any(weights.constant):
        problem = f"all weights of layer '{layer}' are zero, which FINN cannot build"
        way_out = "give it a wider accumulator or more weight bits"
        graph.report(layer, "zero_weights", problem, way_out)
    if weights.asymmetric:
        problem = f"layer '{layer}' has asymmetric weights, which FINN refuses"
        graph.report(layer, "weight_zero_point", problem, "use a symmetric weight quantizer")
    bits = int(np.abs(weights.constant).max()).bit_length() + 1
    if bits > _WIDEST_WEIGHTS:
        problem = f"layer '{layer}' has {bits}-bit weights, beyond the precision of FINN's floats"
        graph.report(layer, "weight_bits", problem, "lower weight_bit_width", "wrong")
    quantizer = graph.producer(node.inputs[1])
    if quantizer is not None and quantizer.op == "Quant" and graph.uses(node.inputs[1]) > 1:
        problem = f"layer '{layer}' shares its quantized weights with another, which FINN refuses"
        graph.report(layer, "shared_weights", problem, "export it again by export_qonnx")


def _check_convolution(node: Node, layer: str, source: Signal, weights: Grid, graph: Graph) -> None:
    shape, image = weights.constant.shape, graph.shape(node.inputs[0])
    kernel, groups = shape[2:], node.attribute("group", 1)
    pads = node.attribute("pads", [0] * 2 * len(kernel), "INTS")
    if node.op == "ConvTranspose":
        problem = f"layer '{layer}' is a transposed convolution, which FINN does not build here"
        graph.report(layer, "transposed", problem, "move it out of FINN's part")
    elif groups != 1 and not groups == shape[0] == groups * shape[1]:
        problem = f"layer '{layer}' is a convolution of {groups} groups, and FINN builds only dense"
        problem += " ones and depthwise ones with as many outputs as inputs"
        graph.report(layer, "groups", problem, "change groups or the output channels")
    if len(kernel) > 2:
        problem = f"layer '{layer}' is a {len(kernel)}-D convolution, and FINN builds at most 2-D"
        graph.report(layer, "dimensions", problem, "use a 1-D or 2-D one")
    if image and image[0] != 1:
        problem = f"the batch size at convolution '{layer}' is not 1, and FINN builds for 1"
        graph.report(layer, "batch", problem, "export with one sample, such as x[:1]")
    if source.bipolar and any(pads):
        problem = f"convolution '{layer}' pads 1-bit inputs with a zero, which they do not have"
        graph.report(layer, "binary_padding", problem, "use 2 bits or more, or no padding")
    if len(node.inputs) > 2 and graph.producer(node.inputs[2]) is not None:
        problem = f"the bias of convolution '{layer}' comes from a quantizer, which FINN refuses"
        graph.report(layer, "bias_quantizer", problem, "export it again by export_qonnx")


def _row_scales(node: Node, weights: Grid) -> np.ndarray | None:
    """Weight scale of each output channel [rows], None where it varies inside one."""
    if weights.scalar:
        return weights.scale.reshape(1)
    shape = weights.constant.shape
    scales = rows_of(node, 1, shape)(np.broadcast_to(weights.scale, shape))
    return scales[:, 0] if np.all(scales == scales[:, :1]) else None


def _sums(
    node: Node, layer: str, source: Signal, weights: Grid, scales: np.ndarray, graph: Graph
) -> Signal:
    """The accumulator, its bias as offset."""
    rows = rows_of(node, 1, weights.constant.shape)(weights.constant)
    channels = (-1, *[1] * (weights.constant.ndim - 2)) if node.op.startswith("Conv") else (-1,)
    low, high = (int(v) for v in (source.low.min(), source.high.max()))
    ends = rows * low, rows * high
    spread = np.broadcast_to(scales, rows.shape[0]).astype(np.float64)
    spread = spread * source.scale.max()
    bias = graph.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    offset = np.zeros(rows.shape[0]) if bias is None else np.ravel(bias).astype(np.float64)
    if node.op == "Gemm":
        spread, offset = node.attribute("alpha", 1.0) * spread, node.attribute("beta", 1.0) * offset
    carried = scales * source.offset.max() * rows.sum(axis=1)
    # Sums of products of powers of two are exact. For others, the size is that of sums with random
    # signs, which is typical of partial sums; the worst case would be far larger.
    typical = np.where(is_power_of_two(spread), 0, np.abs(spread) * np.linalg.norm(rows, axis=1))
    size = np.abs(offset) + np.abs(carried) + typical * max(-low, high)
    least, _ = datatype_range(weights.type, layer)
    # FINN folds the sign of a negative gain into the weights; behind MatMuls it may leave it.
    lowest = (rows == least).any(axis=1) & (least < -1) & (node.op == "Conv")
    return Signal(
        scale=spread.reshape(channels),
        offset=(offset + carried).reshape(channels),
        low=np.minimum(*ends).sum(axis=1).reshape(channels),
        high=np.maximum(*ends).sum(axis=1).reshape(channels),
        # Neighbouring inputs differ by 1, or by 2 where they are -1 and 1.
        step=np.maximum(np.gcd.reduce(rows, axis=1), 1).reshape(channels) * (1 + source.bipolar),
        size=size.reshape(channels),
        dot=Accumulation(layer, spread.reshape(channels), lowest.reshape(channels)),
    )
