"""Models with every kind of layer, calibrated, and what every solve of them must keep."""

from __future__ import annotations

import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFixedPoint,
    Int8WeightPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from brevitas.quant.fixed_point import Int8WeightPerChannelFixedPoint
from torch import nn

from brevitas_axe.accumulator import fits
from brevitas_axe.model.layers import find_layers, integer_weight, unroll_weight
from brevitas_axe.run.solve import axe_mode

BITS = 14


def kinds(weight=Int8WeightPerChannelFloat, act=Uint8ActPerTensorFloat, bits=4, **more) -> dict:
    """Quantizers of one layer."""
    weight = {"weight_quant": weight, "weight_bit_width": bits}
    return {**weight, "input_quant": act, "return_quant_tensor": False, **more}


class Attention(nn.Module):
    def __init__(self, packed: bool) -> None:
        super().__init__()
        part = {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": 4}
        self.attention = qnn.QuantMultiheadAttention(
            12,
            2,
            packed_in_proj=packed,
            batch_first=True,
            **{
                f"{side}_{key}": value
                for side in ("in_proj", "out_proj")
                for key, value in part.items()
            },
        )

    def forward(self, x):
        return self.attention(x, x, x)[0]


# name: (function that builds the layer, shape of its input)
LAYERS = {
    "linear": (lambda: qnn.QuantLinear(37, 9, **kinds()), (24, 37)),
    "linear, one output": (lambda: qnn.QuantLinear(37, 1, bias=False, **kinds()), (24, 37)),
    "linear, 4-D input": (lambda: qnn.QuantLinear(24, 5, **kinds()), (2, 3, 5, 24)),
    "conv1d": (lambda: qnn.QuantConv1d(3, 5, 5, stride=2, **kinds()), (4, 3, 19)),
    "conv2d": (lambda: qnn.QuantConv2d(4, 6, 3, padding=1, stride=2, **kinds()), (4, 4, 7, 6)),
    "conv3d": (lambda: qnn.QuantConv3d(2, 3, 2, dilation=2, **kinds()), (3, 2, 5, 5, 4)),
    "grouped": (lambda: qnn.QuantConv2d(8, 6, 3, groups=2, **kinds()), (4, 8, 5, 5)),
    "depthwise": (lambda: qnn.QuantConv2d(6, 6, 5, groups=6, **kinds()), (4, 6, 8, 8)),
    "same": (lambda: qnn.QuantConv2d(2, 3, 3, padding="same", **kinds()), (4, 2, 5, 5)),
    "transposed 1d": (lambda: qnn.QuantConvTranspose1d(4, 3, 5, stride=2, **kinds()), (4, 4, 9)),
    "transposed 2d, grouped": (
        lambda: qnn.QuantConvTranspose2d(
            8, 6, 3, groups=2, stride=2, output_padding=1, **kinds(Int8WeightPerTensorFloat)
        ),
        (3, 8, 4, 4),
    ),
    "transposed 3d": (lambda: qnn.QuantConvTranspose3d(2, 3, 2, **kinds()), (2, 2, 3, 3, 3)),
    "per tensor": (lambda: qnn.QuantLinear(37, 9, **kinds(Int8WeightPerTensorFloat)), (24, 37)),
    "fixed point": (
        lambda: qnn.QuantLinear(37, 9, **kinds(Int8WeightPerChannelFixedPoint)),
        (24, 37),
    ),
    "fixed point per tensor": (
        lambda: qnn.QuantLinear(37, 9, **kinds(Int8WeightPerTensorFixedPoint)),
        (24, 37),
    ),
    "signed input": (lambda: qnn.QuantLinear(37, 9, **kinds(act=Int8ActPerTensorFloat)), (24, 37)),
    "8 bits": (lambda: qnn.QuantLinear(37, 9, **kinds(bits=8)), (24, 37)),
    "attention, packed": (lambda: Attention(True), (3, 6, 12)),
    "attention, separate": (lambda: Attention(False), (3, 6, 12)),
}


def calibrated(model: nn.Module, *batches) -> nn.Module:
    model.eval()
    with torch.no_grad(), calibration_mode(model):
        for x in batches:
            model(x)
    return model


def build(kind: str) -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer = make()
    model = layer if isinstance(layer, Attention) else nn.Sequential(layer)
    signed = "signed" in kind or "attention" in kind
    batches = [torch.randn(shape) if signed else torch.rand(shape) for _ in range(2)]
    return calibrated(model, *batches), batches


def run(model: nn.Module, batches, bits: int | None = BITS, *, rounds: bool = False, **options):
    """One whole run; `rounds` feeds the data again for every layer, as Brevitas users do."""
    plan = options.get("plan")
    with (
        torch.no_grad(),
        axe_mode(model, accumulator_bit_width=None if plan else bits, **options) as axe,
    ):
        for index in range(axe.num_layers):
            for x in batches if rounds or index == 0 else ():
                axe.model(x)
            axe.update()
    return axe


def integers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: integer_weight(name, layer)[0] for name, layer in find_layers(model).items()}


def same(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def assert_holds(model: nn.Module) -> None:
    for name, layer in find_layers(model).items():
        proxy = layer.weight_quant
        rows = unroll_weight(layer, integer_weight(name, layer)[0]).flatten(0, 1)
        assert rows.any(), f"{name} is all zero"
        top = 2 ** (int(proxy.bit_width()) - 1) - 1
        assert int(rows.abs().max()) <= top
        if getattr(proxy, "accumulator_bit_width", None) is not None:
            reach = proxy.input_range
            budget = proxy.accumulator_bit_width, proxy.accumulator_tile_size
            assert fits(rows.numpy(), reach.low, reach.high, *budget).all(), name


def two_layers() -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        qnn.QuantConv2d(3, 8, 3, **kinds()),
        nn.ReLU(),
        nn.Flatten(),
        qnn.QuantLinear(8 * 16, 5, **kinds()),
    )
    batches = [torch.rand(6, 3, 6, 6) for _ in range(3)]
    return calibrated(model, *batches), batches
