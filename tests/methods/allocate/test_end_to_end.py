"""Score, allocate, apply, quantize, prove, export; and what it costs is what was promised."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import Uint8ActPerTensorFloat
from brevitas.quant.fixed_point import Int8WeightPerChannelFixedPoint
from torch import nn

from brevitas_axe.errors import UnsupportedLayer
from brevitas_axe.export import export_qonnx
from brevitas_axe.methods.allocate import (
    Problem,
    allocate_bits,
    cost_table,
    load_backend,
    make_problem,
    output_readers,
)
from brevitas_axe.methods.cost import layer_shapes, total_cost
from brevitas_axe.methods.sensitivity import PlanLoss, make_case, make_choices, score
from brevitas_axe.methods.sensitivity.decoupled import Decoupled
from brevitas_axe.model.apply.activations import set_input_bits
from brevitas_axe.model.prepare import as_batches, has_quantizers, to_brevitas
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import certify_file
from brevitas_axe.proof.emulator import emulate
from brevitas_axe.registry import method, methods
from brevitas_axe.run.quantize import quantize
from tests.model.test_prepare import Residual, X, conv_net

ONE = (X[:1],)
COSTS = ("bops", "finn_lut")
BACKENDS = files("brevitas_axe.methods.allocate") / "backends"


@dataclass
class Scored:
    """A net, and what allocators are given for it."""

    model: nn.Module
    problem: Problem
    loss: PlanLoss


def scored(build, backend, **widths) -> Scored:
    """Budgets are half way between the least and the most."""
    torch.manual_seed(0)
    model = build().eval()
    if not has_quantizers(model):
        model = to_brevitas(model, as_batches([X]))
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


@pytest.mark.parametrize("allocator", methods("allocate"))
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
        spent = total_cost(method("cost", name), found.plan, actual)
        assert spent == pytest.approx(found.costs[name])
    # The residual net is as it came: nothing has prepared it for FINN.
    export_qonnx(result.model, ONE, tmp_path / "model.onnx", target="qonnx")
    run = emulate(tmp_path / "model.onnx", X.numpy(), plan=result.plan)
    with torch.no_grad():
        expected = result.model(X)
    assert np.allclose(run.output, expected.numpy(), atol=1e-4)


WEIGHT = {"weight_quant": Int8WeightPerChannelFixedPoint, "bias": True}


def calibrated(model: nn.Module) -> nn.Module:
    with calibration_mode(model.eval()), torch.no_grad():
        model(X)
    return model


def fixed_point_net() -> nn.Module:
    """Weight scales are powers of two."""
    torch.manual_seed(0)
    return calibrated(
        nn.Sequential(
            qnn.QuantIdentity(Uint8ActPerTensorFloat, return_quant_tensor=True),
            qnn.QuantConv2d(3, 6, 3, padding=1, **WEIGHT),
            qnn.QuantReLU(return_quant_tensor=True),
            nn.Flatten(),
            qnn.QuantLinear(384, 5, **WEIGHT),
        )
    )


class Joined(nn.Module):
    """Two branches of one scale, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.start = qnn.QuantIdentity(Uint8ActPerTensorFloat, return_quant_tensor=True)
        self.one = qnn.QuantConv2d(3, 4, 1, **WEIGHT)
        self.two = qnn.QuantConv2d(3, 4, 3, padding=1, **WEIGHT)
        self.act, self.out = (qnn.QuantReLU(return_quant_tensor=True) for _ in range(2))
        self.mix, self.head = qnn.QuantConv2d(8, 4, 3, **WEIGHT), qnn.QuantLinear(144, 5, **WEIGHT)

    def forward(self, x):
        x = self.start(x)
        x = torch.cat([self.act(self.one(x)), self.act(self.two(x))], 1)
        return self.head(self.out(self.mix(x)).flatten(1))


def joined_net() -> nn.Module:
    torch.manual_seed(0)
    return calibrated(Joined())


def fed(model: nn.Module, name: str) -> nn.Sequential:
    """A layer behind a quantizer of its own input, as in the model."""
    layer, arriving = model.get_submodule(name), []
    handle = layer.register_forward_pre_hook(lambda _, args: arriving.append(args[0]))
    with torch.no_grad():
        model(X)
    handle.remove()
    scale, signed = arriving[0].scale, arriving[0].signed
    kinds = (qnn.QuantIdentity, qnn.QuantReLU)
    quantizers = [m for m in model.modules() if isinstance(m, kinds)]
    same = [q for q in quantizers if torch.equal(q.act_quant.scale().squeeze(), scale.squeeze())]
    quantizer = next(q for q in same if q.act_quant.is_signed == signed)
    return nn.Sequential(copy.deepcopy(quantizer), copy.deepcopy(layer)).eval()


def worst_inputs(alone: nn.Sequential, low: int, high: int) -> torch.Tensor:
    """For every row of a layer, the inputs of its largest and of its smallest sum."""
    quantizer, layer = alone
    weight = layer.quant_weight().int()
    groups = getattr(layer, "groups", 1)
    rows = []
    for row, integers in enumerate(weight):
        start = row // (len(weight) // groups) * len(integers)
        for ends in ((high, low), (low, high)):
            x = torch.zeros(len(integers) * groups, *integers.shape[1:])
            x[start : start + len(integers)] = torch.where(integers > 0, *map(float, ends))
            rows.append(x)
    return torch.stack(rows) * quantizer.act_quant.scale().detach()


