"""Outlier channels in a branch of their own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.quantize import layerwise_quantize
from brevitas.quant import Int8ActPerTensorFloat
from torch import nn

from brevitas_axe import Int8WeightPerChannelFloatAXE, quantize
from brevitas_axe.errors import InvalidOption, NonFiniteValues
from brevitas_axe.methods.splits.channel_split import ChannelSplit, channel_split
from brevitas_axe.methods.splits.layers import split_layers
from brevitas_axe.model.branches import BranchedLinear
from brevitas_axe.model.layers import Layer, find_layers
from brevitas_axe.model.prepare import as_batches, calibrate
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import certify
from brevitas_axe.recipe import Recipe
from brevitas_axe.run.quantize_blocks import quantize_blocks
from tests.run.tiny import batches, tiny

OUTLIERS = [3, 17]
SPLIT = ChannelSplit(share=2 / 32)


def planted() -> tuple[nn.Module, torch.Tensor]:
    """A layer, and inputs of which two channels are a hundred times larger."""
    torch.manual_seed(0)
    x = torch.randn(256, 32)
    x[:, OUTLIERS] *= 100
    layer = nn.Linear(32, 8)
    layer.weight.data[:, OUTLIERS] /= 100
    return nn.Sequential(layer).eval(), x


def split_by(split: ChannelSplit, model: nn.Module, data: list, **options: Any) -> Layer:
    return split_layers(model, data, split, **options)


def test_the_function_is_kept_and_the_model_too() -> None:
    model, x = planted()
    model, x = model.double(), x.double()
    with torch.no_grad():
        before = model(x)
        split = split_by(SPLIT, model, [x])
        assert (split(x) - before).abs().max() < 1e-10 * before.abs().max()
        assert torch.equal(model(x), before)
    (layer,) = split.children()
    assert isinstance(layer, BranchedLinear)
    assert layer.outliers_columns.tolist() == OUTLIERS
    assert layer.outliers.bias is None


def test_a_model_in_training_mode_is_calibrated_as_it_will_run() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    split, x = split_by(channel_split, model, [torch.randn(16, 8)]), torch.randn(5, 8)
    assert all(module.training for module in (*model.modules(), *split.modules()))
    assert not any(p.requires_grad for p in split.get_submodule("0").parameters())
    assert all(p.requires_grad for p in split.get_submodule("3").parameters())
    with torch.no_grad():
        assert torch.allclose(split.eval()(x), model.eval()(x), atol=1e-6)
    assert not any(module.training for module in split_by(channel_split, model, [x]).modules())


class Uncommon(nn.Module):
    """One layer in two places, called by keyword on a vector, and one that gets no rows."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self.other = nn.Linear(8, 8)
        self.idle = nn.Linear(8, 8)

    def forward(self, x):
        self.idle(x[None][:0])
        return self.one(input=self.other(x))


def test_a_layer_is_split_in_all_of_its_places() -> None:
    model, x = Uncommon(), torch.randn(8)
    split: Layer = split_by(channel_split, model, [x])
    assert isinstance(split.one, BranchedLinear)
    assert split.one is split.other
    assert type(split.idle) is nn.Linear
    assert torch.allclose(split(x), model(x), atol=1e-6)


def test_a_model_that_is_a_layer_is_split() -> None:
    layer, x = nn.Linear(8, 2), torch.randn(3, 8)
    split = split_by(channel_split, layer, [x])
    assert isinstance(split, BranchedLinear)
    assert torch.allclose(split(x), layer(x), atol=1e-6)


def test_an_excluded_module_keeps_all_of_its_layers() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 2))
    split: Layer = split_by(channel_split, model, [torch.randn(3, 8)], exclude=("0",))
    assert type(split[0][0]) is nn.Linear
    assert isinstance(split[1], BranchedLinear)
    with pytest.raises(InvalidOption, match="no float linear layer"):
        split_by(channel_split, Uncommon(), [torch.randn(8)], exclude=("other",))


