"""The whole run in one call: prepared, solved, proven."""

from __future__ import annotations

import copy

import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import Int8ActPerTensorFloat
from torch import nn

from brevitas_axe.errors import AccumulatorTooNarrow, InvalidOption, UnsupportedLayer
from brevitas_axe.model.apply.activations import set_input_bits
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.model.prepare import as_batches, to_brevitas
from brevitas_axe.model.running import tensor_of
from brevitas_axe.model.stack import blocks_in_turn
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.run import block_layers, whole
from brevitas_axe.run.finetune import finetune
from brevitas_axe.run.quantize import quantize
from brevitas_axe.run.result import BlocksResult
from tests.model.test_prepare import MODELS, Attention, Branches, X, conv_net
from tests.run.tiny import batches, tiny

BATCHES = [X, X.flip(0)]


def run(model: nn.Module, **options):
    options = {"accumulator_bit_width": 16, "weight_bit_width": 8, "progress": False, **options}
    return quantize(model, BATCHES, **options)


def integers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: integer_weight(name, layer)[0] for name, layer in find_layers(model).items()}


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# Some of them cannot be traced, which is told.
@pytest.mark.filterwarnings("ignore:.* is quantized layer by layer:UserWarning")
@pytest.mark.parametrize("build", MODELS)
def test_plain_models_come_back_proven(build):
    model = build().eval()
    with torch.no_grad():
        expected = model(X)
    never_reached = ("rare",) if build is Branches else ()
    result = run(model, accumulator_bit_width=18, exclude=never_reached)
    judged = [e for e in result.certificate.entries if e.layer in result.plan.layers]
    assert len(judged) == len(result.plan.layers) == len(result.layers)
    assert all(entry.fits and entry.target == 18 for entry in judged)
    # Attention also multiplies activations with each other; no width can be set for that.
    assert result.certificate.ok or build is Attention
    with torch.no_grad():
        actual = result.model(X)
    assert (actual - expected).norm() < 0.15 * expected.norm()


@pytest.mark.parametrize("solver", ["gpfq", "gptq", "qronos"])
@pytest.mark.parametrize("quality", ["fast", "best"])
@pytest.mark.parametrize(("bits", "tile"), [(12, None), (14, 8), (None, None)])
def test_every_level_is_proven(solver, quality, bits, tile):
    result = run(
        conv_net(),
        accumulator_bit_width=bits,
        tile_size=tile,
        solver=solver,
        quality=quality,
    )
    assert result.certificate.ok
    assert {p.accumulator for p in result.plan.layers.values()} == {bits}


def test_the_plan_says_what_the_model_has_and_gives_the_same_again():
    calibrated = to_brevitas(conv_net(), as_batches(BATCHES), weight_bit_width=3, input_bit_width=5)
    first = quantize(calibrated, BATCHES, accumulator_bit_width=13, progress=False)
    assert first.plan["0"] == LayerPrecision(3, 8, 13, None)
    assert first.plan["4"] == LayerPrecision(3, 5, 13, None)
    again = quantize(calibrated, BATCHES, plan=Plan.from_json(first.plan.to_json()), progress=False)
    assert again.plan == first.plan
    assert same(integers(first.model), integers(again.model))


def test_the_given_model_and_data_are_not_touched():
    for model in (conv_net().train(), to_brevitas(conv_net(), as_batches(BATCHES)).train()):
        state, data = copy.deepcopy(model.state_dict()), [x.clone() for x in BATCHES]
        modes = [module.training for module in model.modules()]
        run(model)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert all(torch.equal(x, y) for x, y in zip(data, BATCHES, strict=True))
        assert [module.training for module in model.modules()] == modes


def test_a_killed_run_continues(tmp_path):
    expected = integers(run(conv_net(), state=tmp_path).model)
    (tmp_path / "layer-0002.solved").unlink()
    result = run(conv_net(), state=tmp_path)
    assert [entry["resumed"] for entry in result.layers] == [True, True, False]
    assert same(integers(result.model), expected)


def test_a_plain_model_gets_ranges_that_fit_its_planned_bits():
    source = conv_net().eval()
    plan = Plan({name: LayerPrecision(weight=8, input=2) for name in ("4", "7")})
    kept = to_brevitas(source, as_batches(BATCHES), weight_bit_width=8)
    set_input_bits(kept, plan, (X[:1],))
    errors = []
    for model in (source, kept):
        solved = quantize(model, BATCHES, plan=plan, weight_bit_width=8, progress=False).model
        with torch.no_grad():
            errors.append(float((solved(X) - source(X)).square().mean()))
    assert errors[0] < 0.8 * errors[1]


def test_ranges_are_fitted_unless_the_recipe_says_otherwise():
    source = conv_net().eval()
    errors = {}
    for ranges in (None, "mse", "calibrated"):
        options = {"ranges": ranges, "weight_bit_width": 8, "input_bit_width": 3}
        result = run(source, quality="fast", **options)
        with torch.no_grad():
            errors[ranges] = float((result.model(X) - source(X)).square().mean())
    assert errors[None] == errors["mse"] < errors["calibrated"]


