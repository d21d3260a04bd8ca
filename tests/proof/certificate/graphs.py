"""Small QONNX graphs, written by hand so that no exporter is trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

QONNX = "qonnx.custom_op.general"


class Graph:
    """Collects nodes and constants; every method returns the name of a tensor."""

    def __init__(self, *shape: int | str, name: str = "x", kind: int = TensorProto.FLOAT) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.types: dict[str, str] = {}
        self.inputs = [helper.make_tensor_value_info(name, kind, list(shape))]
        self.input = name

    def constant(self, values, name: str = "", annotation: str = "") -> str:
        name = name or f"c{len(self.constants)}"
        values = np.asarray(values)
        self.constants[name] = values.astype(np.float32) if values.dtype == float else values
        if annotation:
            self.types[name] = annotation
        return name

    def op(self, op: str, *tensors: str, name: str = "", domain: str = "", **attributes) -> str:
        name = name or f"{op}_{len(self.nodes)}"
        outputs = attributes.pop("outputs", 1)
        names = [f"{name}.out"] if outputs == 1 else [f"{name}.out{i}" for i in range(outputs)]
        self.nodes.append(
            helper.make_node(op, list(tensors), names, name=name, domain=domain, **attributes)
        )
        return names[0] if outputs == 1 else names

    def quant(
        self,
        tensor: str,
        bits: float = 8,
        signed: int = 0,
        scale=0.25,
        zero_point: float = 0,
        narrow: int = 0,
        name: str = "",
        rounding_mode: str = "ROUND",
    ) -> str:
        parameters = (self.constant(np.float32(v)) for v in (scale, zero_point, bits))
        return self.op(
            "Quant", tensor, *parameters, name=name, domain=QONNX,
            signed=signed, narrow=narrow, rounding_mode=rounding_mode,
        )  # fmt: skip

    def weight(self, integers, scale=0.5, bits: int = 4, name: str = "fc.weight", **more) -> str:
        """Integers × scale behind a Quant."""
        values = np.float32(np.asarray(integers) * np.asarray(scale))
        return self.quant(self.constant(values, name), bits, 1, scale, narrow=1, **more)

    def model(self, *outputs: str, **more) -> onnx.ModelProto:
        outputs = outputs or (self.nodes[-1].output[0],)
        graph = helper.make_graph(
            self.nodes,
            "graph",
            self.inputs,
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
            [numpy_helper.from_array(v, n) for n, v in self.constants.items()],
        )
        for tensor, annotation in self.types.items():
            pair = onnx.StringStringEntryProto(key="finn_datatype", value=annotation)
            graph.quantization_annotation.append(
                onnx.TensorAnnotation(tensor_name=tensor, quant_parameter_tensor_names=[pair])
            )
        opsets = [helper.make_opsetid("", 13), helper.make_opsetid(QONNX, 2)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)


def linear(integers: Sequence, bits: int = 8, signed: int = 0, **weight) -> onnx.ModelProto:
    """Quant → MatMul with integers [K, N]."""
    integers = np.asarray(integers)
    graph = Graph(1, integers.shape[0])
    quantized = graph.quant(graph.input, bits, signed, name="input_quant")
    graph.op("MatMul", quantized, graph.weight(integers, **weight), name="fc")
    return graph.model()
