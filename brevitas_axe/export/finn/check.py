"""Finds, from a QONNX file alone, what FINN would refuse or get wrong.

The rules follow FINN's own flow: quantized weights become integers, activation quantizers become
thresholds, and every scale and offset between them is moved into these thresholds.
Measured with finn-plus 1.6.1 (its streamlining for residual nets) and qonnx 1.0.0; every rule is
compared with FINN itself in tests/finn/test_refusals.py.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import load_external_data_for_model

from brevitas_axe.errors import InvalidModelFile
from brevitas_axe.export.finn import floats, joins, layers, quantizers, thresholds
from brevitas_axe.export.finn.finding import Findings
from brevitas_axe.export.finn.joins import Rule
from brevitas_axe.export.finn.signal import Graph, Host, Signal, forked
from brevitas_axe.export.indexed import IndexedGraph
from brevitas_axe.proof.emulator.allowance import Allowance
from brevitas_axe.proof.emulator.session import needed
from brevitas_axe.proof.graph.flow import analyse
from brevitas_axe.proof.graph.grid import Grid, Unprovable
from brevitas_axe.proof.graph.growth import function_sizes
from brevitas_axe.proof.graph.modelfile import ModelFile, Node, plain_domain, read
from brevitas_axe.proof.graph.names import Names
from brevitas_axe.proof.graph.operators import QONNX_DOMAINS
from brevitas_axe.proof.graph.shapes import Shapes

_QUANTIZERS: dict[str, Rule] = {
    "Quant": quantizers.quant,
    "IntQuant": quantizers.quant,
    "BipolarQuant": quantizers.bipolar_quant,
    "FloatQuant": floats.float_quant,
    "Trunc": quantizers.trunc,
    "MultiThreshold": thresholds.multi_threshold,
    "XnorPopcountMatMul": thresholds.popcount,
}
_STANDARD: dict[str, Rule] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "MatMul", "Gemm"), layers.dot_product),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), joins.affine),
    "BatchNormalization": joins.batch_norm,
    "Concat": joins.concat,
    "Relu": joins.relu,
    "MaxPool": joins.max_pool,
    "AveragePool": quantizers.average_pool,
    "GlobalAveragePool": joins.global_average_pool,
    **dict.fromkeys(("Flatten", "Reshape", "Transpose"), joins.move),
    **dict.fromkeys(("Identity", "Dropout"), joins.stay),
    "Pad": joins.pad,
    "Resize": joins.resize,
    "Unsqueeze": joins.unsqueeze,
    "Squeeze": joins.squeeze,
    "LayerNormalization": floats.layer_norm,
    "Softmax": floats.softmax,
    **dict.fromkeys(floats.VERSAL, floats.versal),
}
# Where each takes the shape that it gives.
_BY_SHAPE = {"Expand": 1, "Reshape": 1, "ConstantOfShape": 0, "Tile": 1, "Upsample": 1}
_MOST_AXES = 16
# Nodes of a file, each about two milliseconds: so many, and one more for so many bytes.
_NODES, _BYTES_PER_NODE = 2**12, 2**10
# Nodes that onnx's inference may visit in one call of a local function.
_INSIDE = 2**10
_HARDWARE = "finn.custom_op.fpgadataflow"


def check_finn(
    path_or_model: str | os.PathLike | onnx.ModelProto | Any, *, notes: bool = False
) -> Findings:
    """Findings of what FINN would refuse, or build wrong, in a QONNX file.

    Args:
        path_or_model: path of the file, a ModelProto, or a qonnx ModelWrapper.
        notes: also names layers in which a sum lies next to a level by coincidence, which FINN
            and torch may round differently; one net in five has such a layer.

    Returns:
        The findings in order of execution; empty if FINN builds the file as it is.

    Raises:
        InvalidModelFile: the file is missing, corrupted, unsafe or cannot be analysed.
    """
    findings = walk(path_or_model).findings
    return Findings(f for f in findings if notes or f.severity != "note")


def walk(path_or_model: str | os.PathLike | onnx.ModelProto | Any) -> Graph:
    """The graph of a file after all rules. Raises the same errors as `check_finn`."""
    original = read(path_or_model)
    most = _NODES + original.budget.stored // _BYTES_PER_NODE
    if len(original.nodes) > most:
        raise InvalidModelFile(
            f"{original.subject} has {len(original.nodes)} nodes, but in a file of its size at "
            f"most {most} are looked at; fold its constants, or check parts of it."
        )
    try:
        if any(node.domain.startswith(_HARDWARE) for node in original.nodes):
            return _hardware(original)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # qonnx warns about opsets newer than its table
            model = _prepared(original)
            file = read(model)
            graph = Graph(model, file, analyse(file), Names(original))
            _give_inputs(graph)
            for node in file.nodes:
                _apply(node, graph)
            for output in file.graph.output:
                joins.end(graph.values.get(output.name, Host()), output.name, graph)
    except InvalidModelFile:
        raise
    except Exception as error:  # a broken file can make a library raise anything
        raise InvalidModelFile(
            f"{original.subject} cannot be analysed ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:120]}); export the model again."
        ) from error
    return graph


def _prepared(file: ModelFile) -> onnx.ModelProto:
    """The file with shapes inferred and constants folded, FINN's first steps; names stay."""
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    if file.external:
        load_external_data_for_model(model, str(file.folder))
    for node in model.graph.node:
        if node.op_type in _QUANTIZERS:
            node.domain = QONNX_DOMAINS[0]
    graph, allowance = IndexedGraph(model), Allowance(file, {})

    def allowed(node: onnx.NodeProto, feeds: Mapping[str, np.ndarray]) -> bool:
        """A small file may not ask for large constants; what is not folded is a computed value."""
        if plain_domain(node.domain):
            return False
        try:
            allowance.check(node, {name: feeds[name] for name in needed(node)})
        except Unprovable:
            return False
        return True

    graph.opaque = _opaque(file)
    graph.fold_constants(_QUANTIZERS, allowed)
    file.budget.spend(graph.shared_elements(), "what its nodes share")
    graph.separate_constants()
    graph.infer_shapes()
    return graph.model()