class Gated(nn.Module):
    """Two inputs, by position."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.gate, self.outer = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, y):
        return self.outer(self.inner(x).relu() * self.gate(y))


def test_ranges_are_fitted_where_a_model_takes_two_inputs():
    generator = torch.Generator().manual_seed(0)
    pairs = [tuple(torch.randn(8, n, generator=generator) for n in (6, 4)) for _ in range(2)]
    result = quantize(
        Gated(), pairs, accumulator_bit_width=16, input_bit_width=4, quality="fast", progress=False
    )
    assert result.recipe.ranges == "mse"
    assert set(result.plan.layers) == {"inner", "gate", "outer"}


def test_excluded_layers_stay_out_of_plan_and_verdict():
    result = run(conv_net(), exclude=("0",), accumulator_bit_width=10, input_bit_width=4)
    assert set(result.plan.layers) == {"4", "7"}
    assert result.certificate.ok
    assert len(result.certificate.excluded) == 1


def test_an_excluded_recurrent_layer_does_not_stop_the_run():
    class Memory(nn.Module):
        def __init__(self):
            super().__init__()
            self.memory = qnn.QuantLSTM(8, 6)
            self.head = qnn.QuantLinear(6, 3, input_quant=Int8ActPerTensorFloat)

        def forward(self, x):
            return self.head(self.memory(x)[0])

    model = Memory()
    x = torch.randn(5, 2, 8)
    with torch.no_grad(), calibration_mode(model.eval()):
        model(x)
    result = quantize(model, [x], accumulator_bit_width=12, exclude=("memory",), progress=False)
    assert list(result.plan.layers) == ["head"]
    assert all(e.fits for e in result.certificate.entries if e.layer == "head")


def test_a_width_that_leaves_only_zeros_is_refused_before_any_work(tmp_path):
    with pytest.raises(AccumulatorTooNarrow, match=r"8-bit .* '0', .* \[0, 255\].* 9 bits or more"):
        run(conv_net(), accumulator_bit_width=8, state=tmp_path)
    assert not any(tmp_path.iterdir())
    run(conv_net(), accumulator_bit_width=9, input_bit_width=4)


def test_a_plan_and_one_width_are_not_mixed():
    for options in ({"accumulator_bit_width": 12}, {"accumulator_bit_width": None, "tile_size": 8}):
        with pytest.raises(InvalidOption, match="either a plan or one"):
            run(conv_net(), plan=Plan(), **options)


def test_plan_and_recipe_that_come_back_give_the_same_integers(tmp_path):
    options = {"input_bit_width": 5, "solver": "gptq", "quality": "fast"}
    first = run(conv_net(), accumulator_bit_width=12, weight_bit_width=4, **options)
    assert first.recipe == Recipe.from_yaml(first.recipe.to_yaml())
    assert (first.recipe.ranges, first.recipe.act_order) == ("mse", False)
    first.recipe.save(tmp_path / "recipe.yaml")
    quiet = Run(progress=False)
    again = quantize(conv_net(), BATCHES, first.plan, tmp_path / "recipe.yaml", run=quiet)
    assert same(integers(first.model), integers(again.model))
    assert (again.plan, again.recipe) == (first.plan, first.recipe)
    whole = quantize(
        conv_net(), BATCHES, LayerPrecision(4, 5, 12), Recipe(solver="gptq", quality="fast"),
        run=quiet,
    )  # fmt: skip
    assert same(integers(first.model), integers(whole.model))


def test_rules_give_widths_and_exclude():
    recipe = Recipe(
        quality="fast",
        rules={
            "type:Conv2d": {"accumulator": 14},
            "7": {"weight": 3, "input": 4, "tile": 8},
            "/^4$/": {"exclude": True},
        },
    )
    result = run(conv_net(), recipe=recipe, accumulator_bit_width=16)
    assert result.plan.layers == {
        "0": LayerPrecision(8, 8, 14, None),
        "7": LayerPrecision(3, 4, 16, 8),
    }
    assert result.certificate.ok
    assert result.recipe.ranges == "mse"
    with pytest.raises(InvalidOption, match="'head' applies to no layer"):
        run(conv_net(), recipe=Recipe(rules={"head": {"weight": 3}}))


@pytest.mark.parametrize(
    "options", [{"activations": "dynamic"}, {"symmetric": False}, {"power_of_two": True}], ids=str
)
def test_a_whole_model_follows_the_recipe(options):
    result = run(conv_net(), quality="fast", **options)
    assert result.certificate.ok
    scales = integer_weight("7", find_layers(result.model)["7"])[1]
    assert bool((scales.log2() == scales.log2().round()).all()) == ("power_of_two" in options)
    signed = [e.input_range[0] < 0 for e in result.certificate.judged]
    assert any(signed) == ("activations" in options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tile_scales": True, "tile_size": 8}, "scales per tile are for"),
        ({"offload": "blocks"}, "solved as a whole"),
        ({"stack": "body"}, "no stack of equal blocks"),
        ({"jobs": 2}, "'jobs' is called 'workers'"),
        ({"recipe": "slow"}, "there is no recipe 'slow'"),
        ({"weight_bit_width": 1}, "2 bits or more"),
        ({"plan": LayerPrecision(4)}, "either a plan or one"),
        ({"plan": {"0": 4}, "accumulator_bit_width": None}, "a plan is a Plan"),
    ],
)
def test_what_cannot_be_done_is_said(options, says):
    with pytest.raises(InvalidOption, match=says):
        run(conv_net(), **options)


def test_a_transformer_is_solved_block_by_block_and_not_touched():
    model = tiny("opt").train()
    before = copy.deepcopy(model.state_dict())
    options = {"accumulator_bit_width": 16, "quality": "fast", "progress": False}
    result = quantize(model, batches("opt"), exclude=("lm_head",), **options)
    assert isinstance(result, BlocksResult)
    assert "lm_head" in result.floats
    result.certificate.require()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert not find_layers(model)


def blocks_of(*layers: nn.Module) -> nn.Module:
    """A residual net whose stack has two blocks of these layers, after a convolution."""
    torch.manual_seed(0)
    stack = nn.Sequential(*(nn.Sequential(*copy.deepcopy(layers)) for _ in range(2)))
    return nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), stack, nn.Linear(4, 5))


@pytest.mark.parametrize(
    ("layers", "in_turn"),
    [
        ((nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU()), True),
        ((nn.Linear(4, 4), nn.ReLU()), False),
        ((nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()), False),
        ((nn.Unflatten(1, (4, 1)), nn.Conv1d(4, 4, 1), nn.Flatten(), nn.Linear(4, 4)), False),
    ],
    ids=["layer norms", "linear layers alone", "batch norms", "convolutions"],
)
def test_only_blocks_that_keep_norms_in_float_are_taken_in_turn(layers, in_turn):
    assert blocks_in_turn(blocks_of(*layers).eval(), ((X,), {})) == in_turn


def test_a_stack_that_cannot_be_fed_is_no_reason_to_refuse():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = blocks_of(nn.LayerNorm(4), nn.Linear(4, 4))

        def forward(self, x):
            return self.body(x) + self.body(x * 2)

    assert not blocks_in_turn(Twice().eval(), ((X,), {}))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.aux, self.o = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.o(h) + (self.aux(h).sum() if x.shape[0] > 999 else 0)


@pytest.mark.filterwarnings("ignore:.* is quantized layer by layer:UserWarning")
def test_a_layer_that_no_batch_meets_is_refused_before_the_solve(tmp_path):
    x = torch.rand(8, 4)
    with pytest.raises(UnsupportedLayer, match="no calibration batch runs through layer 'aux'"):
        quantize(Unused(), [x], progress=False, state=tmp_path / "state")
    assert not (tmp_path / "state").exists()
    assert quantize(Unused(), [x], exclude=("aux",), progress=False).certificate.ok


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.q(x) @ self.k(x).transpose(1, 2)


@pytest.mark.filterwarnings("ignore:.* is quantized layer by layer:UserWarning")
def test_a_product_has_one_name_everywhere():
    torch.manual_seed(0)
    x = torch.randn(4, 6, 16)
    result = quantize(Product(), [x], accumulator_bit_width=16, progress=False)
    (name,) = [e.name for e in result.certificate.failures]
    assert name == "Product.forward"
    again = quantize(Product(), [x], accumulator_bit_width=16, exclude=(name,), progress=False)
    assert again.certificate.ok
    tuned = finetune(
        result.model,
        [(x, torch.randn(4, 6, 6))],
        epochs=1,
        exclude=(name,),
        loss=lambda output, batch: (tensor_of(output) - batch[1]).square().mean(),
        progress=False,
    )
    assert tuned.certificate.ok
    with pytest.raises(InvalidOption, match="is not in the model"):
        quantize(Product(), [x], exclude=("Another.forward",), progress=False)


@pytest.mark.parametrize("blocks", [False, True])
def test_what_a_transform_assumes_of_the_data_stands_in_the_certificate(blocks, monkeypatch):
    said = "every sequence starts with the same token"
    run_transforms = block_layers.transformed

    def assuming(*args):
        return (*run_transforms(*args), said)

    for room in (whole, block_layers):
        monkeypatch.setattr(room, "transformed", assuming)
    perceptron = nn.Sequential(nn.Flatten(), nn.Linear(X[0].numel(), 8), nn.ReLU(), nn.Linear(8, 4))
    model = tiny("opt") if blocks else perceptron.eval()
    options = {"accumulator_bit_width": 20, "weight_bit_width": 8, "progress": False}
    recipe = Recipe(transforms=("smooth",))
    result = quantize(model, batches("opt") if blocks else BATCHES, recipe=recipe, **options)
    assert isinstance(result, BlocksResult) == blocks
    assert result.certificate.assumptions.count(said) == 1
    assert said in result.certificate.to_json()
