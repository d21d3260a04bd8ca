"""Finding dot products, and unrolling them to matrices that compute what the layer computes."""

from __future__ import annotations

import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerTensorFloat,
    ShiftedUint8WeightPerTensorFloat,
)
from brevitas.quant.mx_quant_ocp import MXInt8Weight
from brevitas.quant_tensor import IntQuantTensor
from torch import nn

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import InvalidOption, NonFiniteValues, UnsupportedLayer
from brevitas_axe.model.layers import (
    find_layers,
    find_unquantized,
    input_range,
    integer_weight,
    layer_groups,
    roll_weight,
    unroll_input,
    unroll_weight,
)
from brevitas_axe.model.running import observe_inputs

# torch says this once per process, in whichever test comes first.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

SPACE = {1: (9,), 2: (9, 8), 3: (6, 5, 7)}
CONV = {1: qnn.QuantConv1d, 2: qnn.QuantConv2d, 3: qnn.QuantConv3d}
TRANSPOSED = {1: qnn.QuantConvTranspose1d, 2: qnn.QuantConvTranspose2d, 3: qnn.QuantConvTranspose3d}

# name: (input channels, output channels, keyword arguments)
CONVOLUTIONS = {
    "plain": (3, 5, {"kernel_size": 3}),
    "pointwise": (3, 5, {"kernel_size": 1}),
    "strided padded": (4, 6, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "dilated": (2, 3, {"kernel_size": 2, "dilation": 2, "padding": 1}),
    "grouped": (4, 6, {"kernel_size": 3, "groups": 2}),
    "depthwise": (4, 4, {"kernel_size": 3, "groups": 4, "padding": 1}),
    "depthwise multiplier": (4, 8, {"kernel_size": 2, "groups": 4}),
    "reflected": (2, 3, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
    "circular": (2, 3, {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}),
    "same": (2, 3, {"kernel_size": 4, "padding": "same"}),
    "same dilated": (2, 3, {"kernel_size": 2, "padding": "same", "dilation": 3}),
}
TRANSPOSED_CONVOLUTIONS = {
    "plain": (3, 5, {"kernel_size": 3}),
    "strided": (3, 5, {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}),
    "gaps": (3, 4, {"kernel_size": 2, "stride": 3}),
    "dilated": (2, 3, {"kernel_size": 3, "dilation": 2, "padding": 2}),
    "grouped": (4, 6, {"kernel_size": 3, "groups": 2, "stride": 2, "output_padding": 1}),
    "depthwise": (4, 4, {"kernel_size": 3, "groups": 4}),
    "cropped": (2, 3, {"kernel_size": 2, "padding": 2}),
}
ALL = [
    *[(CONV, n, case) for n in CONV for case in CONVOLUTIONS.items()],
    *[(TRANSPOSED, n, case) for n in TRANSPOSED for case in TRANSPOSED_CONVOLUTIONS.items()],
]


def build(kinds, dimensions, case):
    _, (inputs, outputs, options) = case
    if options.get("padding_mode") == "reflect" and dimensions == 3:
        options = {**options, "padding_mode": "replicate"}
    return kinds[dimensions](inputs, outputs, **options, weight_quant=None).double()


@pytest.fixture(params=ALL, ids=lambda p: f"{p[0][p[1]].__name__} {p[2][0]}")
def convolution(request):
    torch.manual_seed(0)
    layer = build(*request.param)
    return layer, torch.randn(2, layer.in_channels, *SPACE[request.param[1]]).double()


def product(layer, x):
    """What unrolled inputs and weights compute: [output channels, samples and positions]."""
    return (unroll_weight(layer, layer.weight) @ unroll_input(layer, x)).flatten(0, 1)


def test_unrolled_convolution_computes_the_layer(convolution):
    layer, x = convolution
    expected = layer(x) - layer.bias.view(-1, *[1] * (x.dim() - 2))
    assert torch.allclose(product(layer, x), expected.transpose(0, 1).flatten(1))


def test_unbatched_input_is_one_sample(convolution):
    layer, x = convolution
    assert torch.equal(unroll_input(layer, x[0]), unroll_input(layer, x[:1]))


def test_roll_undoes_unroll(convolution):
    layer, _ = convolution
    unrolled = unroll_weight(layer, layer.weight)
    groups, rows, columns = unrolled.shape
    assert (
        (groups, groups * rows)
        == (layer.groups, layer.out_channels)
        == (
            layer_groups(layer),
            layer.out_channels,
        )
    )
    assert columns == layer.weight.numel() // layer.out_channels
    assert torch.equal(roll_weight(layer, unrolled), layer.weight)


def test_a_row_of_the_unrolled_weight_is_one_output_channel(convolution):
    layer, x = convolution
    marked = torch.zeros_like(unroll_weight(layer, layer.weight))
    marked[-1, -1] = 1
    layer.weight.data, layer.bias = roll_weight(layer, marked), None
    out = layer(x)
    assert not out[:, :-1].any()
    assert out[:, -1].any()


@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 3, 7), (2, 3, 4, 7)])
def test_linear_takes_any_leading_dimensions(shape):
    layer = qnn.QuantLinear(7, 5, bias=False).double()
    layer.weight_quant.disable_quant = True
    x = torch.randn(shape).double()
    assert torch.allclose(product(layer, x).T.reshape(*shape[:-1], 5), layer(x))
    assert torch.equal(roll_weight(layer, unroll_weight(layer, layer.weight)), layer.weight)


