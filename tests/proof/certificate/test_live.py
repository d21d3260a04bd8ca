"""The proof from a live Brevitas model: what really arrives at each layer decides."""

from __future__ import annotations

import json
import warnings

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
from brevitas.export import export_qonnx
from brevitas.quant import (
    Int8AccumulatorAwareWeightQuant,
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFloat,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerTensorFloat,
    TruncTo8bit,
    Uint8ActPerTensorFloat,
)
from brevitas.quant_tensor import IntQuantTensor
from torch import nn

from brevitas_axe.errors import InvalidOption, InvalidPlan
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import certify, certify_file

ZERO_POINT = "ignore:Computing zero point of output accumulator:UserWarning"


def identity(quantizer=Uint8ActPerTensorFloat, bits: int = 8, **more) -> nn.Module:
    return qnn.QuantIdentity(quantizer, bit_width=bits, return_quant_tensor=True, **more)


def conv(kind=qnn.QuantConv2d, *shape, **more) -> nn.Module:
    return kind(*shape, weight_quant=Int8WeightPerChannelFloat, weight_bit_width=4, **more)


def fc(inputs: int = 6, outputs: int = 4, bits: int = 4, **more) -> nn.Module:
    more = {"weight_quant": Int8WeightPerChannelFloat, "bias": False, **more}
    return qnn.QuantLinear(inputs, outputs, weight_bit_width=bits, **more)


def calibrated(model: nn.Module, *args) -> nn.Module:
    model.train()
    with torch.no_grad():
        model(*args)
    return model.eval()


def rows(layer: nn.Module) -> np.ndarray:
    """Integer rows, straight from Brevitas."""
    weight = layer.quant_weight().int().numpy().astype(np.int64)
    if isinstance(layer, nn.ConvTranspose2d):
        split = (layer.groups, -1, *weight.shape[1:])
        weight = weight.reshape(split).swapaxes(1, 2).reshape(layer.out_channels, -1)
    return weight.reshape(len(weight), -1)


def ends(layer: nn.Module, low: int, high: int) -> tuple[int, int]:
    q = rows(layer)
    return np.minimum(q * low, q * high).sum(1).min(), np.maximum(q * low, q * high).sum(1).max()