def test_the_share_is_rounded_up_exactly() -> None:
    split: Layer = split_by(ChannelSplit(share=0.07), nn.Linear(100, 2), [torch.randn(3, 100)])
    assert len(split.outliers_columns) == 7  # 0.07 * 100 is 7.000000000000001


def quantized(model: nn.Module, x: torch.Tensor) -> nn.Module:
    options = {
        "weight_quant": Int8WeightPerChannelFloatAXE,
        "weight_bit_width": 4,
        "input_quant": Int8ActPerTensorFloat,
        "input_bit_width": 4,
    }
    layer_map = {nn.Linear: (qnn.QuantLinear, options)}
    model = layerwise_quantize(copy.deepcopy(model), layer_map).eval()
    calibrate(model, as_batches([x]))
    return model


def test_both_branches_get_widths_of_their_own_and_lose_less(tmp_path) -> None:
    model, x = planted()
    with torch.no_grad():
        real = model(x)
        whole = quantize(quantized(model, x), [x], accumulator_bit_width=12, progress=False)
        split = quantized(split_by(SPLIT, model, [x]), x)
        plan = Plan({"0.rest": LayerPrecision(accumulator=12),
                     "0.outliers": LayerPrecision(weight=8, accumulator=14)})  # fmt: skip
        found = quantize(split, [x], plan=plan, progress=False)
        error = [float((m.model(x) - real).square().mean()) for m in (whole, found)]
    assert error[1] < 0.1 * error[0]
    assert found.certificate.ok
    assert certify(found.model, plan=found.plan, args=(x[:1],)).ok
    assert found.plan["0.outliers"].weight == 8

    from brevitas_axe import export_qonnx

    path = tmp_path / "split.onnx"
    export_qonnx(found.model, x[:4], path)
    assert path.exists()


def test_transformers_are_split_and_solved() -> None:
    data = batches("llama")
    model = split_by(channel_split, tiny("llama").eval(), data, exclude=("lm_head",))
    result = quantize_blocks(model, data, accumulator_bit_width=14, quality="fast", progress=False)
    assert result.certificate.ok
    assert {name.rpartition(".")[2] for name in find_layers(result.model)} == {"rest", "outliers"}


def test_what_cannot_be_split_is_said() -> None:
    model, x = planted()
    with pytest.raises(InvalidOption, match="'1' is not in the model"):
        split_by(channel_split, model, [x], exclude=("1",))
    with pytest.raises(InvalidOption, match="before it is quantized"):
        split_by(channel_split, quantized(model, x), [x])
    with pytest.raises(InvalidOption, match="between 0 and 1"):
        ChannelSplit(share=1.0)
    with pytest.raises(InvalidOption, match=r"give \['0'\]"):
        split_by(channel_split, model, [x], exclude="0")
    layer: Layer = model.get_submodule("0")
    layer.weight.data.fill_(torch.nan)
    with pytest.raises(NonFiniteValues, match="input of layer '1' contains NaN"):
        split_by(channel_split, nn.Sequential(layer, nn.Linear(8, 2)), [x])


def test_inputs_of_two_widths_share_one_accumulator() -> None:
    model, x = planted()
    widths = LayerPrecision(4, 8, accumulator=11)
    errors = {}
    for fewer in (0, 2):
        recipe = Recipe(split=f"channel_split:share=0.0625,fewer={fewer}")
        result = quantize(model, [x], widths, recipe, progress=False)
        result.certificate.require()
        assert result.plan["0.rest"].input == 8 - fewer
        assert result.plan["0.outliers"].input == 8
        assert {entry.target for entry in result.certificate.judged} == {11}
        errors[fewer] = (result.model(x) - model(x)).square().mean()
    assert errors[2] < errors[0] / 2
    with pytest.raises(InvalidOption, match="fewer of ChannelSplit must be 0 to 8"):
        ChannelSplit(fewer=9)
