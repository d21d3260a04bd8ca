"""Score, allocate, apply, quantize, prove, export; and what it costs is what was promised."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from brevitas_axe.allocate import (
    Problem,
    allocate_bits,
    allocators,
    cost_table,
    load_backend,
    make_problem,
    output_readers,
)
from brevitas_axe.cost import cost_model, layer_shapes, total_cost
from brevitas_axe.emulate import emulate
from brevitas_axe.export import export_qonnx
from brevitas_axe.plan import Plan
from brevitas_axe.prepare import as_batches, to_brevitas
from brevitas_axe.quantize import quantize
from brevitas_axe.sensitivity import PlanLoss, make_case, make_choices, score, set_input_bits
from tests.test_prepare import Residual, X, conv_net

ONE = (X[:1],)
COSTS = ("bops", "finn_lut")


@dataclass
class Scored:
    """A net, and what allocators are given for it."""

    model: nn.Module
    problem: Problem
    loss: PlanLoss


def scored(build, backend: str, **widths) -> Scored:
    """Budgets are half way between the least and the most."""
    torch.manual_seed(0)
    model = to_brevitas(build().eval(), as_batches([X]))
    choices = make_choices(model, ONE, **widths)
    shapes = layer_shapes(model, ONE)
    choices = load_backend(backend).constrain(choices, shapes, model)
    readers = output_readers(model, ONE)
    costs = {name: cost_table(name, choices, shapes, readers) for name in COSTS}
    budgets = {n: 0.5 * (q.extreme(np.min) + q.extreme(np.max)) for n, q in costs.items()}
    loss = PlanLoss(make_case(model, [X], choices))
    scores = score(model, [X], choices, "local")
    return Scored(model, make_problem(scores, costs, budgets, loss), loss)


@pytest.fixture(scope="module", params=[conv_net, Residual])
def net(request) -> Scored:
    return scored(request.param, "finn", weight=(2, 4), input=(3, 5), accumulator=(10, 13))


def solved(net: Scored, plan: Plan):
    """The plan applied, its weights solved and proven."""
    planned = copy.deepcopy(net.model)
    set_input_bits(planned, plan, ONE)
    return quantize(planned, [X], plan=plan, quality="fast", progress=False)


@pytest.mark.parametrize("allocator", allocators())
def test_every_plan_is_applied_solved_proven_and_exported(net, allocator, tmp_path) -> None:
    found = allocate_bits(net.problem, allocator)
    assert all(found.costs[name] <= net.problem.budgets[name] for name in COSTS)
    assert net.loss(found.plan) >= 0
    result = solved(net, found.plan)
    assert result.plan == found.plan
    assert result.certificate.ok
    # The quantized model's own shapes, output bits included, cost what the tables said.
    actual = layer_shapes(result.model, ONE)
    for name in COSTS:
        spent = total_cost(cost_model(name), found.plan, actual)
        assert spent == pytest.approx(found.costs[name])
    # The residual net is as it came: nothing has prepared it for FINN.
    export_qonnx(result.model, ONE, tmp_path / "model.onnx", target="qonnx")
    run = emulate(tmp_path / "model.onnx", X.numpy(), plan=result.plan)
    with torch.no_grad():
        expected = result.model(X)
    assert np.allclose(run.output, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("backend", ["finn", "generic-int8"])
def test_a_backend_holds_its_types_and_never_overflows(backend, tmp_path) -> None:
    net = scored(conv_net, backend, weight=(4, 8), input=(4, 8), accumulator=(12, 32))
    found = allocate_bits(net.problem)
    (types,) = load_backend(backend).types
    for name, widths in found.plan.layers.items():
        for what in ("weight", "input", "accumulator"):
            low, high = getattr(types, what)
            assert low <= getattr(widths, what) <= high, (name, what)
    result = solved(net, found.plan)
    export_qonnx(result.model, ONE, tmp_path / "model.onnx")
    # Every pixel at either end of what the input's quantizer takes, and beyond.
    extremes = torch.stack([torch.full_like(X[0], v) for v in (-1e3, -1.0, 0.0, 1.0, 1e3)])
    extremes = torch.cat([extremes, 1e3 * torch.randn_like(X).sign()])
    run = emulate(tmp_path / "model.onnx", extremes.numpy(), plan=result.plan)
    assert run.overflows == 0
    with torch.no_grad():
        assert np.allclose(run.output, result.model(extremes).numpy(), atol=1e-4)
