"""Bits by group of inputs: which groups, their mean, their scales, and a solved model."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.quantize import layerwise_quantize
from brevitas.quant import Int8ActPerTensorFloat
from torch import nn

from brevitas_axe import Int8WeightPerChannelFloatAXE, export_qonnx, load, quantize, save
from brevitas_axe.errors import InvalidOption, InvalidPlan
from brevitas_axe.methods.splits.layers import float_problem, split_layers
from brevitas_axe.methods.splits.protocol import Branch
from brevitas_axe.methods.splits.slim import (
    NORM,
    Slim,
    calibrated_scales,
    divergences,
    factors_of,
    plain_scales,
    rounded_asymmetric,
    rounded_symmetric,
    salience_of,
    salient_weights,
    shifted,
    slim,
)
from brevitas_axe.model.branches import BranchedLinear, branch_plan, branched_layers
from brevitas_axe.model.prepare import as_batches, calibrate
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import certify_file
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.registry import method
from brevitas_axe.run.quantize_blocks import quantize_blocks
from tests.run.tiny import batches, tiny

WIDTHS = LayerPrecision(weight=3, input=8, tile=8)


def bits_of(branch: Branch) -> int:
    return branch.precision.weight or 0


def uneven(seed: int = 0, columns: int = 64, rows: int = 12):
    """A layer whose groups of inputs differ much in what they add to its outputs."""
    torch.manual_seed(seed)
    layer = nn.Linear(columns, rows)
    size = torch.repeat_interleave(torch.randn(-(-columns // 8)), 8)[:columns].exp()
    layer.weight.data *= size * torch.randn(columns).mul(0.5).exp()
    x = torch.randn(256, columns) * torch.randn(columns).mul(0.7).exp()
    return float_problem("fc", layer, WIDTHS, x), x


def test_salience_is_that_of_the_published_code() -> None:
    given, _ = uneven()
    weight, hessian = given.weight[0].double(), given.hessian[0].double()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(64).double()
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    wanted = weight**2 / upper.diagonal() ** 2
    torch.testing.assert_close(salience_of(weight, hessian), wanted)


def test_inputs_that_are_always_zero_have_no_salience() -> None:
    given, x = uneven()
    x[:, 8:16] = 0
    given = float_problem("fc", nn.Linear(64, 12), WIDTHS, x)
    salience = salience_of(given.weight[0].double(), given.hessian[0].double())
    assert (salience[:, 8:16] == 0).all()
    assert shifted(salience, 8, 1)[1] == -1


@pytest.mark.parametrize("mean", [2, 3])
@pytest.mark.parametrize("columns", [64, 60])
@pytest.mark.parametrize("seed", range(3))
def test_the_mean_of_bits_is_the_planned_one(columns: int, seed: int, mean: int) -> None:
    given, x = uneven(seed, columns)
    branches = slim(given, replace(WIDTHS, weight=mean), x)
    bits = [bits_of(b) for b in branches for _ in b.columns]
    assert sum(bits) == mean * columns
    assert {b.precision.weight for b in branches} >= {mean - 1, mean + 1}
    assert sorted(c for b in branches for c in b.columns.tolist()) == list(range(columns))
    for branch in branches:
        groups = (branch.columns // 8).unique_consecutive()
        assert len(groups) == len(groups.unique())
        assert branch.scale is not None
        assert branch.scale.shape == (12, len(groups))
        if branch.name != "mid":
            assert len(branch.columns) % 8 == 0  # a short last group never moves


@pytest.mark.parametrize("seed", range(3))
def test_no_number_of_groups_diverges_less(seed: int) -> None:
    given, x = uneven(seed)
    weight, salience = (
        given.weight[0],
        salience_of(given.weight[0].double(), given.hessian[0].double()),
    )
    counts, losses = divergences(weight, salience, x, 3, 8, rounded_symmetric)
    assert counts == [0, 1, 2, 3, 4]
    real = (x @ weight.mT).softmax(-1).clamp_min(1e-6)
    for count, loss in zip(counts, losses, strict=True):
        shift = shifted(salience, 8, count)
        parts = zip(weight.split(8, 1), shift.tolist(), strict=True)
        rounded = torch.cat([rounded_symmetric(part, 3 + step) for part, step in parts], 1)
        given_p = (x @ rounded.mT).softmax(-1).clamp_min(1e-6)
        wanted = (given_p * (given_p / real).log()).sum(-1).mean()
        assert loss == pytest.approx(float(wanted), rel=1e-3)
    low = next(b for b in slim(given, WIDTHS, x) if b.name == "low")
    assert len(low.columns) // 8 == min(counts, key=losses.__getitem__)


@pytest.mark.parametrize(("accumulator", "least"), [(None, 1), (12, 1), (11, 2)])
def test_groups_of_one_bit_are_made_where_their_accumulator_holds_them(
    accumulator: int | None, least: int
) -> None:
    given, x = uneven()
    widths = replace(WIDTHS, weight=2, accumulator=accumulator)
    branches = slim(given, widths, x)
    assert min(bits_of(branch) for branch in branches) == least
    (low,) = (b for b in branches if bits_of(b) == least)
    if least == 1:  # -1 and 1 at this scale are near the weights
        assert low.scale is not None
        scale = low.scale.repeat_interleave(8, 1)
        share = (low.weight.sign() * scale - low.weight).square().sum() / low.weight.square().sum()
        assert share < 0.45  # 1 - 2 / pi of a Gaussian is .36


def test_alike_groups_stay_as_they_are() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 4), torch.randn(512, 32)
    layer.weight.data = layer.weight.data[:, :8].repeat(1, 4)
    branches = slim(float_problem("fc", layer, WIDTHS, x), WIDTHS, x)
    assert [branch.name for branch in branches] == ["mid"]


def test_scales_have_no_more_error_than_plain_ones() -> None:
    given, _ = uneven()
    weight = given.weight[0].double()
    salient = salient_weights(salience_of(weight, given.hessian[0].double()))
    assert 0 < salient.sum() < 0.1 * salient.numel()
    bits, factors = torch.tensor([2, 3, 4, 3, 2, 3, 4, 3]), factors_of(0.9, 1.1)

    def error(scale: torch.Tensor, share: float) -> torch.Tensor:
        each = scale.repeat_interleave(8, 1)
        most = (2 ** (bits - 1) - 1).repeat_interleave(8)
        off = ((weight / each).round().clamp(-most, most) * each - weight).abs() ** NORM
        return (off * torch.where(salient, share, 1.0)).unflatten(1, (-1, 8)).sum(-1)

    plain, shares = plain_scales(weight, bits, 8), (0.0, 1.0, 4.0)
    for share, scale in zip(
        shares, calibrated_scales(weight, salient, bits, 8, factors, shares), strict=True
    ):
        least = torch.stack([error(f * plain, share) for f in factors.tolist()]).amin(0)
        torch.testing.assert_close(error(scale, share), least)
        assert (error(scale, share) <= error(plain, share)).all()
        assert (error(scale, share) < error(plain, share)).any()


def test_scales_of_branches_lose_least_row_by_row() -> None:
    given, x = uneven()
    branches = {b.name: b for b in slim(given, WIDTHS, x)}
    hessian = given.hessian[0].double()

    def loss(scale_of) -> torch.Tensor:
        error = torch.zeros_like(given.weight[0], dtype=torch.float64)
        for branch in branches.values():
            most = 2 ** (bits_of(branch) - 1) - 1
            bits = torch.full((len(branch.columns) // 8,), bits_of(branch))
            weight = branch.weight.double()
            scale = scale_of(branch, weight, bits).double().repeat_interleave(8, 1)
            rounded = (weight / scale).round().clamp(-most, most) * scale
            error[:, branch.columns] = rounded - weight
        return (error * (error @ hessian)).sum(-1)

    ours = loss(lambda branch, weight, bits: branch.scale)
    plain = loss(lambda branch, weight, bits: plain_scales(weight, bits, 8))
    assert (ours <= plain * (1 + 1e-6)).all()
    assert ours.sum() < 0.9 * plain.sum()


# Bits by the authors' `SliMGPTQ` (commit cfdf5ff9a1) of the layer below, in groups of 128 inputs;
# benchmarks/side_by_side/slim.py runs it.
OFFICIAL = {2: [2, 1, 1, 2, 1, 3, 3, 3], 3: [3, 3, 2, 3, 3, 3, 3, 4]}


@pytest.mark.parametrize("bits", OFFICIAL)
def test_published_bits_are_those_of_the_authors_code(bits: int) -> None:
    torch.manual_seed(1)
    nn.Linear(1024, 128, bias=False)  # draws numbers, as in the benchmark
    weight = torch.randn(128, 1024) * torch.randn(1024).mul(0.5).exp() / 32
    x = (torch.randn(8, 256, 1024) * torch.randn(1024).mul(0.7).exp()).flatten(0, 1)
    salience = salience_of(weight.double(), (x.mT @ x / len(x)).double())
    counts, losses = divergences(weight, salience, x, bits, 128, rounded_asymmetric, published=True)
    assert counts == [1, 2, 3]
    best = counts[min(range(3), key=losses.__getitem__)]
    assert (bits + shifted(salience, 128, best)).tolist() == OFFICIAL[bits]


def test_a_layer_whose_plan_has_one_bit_to_lose_or_one_group_stays_whole() -> None:
    given, x = uneven()
    for widths in (replace(WIDTHS, weight=2, tile=None), replace(WIDTHS, tile=None)):
        [branch] = slim(given, widths, x)
        assert branch.scale is None
        assert torch.equal(branch.weight, given.weight[0])
    split = split_layers(nn.Linear(64, 12), [x], slim, plan=Plan({"": WIDTHS}))
    assert isinstance(split, BranchedLinear)


def test_one_published_bit_is_two_levels() -> None:
    weight = torch.tensor([[1.0, 2.0, -3.0, -4.0]])
    assert rounded_asymmetric(weight, 1).tolist() == [[1.5, 1.5, -3.5, -3.5]]
    assert rounded_asymmetric(weight, 2).tolist() == [[0.0, 2.0, -4.0, -4.0]]


@pytest.mark.parametrize(("planned", "mean"), [(False, 3), (True, 3), (False, 2)])
def test_blocks_are_split_solved_and_proven(planned: bool, mean: int, tmp_path) -> None:
    model, data = tiny("llama").eval(), batches("llama")
    for layer in model.modules():
        if isinstance(layer, nn.Linear):  # with inputs that differ so much that bits must, too
            layer.weight.data[:, :8] *= 8
            layer.weight.data[:, 8:16] /= 8
    recipe = Recipe(split="slim", weights="tile", quality="fast", solver="gptq")
    widths, run = LayerPrecision(mean, 8, accumulator=12, tile=8), Run(progress=False)
    exclude = ("model.layers.1",)
    if planned:
        first = "model.layers.0"
        layers = model.get_submodule(first).named_modules()
        names = [f"{first}.{name}" for name, m in layers if isinstance(m, nn.Linear)]
        plan = Plan.uniform(names, widths)
        result = quantize_blocks(model, data, plan, recipe, exclude=exclude, run=run)
    else:
        result = quantize_blocks(model, data, widths, recipe, exclude=exclude, run=run)
    result.certificate.require()
    split = branched_layers(result.model)
    assert len(split) == 7
    seen = set()
    for name, whole in split.items():
        groups = {b: len(whole.get_buffer(f"{b}_columns")) // 8 for b in whole.branches}
        bits = {b: result.plan[f"{name}.{b}"].weight or 0 for b in whole.branches}
        assert sum(groups[b] * bits[b] for b in bits) == mean * sum(groups.values())
        seen |= set(bits.values())
    assert seen == {mean - 1, mean, mean + 1}
    for name, precision in result.plan.layers.items():
        weight = result.model.get_submodule(name).quant_weight()
        assert weight.bit_width == precision.weight
        integers = set((weight.value / weight.scale).round().unique().tolist())
        assert precision.weight != 1 or integers == {-1, 1}
    assert {entry.target for entry in result.certificate.judged} == {12}
    logits = result.model(data[0]).logits
    assert logits.isfinite().all()
    if mean == 2:
        assert torch.equal(load(save(result, tmp_path / "saved")).model(data[0]).logits, logits)


def test_two_bits_on_average_stand_in_the_file_as_one_two_and_three(tmp_path) -> None:
    torch.manual_seed(0)
    x = (
        torch.randn(256, 32)
        @ torch.randn(32, 32)
        / 5
        * torch.tensor([1, 9, 1, 0.1]).repeat_interleave(8)
    )
    model = nn.Sequential(nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    planned = Plan({"0": LayerPrecision(2, 6, accumulator=14, tile=8)})
    split = split_layers(model, [x], slim, exclude=("2",), plan=planned)
    options = {"weight_quant": Int8WeightPerChannelFloatAXE, "weight_bit_width": 4}
    options |= {"input_quant": Int8ActPerTensorFloat, "input_bit_width": 6}
    quantized = layerwise_quantize(split, {nn.Linear: (qnn.QuantLinear, options)}).eval()
    calibrate(quantized, as_batches([x]))
    plan = branch_plan(split, planned)
    result = quantize(quantized, [x], plan=plan, progress=False)
    assert {p.weight for p in plan.layers.values()} == {1, 3}
    file = tmp_path / "split.onnx"
    export_qonnx(result.model, x[:4], file, target="qonnx")
    ops = [node.op_type for node in onnx.load(file).graph.node]
    assert ops.count("BipolarQuant") == 1
    live = {entry.name: entry for entry in result.certificate.entries}
    for entry in certify_file(file, plan=plan).entries:
        assert entry.proven
        assert entry.layer in live
        assert entry.width == live[entry.layer].width


def test_bad_options_are_named() -> None:
    with pytest.raises(InvalidOption, match="group of Slim must be at least 1"):
        Slim(group=0)
    assert method("splits", "slim:published=true").published


def test_floating_point_formats_are_refused_by_the_layers_name() -> None:
    with pytest.raises(InvalidPlan, match="'fc' is planned in e3m2, but splits work with only int"):
        float_problem("fc", nn.Linear(4, 3), LayerPrecision("e3m2", 8), torch.randn(5, 4))
