"""Models that FINN builds, refuses or gets wrong, and the rule that says so.

The check is held against every case in tests/export/finn, FINN itself in tests/finn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from brevitas import nn as qnn
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    ShiftedUint8ActPerTensorFloat,
    SignedBinaryActPerTensorConst,
    SignedBinaryWeightPerTensorConst,
    TruncTo8bit,
    Uint8ActPerTensorFloat,
)
from torch import Tensor, nn

WEIGHT = {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": 4}
IMAGE, ROW = (4, 6, 6), (12,)


class PerChannel(Uint8ActPerTensorFloat):
    scaling_per_output_channel = True
    per_channel_broadcastable_shape = (1, 4, 1, 1)
    scaling_stats_permute_dims = (1, 0, 2, 3)


class Floor(Uint8ActPerTensorFloat):
    float_to_int_impl_type = "floor"


class Ceil(Uint8ActPerTensorFloat):
    float_to_int_impl_type = "ceil"


def signed(bits: int = 8, quant: Any = Int8ActPerTensorFloat, **options: Any) -> nn.Module:
    return qnn.QuantIdentity(quant, bit_width=bits, return_quant_tensor=False, **options)


def unsigned(bits: int = 4, **options: Any) -> nn.Module:
    return signed(bits, Uint8ActPerTensorFloat, **options)


def relu(bits: int = 4, **options: Any) -> nn.Module:
    return qnn.QuantReLU(bit_width=bits, return_quant_tensor=False, **options)


def conv(inputs: int = 4, outputs: int = 4, kernel: Any = 3, **options: Any) -> nn.Module:
    kind = options.pop("kind", qnn.QuantConv2d)
    return kind(inputs, outputs, kernel, **{"padding": 1, **WEIGHT, **options})


def linear(inputs: int, outputs: int = 5, **options: Any) -> nn.Module:
    return qnn.QuantLinear(inputs, outputs, **{"bias": True, **WEIGHT, **options})


def tail(size: int = 6, channels: int = 4) -> list[nn.Module]:
    return [conv(channels), relu(), nn.Flatten(), linear(4 * size * size)]


def chain(*middle: Callable[[], nn.Module] | nn.Module, size: int = 6) -> Callable[[], nn.Module]:
    """Input quantizer, layer, what is to be tried, and the rest of a net."""
    return lambda: nn.Sequential(signed(), conv(), *map(made, middle), *tail(size))


def made(module: Any) -> nn.Module:
    return module if isinstance(module, nn.Module) else module()


class Branches(nn.Module):
    """join(first(x), second(x)), then the rest of a net."""

    def __init__(self, first: nn.Module, second: nn.Module, join: Any, *rest: nn.Module) -> None:
        super().__init__()
        self.start = nn.Sequential(signed(), conv(), relu())
        self.first, self.second, self.join = first, second, join
        self.rest = nn.Sequential(*rest)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        return self.rest(self.join(self.first(x), self.second(x)))


def residual(shared: bool, second: Callable[[nn.Module], nn.Module] = lambda q: q) -> nn.Module:
    first = signed(4)
    other = first if shared else signed(5)
    one = nn.Sequential(conv(), first)
    return Branches(one, second(other), torch.add, relu(), *tail())


def skipped(shared: bool) -> nn.Module:
    """A downsampling branch with a layer of its own."""
    return residual(shared, lambda q: nn.Sequential(conv(kernel=1, padding=0), q))


def joined(shared: bool) -> nn.Module:
    first = relu()
    one = nn.Sequential(conv(), first)
    two = nn.Sequential(conv(), first if shared else relu(5))
    return Branches(one, two, lambda a, b: torch.cat([a, b], 1), *tail(channels=8))


def saturated(bits: int) -> nn.Module:
    """The sum of two branches at most 62 steps, on 15 levels: 7.5 of these are 31 steps."""
    step = 0.0175
    grid, coarse = signed(bits, **ranging(step * 2 ** (bits - 1))), relu(**ranging(step * 62))
    return Branches(nn.Sequential(conv(), grid), grid, torch.add, coarse, *tail())


def saturated_layer() -> nn.Module:
    """The same of a layer's sums, in steps of 0.24 / 7 × 2 / 4."""
    layer = conv(bias=False, **{f"weight_{name}": value for name, value in ranging(0.24).items()})
    coarse = relu(**ranging(0.24 / 7 * 0.5 * 62))
    return nn.Sequential(signed(3, **ranging(0.5 * 4)), layer, coarse, *tail())


