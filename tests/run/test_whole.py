"""Whole models in floating-point formats: solved, proven, written to a file and loaded again."""

from __future__ import annotations

import pytest
import torch
from brevitas.quant_tensor import FloatQuantTensor

from brevitas_axe.errors import ExportRefused, InvalidOption
from brevitas_axe.export.qonnx import export_qonnx
from brevitas_axe.formats import minifloat
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import certify_file
from brevitas_axe.proof.emulator import emulate
from brevitas_axe.recipe import Recipe
from brevitas_axe.run.finetune import finetune
from brevitas_axe.run.quantize import quantize
from brevitas_axe.run.result import QuantizeResult
from brevitas_axe.run.saving.load import load
from brevitas_axe.run.saving.save import save
from tests.model.test_prepare import Residual, X, conv_net

BATCHES = [X, X.flip(0)]


def residual() -> Residual:
    torch.manual_seed(0)
    return Residual()


def run(widths, build=conv_net, **options) -> QuantizeResult:
    return quantize(build().eval(), BATCHES, widths, progress=False, **options)


def drift(result: QuantizeResult, build=conv_net) -> float:
    with torch.no_grad():
        wanted, given = build().eval()(X), result.model(X)
    return float((given - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("widths", "most"),
    [
        (LayerPrecision("e4m3", "e4m3"), 0.06),
        (LayerPrecision("e2m1", "e2m1"), 0.3),
        (LayerPrecision("e5m2", "e5m2"), 0.12),
        (LayerPrecision("e2m3", 8, 16), 0.2),
        (LayerPrecision(4, "e3m2", 16), 0.2),
    ],
    ids=str,
)
def test_the_model_its_proof_and_its_file_agree(widths, most, tmp_path) -> None:
    result = run(widths)
    assert drift(result) < most
    assert result.certificate.ok
    assert {(p.weight, p.input) for p in result.plan.layers.values()} == {
        (widths.weight, widths.input)
    }
    export_qonnx(result.model, X[:1], tmp_path / "model.onnx", target="qonnx")
    proof = certify_file(tmp_path / "model.onnx", plan=result.plan)
    assert proof.ok
    for entry, live in zip(proof.entries, result.certificate.entries, strict=True):
        sums = (entry.layer, entry.minimum, entry.maximum, entry.input_range)
        assert sums == (live.layer, live.minimum, live.maximum, live.input_range)
    emulated = emulate(tmp_path / "model.onnx", X.numpy())
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(emulated.output), result.model(X))
    if "e5m2" not in (widths.weight, widths.input):
        assert not emulated.float_nodes
        largest = {e.name: max(-e.minimum, e.maximum) for e in proof.entries}
        assert all(emulated.largest_sums[name] <= most for name, most in largest.items())
    if "e2m1" in (widths.weight, widths.input):
        with pytest.raises(ExportRefused, match="gives floating-point numbers, which FINN cannot"):
            export_qonnx(result.model, X[:1], tmp_path / "finn.onnx")


def test_a_narrow_accumulator_is_kept_by_the_solved_numbers() -> None:
    free, narrow = run(LayerPrecision("e2m1", 8)), run(LayerPrecision("e2m1", 8, 12))
    assert narrow.certificate.ok
    assert max(entry.width for entry in free.certificate.entries) > 12
    for name, layer in find_layers(narrow.model).items():
        numbers = set(integer_weight(name, layer)[0].flatten().tolist())
        assert numbers <= set(minifloat("e2m1").integers)
        assert layer.weight_quant.accumulator_bit_width == 12


def test_formats_and_integers_live_in_one_model_on_shared_quantizers() -> None:
    recipe = Recipe(
        rules={"type:QuantConv2d": {"weight": "e2m3"}, "type:QuantLinear": {"weight": 6}}
    )
    result = run(None, residual, recipe=recipe)
    kinds = {type(m).__name__: result.plan[n].weight for n, m in find_layers(result.model).items()}
    assert kinds["QuantConv2d"] == "e2m3"
    assert result.certificate.ok
    plan = Plan({name: LayerPrecision("e4m3", "e4m3", 40) for name in result.plan.layers})
    both = run(plan, residual)
    assert both.certificate.ok
    assert drift(both, residual) < 0.2
    layer = next(iter(find_layers(both.model).values()))
    assert isinstance(layer.quant_weight(), FloatQuantTensor)


def test_a_saved_model_has_the_same_numbers_and_cannot_be_trained_on(tmp_path) -> None:
    result = run(LayerPrecision("e2m3", "e4m3"))
    save(result, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.plan == result.plan
    assert again.certificate.entries == result.certificate.entries
    with torch.no_grad():
        assert torch.equal(again.model(X), result.model(X))
    with pytest.raises(InvalidOption, match=r"'input_1_quant.act_quant' gives floating-point"):
        finetune(again, [(X, torch.zeros(len(X), dtype=torch.int64))])
