"""Averages over windows as depthwise convolutions, whose accumulators are proven like all others.

hls4ml averages in a type that it infers and returns the type of the input, which drops fractional
bits; and qonnx has no average in the layout that hls4ml needs.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper
from qonnx.core.modelwrapper import ModelWrapper

QUANT_DOMAIN = "qonnx.custom_op.general"


def averages_as_convolutions(proto: onnx.ModelProto) -> None:
    """Replaces every AveragePool and GlobalAveragePool, in place.

    The weights are ones. For a window of 2^k pixels their scale is 2^-k; any other window is
    followed by a multiplication by 1 / (number of pixels).
    """
    model = ModelWrapper(proto)
    for node in list(model.graph.node):
        if node.op_type in ("AveragePool", "GlobalAveragePool") and not node.domain:
            _replace(node, model)


def _replace(node: onnx.NodeProto, model: ModelWrapper) -> None:
    shape = model.get_tensor_shape(node.input[0]) or []
    channels, image = shape[1], list(shape[2:])
    given = {a.name: list(a.ints) for a in node.attribute if a.ints}
    kernel = given.get("kernel_shape", image)
    count = int(np.prod(kernel))
    power = count & (count - 1) == 0
    unit = 1 / count if power else 1.0
    name = node.name
    for key, value in (
        (f"{name}.weight", np.full((channels, 1, *kernel), unit)),
        (f"{name}_unit", np.asarray(unit)),
        (f"{name}_zero", np.asarray(0.0)),
        (f"{name}_bits", np.asarray(2.0)),
    ):
        model.set_initializer(key, value.astype(np.float32))
    quantizer = helper.make_node(
        "Quant",
        [f"{name}.weight", f"{name}_unit", f"{name}_zero", f"{name}_bits"],
        [f"{name}_ones"],
        name=f"{name}_weights",
        domain=QUANT_DOMAIN,
        signed=1,
        narrow=0,
        rounding_mode="ROUND",
    )
    summed = node.output[0] if power else f"{name}_sums"
    convolution = helper.make_node(
        "Conv",
        [node.input[0], f"{name}_ones"],
        [summed],
        name=name,
        group=channels,
        kernel_shape=kernel,
        strides=given.get("strides", [1] * len(kernel)),
        pads=given.get("pads", [0] * 2 * len(kernel)),
        dilations=[1] * len(kernel),
    )
    model.set_tensor_shape(f"{name}_ones", [channels, 1, *kernel])
    nodes = [quantizer, convolution]
    if not power:
        model.set_initializer(f"{name}_share", np.asarray(1 / count, np.float32))
        model.set_tensor_shape(summed, model.get_tensor_shape(node.output[0]) or [])
        share = [summed, f"{name}_share"]
        nodes.append(helper.make_node("Mul", share, [node.output[0]], name=f"{name}_mean"))
    place = list(model.graph.node).index(node)
    for offset, new in enumerate(nodes):
        model.graph.node.insert(place + offset, new)
    model.graph.node.remove(node)