def ranging(largest: float) -> dict[str, Any]:
    """Options of a quantizer whose largest magnitude is a constant."""
    return {"scaling_impl_type": "const", "scaling_init": largest}


def two_relus() -> Any:
    model = Branches(nn.Sequential(), nn.Sequential(), torch.add, relu(), *tail())
    shared = signed(4)
    model.start = nn.Sequential(signed(), conv())
    model.first = nn.Sequential(relu(4), conv(), shared)
    model.second = nn.Sequential(relu(8), conv(), shared)
    return model


def signed_fork() -> nn.Module:
    """A residual of signed values: both terms on one quantizer."""
    grid = signed(4)
    model = Branches(nn.Sequential(conv(), grid), nn.Identity(), torch.add, relu(), *tail())
    model.start = nn.Sequential(signed(), conv(), grid)
    return model


def split_sums() -> nn.Module:
    model = two_relus()
    model.first[0], model.second[0] = signed(4), signed(8)
    return model


def full_range(kind: Callable[..., nn.Module] = conv) -> nn.Module:
    """A weight of -2^(b-1) in channels whose batch norm has a negative gain."""
    layer: Any = kind(weight_narrow_range=False, bias=False)
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        layer.weight[:, 0, 0, 0] = -1.0
        norm.weight[::2] *= -1
    return nn.Sequential(signed(), layer, norm, relu(), *tail())


def negative_gains() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight[::2] *= -1
    return nn.Sequential(signed(), conv(), norm, relu(), *tail())


def negated_input() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight[::2] *= -1
    return nn.Sequential(norm, signed(), *tail())


def no_weights() -> nn.Module:
    model: Any = chain(relu)()
    model[1].weight.data.zero_()
    return model


def average(pool: nn.Module, *more: nn.Module, quantized: bool = False, size: int = 3) -> Any:
    """With Trunc a pool needs to know that its input is quantized."""
    before = qnn.QuantReLU(bit_width=4, return_quant_tensor=quantized)
    return lambda: nn.Sequential(signed(), conv(), before, pool, *more, *tail(size))


def cut(kernel: Any = 2, bits: int = 4, **options: Any) -> nn.Module:
    return qnn.TruncAvgPool2d(kernel, trunc_quant=TruncTo8bit, bit_width=bits, **options)


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function


@dataclass(frozen=True)
class Case:
    """A model, the rules that must speak of it (none: FINN builds it), and its input's shape.

    Attributes:
        notes: rules that speak of it without a refusal.
        recipe: of `tests/finn/steps.py`, with which FINN builds it; "default" is FINN's own list.
        versal: FINN builds it for Versal devices, and refuses it for all others.
        seconds: after which FINN is taken to work on it for ever; others take up to 80.
    """

    build: Callable[[], nn.Module]
    rules: tuple[str, ...] = ()
    layer: str = ""
    shape: tuple[int, ...] = IMAGE
    batch: int = 1
    # FINN would be given something that our own export mends or refuses before any check.
    raw: bool = False
    notes: tuple[str, ...] = ()
    recipe: str = "default"
    versal: bool = False
    seconds: int = 300


BINARY = {"quant": SignedBinaryActPerTensorConst}
FLOAT = {"notes": ("float_unit",)}
RESNET = {"recipe": "resnet"}
UNET = {"recipe": "unet"}


