"""One small model per rule of `check_hls4ml`, and some that hls4ml builds as they are.

They have no biases: hls4ml by itself gives these its default type, and refuses them behind a
convolution. `export_hls4ml` writes them so that it takes them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.inject.enum import FloatToIntImplType
from brevitas.quant import (
    Int8ActPerTensorFixedPoint,
    Int8ActPerTensorFloat,
    Int8WeightPerTensorFixedPoint,
    ShiftedUint8ActPerTensorFloat,
    Uint8ActPerTensorFixedPoint,
)
from torch import Tensor, nn

from brevitas_axe import export_qonnx


class Behind(nn.Module):
    """Any function of two quantized tensors between two layers."""

    def __init__(
        self, function: Callable[[Any, Any], Any], *, pooled: bool = False, channels: int = 4
    ) -> None:
        super().__init__()
        self.input = act()
        self.left, self.right = conv(2, 4, 3, padding=1), conv(2, channels, 3, padding=1)
        self.relu, self.pool = act(unsigned=True), nn.MaxPool2d(6) if pooled else nn.Identity()
        self.function, self.after, self.last = function, act(), conv(4, 2, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.input(x)
        left, right = self.relu(self.left(x)), self.pool(self.relu(self.right(x)))
        return self.last(self.after(self.function(left, right)))


def _quotient(a: Any, b: Any) -> Tensor:
    return getattr(a, "value", a) / (getattr(b, "value", b) + 1.0)


class Three(nn.Module):
    """Three tensors joined at once."""

    def __init__(self) -> None:
        super().__init__()
        self.input, self.relu, self.last = act(), act(unsigned=True), conv(6, 2, 3)
        self.branches = nn.ModuleList(conv(2, 2, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        x = self.input(x)
        return self.last(self.relu(torch.cat([branch(x) for branch in self.branches], 1)))


class Shift(nn.Module):
    """Adds a constant."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Any) -> Tensor:
        return getattr(x, "value", x) + self.value


def linear_of_floats() -> nn.Module:
    return qnn.QuantLinear(8, 4, True, **_weights())


def act(quant: type | None = None, *, unsigned: bool = False, **options: Any) -> nn.Module:
    kind = Uint8ActPerTensorFixedPoint if unsigned else Int8ActPerTensorFixedPoint
    options = {"bit_width": 5, "return_quant_tensor": True, **options}
    return qnn.QuantIdentity(kind if quant is None else quant, **options)


def _weights() -> dict[str, Any]:
    return {"weight_quant": Int8WeightPerTensorFixedPoint, "weight_bit_width": 4}


def conv(inputs: int, outputs: int, kernel: int, kind: type = qnn.QuantConv2d, **options: Any):
    return kind(inputs, outputs, kernel, bias=False, **_weights(), **options)


def linear(inputs: int, outputs: int) -> nn.Module:
    return qnn.QuantLinear(inputs, outputs, False, **_weights())


@dataclass(frozen=True)
class Case:
    """A model and the rule that it breaks, "" for none."""

    rule: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (2, 6, 6)


def _channels() -> nn.Module:
    scales = act(
        scaling_per_output_channel=True,
        per_channel_broadcastable_shape=(1, 2, 1, 1),
        scaling_stats_permute_dims=(1, 0, 2, 3),
    )
    return nn.Sequential(scales, conv(2, 2, 3, groups=2))


CASES: dict[str, Case] = {
    "plain": Case(
        "",
        lambda: nn.Sequential(
            act(),
            conv(2, 4, 3, padding=1),
            nn.MaxPool2d(2),
            qnn.QuantReLU(
                act_quant=Uint8ActPerTensorFixedPoint, bit_width=4, return_quant_tensor=True
            ),
            nn.Flatten(),
            linear(36, 3),
        ),
    ),
    "float scale": Case(
        "float_scale", lambda: nn.Sequential(act(Int8ActPerTensorFloat), linear(8, 4)), (8,)
    ),
    "zero point": Case(
        "zero_point", lambda: nn.Sequential(act(ShiftedUint8ActPerTensorFloat), linear(8, 4)), (8,)
    ),
    "channel scales": Case("channel_scales", _channels),
    "ceil": Case(
        "rounding",
        lambda: nn.Sequential(act(float_to_int_impl_type=FloatToIntImplType.CEIL), linear(8, 4)),
        (8,),
    ),
    "narrow": Case(
        "narrow", lambda: nn.Sequential(act(unsigned=True, narrow_range=True), linear(8, 4)), (8,)
    ),
    "float input": Case("not_proven", lambda: nn.Sequential(linear_of_floats(), nn.ReLU()), (8,)),
    "transposed": Case(
        "operator", lambda: nn.Sequential(act(), conv(2, 2, 3, qnn.QuantConvTranspose2d))
    ),
    "sigmoid": Case("operator", lambda: nn.Sequential(act(), linear(8, 4), nn.Sigmoid()), (8,)),
    "sequence": Case("sequence", lambda: nn.Sequential(act(), linear(8, 4), act()), (3, 8)),
    "groups": Case("groups", lambda: nn.Sequential(act(), conv(4, 4, 3, groups=2)), (4, 6, 6)),
    "multiplier": Case("groups", lambda: nn.Sequential(act(), conv(2, 4, 3, groups=2))),
    "dilation": Case("dilation", lambda: nn.Sequential(act(), conv(2, 2, 3, dilation=2))),
    "pooled sequence": Case(
        "pool_1d",
        lambda: nn.Sequential(act(), nn.MaxPool1d(2), conv(2, 2, 3, qnn.QuantConv1d)),
        (2, 12),
    ),
    "padded pool": Case(
        "pool_padding",
        lambda: nn.Sequential(act(unsigned=True), nn.MaxPool2d(2, padding=1), conv(2, 2, 3)),
    ),
    "ceiled pool": Case(
        "pool_shape",
        lambda: nn.Sequential(act(), nn.MaxPool2d(4, ceil_mode=True), conv(2, 2, 2)),
    ),
    "padded average": Case(
        "average",
        lambda: nn.Sequential(
            act(), nn.AvgPool2d(2, padding=1, count_include_pad=False), act(), conv(2, 2, 3)
        ),
    ),
    "constant": Case(
        "constant", lambda: nn.Sequential(act(), Shift(0.0630), act(), linear(8, 4)), (8,)
    ),
    "product": Case("", lambda: Behind(lambda a, b: a * b)),
    "quotient": Case("join", lambda: Behind(_quotient)),
    "per channel": Case("", lambda: Behind(lambda a, b: a + b, pooled=True)),
    "broadcast": Case("broadcast", lambda: Behind(lambda a, b: a + b, channels=1)),
    "three": Case("concat", Three),
    "twice": Case("twice", lambda: Behind(lambda a, b: (a + a) + b)),
}


def samples(case: Case, count: int = 8) -> Tensor:
    """Numbers that hls4ml's default input type holds, so that it is not what is compared."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(-128, 128, (count, *case.shape), generator=generator) / 64


def write(case: Case, path: Path) -> tuple[nn.Module, onnx.ModelProto]:
    """The calibrated model, and its QONNX file."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Brevitas warns of zero points
        torch.manual_seed(0)
        model = case.build()
        x = samples(case, 32)
        # Ranges differ between channels, and their ends are no powers of two.
        x = x * torch.linspace(0.31, 0.93, x.shape[1]).reshape(-1, *[1] * (x.ndim - 2))
        with torch.no_grad(), calibration_mode(model):
            model(x)
        model.eval()
        return model, export_qonnx(model, x[:1], path, target="qonnx")