@pytest.mark.parametrize("build", [conv_net, fixed_point_net, joined_net])
@pytest.mark.parametrize("backend", ["finn", "generic-int8", "powers_of_two"])
def test_a_backend_holds_its_types_and_never_overflows(backend, build, tmp_path) -> None:
    if backend == "powers_of_two":
        shipped = json.loads((BACKENDS / "finn.json").read_text())
        backend = tmp_path / "own.json"
        backend.write_text(json.dumps({**shipped, "name": "own", "power_of_two": True}))
        if build is conv_net:
            with pytest.raises(UnsupportedLayer, match="'own' needs weight scales that are powers"):
                scored(build, backend, weight=(4, 8), input=(4, 8))
            return
    net = scored(build, backend, weight=(4, 8), input=(4, 8), accumulator=(12, 32))
    found = allocate_bits(net.problem)
    (types,) = load_backend(backend).types
    for name, widths in found.plan.layers.items():
        for what in ("weight", "input", "accumulator"):
            low, high = getattr(types, what)
            assert low <= getattr(widths, what) <= high, (name, what)
    result = solved(net, found.plan)
    export_qonnx(result.model, ONE, tmp_path / "model.onnx", target="qonnx")
    certificate = certify_file(tmp_path / "model.onnx", plan=result.plan)
    assert result.certificate.ok
    assert certificate.ok
    # Every pixel at either end of what the input's quantizer takes, and beyond.
    extremes = torch.stack([torch.full_like(X[0], v) for v in (-1e3, -1.0, 0.0, 1.0, 1e3)])
    run = emulate(tmp_path / "model.onnx", extremes.numpy(), plan=result.plan)
    assert run.overflows == 0
    with torch.no_grad():
        assert np.allclose(run.output, result.model(extremes).numpy(), atol=1e-4)
    for entry in certificate.entries:
        assert entry.layer is not None
        assert entry.input_range is not None
        assert entry.minimum is not None
        assert entry.maximum is not None
        alone, path = fed(result.model, entry.layer), tmp_path / f"{entry.layer}.onnx"
        if build is not conv_net:
            scales = alone[1].quant_weight().scale.detach().log2()
            assert torch.equal(scales, scales.round())
        worst = worst_inputs(alone, *entry.input_range)
        export_qonnx(alone, (worst[:1],), path, target="qonnx")
        run = emulate(path, worst.numpy(), plan=Plan({"1": found.plan[entry.layer]}))
        assert run.overflows == 0
        # These inputs do reach the sums of the proof; a bit less would not hold them.
        assert run.largest_sums == {
            next(iter(run.largest_sums)): max(-entry.minimum, entry.maximum)
        }
        assert entry.width is not None
        assert emulate(path, worst.numpy(), entry.width - 1).overflows > 0


def test_groups_with_metrics_of_their_own_are_allocated_where_costs_link_them() -> None:
    """A residual net's thresholds cost what the next layer's input bits say, across the groups."""
    model = to_brevitas(Residual().eval(), as_batches([X]))
    choices = make_choices(model, ONE, weight=(2, 4), input=(3, 5), accumulator=(10, 13))
    scores = score(model, [X], choices, Decoupled(content="body"))
    assert scores.parts == {"sqnr": ("stem", "head"), "ssim": ("body",)}
    shapes, readers = layer_shapes(model, ONE), output_readers(model, ONE)
    cost = cost_table("finn_lut", choices, shapes, readers)
    body = list(choices.layers).index("body")
    assert any(body in pair for pair in cost.pairs)
    limit = 0.5 * (cost.extreme(np.min) + cost.extreme(np.max))
    problem = make_problem(scores, {"finn_lut": cost}, {"finn_lut": limit})
    found = allocate_bits(problem, "shares")
    assert found.plan != allocate_bits(problem, "uniform").plan
    net = Scored(model, problem, PlanLoss(make_case(model, [X], choices)))
    result = solved(net, found.plan)
    assert result.certificate.ok
    spent = total_cost(method("cost", "finn_lut"), found.plan, layer_shapes(result.model, ONE))
    assert spent == pytest.approx(found.costs["finn_lut"])
    assert spent <= limit


def test_the_bit_of_a_sign_in_a_sum_is_paid_for() -> None:
    """The thresholds behind `body` have a bit more than the plan gives to those that read it."""
    model = to_brevitas(Residual().eval(), as_batches([X]))
    choices = make_choices(model, ONE, weight=(4,), input=(4, 8), accumulator=(16,))
    readers, price = output_readers(model, ONE), method("cost", "finn_lut")
    table = cost_table("finn_lut", choices, layer_shapes(model, ONE), readers)
    for bits in (4, 8):
        plan = Plan({n: LayerPrecision(4, bits, 16) for n in choices.layers})
        chosen = tuple(o.index(plan[name]) for name, o in choices.layers.items())
        set_input_bits(model, plan, ONE)
        shapes = layer_shapes(model, ONE)
        assert shapes["body"].output_bits == bits + (bits == 8)
        assert shapes["stem"].output_bits == bits
        assert table.total(chosen) == pytest.approx(total_cost(price, plan, shapes))