class Net(nn.Module):
    """Regular, depthwise, grouped and transposed convolutions, pooling, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.input = identity()
        self.conv = conv(qnn.QuantConv2d, 1, 4, 3, padding=1)
        self.relu = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)
        self.depthwise = conv(qnn.QuantConv2d, 4, 4, 3, groups=4)
        self.relu2 = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)
        self.grouped = conv(qnn.QuantConv2d, 4, 6, 1, groups=2)
        self.act = identity(Int8ActPerTensorFloat, 5)
        self.up = conv(qnn.QuantConvTranspose2d, 6, 4, 2, stride=2)
        self.act2 = identity(Int8ActPerTensorFloat, 6)
        self.pool = nn.MaxPool2d(2)
        self.fc = fc(4 * 3 * 3, 5, bias=True)

    def forward(self, x):
        x = self.relu(self.conv(self.input(x)))
        x = self.act(self.grouped(self.relu2(self.depthwise(x))))
        return self.fc(self.pool(self.act2(self.up(x))).flatten(1))


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.rand(2, 1, 5, 5)
    return calibrated(Net(), x), x


def test_sums_are_those_of_the_layers(net) -> None:
    model, x = net
    entries = {e.name: e for e in certify(model, args=x).entries}
    ranges = {
        "conv": (0, 255), "depthwise": (0, 15), "grouped": (0, 15), "up": (-16, 15),
        "fc": (-32, 31),
    }  # fmt: skip
    assert list(entries) == list(ranges)
    for name, given in ranges.items():
        entry = entries[name]
        assert entry.proven, entry.reason
        assert (entry.minimum, entry.maximum) == ends(getattr(model, name), *given)
        assert entry.input_range == given
        assert entry.weight_type == "INT4"
        assert entry.inputs == rows(getattr(model, name)).shape[1]


@pytest.mark.parametrize(("dynamo", "tile_size"), [(False, None), (False, 5), (True, 5)])
def test_the_file_says_the_same_as_the_model(net, tmp_path, dynamo, tile_size) -> None:
    model, x = net
    path = tmp_path / "net.onnx"
    more = {"optimize": True, "verbose": False} if dynamo else {}
    with warnings.catch_warnings(action="ignore"):
        export_qonnx(model, args=x, export_path=str(path), dynamo=dynamo, **more)
    mine = certify(model, 16, tile_size, args=x).entries
    file = certify_file(path, 16, tile_size, fixed_initializers=True).entries
    compared = (
        *("layer", "inputs", "minimum", "maximum", "width", "outer_width", "outer_bound"),
        *("weight_type", "input_type", "input_range", "width_with_bias", "target"),
    )
    for name in compared:
        assert [getattr(e, name) for e in file] == [getattr(e, name) for e in mine], name


def test_the_model_is_left_as_it_was(net) -> None:
    model, x = net
    model.train()
    model.fc.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    certify(model, args=x)
    assert model.training
    assert model.conv.training
    assert not model.fc.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    model.eval()


def test_an_exception_leaves_no_hooks_behind(net) -> None:
    model, x = net
    model.train()
    with pytest.raises(InvalidOption, match="Net fails on the given args: ") as raised:
        certify(model, args=torch.rand(2, 3, 5, 5))
    assert "\n" not in str(raised.value)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model.eval()
    model(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_the_same_integers(net, dtype) -> None:
    torch.manual_seed(1)
    x = torch.rand(2, 6)
    model = calibrated(nn.Sequential(identity(bits=4), fc()).to(dtype), x.to(dtype))
    entry = certify(model, args=x.to(dtype)).entries[0]
    assert entry.proven, entry.reason
    assert (entry.minimum, entry.maximum) == ends(model[1], 0, 15)


def test_a_module_called_twice_is_bounded_for_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = identity(), identity(Int8ActPerTensorFloat, 9)
            self.fc = fc()

        def forward(self, x):
            return self.fc(self.a(x)) + self.fc(self.b(x))

    x = torch.rand(2, 6)
    model = calibrated(Twice(), x)
    entry = certify(model, args=x).entries[0]
    assert entry.input_range == (-256, 255)
    assert (entry.minimum, entry.maximum) == ends(model.fc, -256, 255)


def test_a_sum_of_a_signed_and_an_unsigned_tensor_is_not_under_declared() -> None:
    # Brevitas declares INT9 for INT8 + UINT8, whose largest sum is 382 > 255.
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = fc()

        def forward(self, a, b):
            return self.fc(a + b)

    quantizer = {"value": torch.zeros(1, 6), "scale": 1.0, "zero_point": 0.0, "training": False}
    a = IntQuantTensor(**quantizer, bit_width=8.0, signed=False)
    b = IntQuantTensor(**quantizer, bit_width=8.0, signed=True)
    entry = certify(Sum(), args=(a, b)).entries[0]
    low, high = entry.input_range
    assert low <= -128
    assert high >= 127 + 255
    assert "one bit added" in entry.assumptions[0]


def test_a_residual_sum_is_proven_and_contains_what_the_file_says(tmp_path) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = identity(), fc(6, 6), fc()
            self.shared = identity(Int8ActPerTensorFloat)

        def forward(self, x):
            x = self.first(x)
            return self.last(self.shared(x) + self.shared(self.middle(x)))

    torch.manual_seed(6)
    x = torch.rand(64, 6)
    model = calibrated(Residual(), x)
    path = tmp_path / "residual.onnx"
    with warnings.catch_warnings(action="ignore"):
        export_qonnx(model, args=x, export_path=str(path), dynamo=False)
    live, file = (
        certify(model, args=x).entries[1],
        certify_file(path, fixed_initializers=True).entries[1],
    )
    assert live.proven, live.reason
    assert file.input_range == (-256, 254)
    assert live.input_range[0] <= -256
    assert live.input_range[1] >= 254
    assert file.width <= live.width <= file.width + 1


def test_values_that_contradict_their_declared_type() -> None:
    for value, says in ((300.0, "outside its declared UINT8"), (0.5, "not integer multiples"),
                        (float("nan"), "NaN or infinity")):  # fmt: skip
        x = IntQuantTensor(torch.full((1, 6), value), 1.0, 0.0, 8.0, False, False)
        entry = certify(fc(), 16, args=x).entries[0]
        assert not entry.proven
        assert says in entry.reason


@pytest.mark.filterwarnings(ZERO_POINT)
@pytest.mark.parametrize(
    ("model", "x", "says"),
    [
        (lambda: fc(), torch.rand(2, 6), "input is not quantized"),
        (lambda: nn.Linear(6, 4), torch.rand(2, 6), "unquantized"),
        (lambda: nn.Conv1d(6, 4, 1), torch.rand(2, 6, 3), "unquantized"),
        (lambda: nn.LSTM(6, 4), torch.rand(2, 3, 6), "recurrent"),
        (lambda: qnn.QuantLSTM(6, 4), torch.rand(2, 3, 6), "recurrent"),
        (lambda: qnn.QuantRNN(6, 4), torch.rand(2, 3, 6), "recurrent"),
        (
            lambda: nn.Sequential(identity(), fc(weight_quant=None)),
            torch.rand(2, 6),
            "weights are unquantized",
        ),
        (
            lambda: nn.Sequential(identity(), fc(weight_quant=ShiftedUint8WeightPerTensorFloat)),
            torch.rand(2, 6),
            "zero point",
        ),
    ],
)
def test_what_cannot_be_proven_is_named(model, x, says) -> None:
    torch.manual_seed(2)
    certificate = certify(calibrated(model(), x), 32, args=x)
    assert not certificate.ok
    assert [says in e.reason for e in certificate.failures] == [True]


@pytest.mark.filterwarnings(ZERO_POINT)
def test_an_input_zero_point_is_subtracted() -> None:
    torch.manual_seed(3)
    x = torch.rand(64, 6) - 0.3
    act = identity(ShiftedUint8ActPerTensorFloat)
    model = calibrated(nn.Sequential(act, fc()), x)
    entry = certify(model, args=x).entries[0]
    zero_point = int(model[0](x).zero_point)
    assert 0 < zero_point < 255
    assert entry.input_range == (-zero_point, 255 - zero_point)
    assert (entry.minimum, entry.maximum) == ends(model[1], *entry.input_range)


def test_a_layers_own_input_quantizer_counts() -> None:
    x = torch.rand(2, 6)
    layer = fc(input_quant=Int8ActPerTensorFloat, input_bit_width=6)
    entry = certify(calibrated(layer, x), args=(x,)).entries[0]
    assert (entry.input_range, entry.name) == ((-32, 31), "")


def test_layers_that_args_never_reach() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Sequential(identity(), fc()), fc()

        def forward(self, x):
            return self.used(x)

    x = torch.rand(2, 6)
    certificate = certify(calibrated(Skips(), x), 32, args=x)
    assert [(e.name, "never called" in e.reason) for e in certificate.entries] == [
        ("used.1", False), ("unused", True),
    ]  # fmt: skip
    assert certify(Skips().eval(), 32, exclude=["unused", "used.1"], args=x).ok is False


@pytest.mark.parametrize(
    "product",
    [
        lambda x: x @ x.T,
        lambda x: torch.einsum("ij,kj->ik", x, x),
        lambda x: torch.nn.functional.linear(x, torch.ones(3, 6)),
        lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]),
        lambda x: torch.nn.functional.conv1d(x[None], torch.ones(1, 2, 1)),
    ],
)
def test_products_outside_layers_are_seen(product) -> None:
    class Stray(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(identity(), fc())

        def forward(self, x):
            return self.net(x), product(x)

    x = torch.rand(2, 6)
    certificate = certify(calibrated(Stray(), x), 32, args=x)
    assert [e.name for e in certificate.failures] == ["Stray.forward"]
    assert certify(Stray().eval(), 32, exclude=["Stray.forward"], args=x).ok


def test_attention_counts_its_activation_products() -> None:
    torch.manual_seed(4)
    attention = qnn.QuantMultiheadAttention(
        8, 2, batch_first=True, packed_in_proj=False,
        in_proj_input_quant=Int8ActPerTensorFloat, in_proj_weight_quant=Int8WeightPerTensorFloat,
        in_proj_bias_quant=None, q_scaled_quant=Int8ActPerTensorFloat,
        k_transposed_quant=Int8ActPerTensorFloat, v_quant=Int8ActPerTensorFloat,
        softmax_input_quant=None, attn_output_weights_quant=Uint8ActPerTensorFloat,
        out_proj_input_quant=Int8ActPerTensorFloat, out_proj_weight_quant=Int8WeightPerTensorFloat,
        out_proj_bias_quant=None,
    )  # fmt: skip
    x = torch.rand(2, 5, 8)
    certificate = certify(calibrated(attention, x, x, x), 32, args=(x, x, x))
    entries = {e.name: e for e in certificate.entries}
    assert certificate.ok, certificate.failures
    assert set(entries) == {"q_proj", "k_proj", "v_proj", "out_proj", "scores", "context"}
    assert (entries["scores"].inputs, entries["scores"].maximum) == (4, 4 * 128 * 128)
    assert (entries["context"].inputs, entries["context"].minimum) == (5, -5 * 255 * 128)
    attention.v_quant.act_quant.disable_quant = True
    failures = certify(attention, 32, args=(x, x, x)).failures
    assert [e.name for e in failures] == ["context"]


def test_a2q_keeps_its_word() -> None:
    torch.manual_seed(5)
    for signed, quantizer in ((False, Uint8ActPerTensorFloat), (True, Int8ActPerTensorFloat)):
        layer = fc(64, 16, 8, weight_quant=Int8AccumulatorAwareWeightQuant,
                   weight_accumulator_bit_width=14)  # fmt: skip
        x = torch.randn(4, 64)
        entry = certify(calibrated(nn.Sequential(identity(quantizer), layer), x), 14, args=x)
        assert entry.ok
        assert entry.entries[0].input_range[0] == (-128 if signed else 0)


def test_a_plan_by_layer_and_an_unknown_layer(net) -> None:
    model, x = net
    plan = Plan({"conv": LayerPrecision(accumulator=8), "fc": LayerPrecision(tile=4)})
    entries = {e.name: e for e in certify(model, 30, plan=plan, args=x).entries}
    assert (entries["conv"].target, entries["conv"].fits) == (8, False)
    assert (entries["fc"].target, entries["fc"].tile_size) == (30, 4)
    with pytest.raises(InvalidPlan, match="gone"):
        certify(model, plan=Plan({"gone": LayerPrecision()}), args=x)


def test_bad_arguments(net) -> None:
    model, _ = net
    with pytest.raises(InvalidOption, match="pass args"):
        certify(model, 16)
    with pytest.raises(InvalidOption, match="certify_file"):
        certify("model.onnx", 16)


def test_what_no_width_was_asked_for_is_visible(net) -> None:
    model, x = net
    planned = certify(model, plan=Plan({"conv": LayerPrecision(accumulator=30)}), args=x)
    others = [e.name for e in planned.entries if e.name != "conv"]
    assert list(planned.unlimited) == others
    assert json.loads(planned.to_json())["unlimited"] == others
    assert "No width was requested: depthwise" in str(planned.table().caption)
    assert certify(model, 30, args=x).unlimited == ()
    assert certify(model, args=x).unlimited == ()


def test_a_truncating_pool_has_the_type_that_the_file_has(tmp_path) -> None:
    torch.manual_seed(7)
    pool = qnn.TruncAvgPool2d(8, trunc_quant=TruncTo8bit, float_to_int_impl_type="FLOOR")
    relu = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)
    model = nn.Sequential(
        identity(), conv(qnn.QuantConv2d, 3, 16, 1), relu, pool, nn.Flatten(), fc(16, 10, bias=True)
    )
    x = torch.rand(4, 3, 8, 8)
    calibrated(model, x)
    with warnings.catch_warnings(action="ignore"):
        export_qonnx(model, args=x, export_path=str(tmp_path / "pool.onnx"), dynamo=False)
    live, file = (
        certify(model, args=x).entries,
        certify_file(tmp_path / "pool.onnx", fixed_initializers=True).entries,
    )
    assert live[-1].input_type == file[-1].input_type == "UINT8"
    for name in ("minimum", "maximum", "width", "input_range"):
        assert [getattr(e, name) for e in live] == [getattr(e, name) for e in file]
