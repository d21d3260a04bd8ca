"""Score, allocate, apply, quantize, prove; and what it costs is what was promised."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from brevitas_axe.allocate import (
    allocate_bits,
    cost_table,
    load_backend,
    make_problem,
    output_readers,
)
from brevitas_axe.cost import cost_model, layer_shapes, total_cost
from brevitas_axe.emulate import emulate
from brevitas_axe.export import export_qonnx
from brevitas_axe.prepare import as_batches, to_brevitas
from brevitas_axe.quantize import quantize
from brevitas_axe.sensitivity import PlanLoss, make_case, make_choices, score, set_input_bits
from tests.test_prepare import Residual, X, conv_net

ONE = (X[:1],)


@pytest.mark.parametrize("build", [conv_net, Residual])
def test_the_plan_is_kept_and_proven_and_costs_what_it_said(build, tmp_path) -> None:
    torch.manual_seed(0)
    model = to_brevitas(build().eval(), as_batches([X]))
    choices = make_choices(model, ONE, weight=(2, 4), input=(3, 5), accumulator=(10, 13))
    shapes = layer_shapes(model, ONE)
    choices = load_backend("finn").constrain(choices, shapes, model)
    readers = output_readers(model, ONE)
    names = ("bops", "finn_lut")
    costs = {name: cost_table(name, choices, shapes, readers) for name in names}
    budgets = {
        name: 0.5 * (costs[name].extreme(np.min) + costs[name].extreme(np.max)) for name in names
    }
    loss = PlanLoss(make_case(model, [X], choices))
    scores = score(model, [X], choices, "local")
    found = allocate_bits(make_problem(scores, costs, budgets, loss))
    assert found.costs["finn_lut"] <= budgets["finn_lut"]
    assert loss(found.plan) >= 0

    planned = copy.deepcopy(model)
    set_input_bits(planned, found.plan, ONE)
    result = quantize(planned, [X], plan=found.plan, progress=False)
    assert result.plan == found.plan
    assert result.certificate.ok
    # The quantized model's own shapes, output bits included, cost what the tables said.
    actual = layer_shapes(result.model, ONE)
    for name in names:
        spent = total_cost(cost_model(name), found.plan, actual)
        assert spent == pytest.approx(found.costs[name])
    export_qonnx(result.model, ONE, tmp_path / "model.onnx")
    run = emulate(tmp_path / "model.onnx", X.numpy())
    with torch.no_grad():
        expected = result.model(X)
    assert np.allclose(run.output, expected.numpy(), atol=1e-4)
