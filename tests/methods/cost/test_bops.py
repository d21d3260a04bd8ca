"""Bit operations, MACs and weight memory are those that qonnx finds in the exported file."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from qonnx.util.inference_cost import inference_cost
from torch import nn

from brevitas_axe.export import export_qonnx
from brevitas_axe.methods.cost import LayerShape, full_plan, layer_shapes, total_cost
from brevitas_axe.methods.cost.bops import bops
from brevitas_axe.methods.cost.memory import memory
from brevitas_axe.plan import LayerPrecision


def act(bits: int) -> qnn.QuantReLU:
    return qnn.QuantReLU(bit_width=bits, return_quant_tensor=True)


def conv(*args: Any, bits: int, **options: Any) -> qnn.QuantConv2d:
    options |= {"bias": False, "weight_bit_width": bits}
    return qnn.QuantConv2d(*args, **options)


def images() -> nn.Sequential:
    return nn.Sequential(
        qnn.QuantIdentity(bit_width=8, return_quant_tensor=True),
        conv(3, 8, 3, bits=4, stride=2, padding=1),
        act(4),
        conv(8, 8, 3, bits=3, groups=8),
        act(6),
        conv(8, 6, (1, 3), bits=5, groups=2, dilation=2),
        act(3),
        nn.Flatten(),
        qnn.QuantLinear(6 * 12, 10, bias=True, weight_bit_width=2),
    )


def signals() -> nn.Sequential:
    return nn.Sequential(
        qnn.QuantIdentity(bit_width=8, return_quant_tensor=True),
        qnn.QuantConv1d(3, 8, 5, dilation=2, stride=2, padding=2, bias=True, weight_bit_width=4),
        act(4),
        qnn.QuantConv1d(8, 8, 3, groups=8, bias=False, weight_bit_width=3),
    )


def sequences() -> nn.Sequential:
    return nn.Sequential(
        qnn.QuantIdentity(bit_width=8, return_quant_tensor=True),
        qnn.QuantLinear(6, 5, bias=True, weight_bit_width=4),
        act(4),
        qnn.QuantLinear(5, 3, bias=False, weight_bit_width=3),
    )


@pytest.mark.parametrize(
    ("make", "size"), [(images, (1, 3, 16, 16)), (signals, (1, 3, 32)), (sequences, (2, 7, 6))]
)
def test_as_qonnx_counts_them(make, size, tmp_path) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(*size)
    with torch.no_grad(), calibration_mode(model):
        model(x)
    export_qonnx(model.eval(), x, tmp_path / "net.onnx", target="qonnx")
    theirs = inference_cost(str(tmp_path / "net.onnx"), discount_sparsity=False)["total_cost"]
    shapes, plan = layer_shapes(model, (x,)), full_plan(model, (x,))
    assert sum(shape.macs for shape in shapes.values()) == theirs["total_macs"]
    assert total_cost(bops, plan, shapes) == theirs["total_bops"]
    weights = total_cost(memory, plan, shapes)
    assert weights == pytest.approx(theirs["total_mem_w_bits"] / 8, rel=1e-12)


def test_every_product_costs_its_widths_multiplied() -> None:
    shape = LayerShape("fc", "dense", inputs=100, outputs=3, vectors=2)
    assert bops(shape, LayerPrecision(weight=4, input=6, accumulator=9)) == 100 * 3 * 2 * 24
