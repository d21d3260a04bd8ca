"""Every layer alone, with the inputs that give its largest and its smallest sum.

Inside a net, the inputs of a layer depend on the layers before it. Alone, it can be given the
extreme inputs of its proof: the largest integer where a weight is positive and the smallest
where it is negative, and the other way round. In C++ or in hardware these inputs show whether an
accumulator is wide enough, and one bit less whether the proof is tight.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import Tensor, nn

from brevitas_axe.export.hls4ml.averages import QUANT_DOMAIN
from brevitas_axe.export.hls4ml.fixed import Span
from brevitas_axe.export.hls4ml.project import (
    Hls4mlProject,
    channels_last,
    qonnx_of,
    write_project,
)
from brevitas_axe.export.hls4ml.rewrite import Dot, rewrite

_OPTIONS = {
    "Backend": "Vitis",
    "IOType": "io_parallel",
    "ReuseFactor": 1,
    "Strategy": "Latency",
}


@dataclass(frozen=True, eq=False)
class WorstCase:
    """The extreme inputs of one layer, and the expected sums.

    Attributes:
        node: the layer's name in the project.
        inputs: float64 [2, *shape]: the largest sum, then the smallest.
        sums: int64 [2, rows], bias included, in units of the accumulator.
        exponent: one unit is 2^exponent.
    """

    node: str
    inputs: np.ndarray
    sums: np.ndarray
    exponent: int

    def outputs(self, width: int) -> np.ndarray:
        """Results of an accumulator of `width` bits that wraps around, float64 [2, rows]."""
        half = 2 ** (width - 1)
        return np.ldexp(((self.sums + half) % (2 * half) - half).astype(np.float64), self.exponent)

    def needs(self, width: int) -> bool:
        """True if the extreme sums do not fit one bit less than `width`."""
        half = 2 ** (width - 2)
        return bool(self.sums.min() < -half or self.sums.max() > half - 1)


def export_layers_alone(
    model: nn.Module | str | os.PathLike | onnx.ModelProto,
    folder: str | Path,
    args: Tensor | tuple | None = None,
) -> tuple[Hls4mlProject, list[WorstCase]]:
    """Writes a project in which each dot product of a model has an input and output of its own.

    Args:
        model: as `export_hls4ml` takes it.
        folder: of the files.
        args: example input(s) of the forward, for a Brevitas model.

    Returns:
        (the project, the extreme inputs of each layer in the order of the project's inputs).
    """
    graph, dots = rewrite(qonnx_of(model, args))
    nodes = {node.name: node for node in graph.graph.node}
    parts = [_part(index, nodes[dot.name], dot, graph) for index, dot in enumerate(dots)]
    proto = _joined(parts, graph)
    alone = [_without_affine(dot) for dot in dots]
    project = write_project(proto, channels_last(proto, False), alone, Path(folder), _OPTIONS)
    return project, [_worst_case(part, dot) for part, dot in zip(parts, dots, strict=True)]


@dataclass(frozen=True, eq=False)
class _Part:
    shape: list[int]
    nodes: list[onnx.NodeProto]
    constants: list[onnx.TensorProto]
    outputs: list[int]


def _part(index: int, node: onnx.NodeProto, dot: Dot, graph: onnx.ModelProto) -> _Part:
    """Input quantizer, weights and one layer: a window of a convolution, a row of a product."""
    weights = next(n for n in graph.graph.node if n.output[0] == node.input[1])
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    shape = list(tensors[weights.input[0]].dims)
    integers = dot.integers
    rows = integers.weights.shape[0]
    kind = Span(integers.low, integers.high, dot.exponent - dot.weight_exponent).type
    constants = [
        *(tensors[name] for name in weights.input),
        _scalar(f"in_{index}_unit", 2.0**kind.exponent),
        _scalar(f"in_{index}_zero", 0.0),
        _scalar(f"in_{index}_bits", float(kind.width)),
    ]
    quantizer = helper.make_node(
        "Quant",
        [f"input_{index}", *(c.name for c in constants[-3:])],
        [f"in_{index}"],
        name=f"in_{index}_quantizer",
        domain=QUANT_DOMAIN,
        signed=int(kind.signed),
        narrow=0,
        rounding_mode="ROUND",
    )
    layer = onnx.NodeProto()
    layer.CopyFrom(node)
    layer.input[0], layer.output[0] = f"in_{index}", f"output_{index}"
    nodes = [quantizer, weights, layer]
    bias = integers.bias
    if node.op_type == "Conv":
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        size = shape[2:]
        _set(layer, "pads", [0] * 2 * len(size))
        for name in ("strides", "dilations"):
            _set(layer, name, [1] * len(size))
        constants += [tensors[name] for name in node.input[2:]]
        return _Part([1, shape[1] * group, *size], nodes, constants, [1, rows, *[1] * len(size)])
    if bias is not None and bias.any():
        values = np.ldexp(bias, dot.exponent)
        constants.append(_tensor(f"in_{index}_bias", values))
        layer.output[0] = f"in_{index}_sum"
        nodes.append(
            helper.make_node(
                "Add",
                [f"in_{index}_sum", f"in_{index}_bias"],
                [f"output_{index}"],
                name=f"in_{index}_plus",
            )
        )
    return _Part([1, integers.weights.shape[1]], nodes, constants, [1, rows])


def _set(node: onnx.NodeProto, name: str, value: list[int]) -> None:
    for attribute in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute(name, value))


def _tensor(name: str, values: Any) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(values, np.float32), name)


def _scalar(name: str, value: float) -> onnx.TensorProto:
    return _tensor(name, value)


def _joined(parts: list[_Part], graph: onnx.ModelProto) -> onnx.ModelProto:
    float32 = TensorProto.FLOAT
    joined = helper.make_graph(
        [node for part in parts for node in part.nodes],
        "layers",
        [
            helper.make_tensor_value_info(f"input_{i}", float32, part.shape)
            for i, part in enumerate(parts)
        ],
        [
            helper.make_tensor_value_info(f"output_{i}", float32, part.outputs)
            for i, part in enumerate(parts)
        ],
        [constant for part in parts for constant in part.constants],
    )
    return helper.make_model(joined, opset_imports=graph.opset_import)


def _without_affine(dot: Dot) -> Dot:
    return Dot(dot.name, dot.layer, dot.integers, dot.exponent, dot.weight_exponent)


def _worst_case(part: _Part, dot: Dot) -> WorstCase:
    """Inputs of the row with the largest sum, and of the row with the smallest."""
    integers = dot.integers
    weights = integers.weights.astype(np.int64)
    bias = np.zeros(len(weights)) if integers.bias is None else integers.bias
    bias = bias.astype(np.int64)
    largest = np.where(weights > 0, integers.high, integers.low)
    smallest = np.where(weights > 0, integers.low, integers.high)
    inputs, sums = [], []
    for extreme, pick in ((largest, np.argmax), (smallest, np.argmin)):
        row = int(pick((weights * extreme).sum(1) + bias))
        image, columns = _image(extreme[row], row, part, weights.shape)
        inputs.append(image)
        sums.append((weights * columns).sum(1) + bias)
    unit = dot.exponent - dot.weight_exponent
    values = np.ldexp(np.stack(inputs).astype(np.float64), unit)
    return WorstCase(dot.name, values, np.stack(sums), dot.exponent)


def _image(
    row_inputs: np.ndarray, row: int, part: _Part, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The layer's input, and the indices of the integers that each row uses, [rows or 1, K]."""
    whole = int(np.prod(part.shape))
    if whole == shape[1]:
        return row_inputs.reshape(part.shape[1:]), row_inputs[None]
    # A grouped convolution: only the row's own group gets inputs, the others get zeros.
    groups = whole // shape[1]
    image = np.zeros((groups, shape[1]), np.int64)
    group = row // (shape[0] // groups)
    image[group] = row_inputs
    return image.reshape(part.shape[1:]), np.repeat(image, shape[0] // groups, axis=0)
