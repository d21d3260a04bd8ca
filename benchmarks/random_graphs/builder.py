"""One random graph while it grows: nodes, constants, and the step of the tensor at its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

QONNX = "qonnx.custom_op.general"
CHANNELS_LAST = "qonnx.custom_op.channels_last"
DOMAINS = (QONNX, QONNX, "onnx.brevitas", "finn.custom_op.general", "qonnx", "")
OPSETS = (9, 10, 11, 12, 13, 13, 15, 17, 18, 19, 21)


@dataclass(frozen=True)
class Product:
    """A dot product as the generator made it.

    Attributes:
        name: of its node.
        op: MatMul, Gemm, Conv or ConvTranspose.
        left: tensor of the first operand; right: of the second.
        left_step: real value of one unit of the first operand, broadcastable to it; None where it
            is no whole number of steps.
        right_step: likewise of the second.
        attributes: of the node.
        channels_last: the channels are the last axis of the first operand and of the result.
        bias: real values that are added to every result, broadcastable to it; None for none.
    """

    name: str
    op: str
    left: str
    right: str
    left_step: np.ndarray | None
    right_step: np.ndarray | None
    attributes: dict[str, Any]
    channels_last: bool = False
    bias: np.ndarray | None = None


@dataclass
class Builder:
    """A graph with one chain of tensors; axis 0 is a batch that no operator touches.

    Attributes:
        draw: where all choices come from.
        opset: version of the standard operators.
        plain: use operators of ONNX alone, so that ONNX Runtime can run the whole file.
        x: the tensor at the end of the chain; shape: of it, without the batch.
        step: real value of one unit of x, broadcastable to [1, *shape]; None where x is no whole
            number of steps.
    """

    draw: np.random.Generator
    opset: int = 13
    plain: bool = False
    x: str = ""
    shape: tuple[int, ...] = ()
    step: np.ndarray | None = None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    corners: dict[str, tuple[float, float]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    trail: list[str] = field(default_factory=list)

    @property
    def rank(self) -> int:
        """Axes of x, the batch included."""
        return len(self.shape) + 1

    @property
    def scalar(self) -> bool:
        """One step for all of x."""
        return self.step is not None and bool(np.ptp(self.step) == 0)

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.draw.integers(len(choices)))]

    def number(self, low: int, high: int) -> int:
        """A random integer from low to high, both included."""
        return int(self.draw.integers(low, high + 1))

    def constant(self, values: Any, kind: Any = None) -> str:
        """A constant, as an initializer or as a node."""
        array = np.asarray(values, kind)
        name = f"c{len(self.constants) + len(self.nodes)}"
        tensor = numpy_helper.from_array(array, name)
        if self.draw.random() < 0.1:
            self.nodes.append(helper.make_node("Constant", [], [name], f"n{name}", value=tensor))
        else:
            self.constants.append(tensor)
        return name

    def op(self, op: str, *tensors: str, domain: str = "", name: str = "", **attributes) -> str:
        """Appends a node and returns the name of its (first) output."""
        index = len(self.nodes)
        outputs = [f"t{index}_{i}" if i else f"t{index}" for i in range(attributes.pop("outs", 1))]
        node = helper.make_node(op, list(tensors), outputs, name or f"n{index}", domain=domain)
        node.attribute.extend(helper.make_attribute(key, v) for key, v in attributes.items())
        self.nodes.append(node)
        return outputs[0]

    def graph_input(self, kind: int, shape: tuple[int, ...], low: float, high: float) -> str:
        """A graph input of extremes low and high, whose batch is free or 1."""
        name = f"x{len(self.inputs)}"
        batch = self.pick("N", 1)
        self.inputs.append(helper.make_tensor_value_info(name, kind, [batch, *shape]))
        self.corners[name], self.shapes[name] = (low, high), shape
        return name

    def model(self) -> onnx.ModelProto:
        """The file, with every tensor that someone looks at among its outputs."""
        wanted = [self.nodes[-1].output[0]]
        graph = helper.make_graph(
            self.nodes, "random", self.inputs,
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in wanted],
            self.constants,
        )  # fmt: skip
        for tensor, annotation in self.types.items():
            pair = onnx.StringStringEntryProto(key="finn_datatype", value=annotation)
            graph.quantization_annotation.append(
                onnx.TensorAnnotation(tensor_name=tensor, quant_parameter_tensor_names=[pair])
            )
        opsets = [helper.make_opsetid(self.pick("", "ai.onnx"), self.opset)]
        domains = {n.domain for n in self.nodes} | {QONNX}
        opsets += [helper.make_opsetid(d, 2) for d in sorted(domains - {"", "ai.onnx"})]
        ir = 10 if self.opset > 18 else 8
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
        model.functions.extend(self.functions)
        return model