def model():
    return nn.Sequential(
        qnn.QuantConv2d(1, 2, 3),
        nn.Sequential(qnn.QuantLinear(4, 3), nn.Linear(3, 2)),
        qnn.QuantLinear(2, 2, weight_quant=None),
    )


def test_layers_are_found_in_order_and_excluded_by_prefix():
    assert list(find_layers(model())) == ["0", "1.0"]
    assert list(find_layers(model(), ("1",))) == ["0"]
    assert find_unquantized(model()) == ["1.1", "2"]
    assert find_unquantized(model(), ("1",)) == ["2"]


def test_excluding_an_unknown_name_lists_the_known():
    with pytest.raises(InvalidOption, match=r"'1\.7' is not in the model; it has: 0, 1\.0"):
        find_layers(model(), ("1.7",))


@pytest.mark.parametrize("kind", [qnn.QuantLSTM, qnn.QuantRNN])
def test_recurrent_layers_are_refused_by_name_unless_excluded(kind):
    recurrent = nn.ModuleDict({"memory": kind(3, 4), "head": qnn.QuantLinear(4, 2)})
    with pytest.raises(UnsupportedLayer, match="'memory' is recurrent"):
        find_layers(recurrent)
    assert list(find_layers(recurrent, ("memory",))) == ["head"]


def test_groupwise_scales_are_refused_by_name():
    grouped = nn.Sequential(qnn.QuantLinear(64, 4, weight_quant=MXInt8Weight))
    with pytest.raises(UnsupportedLayer, match="'0' has group-wise"):
        find_layers(grouped)


def quantized(bits, signed, zero_point):
    tensors = (torch.zeros(1), torch.tensor(1.0), torch.tensor(zero_point), torch.tensor(bits))
    return IntQuantTensor(*tensors, signed=signed, training=False)


@pytest.mark.parametrize(
    ("bits", "signed", "zero_point", "expected"),
    [
        (8.0, True, 0.0, (-128, 127)),
        (8.0, False, 0.0, (0, 255)),
        (4.0, False, 5.0, (-5, 10)),
        (4.0, True, -3.0, (-5, 10)),
        (4.0, False, [[2.0], [9.0]], (-9, 13)),  # per channel: the union
        (1.0, False, 0.0, (0, 1)),
    ],
)
def test_input_range_subtracts_the_zero_point(bits, signed, zero_point, expected):
    assert input_range(quantized(bits, signed, zero_point)) == InputRange(*expected)


def test_observe_inputs_notes_every_call_and_restores_the_model():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = qnn.QuantIdentity(Int8ActPerTensorFloat, return_quant_tensor=True)
            self.narrow = qnn.QuantReLU(bit_width=3, return_quant_tensor=True)
            self.layer = qnn.QuantLinear(3, 3)
            self.blind = qnn.QuantLinear(3, 3)
            self.unused = qnn.QuantLinear(3, 3)

        def forward(self, x):
            return self.blind(self.layer(input=self.narrow(x)) + self.layer(self.wide(x)))

    twice = Twice()
    twice.narrow.eval()
    modes = [module.training for module in twice.modules()]
    calls = observe_inputs(twice, find_layers(twice), (torch.randn(2, 3),))
    assert calls == {"layer": [InputRange(0, 7), InputRange(-128, 127)], "blind": [None]}
    assert [module.training for module in twice.modules()] == modes
    assert not twice.layer._forward_pre_hooks


def test_integer_weight_is_the_quantizer_s():
    layer = qnn.QuantLinear(6, 4, weight_quant=Int8WeightPerTensorFloat, weight_bit_width=4)
    integers, scale = integer_weight("l", layer)
    assert integers.dtype == torch.int64
    assert int(integers.abs().max()) == 7
    assert torch.equal(integers * scale, layer.quant_weight().value)


def test_integer_weight_refuses_what_it_cannot_read():
    layer = qnn.QuantLinear(6, 4, weight_quant=ShiftedUint8WeightPerTensorFloat)
    with pytest.raises(UnsupportedLayer, match="'l' has asymmetric weights"):
        integer_weight("l", layer)
    layer.weight.data[0, 0] = float("inf")
    with pytest.raises(NonFiniteValues, match="'l' contain NaN"):
        integer_weight("l", layer)
