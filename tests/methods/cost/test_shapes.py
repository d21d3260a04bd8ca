"""Shapes and present widths, read off models in one forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import (
    Int8AccumulatorAwareWeightQuant,
    Int8ActPerTensorFloat,
    ShiftedUint8ActPerTensorFloat,
)
from torch import nn

from brevitas_axe.accumulator import required_bit_width, worst_case_sums
from brevitas_axe.errors import InvalidOption, InvalidPlan, MissingInputQuantizer
from brevitas_axe.methods.cost import LayerShape, full_plan, layer_shapes, widths
from brevitas_axe.model.apply.weights import apply_plan
from brevitas_axe.model.layers import find_layers
from brevitas_axe.model.running import observe_inputs
from brevitas_axe.plan import LayerPrecision, Plan


def quantized(bits: int, kind: type = qnn.QuantReLU) -> nn.Module:
    return kind(bit_width=bits, return_quant_tensor=True)


def test_kinds_signs_and_positions() -> None:
    model = nn.Sequential(
        quantized(8, qnn.QuantIdentity),
        qnn.QuantConv2d(4, 6, (3, 1), stride=2, groups=2),
        quantized(4),
        qnn.QuantConv2d(6, 6, 3, padding=1, groups=6),
        quantized(5),
        qnn.QuantConvTranspose2d(6, 2, 2, stride=2),
    ).eval()
    shapes = layer_shapes(model, (torch.randn(2, 4, 9, 9),))
    assert list(shapes.values()) == [
        LayerShape("1", "dense", 6, 6, 2 * 4 * 5, 2, (3, 1), 4, True, 4),
        LayerShape("3", "depthwise", 9, 6, 2 * 4 * 5, 6, (3, 3), 6, False, 5),
        LayerShape("5", "transposed", 24, 2, 2 * 4 * 5, 1, (2, 2), 6, False, None),
    ]


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 2)])
def test_a_transposed_convolution_multiplies_every_input_once_per_weight(
    groups, stride, dilation
) -> None:
    layer = qnn.QuantConvTranspose1d(
        6, 6, 3, stride=stride, dilation=dilation, groups=groups, bias=False
    )
    model = nn.Sequential(quantized(8, qnn.QuantIdentity), layer).eval()
    [shape] = layer_shapes(model, (torch.randn(2, 6, 5),)).values()
    ones = (torch.ones(2, 6, 5), torch.ones_like(layer.weight))
    products = F.conv_transpose1d(*ones, stride=stride, dilation=dilation, groups=groups)
    assert shape.macs == products.sum()
    assert shape.inputs == 18 // groups  # accumulators are bounded over the whole kernel
    assert shape.kind == "transposed"


@pytest.mark.filterwarnings("ignore:Computing zero point of output accumulator")
def test_a_zero_point_does_not_narrow_the_accumulator_that_types_need() -> None:
    model = nn.Sequential(
        qnn.QuantIdentity(act_quant=ShiftedUint8ActPerTensorFloat, return_quant_tensor=True),
        qnn.QuantLinear(100, 1, bias=False, weight_bit_width=4),
    ).eval()
    x = torch.linspace(-0.3, 10, 100).repeat(2, 1)
    with torch.no_grad(), calibration_mode(model):
        model(x)
    [[reach]] = observe_inputs(model, find_layers(model), (x,)).values()
    assert reach is not None
    assert reach.low < 0 < 200 < reach.high
    low, high = worst_case_sums(np.full((1, 100), 7), reach.low, reach.high)
    need = required_bit_width(low.min(), high.max())
    shape, precision = layer_shapes(model, (x,))["1"], full_plan(model, (x,))["1"]
    assert widths(shape, precision).accumulator >= need


def test_an_empty_sample_is_refused() -> None:
    model = nn.Sequential(quantized(8, qnn.QuantIdentity), qnn.QuantLinear(4, 4)).eval()
    with pytest.raises(InvalidOption, match=r"layer '1' has 0 vectors, .* a whole sample"):
        layer_shapes(model, (torch.empty(0, 4),))


def test_linear_layers_count_every_token_and_every_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.signed = quantized(8, qnn.QuantIdentity)
            self.unsigned = quantized(8)
            self.layer = qnn.QuantLinear(6, 6, bias=False)
            self.unused = qnn.QuantLinear(6, 6, bias=False)

        def forward(self, x):
            return self.layer(self.unsigned(self.layer(self.signed(x))))

    shapes = layer_shapes(Twice().eval(), (torch.randn(2, 5, 6),))
    assert shapes == {"layer": LayerShape("layer", "dense", 6, 6, 20, 1, (), 6, True, 8)}


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        ([quantized(3)], 3),
        ([nn.BatchNorm1d(4), nn.Dropout(), quantized(3)], 3),
        ([nn.ReLU(inplace=True), quantized(3, qnn.QuantIdentity)], 3),
        ([nn.BatchNorm1d(4), nn.ReLU()], 8),  # the next layer's own input quantizer
        ([nn.Hardtanh(), quantized(3)], None),  # FINN cannot see thresholds through it
        ([nn.Sequential(nn.Identity(), nn.Sequential(quantized(3)))], 3),
    ],
)
def test_output_bits_are_those_of_the_quantizer_that_takes_the_output(between, expected) -> None:
    model = nn.Sequential(
        quantized(8, qnn.QuantIdentity),
        qnn.QuantLinear(4, 4, bias=False),
        *between,
        qnn.QuantLinear(4, 4, bias=False, input_quant=Int8ActPerTensorFloat),
    ).eval()
    shapes = layer_shapes(model, (torch.randn(2, 4),))
    assert shapes["1"].output_bits == expected
    assert list(shapes.values())[-1].output_bits is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Function(nn.Module):
    """A function of the layer's output and of its input, in front of 3-bit thresholds."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.front, self.back = quantized(8, qnn.QuantIdentity), quantized(3)
        self.layer = qnn.QuantLinear(4, 4, bias=False)
        self.scale = nn.Parameter(torch.rand(4) + 0.5)
        self.register_buffer("shift", torch.rand(4))

    def forward(self, x):
        return self.back(self.function(self, self.layer(self.front(x)), x))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda m, y, x: F.relu(y), 3),
        (lambda m, y, x: torch.relu(y), 3),
        (lambda m, y, x: y.relu_(), 3),
        (lambda m, y, x: F.relu(F.dropout(y, training=False), inplace=True), 3),
        (lambda m, y, x: 1 - (y * m.scale + m.shift) / 2, 3),
        (lambda m, y, x: y + x, None),  # thresholds behind an addition are a node of their own
        (lambda m, y, x: y.add_(x), None),
        (lambda m, y, x: y * y, None),
        (lambda m, y, x: F.max_pool1d(F.relu(y), 2), None),
        (lambda m, y, x: F.hardtanh(y, inplace=True), None),
        (lambda m, y, x: x, None),
    ],
)
def test_functions_that_finn_absorbs_are_looked_through(function, expected) -> None:
    shapes = layer_shapes(Function(function).eval(), (torch.randn(2, 4),))
    assert shapes["layer"].output_bits == expected


