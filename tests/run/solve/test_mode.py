"""The mode feeds every kind of layer to every solver, and leaves integers that hold."""

from __future__ import annotations

import copy

import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from brevitas.quant.scaled_int import (
    Int8AccumulatorAwareWeightQuant,
    Int8AccumulatorAwareZeroCenterWeightQuant,
)
from torch import nn

from brevitas_axe.accumulator import InputRange
from brevitas_axe.model.apply.weights import apply_plan
from brevitas_axe.model.layers import find_layers, unroll_input
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.registry import methods
from brevitas_axe.run.solve import axe_gpfq_mode, axe_gptq_mode, axe_mode, axe_qronos_mode
from brevitas_axe.run.solve import mode as mode_module
from tests.run.solve.models import (
    BITS,
    LAYERS,
    assert_holds,
    build,
    calibrated,
    integers,
    kinds,
    run,
    same,
    two_layers,
)


@pytest.mark.parametrize(
    ("solver", "quality"),
    [("gpfq", "fast"), ("gptq", "fast"), ("gptq", "best"), ("qronos", "best")],
)
@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_and_solver_holds_and_reloads(kind, solver, quality):
    model, batches = build(kind)
    axe = run(model, batches, solver=solver, quality=quality, accumulator_tile_size=16)
    assert [entry["name"] for entry in axe.log] == list(find_layers(model))
    assert_holds(model)
    solved = integers(model)
    with torch.no_grad():
        expected = model(batches[0])
    assert expected.isfinite().all()
    assert same(integers(model), solved)

    fresh, _ = build(kind)
    apply_plan(fresh, axe.plan)
    fresh.load_state_dict(model.state_dict())
    assert same(integers(fresh), solved)
    with torch.no_grad():
        assert torch.equal(fresh(batches[0]), expected)


@pytest.mark.parametrize("kind", ["fixed point", "fixed point per tensor"])
@pytest.mark.parametrize("solver", methods("solvers"))
def test_powers_of_two_stay_powers_of_two(kind, solver):
    model, batches = build(kind)
    run(model, batches, solver=solver)
    assert (model[0].quant_weight().scale.log2().frac() == 0).all()


