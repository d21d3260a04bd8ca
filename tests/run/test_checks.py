"""What is told in one sentence before the long work, and what is moved where it belongs."""

from __future__ import annotations

import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant import (
    Int8WeightPerTensorFixedPoint,
    SignedBinaryWeightPerTensorConst,
    SignedTernaryWeightPerTensorConst,
)
from torch import nn

from brevitas_axe.errors import InvalidOption, NotEnoughMemory, UnsupportedLayer
from brevitas_axe.export.finn.prepare import prepare_for_finn
from brevitas_axe.export.hls4ml.prepare import prepare_for_hls4ml
from brevitas_axe.model.running import evaluating
from brevitas_axe.run import checks
from brevitas_axe.run.checks import check_memory
from brevitas_axe.run.quantize import quantize

X = torch.rand(32, 16, generator=torch.Generator().manual_seed(0))


def net(**options) -> nn.Module:
    torch.manual_seed(0)
    start = qnn.QuantIdentity(bit_width=8, return_quant_tensor=True)
    model = nn.Sequential(start, qnn.QuantLinear(16, 5, bias=True, **options))
    model(X)
    return model.eval()


def test_weights_of_one_bit_are_refused_by_name() -> None:
    model = net(weight_quant=SignedBinaryWeightPerTensorConst)
    with pytest.raises(UnsupportedLayer, match=r"layer '1' has binary or ternary weights.*exclude"):
        quantize(model, [X], accumulator_bit_width=14, progress=False)


def test_a_constant_scale_is_solved() -> None:
    options = {"weight_scaling_impl_type": "const", "weight_scaling_init": 0.1}
    fixed = {**options, "weight_quant": Int8WeightPerTensorFixedPoint}
    for each in (options, fixed, {"weight_quant": SignedTernaryWeightPerTensorConst}):
        result = quantize(net(**each), [X], accumulator_bit_width=14, progress=False)
        assert result.certificate.ok


def test_memory_is_estimated_before_the_work(monkeypatch) -> None:
    layers = {"few": qnn.QuantLinear(8, 2), "many": qnn.QuantLinear(1000, 2)}
    monkeypatch.setattr(checks, "_free_memory", lambda device: 20_000_000)
    with pytest.raises(NotEnoughMemory, match=r"layer 'many' multiplies 1,000 inputs.*exclude"):
        check_memory(layers)
    monkeypatch.setattr(checks, "_free_memory", lambda device: 25_000_000)
    check_memory(layers)
    monkeypatch.setattr(checks, "_free_memory", lambda device: None)
    check_memory(layers)
    check_memory({})


def test_bfloat16_is_refused_by_name_and_half_works() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with pytest.raises(UnsupportedLayer, match=r"'0.weight' is in bfloat16.*model.float"):
        quantize(model.bfloat16(), [X.bfloat16()], accumulator_bit_width=14, progress=False)
    half = quantize(model.half(), [X.half()], accumulator_bit_width=14, progress=False)
    assert half.certificate.ok


@pytest.mark.parametrize("prepare", [prepare_for_finn, prepare_for_hls4ml])
def test_a_wrong_batch_is_told_apart_from_what_is_ours(prepare) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with pytest.raises(InvalidOption, match="the model fails on calibration batch 0"):
        prepare(model, [torch.rand(4, 1, 8, 8)])
    assert all(module.training for module in model.modules())


class Routed(nn.Module):
    """Data decides which expert reads a sample, so the quantized model may decide otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.g = nn.Linear(32, 32), nn.Linear(32, 4, bias=False)
        self.e = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

    def forward(self, x):
        h = torch.tanh(self.i(x))
        chosen, out = self.g(h).argmax(-1), torch.zeros_like(h)
        for k, expert in enumerate(self.e):
            rows = (chosen == k).nonzero()[:, 0]
            out = out.index_copy(0, rows, expert(h[rows])) if len(rows) else out
        return out


@pytest.mark.filterwarnings("ignore:.* is quantized layer by layer:UserWarning")
def test_routing_that_quantization_changes_is_told_with_the_layer() -> None:
    torch.manual_seed(0)
    model, x = Routed().eval(), torch.randn(256, 32)
    with pytest.raises(UnsupportedLayer, match=r"layer 'e.\d' gets other samples.*solver='gptq'"):
        quantize(model, [x], accumulator_bit_width=16, quality="best", progress=False)
    fast = {"quality": "fast", "solver": "gptq", "progress": False}
    result = quantize(model, [x], accumulator_bit_width=16, **fast)
    assert result.certificate.ok


def test_modules_keep_their_own_modes_and_new_ones_get_the_model_s() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)).train()
    model[1].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        model[2] = nn.Linear(2, 2).eval()
    assert [module.training for module in model] == [True, False, True]