def test_a_quantizer_that_is_off_is_looked_through() -> None:
    model = nn.Sequential(
        quantized(8, qnn.QuantIdentity),
        qnn.QuantLinear(4, 4, bias=False),
        qnn.QuantReLU(act_quant=None),
        quantized(5, qnn.QuantIdentity),
        quantized(2, qnn.QuantIdentity),
    ).eval()
    assert layer_shapes(model, (torch.randn(2, 4),))["1"].output_bits == 5


def test_a_layer_s_own_output_quantizer_counts() -> None:
    model = nn.Sequential(
        quantized(8, qnn.QuantIdentity),
        qnn.QuantLinear(4, 4, bias=False, output_quant=Int8ActPerTensorFloat, output_bit_width=5),
        quantized(8, qnn.QuantIdentity),  # another node, behind the layer's thresholds
    ).eval()
    assert layer_shapes(model, (torch.randn(2, 4),))["1"].output_bits == 5


def test_a_shared_residual_quantizer_takes_both_branches() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = quantized(6, qnn.QuantIdentity)
            self.left = qnn.QuantLinear(4, 4, bias=False)
            self.right = qnn.QuantLinear(4, 4, bias=False)

        def forward(self, x):
            x = self.shared(x)
            return self.shared(self.left(x)) + self.shared(self.right(x))

    shapes = layer_shapes(Residual().eval(), (torch.randn(2, 4),))
    assert [shape.output_bits for shape in shapes.values()] == [6, 6]


def test_an_input_that_is_not_quantized_is_named_unless_excluded() -> None:
    model = nn.Sequential(
        qnn.QuantLinear(4, 4, bias=False), quantized(4), qnn.QuantLinear(4, 2, bias=False)
    ).eval()
    args = (torch.randn(2, 4),)
    for function in (layer_shapes, full_plan):
        with pytest.raises(MissingInputQuantizer, match=r"layer '0' .* exclude=\('0',\)"):
            function(model, args)
        assert list(getattr(function(model, args, exclude=("0",)), "layers", ["2"])) == ["2"]


def small() -> nn.Sequential:
    return nn.Sequential(
        quantized(6, qnn.QuantIdentity),
        qnn.QuantLinear(8, 4, bias=False, weight_bit_width=3),
        quantized(4),
        qnn.QuantLinear(
            4, 2, bias=False, weight_quant=Int8AccumulatorAwareWeightQuant,
            weight_accumulator_bit_width=12,
        ),
    ).eval()  # fmt: skip


def test_a_plan_is_filled_with_what_the_model_has() -> None:
    model, args = small(), (torch.randn(2, 8),)
    assert full_plan(model, args) == Plan(
        {"1": LayerPrecision(3, 6), "3": LayerPrecision(8, 4, 12)}
    )
    wanted = Plan({"1": LayerPrecision(weight=2, accumulator=9)})
    assert full_plan(model, args, plan=wanted)["1"] == LayerPrecision(2, 6, 9)
    with pytest.raises(InvalidPlan, match=": 7; its layers are: 1, 3"):
        full_plan(model, args, plan=Plan({"7": LayerPrecision()}))


def test_an_applied_plan_is_read_back() -> None:
    model, args = small(), (torch.randn(2, 8),)
    plan = Plan({"1": LayerPrecision(3, 6, 10, 4), "3": LayerPrecision(5, 4, 9)})
    apply_plan(model, plan, args)
    assert full_plan(model, args) == plan
