from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from brevitas_axe.errors import ExportRefused, InvalidOption
from brevitas_axe.export.qonnx import export_qonnx
from brevitas_axe.methods.inputs.two_region import TwoRegion, two_region
from brevitas_axe.model.layers import find_layers
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import certify, certify_file
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.registry import method
from brevitas_axe.run.quantize import quantize
from brevitas_axe.run.saving.load import load
from brevitas_axe.run.saving.save import save

BITS = 4


def net() -> nn.Sequential:
    """Two layers and a GELU whose outputs have a long tail."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 5))
    with torch.no_grad():
        model[0].weight[:3] *= 12
    return model.eval()


X = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))


def solved(inputs: str = "two_region", accumulator: int | None = 12):
    widths = LayerPrecision(weight=4, input=BITS, accumulator=accumulator)
    recipe = Recipe(inputs=inputs, solver="gptq", quality="fast")
    return quantize(net(), [X[:100]], widths, recipe, run=Run(progress=False))


def test_the_exact_range_counts_in_budget_and_certificate() -> None:
    result = solved()
    entry = result.certificate.entries[1]
    proxy = find_layers(result.model)["2"].input_quant
    first, second = proxy.regions
    doubling = int(second.scale / first.scale)
    assert doubling > 1
    assert entry.input_range == (-4, 3 + 7 * doubling)
    assert entry.fits
    assert entry.target == 12
    # The worst case with the covering type of that range would not fit the budget's use of it.
    assert entry.maximum is not None
    assert entry.minimum is not None
    assert max(entry.maximum, -entry.minimum) > 2**10
    free = solved(accumulator=None).certificate.entries[1]
    assert free.width is not None
    assert free.width > 10


def test_long_tails_lose_less_than_on_one_grid() -> None:
    models = [net(), *(solved(inputs, None).model for inputs in ("two_region", "static"))]
    with torch.no_grad():
        wanted, *found = (model(X[100:]) for model in models)
    errors = [float((given - wanted).square().mean()) for given in found]
    assert errors[0] < errors[1]


def test_the_file_has_the_same_range_and_finn_is_refused_by_name(tmp_path: Path) -> None:
    result = solved()
    path = tmp_path / "model.onnx"
    proto = export_qonnx(result.model, X[:1], path, target="qonnx")
    assert [node.op_type for node in proto.graph.node].count("Add") >= 1
    live = certify(result.model, args=(X[:1],))
    for mine, theirs in zip(certify_file(path).entries, live.entries, strict=True):
        assert mine.proven
        assert (mine.input_range, mine.minimum, mine.maximum, mine.width) == (
            theirs.input_range, theirs.minimum, theirs.maximum, theirs.width,
        )  # fmt: skip
    with pytest.raises(ExportRefused, match="different scales"):
        export_qonnx(result.model, X[:1], path, target="finn")


def test_a_plan_names_the_bits_of_the_code() -> None:
    assert [p.input for p in solved().plan.layers.values()] == [BITS, BITS]
    plan = Plan({"0": LayerPrecision(4, 6, 16), "2": LayerPrecision(4, 3, 16)})
    recipe = Recipe(inputs="two_region", solver="gptq", quality="fast")
    result = quantize(net(), [X[:100]], plan, recipe, run=Run(progress=False))
    assert result.certificate.ok
    assert result.plan == plan
    ranges = [entry.input_range for entry in result.certificate.entries]
    assert ranges[1] is not None
    assert ranges[1][0] == -2  # the first region of three bits


def test_a_saved_model_computes_the_same(tmp_path: Path) -> None:
    result = solved()
    save(result, tmp_path / "kept")
    again = load(tmp_path / "kept")
    with torch.no_grad():
        assert torch.equal(again.model(X), result.model(X))


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(InvalidOption, match="no zero points"):
        quantize(net(), [X], None, Recipe(inputs="two_region", symmetric=False))
    with pytest.raises(InvalidOption, match="exponent of TwoRegion must be 0 to 8, not 9"):
        method("inputs", "two_region:exponent=9")
    assert method("inputs", "two_region:exponent=2") == TwoRegion(2)
    assert two_region.facts.export == "qonnx"