@pytest.mark.parametrize("quality", ["fast", "best"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bits", [4, 8])
def test_other_float_types(dtype, quality, bits):
    torch.manual_seed(0)
    model = nn.Sequential(
        qnn.QuantConv2d(3, 8, 3, **kinds(bits=bits)),
        nn.Flatten(),
        qnn.QuantLinear(8 * 16, 5, **kinds(bits=bits)),
    ).to(dtype)
    batches = [torch.rand(6, 3, 6, 6).to(dtype)]
    run(calibrated(model, *batches), batches, quality=quality)
    assert_holds(model)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(batches[0]).dtype == dtype


@pytest.mark.parametrize(
    "quantizer", [Int8AccumulatorAwareWeightQuant, Int8AccumulatorAwareZeroCenterWeightQuant]
)
@pytest.mark.parametrize("solver", methods("solvers"))
def test_a2q_models_are_accepted(quantizer, solver):
    torch.manual_seed(0)
    options = {"weight_accumulator_bit_width": 16}
    model = nn.Sequential(
        qnn.QuantConv2d(3, 8, 3, **kinds(quantizer, **options)),
        nn.ReLU(),
        nn.Flatten(),
        qnn.QuantLinear(8 * 16, 5, **kinds(quantizer, **options)),
    )
    batches = [torch.rand(6, 3, 6, 6)]
    run(calibrated(model, *batches), batches, bits=12, solver=solver)
    assert_holds(model)


def test_the_user_s_loop_and_the_short_one_give_the_same():
    model, batches = two_layers()
    twin = copy.deepcopy(model)
    run(model, batches)
    run(twin, batches, rounds=True)
    assert same(integers(model), integers(twin))


@pytest.mark.parametrize("mode", [axe_gpfq_mode, axe_gptq_mode, axe_qronos_mode])
def test_the_named_modes_are_their_solvers(mode):
    solver = mode.own_solver
    assert mode.__name__ == f"axe_{solver}_mode"
    assert "Sources:" in mode.__doc__
    model, batches = two_layers()
    twin = copy.deepcopy(model)
    run(twin, batches, solver=solver)
    with torch.no_grad(), mode(model, accumulator_bit_width=BITS) as axe:
        for x in batches:
            axe.model(x)
        while axe.update():
            pass
    assert same(integers(model), integers(twin))


@pytest.mark.parametrize("tile", [None, 8, 64, 4096])
def test_one_tile_size_serves_layers_of_every_length(tile):
    model, batches = two_layers()
    axe = run(model, batches, accumulator_tile_size=tile)
    expected = {"0": 27, "3": 128}
    for name, columns in expected.items():
        assert axe.plan[name].tile == (tile if tile and tile < columns else None)
    assert_holds(model)


@pytest.mark.parametrize("act_order", [False, True])
def test_column_order_changes_integers_but_not_the_promise(act_order):
    model, batches = two_layers()
    default = copy.deepcopy(model)
    run(model, batches, solver="gpfq", quality="fast", act_order=act_order)
    run(default, batches, solver="gpfq", quality="fast")
    assert_holds(model)
    assert same(integers(model), integers(default)) == (not act_order)


def test_without_a_width_weights_are_solved_and_not_bound():
    model, batches = two_layers()
    run(model, batches, bits=None)
    free = integers(model)
    run(model, batches, bits=10)
    assert_holds(model)
    assert not same(integers(model), free)


class Reused(nn.Module):
    """One layer called on a narrow and on a wide signed input."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = qnn.QuantIdentity(
            Uint8ActPerTensorFloat, bit_width=2, return_quant_tensor=True
        )
        self.wide = qnn.QuantIdentity(Int8ActPerTensorFloat, return_quant_tensor=True)
        self.layer = qnn.QuantLinear(40, 40, **kinds(act=None))
        self.head = qnn.QuantLinear(40, 3, **kinds())

    def forward(self, x):
        x = self.layer(self.narrow(x.relu())).relu()
        return self.head(self.layer(self.wide(x - x.mean())).relu())


@pytest.mark.parametrize("solver", methods("solvers"))
def test_a_module_used_twice_holds_for_its_widest_input(solver):
    torch.manual_seed(0)
    batches = [torch.randn(16, 40), torch.randn(5, 40)]
    model = calibrated(Reused(), *batches)
    axe = run(model, batches, solver=solver)
    assert model.layer.weight_quant.input_range == InputRange(-128, 127)
    assert_holds(model)
    assert [entry["samples"] for entry in axe.log] == [42, 21]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.one = qnn.QuantLinear(16, 16, **kinds(act=Int8ActPerTensorFloat))
        self.two = qnn.QuantLinear(16, 16, **kinds())
        self.head = qnn.QuantLinear(16, 30, **kinds(act=Int8ActPerTensorFloat))
        self.two.weight, self.two.bias = self.one.weight, self.one.bias
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.two(self.one(self.embedding(x)).relu()))


@pytest.mark.parametrize("quality", ["fast", "best"])
def test_tied_weights_are_parted_so_that_each_holds(quality):
    torch.manual_seed(0)
    model = Tied()
    batches = [torch.randint(0, 30, (4, 9))]
    calibrated(model, *batches)
    embedding = model.embedding.weight.detach().clone()
    biases = model.one.bias.detach().clone()
    run(model, batches, bits=12, quality=quality)
    assert_holds(model)
    assert torch.equal(model.embedding.weight, embedding)
    assert model.one.weight is not model.two.weight
    if quality == "best":
        # Each has a shift of its own, or the shift of one would disturb the other.
        assert model.one.bias is not model.two.bias
    else:
        assert torch.equal(model.two.bias, biases)


def test_parting_tied_weights_keeps_the_scales_they_were_solved_with():
    torch.manual_seed(0)
    model, x = Tied(), torch.randint(0, 30, (4, 9))
    run(calibrated(model, x), [x], bits=12)
    model.two.weight = model.one.weight
    model.two.weight_quant.load_state_dict(model.one.weight_quant.state_dict())
    scales = {n: layer.quant_weight().scale for n, layer in find_layers(model).items()}
    mode = axe_mode(model, accumulator_bit_width=12)
    with pytest.raises(KeyboardInterrupt), torch.no_grad(), mode as axe:  # noqa: PT012
        axe.model(x)
        raise KeyboardInterrupt
    assert model.one.weight is not model.two.weight
    now = {n: layer.quant_weight().scale for n, layer in find_layers(model).items()}
    assert all(torch.equal(scales[name], now[name]) for name in scales)


def test_dead_inputs_get_zero_weights_and_harm_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(qnn.QuantLinear(20, 4, **kinds()))
    x = torch.rand(16, 20)
    x[:, 5:9] = 0
    for solver in methods("solvers"):
        for quality in ("fast", "best"):
            twin = calibrated(copy.deepcopy(model), x)
            run(twin, [x], solver=solver, quality=quality)
            assert_holds(twin)
    x.zero_()
    run(calibrated(model, torch.rand(2, 20)), [x])
    assert model(torch.rand(2, 20)).isfinite().all()


def test_a_plan_gives_each_layer_its_own_widths():
    model, batches = two_layers()
    model.append(qnn.QuantLinear(5, 2, **kinds()))
    calibrated(model, *batches)
    weight = model[4].weight.detach().clone()
    plan = Plan(
        {
            "0": LayerPrecision(weight=3, input=6, accumulator=10, tile=9),
            "3": LayerPrecision(accumulator=16),
        }
    )
    axe = run(model, batches, plan=plan)
    assert axe.num_layers == 2
    assert_holds(model)
    assert int(model[0].weight_quant.bit_width()) == 3
    assert model[0].weight_quant.input_range == InputRange(0, 63)
    assert int(model[3].weight_quant.bit_width()) == 4
    assert torch.equal(model[4].weight, weight)


def test_excluded_layers_are_left_alone():
    model, batches = two_layers()
    before = integers(model)["0"]
    axe = run(model, batches, exclude=("0",))
    assert list(axe.layers) == ["3"]
    assert torch.equal(integers(model)["0"], before)


def test_inputs_come_from_solved_predecessors(monkeypatch):
    """The moments equal those of a naive loop that restarts the model for every layer."""
    torch.manual_seed(0)

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = qnn.QuantConv2d(2, 4, 3, padding=1, **kinds())
            self.left = qnn.QuantConv2d(4, 4, 3, padding=1, groups=2, **kinds())
            self.right = qnn.QuantConv2d(4, 4, 1, **kinds())
            self.head = qnn.QuantLinear(4 * 16, 3, **kinds())

        def forward(self, x):
            x = self.stem(x).relu()
            x = (self.left(x) + self.right(x)).relu()
            return self.head(x.flatten(1))

    # Ten samples per input of the head: with fewer, what the inputs lost counts in part only.
    batches = [torch.rand(220, 2, 4, 4) for _ in range(3)]
    model = calibrated(Branching(), *batches)
    float_model = copy.deepcopy(model)
    for layer in find_layers(float_model).values():
        layer.weight_quant.disable_quant = layer.input_quant.disable_quant = True

    def naive(module: nn.Module, name: str) -> torch.Tensor:
        layer, seen = module.get_submodule(name), []
        hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for x in batches:
            module(x)
        hook.remove()
        quantized = [layer.input_quant(x) for x in seen]
        values = torch.cat([getattr(x, "value", x) for x in quantized]).double()
        return unroll_input(layer, values)

    problems = []
    solve = methods("solvers")["gpfq"]

    def recording(problem, **options):
        name = ["stem", "left", "right", "head"][len(problems)]
        quant, real = naive(model, name), naive(float_model, name)
        problems.append(name)
        count = quant.shape[-1]
        assert torch.allclose(problem.hessian.double(), quant @ quant.mT / count, rtol=1e-5)
        assert torch.allclose(problem.cross.double(), quant @ real.mT / count, rtol=1e-5)
        assert torch.allclose(problem.quant_mean, quant.mean(-1), rtol=1e-5)
        assert torch.allclose(problem.float_mean, real.mean(-1), rtol=1e-5)
        return solve(problem, **options)

    monkeypatch.setattr(mode_module, "method", lambda room, name: recording)
    run(model, batches, solver="gpfq", quality="best")
    assert problems == ["stem", "left", "right", "head"]


def test_the_whole_data_starts_at_the_input_only_once():
    model, batches = two_layers()
    forwards = []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))
    with (
        torch.no_grad(),
        axe_mode(model, accumulator_bit_width=BITS, solver="gptq", quality="fast") as axe,
    ):
        for x in batches:
            axe.model(x)
        started = len(forwards)
        while axe.update():
            pass
    assert len(forwards) == started


@pytest.mark.parametrize("quality", ["fast", "best"])
def test_outputs_are_those_of_the_solved_model(quality):
    model, batches = two_layers()
    with torch.no_grad(), axe_mode(model, accumulator_bit_width=BITS, quality=quality) as axe:
        for x in batches:
            axe.model(x)
        while axe.update():
            pass
        outputs = list(axe.outputs())
        for x, output in zip(batches, outputs, strict=True):
            assert torch.equal(model(x), output)