def sign_linear(inputs: int, outputs: int) -> nn.Module:
    return qnn.QuantLinear(
        inputs,
        outputs,
        bias=False,
        weight_quant=SignedBinaryWeightPerTensorConst,
        weight_scaling_init=1.0,
    )


def layer_norm(gain: float, bias: float) -> nn.Module:
    norm = nn.LayerNorm(8)
    nn.init.constant_(norm.weight, gain)
    nn.init.constant_(norm.bias, bias)
    return nn.Sequential(signed(), linear(12, 8), norm, signed(), linear(8))


ACCEPTED = {
    "plain": Case(chain(relu)),
    "batch norm": Case(chain(nn.BatchNorm2d(4), relu)),
    "negative gains": Case(negative_gains),
    "wide weights": Case(chain(relu, lambda: conv(weight_bit_width=12), relu)),
    "full range, positive gains": Case(
        chain(lambda: nn.Sequential(relu(), conv(weight_narrow_range=False)), relu)
    ),
    "signed": Case(chain(lambda: signed(4))),
    "narrow and signed": Case(chain(lambda: signed(4, narrow_range=True))),
    "float ReLU, then quantizer": Case(chain(nn.ReLU(), unsigned)),
    "requantized": Case(chain(lambda: relu(8), unsigned)),
    "depthwise": Case(chain(relu, lambda: conv(groups=4), relu)),
    "dilated": Case(chain(relu, lambda: conv(dilation=2, padding=2), relu)),
    "strided": Case(chain(relu, lambda: conv(stride=2), relu, size=3)),
    "one axis": Case(chain(relu, lambda: conv(kernel=(3, 1), padding=(1, 0)), relu)),
    "max pooling": Case(chain(relu, nn.MaxPool2d(2), size=3)),
    "padded max pooling": Case(chain(relu, nn.MaxPool2d(3, 2, 1), size=3)),
    "image of one pixel": Case(chain(relu, nn.MaxPool2d(6), size=1)),
    "truncated average": Case(average(cut(), quantized=True)),
    "truncated average, overlapping": Case(average(cut(3, stride=2), quantized=True, size=2)),
    "image average": Case(
        lambda: nn.Sequential(
            *(signed(), conv(), relu(), nn.AdaptiveAvgPool2d(1), unsigned(8)),
            *(nn.Flatten(), linear(4)),
        ),
        **RESNET,
    ),
    "residual": Case(lambda: residual(True), **RESNET),
    "residual with a layer": Case(lambda: skipped(True), **RESNET),
    "residual of signed values": Case(signed_fork, **RESNET),
    "residual that reaches no tie": Case(lambda: saturated(5), **RESNET),
    "concatenation": Case(lambda: joined(True), **RESNET),
    "upsampling": Case(
        chain(relu, nn.Upsample(scale_factor=2), size=12), notes=("upsampling",), **UNET
    ),
    "product of branches": Case(
        lambda: Branches(
            *(nn.Sequential(conv(), relu()), nn.Sequential(conv(), relu(3)), torch.mul),
            *(unsigned(), *tail()),
        ),
        **RESNET,
    ),
    "perceptron": Case(
        lambda: nn.Sequential(signed(), linear(12, 8), relu(), linear(8)), shape=ROW
    ),
    "softmax at the end": Case(lambda: nn.Sequential(chain(relu)(), nn.Softmax(-1)), **FLOAT),
    "sigmoid": Case(chain(qnn.QuantSigmoid), **FLOAT, versal=True),
    "tanh": Case(chain(qnn.QuantTanh), **FLOAT, versal=True),
    "GELU": Case(chain(Apply(F.gelu), lambda: signed(4)), **FLOAT, versal=True),
    "SiLU": Case(chain(Apply(lambda x: x * x.sigmoid()), lambda: signed(4)), **FLOAT, versal=True),
    "layer norm": Case(lambda: layer_norm(1, 0), shape=ROW, **FLOAT),
    "full range": Case(full_range, notes=("full_range",), layer="1"),
    "negated input": Case(negated_input, notes=("negative_scale",)),
    "signs alone": Case(
        lambda: nn.Sequential(
            *(signed(1, **BINARY), sign_linear(12, 8), signed(1, **BINARY), sign_linear(8, 4)),
        ),
        shape=ROW,
        raw=True,
    ),
    "quantized bias": Case(chain(relu, lambda: conv(bias=True), relu)),
    "segmentation": Case(lambda: nn.Sequential(signed(), conv(), relu(), conv(4, 2, 1, padding=0))),
    "input in other units": Case(
        lambda: nn.Sequential(Apply(lambda x: x / 3 - 0.5), signed(), *tail())
    ),
}
REFUSED = {
    "float layer": Case(
        lambda: nn.Sequential(
            signed(), conv(), relu(), nn.Conv2d(4, 4, 3, padding=1), relu(), *tail()
        ),
        ("float_weights",),
        "3",
    ),
    "float linear layer": Case(
        lambda: nn.Sequential(signed(), linear(12, 8), relu(), nn.Linear(8, 4)),
        ("float_weights",),
        "3",
        ROW,
    ),
    "float input": Case(lambda: nn.Sequential(conv(), relu(), *tail()), ("float_input",), "0"),
    "no activation quantizer": Case(chain(conv, relu), ("float_sums",), "2"),
    "ReLU without quantizer": Case(chain(nn.ReLU(), conv, relu), ("float_relu",), "3"),
    "zero point": Case(
        lambda: nn.Sequential(signed(8, ShiftedUint8ActPerTensorFloat), *tail()),
        ("zero_point",),
        "0",
    ),
    "scale per channel": Case(
        lambda: nn.Sequential(signed(8, PerChannel), *tail()), ("channel_scales",), "0"
    ),
    "10 bits": Case(chain(lambda: relu(10)), ("activation_bits",), "2"),
    "floor": Case(lambda: nn.Sequential(signed(8, Floor), *tail()), ("rounding",), "0"),
    "ceil": Case(lambda: nn.Sequential(signed(8, Ceil), *tail()), ("rounding",), "0"),
    "narrow behind ReLU": Case(chain(lambda: relu(4, narrow_range=True)), ("relu_quantizer",), "2"),
    "signed behind ReLU": Case(chain(nn.ReLU(), lambda: signed(4)), ("relu_quantizer",), "3"),
    "one bit, padded": Case(chain(lambda: signed(1, **BINARY)), ("binary_padding",), "3"),
    "one bit at the input": Case(
        lambda: nn.Sequential(signed(1, **BINARY), linear(12, 8), relu(), linear(8)),
        ("binary_activation",),
        "0",
        ROW,
    ),
    "leaky ReLU": Case(chain(nn.LeakyReLU(), lambda: signed(4)), ("operator",)),
    "ReLU6": Case(chain(nn.ReLU6(), unsigned), ("operator",)),
    "SELU": Case(chain(nn.SELU(), lambda: signed(4)), ("operator",)),
    "grouped": Case(chain(relu, lambda: conv(groups=2), relu), ("groups",), "3"),
    "depthwise with more outputs": Case(
        chain(relu, lambda: nn.Sequential(conv(4, 8, groups=4), relu(), conv(8, 4)), relu),
        ("groups",),
        "3.0",
    ),
    "transposed": Case(
        chain(relu, lambda: conv(kind=qnn.QuantConvTranspose2d), relu), ("transposed",), "3"
    ),
    "3-D": Case(
        lambda: nn.Sequential(
            signed(), conv(kind=qnn.QuantConv3d), relu(), nn.Flatten(), linear(256)
        ),
        ("dimensions",),
        "1",
        (4, 4, 4, 4),
    ),
    "padding of its own": Case(
        lambda: nn.Sequential(
            *(signed(), conv(), relu(), nn.ZeroPad2d((1, 0, 1, 0))),
            *(conv(kernel=2, padding=0), relu(), nn.Flatten(), linear(144)),
        ),
        ("pad",),
        "3",
    ),
    "average without truncation": Case(average(nn.AvgPool2d(2)), ("average_pool",)),
    "average, then quantizer": Case(average(nn.AvgPool2d(2), unsigned()), ("average_pool",)),
    "image average without quantizer": Case(
        lambda: nn.Sequential(
            signed(), conv(), relu(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(4)
        ),
        ("average_pool",),
        "5",
    ),
    "image average, flattened first": Case(
        lambda: nn.Sequential(
            *(signed(), conv(), relu(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            *(unsigned(8), linear(4)),
        ),
        ("flatten",),
        "5",
    ),
    "rounded average": Case(
        average(qnn.TruncAvgPool2d(2), quantized=True), ("trunc_rounding",), "3"
    ),
    "average to more bits": Case(average(cut(bits=8), quantized=True), ("trunc_bits",), "3"),
    "average over a rectangle": Case(
        lambda: nn.Sequential(
            signed(),
            conv(),
            qnn.QuantReLU(bit_width=4, return_quant_tensor=True),
            cut((2, 1)),
            *(conv(), relu(), nn.Flatten(), linear(72)),
        ),
        ("average_pool",),
        "3",
    ),
    "max pooling before ReLU": Case(chain(nn.MaxPool2d(2), relu, size=3), ("max_pool",)),
    "padded max pooling of signed": Case(
        chain(lambda: signed(4), nn.MaxPool2d(3, 2, 1), size=3), ("max_pool",)
    ),
    "max pooling, long strides": Case(chain(relu, nn.MaxPool2d(2, 3), size=2), ("max_pool",)),
    "dilated max pooling": Case(chain(relu, nn.MaxPool2d(2, 1, dilation=2), size=4), ("max_pool",)),
    "unequal branches": Case(lambda: residual(False), ("branches",), **RESNET),
    "unequal branches, layers in both": Case(lambda: skipped(False), ("branches",), **RESNET),
    "float branch": Case(
        lambda: Branches(conv(), nn.Identity(), torch.add, relu(), *tail()), ("branches",), **RESNET
    ),
    "two quantizers on one sum": Case(split_sums, ("split_sums",)),
    "difference of branches": Case(
        lambda: Branches(nn.Sequential(conv(), q := signed(4)), q, torch.sub, relu(), *tail()),
        ("branches",),
        **RESNET,
        seconds=45,
    ),
    "unequal concatenation": Case(lambda: joined(False), ("branches",), **RESNET),
    "upsampling by parts of a pixel": Case(
        chain(relu, nn.Upsample(scale_factor=1.5), size=9), ("upsampling",)
    ),
    "slice": Case(chain(relu, Apply(lambda x: x[:, :, 1:5, 1:5]), size=4), ("operator",)),
    "batch norm behind the quantizer": Case(chain(relu, nn.BatchNorm2d(4)), ("float_sums",), "4"),
    # Our own export for FINN puts both behind the norm.
    "layer norm with a gain": Case(lambda: layer_norm(2, 0), ("operator",), "2", ROW, raw=True),
    "layer norm with a bias": Case(
        lambda: layer_norm(1, 1), ("layer_norm_bias",), "2", ROW, raw=True
    ),
    "one ReLU, two quantizers": Case(two_relus, ("shared_relu",)),
    "all zero": Case(no_weights, ("zero_weights",), "1", raw=True),
}
# FINN builds them, and computes something else until they are mended.
TIED = {
    "residual that saturates": Case(lambda: saturated(6), ("tie",), "rest.0", **RESNET),
    "layer that saturates": Case(saturated_layer, ("tie",), "1"),
}
CASES = {**ACCEPTED, **REFUSED}
