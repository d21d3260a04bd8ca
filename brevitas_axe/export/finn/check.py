"""Finds, from a QONNX file alone, what FINN would refuse or get wrong.

The rules follow FINN's own flow: quantized weights become integers, activation quantizers become
thresholds, and every scale and offset between them is moved into these thresholds.
Measured with finn-plus 1.6.1 (its streamlining for residual nets) and qonnx 1.0.0; every rule is
compared with FINN itself in tests/finn/test_refusals.py.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import onnx
from onnx.external_data_helper import load_external_data_for_model

from brevitas_axe.errors import InvalidModelFile
from brevitas_axe.export.finn import joins, layers, quantizers
from brevitas_axe.export.finn.finding import Finding
from brevitas_axe.export.finn.joins import Rule
from brevitas_axe.export.finn.signal import Graph, Host, forked
from brevitas_axe.export.indexed import IndexedGraph
from brevitas_axe.proof.graph.flow import analyse
from brevitas_axe.proof.graph.modelfile import ModelFile, Node, read
from brevitas_axe.proof.graph.names import Names
from brevitas_axe.proof.graph.operators import QONNX_DOMAINS

_QUANTIZERS: dict[str, Rule] = {
    "Quant": quantizers.quant,
    "IntQuant": quantizers.quant,
    "BipolarQuant": quantizers.bipolar_quant,
    "Trunc": quantizers.trunc,
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
}


def check_finn(
    path_or_model: str | os.PathLike | onnx.ModelProto | Any, *, notes: bool = False
) -> list[Finding]:
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
    return [finding for finding in findings if notes or finding.severity != "note"]


def walk(path_or_model: str | os.PathLike | onnx.ModelProto | Any) -> Graph:
    """The graph of a file after all rules. Raises the same errors as `check_finn`."""
    original = read(path_or_model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # qonnx warns about opsets newer than its table
            model = _prepared(original)
            file = read(model)
            graph = Graph(model, file, analyse(file), Names(original))
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
    graph = IndexedGraph(model)
    graph.fold_constants(kept=_QUANTIZERS)
    graph.separate_constants()
    graph.infer_shapes()
    return graph.model()


def _apply(node: Node, graph: Graph) -> None:
    """Gives the outputs of one node their values."""
    inputs = [
        graph.values.get(tensor, Host())
        for tensor in node.inputs
        if tensor and graph.constant(tensor) is None
    ]
    if not inputs:
        return  # constants are looked up in the facts
    table = _QUANTIZERS if node.domain in QONNX_DOMAINS else _STANDARD if not node.domain else {}
    value = table.get(node.op, joins.unknown)(node, inputs, graph)
    for output in node.outputs:
        graph.values[output] = forked(value) if graph.uses(output) > 1 else value
