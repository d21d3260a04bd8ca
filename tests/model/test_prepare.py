"""Plain models and calibration data, as users have them."""

from __future__ import annotations

import copy

import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant_tensor import IntQuantTensor
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import EmptyCalibration, InvalidOption, NonFiniteValues, UnsupportedLayer
from brevitas_axe.model.layers import find_layers, find_unquantized
from brevitas_axe.model.prepare import as_batches, has_quantizers, one_sample, to_brevitas
from brevitas_axe.model.quantizers import Int8WeightPerTensorFloatAXE
from brevitas_axe.model.running import observe_inputs

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.body(x)).relu()
        return self.head(x.mean((2, 3)))


class Branches(nn.Module):
    """Cannot be traced: its path depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(192, 16), nn.Linear(16, 5)
        self.rare = nn.Linear(16, 5)

    def forward(self, x):
        x = self.one(x.flatten(1)).relu()
        return self.rare(x) if x.sum() < 0 else self.two(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = x.flatten(1, 2)
        if x.shape[0] > 1000:  # not traceable
            return x
        return self.head(self.attention(x, x, x)[0].mean(1))


MODELS = [conv_net, Residual, Branches, Attention]


@pytest.mark.filterwarnings("ignore:.* is quantized layer by layer:UserWarning")
@pytest.mark.parametrize("build", MODELS)
def test_every_dot_product_gets_integer_weights_and_inputs(build):
    model = build().eval()
    with torch.no_grad():
        expected = model(X)
    state = copy.deepcopy(model.state_dict())
    quantized = to_brevitas(model, as_batches([X]), weight_bit_width=8, input_bit_width=8)
    assert not find_unquantized(quantized)
    layers = find_layers(quantized)
    names = {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    assert len(layers) == len(names) + isinstance(model, Attention)
    for ranges in observe_inputs(quantized, layers, (X,)).values():
        assert None not in ranges
    with torch.no_grad():
        actual = quantized(X)
    assert not isinstance(actual, IntQuantTensor)
    assert not quantized.training
    assert torch.allclose(actual, expected, atol=0.1 * float(expected.abs().max()))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_bit_widths_go_where_they_belong():
    quantized = to_brevitas(
        conv_net(),
        as_batches([X]),
        weight_bit_width=3,
        input_bit_width=5,
        model_input_bit_width=7,
    )
    layers = find_layers(quantized)
    assert {int(layer.weight_quant.bit_width()) for layer in layers.values()} == {3}
    first, *rest = observe_inputs(quantized, layers, (X,)).values()
    assert first == [InputRange(0, 127)]
    assert rest == [[InputRange(0, 31)]] * 2


FLATTENING = {
    "module": nn.Flatten(),
    "view": lambda x: x.view(x.shape[0], -1),
    "reshape": lambda x: x.reshape(x.size(0), -1),
    "size": lambda x: x.view(x.size()[0], -1),
    "method": lambda x: x.flatten(1),
    "function": lambda x: torch.flatten(x, start_dim=1),
}


@pytest.mark.parametrize("way", FLATTENING)
def test_however_it_is_flattened_the_linear_layer_gets_the_relu_s_integers(way):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(144, 5)
            self.flatten = FLATTENING[way]

        def forward(self, x):
            return self.head(self.flatten(self.conv(x).relu()))

    quantized = to_brevitas(Net(), as_batches([X]))
    calls = observe_inputs(quantized, find_layers(quantized), (X,))
    assert calls["head"] == [InputRange(0, 255)]
    assert sum(isinstance(m, qnn.QuantIdentity) for m in quantized.modules()) == 1  # the input's


def test_negative_samples_make_the_model_s_input_signed():
    quantized = to_brevitas(conv_net(), as_batches([X, X - 0.5]))
    first, *_ = observe_inputs(quantized, find_layers(quantized), (X,)).values()
    assert first == [InputRange(-128, 127)]


def test_a_training_model_is_left_training():
    model = conv_net().train()
    to_brevitas(model, as_batches([X]))
    assert all(module.training for module in model.modules())
    assert not has_quantizers(model)


def test_has_quantizers():
    assert has_quantizers(nn.Sequential(qnn.QuantLinear(2, 2)))
    assert not has_quantizers(nn.Linear(2, 2))


def test_one_sample_keeps_what_has_no_samples():
    (x,), kwargs = one_sample(((X,), {"mask": X[:, 0], "scale": torch.tensor(2.0), "flag": True}))
    assert torch.equal(x, X[:1])
    assert torch.equal(kwargs["mask"], X[:1, 0])
    assert (kwargs["scale"], kwargs["flag"]) == (2, True)


def test_batches_come_as_tensors_loaders_or_keywords():
    labelled = DataLoader(TensorDataset(X, torch.zeros(4)), batch_size=2)
    assert [args[0].shape[0] for args, kwargs in as_batches(labelled)] == [2, 2]
    assert as_batches(iter([X]))[0] == ((X,), {})
    assert as_batches([{"x": X}]) == [((), {"x": X})]
    assert len(as_batches([X, [X, 1], (X, 2)])) == 3


@pytest.mark.parametrize(
    ("calibration", "error", "match"),
    [
        ([], EmptyCalibration, "no batch"),
        (iter(()), EmptyCalibration, "no batch"),
        ([X, X[:0]], EmptyCalibration, "batch 1 is empty"),
        ([X, X * float("nan")], NonFiniteValues, "batch 1 contains NaN"),
        ([(X / 0, 1)], NonFiniteValues, "batch 0 contains NaN"),
        ([{"x": X * float("inf")}], NonFiniteValues, "batch 0"),
        (3, InvalidOption, "iterable"),
        (None, InvalidOption, "iterable"),
        ([()], EmptyCalibration, "batch 0 is empty"),
        (X, InvalidOption, "one tensor"),
    ],
)
def test_unusable_data_is_named(calibration, error, match):
    with pytest.raises(error, match=match):
        as_batches(calibration)


def test_transposed_convolutions_in_groups_are_refused_by_name() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2))
    batches = as_batches([torch.rand(2, 4, 5, 5)])
    with pytest.raises(UnsupportedLayer, match=r"layer '0' .* 2 groups.*PerTensor"):
        to_brevitas(model, batches)
    assert to_brevitas(model, batches, weight_quant=Int8WeightPerTensorFloatAXE)
