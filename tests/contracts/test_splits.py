"""What every registered split promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.quantize import layerwise_quantize
from brevitas.quant import Int8ActPerTensorFloat
from torch import nn

from brevitas_axe import Int8WeightPerChannelFloatAXE, export_qonnx, quantize
from brevitas_axe.errors import ExportRefused
from brevitas_axe.methods.splits.branches import branch_problems, solve_branches, together
from brevitas_axe.methods.splits.layers import float_problem, split_layers
from brevitas_axe.model.branches import BranchedLinear, branch_names, branch_plan, branched_layers
from brevitas_axe.model.layers import find_layers
from brevitas_axe.model.prepare import as_batches, calibrate
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import certify_file
from brevitas_axe.registry import method, methods

SPLITS = methods("splits")
PRECISION = LayerPrecision(weight=4, input=6, accumulator=14, tile=8)
every = pytest.mark.parametrize("name", SPLITS)


def layer_and_inputs() -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(256, 24) @ torch.randn(24, 24) / 5
    x[:, 3] *= 30
    return nn.Linear(24, 6), x


@every
def test_the_branches_add_up_to_the_layer(name: str) -> None:
    layer, x = layer_and_inputs()
    problem = float_problem("fc", layer, PRECISION, x)
    before = problem.weight.clone()
    branches = SPLITS[name](problem, PRECISION, x)
    assert torch.equal(problem.weight, before)
    total = torch.zeros_like(layer.weight)
    for branch in branches:
        rows = torch.arange(6) if branch.rows is None else branch.rows
        for index, column in enumerate(branch.columns.tolist()):
            total[rows, column] += branch.weight[:, index]
    torch.testing.assert_close(total, layer.weight.detach())
    assert len({branch.name for branch in branches}) == len(branches)
    again = SPLITS[name](problem, PRECISION, x)
    for one, other in zip(branches, again, strict=True):
        assert torch.equal(one.columns, other.columns)
        assert torch.equal(one.weight, other.weight)


@every
@pytest.mark.parametrize("limit", [None, 14])
def test_joint_branches_lose_no_more_than_apart(name: str, limit: int | None) -> None:
    layer, x = layer_and_inputs()
    precision = LayerPrecision(weight=4, input=6, accumulator=limit)
    problem = float_problem("fc", layer, precision, x)
    branches = SPLITS[name](problem, precision, x)
    if any(branch.rows is not None for branch in branches):
        return  # branches of other rows have no errors of each other to correct
    parts, moments = branch_problems(problem, branches)

    def solve(problems):
        return [
            method("solvers", "qronos")(part, act_order=True, quality="best") for part in problems
        ]

    _, whole, kept = solve_branches(parts, moments, solve)
    apart = together(solve(parts), parts)
    assert bool((kept.loss(whole) <= apart.loss(whole) + 1e-9).all())


@every
def test_branches_are_certified_and_run_as_a_file(name: str, tmp_path) -> None:
    layer, x = layer_and_inputs()
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(6, 3)).eval()
    planned = Plan({"0": PRECISION})
    split = split_layers(model, [x], SPLITS[name], exclude=("2",), plan=planned)
    torch.testing.assert_close(split(x), model(x), rtol=1e-4, atol=1e-4)
    ((_, branched),) = branched_layers(split).items()
    plan = branch_plan(split, planned)
    assert set(plan.layers) == set(branch_names("0", branched))
    options = {
        "weight_quant": Int8WeightPerChannelFloatAXE,
        "weight_bit_width": 4,
        "input_quant": Int8ActPerTensorFloat,
        "input_bit_width": 6,
    }
    quantized = layerwise_quantize(split, {nn.Linear: (qnn.QuantLinear, options)}).eval()
    calibrate(quantized, as_batches([x]))
    assert isinstance(quantized.get_submodule("0"), BranchedLinear)
    result = quantize(quantized, [x], plan=plan, progress=False)
    assert result.certificate.ok
    assert set(find_layers(result.model)) == {*plan.layers, "2"}
    proofs = {entry.name: entry for entry in result.certificate.entries}
    for branch, precision in plan.layers.items():
        assert proofs[branch].proven
        assert proofs[branch].target == precision.accumulator
    if branched.adds:
        said = " and ".join(f"'{branch}'" for branch in plan.layers)
        assert len(plan.layers) > 2 or any(said in a for a in result.certificate.assumptions)

    path = tmp_path / "split.onnx"
    export_qonnx(result.model, x[:4], path, target="qonnx")
    file = certify_file(path, plan=plan)
    assert {entry.layer for entry in file.entries} == {*plan.layers, "2"}
    assert file.assumptions == result.certificate.assumptions
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx

    wrapped = ModelWrapper(str(path))
    given = {wrapped.graph.input[0].name: x[:4].numpy()}
    found = execute_onnx(wrapped, given)[wrapped.graph.output[0].name]
    with torch.no_grad():
        np.testing.assert_allclose(found, result.model(x[:4]).numpy(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ExportRefused, match="'0'"):
        export_qonnx(result.model, x[:1], tmp_path / "finn.onnx", target="finn")
