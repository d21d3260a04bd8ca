"""The integers of a model's weights, and those that a file's quantizers give."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from brevitas_axe.errors import ExportRefused
from brevitas_axe.model.layers import Layer, integer_weight

# Operators that quantize weights.
WEIGHT_OPS = ("Quant", "BipolarQuant", "FloatQuant")


def solved_weights(layers: dict[str, Layer]) -> dict[str, tuple[Tensor, Tensor]]:
    """Integers and scale by layer; refuses what QONNX cannot represent or no accelerator builds."""
    solved = {}
    for name, layer in layers.items():
        if layer.weight.dtype != torch.float32:
            raise ExportRefused(
                f"layer '{name}' is in {layer.weight.dtype}, but QONNX computes in float32; "
                "convert the model by model.float() first."
            )
        solved[name] = integer_weight(name, layer)
        if not bool(solved[name][0].any()):
            raise ExportRefused(
                f"all weights of layer '{name}' are zero, which FINN cannot build; give it a "
                "wider accumulator or more weight bits."
            )
    return solved


def check_integers(proto: onnx.ModelProto, integers: dict[str, np.ndarray]) -> None:
    """The file's weight quantizers must give exactly the model's integers."""
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        if node.op_type in WEIGHT_OPS and node.input[0] in constants:
            weight, scale = (numpy_helper.to_array(constants[name]) for name in node.input[:2])
            found[node.input[0]] = _file_integers(node, weight / scale, constants)
    for name, expected in integers.items():
        actual = found.get(f"{name}.weight")
        if actual is None or not np.array_equal(actual, expected):
            raise ExportRefused(
                f"the exported weights of layer '{name}' are not the model's integers; export "
                "with dynamo=False, and report the layer if that does not help."
            )


def _file_integers(
    node: onnx.NodeProto, ratio: np.ndarray, constants: dict[str, onnx.TensorProto]
) -> np.ndarray:
    """What a weight quantizer of the file gives, over its scale and the step of a float format."""
    if node.op_type == "BipolarQuant":
        return np.sign(ratio)
    if node.op_type == "Quant":
        return np.round(ratio)
    mantissa, bias = (float(numpy_helper.to_array(constants[name])) for name in node.input[3:5])
    units = ratio.astype(np.float64) * 2.0 ** (bias + mantissa - 1)
    # A number begins with the mantissa's bits and one more; the rounding of a scale is far below.
    gap = np.exp2(np.maximum(np.frexp(units)[1] - mantissa - 1, 0))
    return np.round(units / gap) * gap
