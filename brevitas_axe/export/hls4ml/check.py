"""Finds, from a QONNX file alone, what hls4ml would refuse or compute differently.

The rules follow hls4ml 1.3.0 on a graph that `rewrite` has brought into the form that hls4ml
computes exactly: scales of weights are free, those of activations must be powers of two. Every rule
is compared with hls4ml itself in tests/hls4ml/test_refusals.py.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx

from brevitas_axe.errors import InvalidModelFile
from brevitas_axe.export.finn.finding import Finding, Findings
from brevitas_axe.export.finn.signal import Graph
from brevitas_axe.export.hls4ml.fixed import power_of_two
from brevitas_axe.export.hls4ml.rewrite import Rewriting
from brevitas_axe.export.streamline import streamlined
from brevitas_axe.proof.certificate.dot_products import DOT_PRODUCTS
from brevitas_axe.proof.graph.modelfile import Node, read
from brevitas_axe.proof.graph.names import Names

Complaint = tuple[str, str, str]  # rule, problem behind the layer's name, way out
_QUANTIZERS = ("Quant", "IntQuant")
_JOINS = ("Add", "Sub", "Mul")
_AFFINE = ("Mul", "Sub", "Div", "BatchNormalization")
_MOVES = ("Flatten", "Reshape", "Transpose", "Identity", "Dropout")
_KNOWN = (*_QUANTIZERS, *_MOVES, "Relu", "Add", "Concat", "MaxPool", "Constant", "Conv", "MatMul")
_AVERAGES = ("AveragePool", "GlobalAveragePool")
_POWERS = "use fixed-point quantizers (Int8ActPerTensorFixedPoint, Uint8ActPerTensorFixedPoint)"


def check_hls4ml(
    path_or_model: str | os.PathLike | onnx.ModelProto | Any, *, notes: bool = False
) -> Findings:
    """Findings of what hls4ml would refuse, or compute differently, in a QONNX file.

    Args:
        path_or_model: path of the file, a ModelProto, or a qonnx ModelWrapper.
        notes: also names layers whose bias or scale torch rounds, so that C++ and torch are equal
            only up to that rounding.

    Returns:
        The findings in order of execution; empty if `export_hls4ml` takes the file.

    Raises:
        InvalidModelFile: the file is missing, corrupted, unsafe or cannot be analysed.
    """
    file = read(path_or_model)
    copied = onnx.ModelProto()
    copied.CopyFrom(file.model)
    try:
        findings = check_streamlined(streamlined(copied))
    except InvalidModelFile:
        raise
    except Exception as error:  # a broken file can make a library raise anything
        raise InvalidModelFile(
            f"{file.subject} cannot be analysed ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:120]}); export the model again."
        ) from error
    return Findings(f for f in findings if notes or f.severity != "note")


def check_streamlined(proto: onnx.ModelProto) -> list[Finding]:
    """As `check_hls4ml`, notes included, for a graph without biases inside its dot products."""
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # qonnx warns about opsets newer than its table
        state = Rewriting(copied)
        graph = Graph(copied, state.file, state.facts, Names(state.file))
        behind = _chains(state)
        for node in state.file.nodes:
            if all(graph.constant(tensor) is not None for tensor in node.outputs):
                continue
            name = graph.layer(node) if node.op in DOT_PRODUCTS else graph.name(node)
            for rule, problem, way_out in _complaints(node, graph, state, behind):
                severity = "note" if rule == "rounded" else "refused"
                graph.report(name, rule, f"'{name}' {problem}", way_out, severity)
    return list(graph.findings)


def _chains(state: Rewriting) -> set[str]:
    """Nodes that `rewrite` folds into the layer before them."""
    return {
        follower.name
        for node in state.file.nodes
        if node.name in state.found
        for follower in state.affine_after(node)[2]
    }


def _complaints(
    node: Node, graph: Graph, state: Rewriting, behind: set[str]
) -> Iterator[Complaint]:
    read_twice = {t for t in node.inputs if node.inputs.count(t) > 1 and graph.constant(t) is None}
    if read_twice:
        yield "twice", "reads one tensor twice, which qonnx loses on the way", "scale it instead"
    if node.name in state.found:
        yield from _dot_product(node, graph, state)
    elif node.op in _AVERAGES:
        yield from _average(node)
    elif node.op in (*_AFFINE, "Add") and node.name not in behind:
        yield from _arithmetic(node, graph)
    elif node.op in _RULES:
        yield from _RULES[node.op](node, graph)
    elif node.op not in _KNOWN and node.op not in _AFFINE:
        problem = f"is a {node.op}, which hls4ml does not build or takes from a table"
        yield "operator", problem, "leave it to the host, behind the last layer"


def _quantizer(node: Node, graph: Graph) -> Iterator[Complaint]:
    scale, zero_point, bits = (graph.constant(tensor) for tensor in node.inputs[1:4])
    if scale is None or zero_point is None or bits is None:
        problem = "computes its scale, zero point or bits, which hls4ml must know"
        yield "dynamic_quantizer", problem, "use a static quantizer"
        return
    if np.any(zero_point != 0):
        yield "zero_point", "has a zero point, for which hls4ml has no type", _POWERS
    if np.unique(scale).size > 1:
        problem = "has one scale per channel, for which hls4ml has no type"
        yield "channel_scales", problem, "use a per-tensor quantizer"
    elif power_of_two(scale) is None:
        problem = f"has the scale {float(scale.reshape(-1)[0]):.4g}, which is no power of two, so "
        yield "float_scale", problem + "hls4ml would compute it in rounded numbers", _POWERS
    mode = node.attribute("rounding_mode", "ROUND")
    if mode not in ("ROUND", "FLOOR"):
        yield "rounding", f"rounds by {mode}, and hls4ml knows ROUND and FLOOR", "use ROUND"
    if node.attribute("narrow", 0) and not node.attribute("signed", 1):
        yield "narrow", "is unsigned and narrow, which hls4ml refuses", "use narrow_range=False"
    if float(bits.reshape(-1)[0]) == 1 and node.attribute("signed", 1):
        yield "bipolar", "has one signed bit, which fixed<1,1> is not", "use two bits"


def _dot_product(node: Node, graph: Graph, state: Rewriting) -> Iterator[Complaint]:
    found = state.found[node.name]
    if found.integers is None:
        yield "not_proven", f"has no proven accumulator: {found.reason}", "quantize both its sides"
        return
    if node.op == "Conv":
        yield from _convolution(node, graph)
    elif node.op != "MatMul" or graph.constant(node.inputs[1]) is None:
        yield "operator", f"is a {node.op} that hls4ml does not build", "write it as a layer"
    elif len(graph.shape(node.inputs[0])) > 2:
        problem = "is a linear layer on a sequence, and hls4ml gives it one row for the whole of it"
        yield "sequence", problem, "use a convolution of kernel 1"
    yield from _rounded(node, state)


def _rounded(node: Node, state: Rewriting) -> Iterator[Complaint]:
    """Complaints about values that torch rounds in float32 and C++ does not."""
    gain, offset, _ = state.affine_after(node)
    scale = getattr(state.facts[node.inputs[1]], "scale", np.ones(1))
    source = getattr(state.facts[node.inputs[0]], "scale", np.ones(1))
    exponents = [power_of_two(np.asarray(value)) for value in np.unique(scale)]
    exact_scale = None not in exponents and bool(np.all(gain == 1))
    finest = min((e for e in exponents if e is not None), default=0)
    units = offset / (2.0**finest * float(np.max(source)))
    if exact_scale and bool(np.all(units == np.rint(units))):
        return
    problem = (
        "has a scale, batch norm or bias that is no multiple of its accumulator's unit; it is "
    )
    problem += "added behind the accumulator, exactly, where torch rounds"
    way_out = (
        "use fixed-point weights and a bias quantizer (Int16Bias) for equality to the last bit"
    )
    yield "rounded", problem, way_out


def _convolution(node: Node, graph: Graph) -> Iterator[Complaint]:
    shape = graph.shape(node.inputs[0])
    weights = graph.shape(node.inputs[1])
    group = node.attribute("group", 1)
    if len(shape) not in (3, 4):
        yield "dimensions", "is no 1-D or 2-D convolution", "hls4ml builds only these"
        return
    if any(d != 1 for d in node.attribute("dilations", [1], "INTS")):
        yield "dilation", "is dilated, and hls4ml counts its outputs wrongly", "use dilation 1"
    if group not in (1, shape[1]) or (group != 1 and weights[0] != group):
        problem = f"has {group} groups for {shape[1]} inputs and {weights[0]} outputs, and hls4ml "
        yield "groups", problem + "builds one group or as many as both", "split it into layers"


def _max_pool(node: Node, graph: Graph) -> Iterator[Complaint]:
    if len(graph.shape(node.inputs[0])) != 4:
        problem = "pools a sequence, whose length and channels hls4ml exchanges"
        yield "pool_1d", problem, "use a stride in the convolution before it"
    if any(node.attribute("pads", [0], "INTS")):
        problem = "pads with what hls4ml takes for the smallest number, which is not for unsigned"
        yield "pool_padding", problem, "pool without padding"
    if node.attribute("ceil_mode", 0) or any(
        d != 1 for d in node.attribute("dilations", [1], "INTS")
    ):
        yield "pool_shape", "has ceil_mode or dilation, which hls4ml ignores", "do without"


def _average(node: Node) -> Iterator[Complaint]:
    pads = any(node.attribute("pads", [0], "INTS"))
    partial = pads and not node.attribute("count_include_pad", 0)
    if partial or node.attribute("ceil_mode", 0):
        problem = "averages windows of different sizes, which no convolution does"
        yield "average", problem, "use no padding or count_include_pad=True, and ceil_mode=False"


def _arithmetic(node: Node, graph: Graph) -> Iterator[Complaint]:
    constants = [graph.constant(tensor) is not None for tensor in node.inputs]
    if any(constants):
        problem = f"is a {node.op} with a constant that no layer precedes, for which hls4ml rounds"
        yield "constant", problem, "fold it into a layer, or put a layer before it"
    elif node.op not in _JOINS:
        yield "join", f"is a {node.op} of two activations", "leave it to the host"
    else:
        shapes = [graph.shape(tensor) for tensor in node.inputs]
        plain = len({*shapes}) == 1
        channels = {shape[1] for shape in shapes if len(shape) > 2}
        pixel = any(all(d == 1 for d in shape[2:]) for shape in shapes)
        if not plain and (len(channels) != 1 or not pixel):
            problem = "joins tensors of different shapes, and hls4ml repeats the smaller one only "
            yield "broadcast", problem + "over the image", "give both the same shape"


def _concat(node: Node, graph: Graph) -> Iterator[Complaint]:
    if len(node.inputs) > 2:
        yield "concat", "joins more than two tensors, which hls4ml refuses", "join them in pairs"


_RULES: dict[str, Callable[[Node, Graph], Iterator[Complaint]]] = {
    **dict.fromkeys(_QUANTIZERS, _quantizer),
    "MaxPool": _max_pool,
    "Concat": _concat,
}
