"""Runs a QONNX graph: standard nodes by ONNX Runtime, QONNX's own by qonnx.

qonnx's `execute_onnx` computes the same, but searches the types of all tensors for every node;
here time grows linearly with the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from qonnx.core.execute_custom_node import execute_custom_node
from qonnx.custom_op.registry import is_custom_op

from brevitas_axe.proof.emulator.session import needed, session

QUANTIZERS = ("Quant", "IntQuant", "BipolarQuant", "FloatQuant", "Trunc")
# Result of a quantizer of values (not of weights) and its scale → what the run goes on with.
Settle = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Execution:
    """A graph that can be run several times; its nodes are compiled once.

    Attributes:
        inputs: names of the inputs that no constant of the file gives.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self._constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        self._sessions: dict[int, onnxruntime.InferenceSession] = {}
        self.inputs = [i.name for i in proto.graph.input if i.name not in self._constants]

    def __call__(
        self, feeds: Mapping[str, np.ndarray], settle: Settle | None = None
    ) -> dict[str, np.ndarray]:
        """Values of the graph's outputs by name, given those of its inputs.

        Args:
            feeds: values of the inputs by name.
            settle: called with what every quantizer of values gives and its step; the run goes on
                with what it returns.
        """
        context: dict[str, Any] = {"": None, **self._constants, **feeds}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's and qonnx's about single nodes
            for index, node in enumerate(self._proto.graph.node):
                if is_custom_op(node.domain, node.op_type):
                    run_custom(node, context, self._proto)
                    constant = node.input[0] in self._constants
                    if settle is not None and node.op_type in QUANTIZERS and not constant:
                        found = context[node.output[0]]
                        context[node.output[0]] = settle(found, _step(node, context))
                    continue
                given = _given(node, context)
                if index not in self._sessions:
                    self._sessions[index] = session(node, given, self._proto)
                context.update(_run(node, given, self._sessions[index]))
        return {output.name: context[output.name] for output in self._proto.graph.output}


def _step(node: onnx.NodeProto, context: Mapping[str, Any]) -> np.ndarray:
    """Distance of what a quantizer gives to the next level above, away from zero."""
    scale = context[node.input[1]]
    if node.op_type != "FloatQuant":
        return scale
    mantissa, bias = (float(np.asarray(context[name])) for name in node.input[3:5])
    numbers = np.abs(context[node.output[0]] / scale)
    return scale * np.exp2(np.maximum(np.frexp(numbers)[1] - 1, 1 - bias) - mantissa)


def run_node(
    node: onnx.NodeProto, values: Mapping[str, np.ndarray], proto: onnx.ModelProto
) -> dict[str, np.ndarray]:
    """Outputs of one node of a graph by name, given at least the values that it reads."""
    if is_custom_op(node.domain, node.op_type):
        context: dict[str, Any] = {"": None, **values}
        run_custom(node, context, proto)
        return {name: np.asarray(context[name]) for name in node.output}
    given = _given(node, values)
    return _run(node, given, session(node, given, proto))


def run_custom(node: onnx.NodeProto, context: dict[str, Any], proto: onnx.ModelProto) -> None:
    """Adds the outputs of one of QONNX's nodes to the values."""
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    version = versions.get(node.domain, versions.get("", 1))
    execute_custom_node(node, context, proto.graph, onnx_opset_version=version)


def _given(node: onnx.NodeProto, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: values[name] for name in needed(node) if name in values}


def _run(
    node: onnx.NodeProto, given: dict[str, np.ndarray], compiled: onnxruntime.InferenceSession
) -> dict[str, np.ndarray]:
    outputs = [name for name in node.output if name]
    found: list[Any] = list(compiled.run(outputs, given))
    return dict(zip(outputs, found, strict=True))