def _opaque(file: ModelFile) -> frozenset[str]:
    """Tensors of a shape that is itself computed, and perhaps of many axes, or of long functions.

    onnx's inference takes whatever time and memory such a shape or function asks for.
    """
    by_shape = [node for node in file.nodes if node.op in _BY_SHAPE and not node.domain]
    shapes = Shapes(file, analyse(file)) if by_shape else None
    sizes = function_sizes(file.model)
    long = [node for node in file.nodes if sizes.get((node.domain, node.op), 0) > _INSIDE]
    found = {output for node in long for output in node.outputs}
    for node in by_shape:
        wanted = node.inputs[_BY_SHAPE[node.op]] if len(node.inputs) > _BY_SHAPE[node.op] else ""
        length = shapes.dimension(wanted, 0) if shapes is not None else None
        if length is None or length > _MOST_AXES:
            found.update(node.outputs)
    return frozenset(found)


def _hardware(file: ModelFile) -> Graph:
    """Says, once for a file, that its nodes are units of FINN already."""
    graph = Graph(file.model, file, {}, Names(file))
    units = [node for node in file.nodes if node.domain.startswith(_HARDWARE)]
    problem = f"{len(units)} of {len(file.nodes)} nodes are already FINN hardware"
    graph.report(graph.name(units[0]), "hardware", problem, "FINN goes on from there", "note")
    return graph


def _give_inputs(graph: Graph) -> None:
    """Inputs that the file annotates with an integer type are integers to FINN."""
    for value in graph.file.graph.input:
        fact = graph.facts.get(value.name)
        if value.name in graph.file.types and isinstance(fact, Grid) and fact.integers is None:
            low, high, one = (np.asarray(n, np.int64) for n in (fact.low, fact.high, 1))
            size = np.asarray(max(-fact.low, fact.high), np.float64)
            bipolar = fact.type == "BIPOLAR"
            graph.values[value.name] = Signal(
                np.ones(()), np.zeros(()), low, high, one, size, bipolar=bipolar
            )


def _apply(node: Node, graph: Graph) -> None:
    """Gives the outputs of one node their values."""
    inputs = [
        graph.values.get(tensor, Host())
        for tensor in node.inputs
        if tensor and graph.constant(tensor) is None
    ]
    if not inputs and node.op != "FloatQuant":
        return  # constants are looked up in the facts
    table = _QUANTIZERS if node.domain in QONNX_DOMAINS else _STANDARD if not node.domain else {}
    value = table.get(node.op, joins.unknown)(node, inputs, graph)
    for output in node.outputs:
        graph.values[output] = forked(value) if graph.uses(output) > 1 else value
