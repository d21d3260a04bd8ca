"""Every refusal: what FINN would refuse or get wrong is named, and nothing is written."""

from __future__ import annotations

import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    ShiftedUint8ActPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from torch import nn

from brevitas_axe.errors import ExportRefused, InvalidOption, NonFiniteValues
from brevitas_axe.export import export_qonnx
from brevitas_axe.quantizers import Int8WeightPerChannelFloatAXE
from tests.export.test_qonnx import calibrated

X = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings(
    "ignore:Computing zero point of output accumulator:UserWarning"
)
WEIGHT = {
    "weight_quant": Int8WeightPerChannelFloatAXE,
    "weight_bit_width": 4,
    "weight_accumulator_bit_width": 16,
}


def signed(**options) -> nn.Module:
    return qnn.QuantIdentity(Int8ActPerTensorFloat, return_quant_tensor=True, **options)


def conv(kind=qnn.QuantConv2d, outputs=4, **options) -> nn.Module:
    return kind(4, outputs, 3, **{"padding": 1, **WEIGHT, **options})


class Add(nn.Module):
    """Two branches, each with a quantizer of its own or with one for both."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.start, self.one, self.two = signed(), conv(), conv()
        self.left = qnn.QuantIdentity(Int8ActPerTensorFloat)
        self.right = self.left if shared else qnn.QuantIdentity(Int8ActPerTensorFloat)
        self.last = nn.Sequential(signed(), conv())

    def forward(self, x):
        x = self.start(x)
        return self.last(self.left(self.one(x)) + self.right(self.two(x)))


def sequential(*layers: nn.Module):
    return lambda: nn.Sequential(*layers)


class PerChannel(Uint8ActPerTensorFloat):
    scaling_per_output_channel = True
    per_channel_broadcastable_shape = (1, 4, 1, 1)
    scaling_stats_permute_dims = (1, 0, 2, 3)


class Floor(Uint8ActPerTensorFloat):
    float_to_int_impl_type = "floor"


# name: (model, what the sentence says)
REFUSED = {
    "float layer": (sequential(signed(), conv(), nn.Conv2d(4, 2, 1)), "'2' has no integer weights"),
    "sigmoid": (sequential(signed(), conv(), nn.Sigmoid()), "'2' is a Sigmoid.*ReLU"),
    "quant tanh": (sequential(signed(), conv(), qnn.QuantTanh()), "'2' is a QuantTanh"),
    "layer norm": (sequential(signed(), conv(), nn.LayerNorm(6)), "'2' is a LayerNorm"),
    "float input": (
        sequential(conv(weight_quant=Int8WeightPerChannelFloat)),
        "input of layer '0' is not quantized.*input_quant",
    ),
    "grouped": (sequential(signed(), conv(groups=2)), r"'1' is a grouped convolution \(2 groups\)"),
    "transposed": (
        sequential(signed(), conv(qnn.QuantConvTranspose2d)),
        "'1' is a transposed convolution",
    ),
    "wide weights": (
        sequential(signed(), conv(weight_bit_width=9, weight_accumulator_bit_width=24)),
        "'1' has 9-bit weights.*weight_bit_width",
    ),
    "full range weights": (
        sequential(signed(), conv(weight_narrow_range=False)),
        "'1' has weights of full range.*narrow_range=True",
    ),
    "zero point": (
        sequential(
            qnn.QuantIdentity(ShiftedUint8ActPerTensorFloat, return_quant_tensor=True), conv()
        ),
        "quantizer of '0' has a non-zero zero point.*symmetric",
    ),
    "per channel activation": (
        sequential(qnn.QuantIdentity(PerChannel, return_quant_tensor=True), conv()),
        "quantizer of '0' has one scale per channel.*per-tensor",
    ),
    "floor": (
        sequential(qnn.QuantIdentity(Floor, return_quant_tensor=True), conv()),
        "quantizer of '0' rounds by floor.*round",
    ),
    "wide activation": (
        sequential(signed(bit_width=10), conv()),
        "quantizer of '0' has 10 bits.*bit_width",
    ),
    "unequal branches": (lambda: Add(shared=False), "branches that meet in.*shared"),
}
# What is refused for FINN's sake alone, and can be written for others.
ONLY_FINN = set(REFUSED) - {"float input", "zero point"}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_name_and_a_way_out(name, tmp_path):
    torch.manual_seed(0)
    make, match = REFUSED[name]
    x = X - 0.5 if name == "zero point" else X
    model = calibrated(make(), x)
    with pytest.raises(ExportRefused, match=match) as refusal:
        export_qonnx(model, x, tmp_path / "m.onnx")
    assert str(refusal.value).count(". ") == 0
    assert not any(tmp_path.iterdir())
    with torch.no_grad():
        assert model(x).isfinite().all()


@pytest.mark.parametrize("name", sorted(ONLY_FINN))
def test_the_qonnx_target_takes_what_only_finn_refuses(name, tmp_path):
    torch.manual_seed(0)
    model = calibrated(REFUSED[name][0](), X)
    export_qonnx(model, X, tmp_path / "m.onnx", target="qonnx")
    assert (tmp_path / "m.onnx").exists()


def test_branches_with_one_shared_quantizer_pass(tmp_path):
    torch.manual_seed(0)
    export_qonnx(calibrated(Add(shared=True), X), X, tmp_path / "m.onnx")


def test_rounding_may_be_spelled_as_users_do(tmp_path):
    class Round(Uint8ActPerTensorFloat):
        float_to_int_impl_type = "round"

    model = nn.Sequential(qnn.QuantIdentity(Round, return_quant_tensor=True), conv())
    export_qonnx(calibrated(model, X), X, tmp_path / "m.onnx")


def test_depthwise_passes(tmp_path):
    torch.manual_seed(0)
    model = calibrated(nn.Sequential(signed(), conv(groups=4)), X)
    export_qonnx(model, X, tmp_path / "m.onnx")


@pytest.mark.parametrize("target", ["finn", "qonnx"])
def test_all_zero_layers_are_refused_everywhere(target, tmp_path):
    torch.manual_seed(0)
    model = calibrated(nn.Sequential(signed(), conv(weight_accumulator_bit_width=7)), X)
    with pytest.raises(
        ExportRefused, match=r"all weights of layer '1' are zero.*wider accumulator"
    ):
        export_qonnx(model, X, tmp_path / "m.onnx", target=target)


def test_unknown_target_and_broken_weights(tmp_path):
    torch.manual_seed(0)
    model = calibrated(nn.Sequential(signed(), conv()), X)
    with pytest.raises(InvalidOption, match="'vivado' is unknown"):
        export_qonnx(model, X, tmp_path / "m.onnx", target="vivado")
    model[1].weight.data[0] = float("nan")
    with pytest.raises(NonFiniteValues, match="layer '1'"):
        export_qonnx(model, X, tmp_path / "m.onnx")
    assert not any(tmp_path.iterdir())
