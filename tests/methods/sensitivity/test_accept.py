"""The cases by which the published scorers are judged."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant import Int8ActPerTensorFloat
from scipy.stats import spearmanr
from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate import Quantity, allocate_bits, make_problem
from brevitas_axe.methods.sensitivity import (
    Metric,
    PlanLoss,
    Scores,
    Trials,
    make_case,
    make_choices,
    score,
)
from brevitas_axe.methods.sensitivity.budgeted import moments, part
from brevitas_axe.methods.sensitivity.cmpq import leading, similarity
from brevitas_axe.methods.sensitivity.decoupled import Decoupled, sqnr, ssim
from brevitas_axe.methods.sensitivity.hutchinson import block_traces
from brevitas_axe.methods.sensitivity.importance import channel_importance
from brevitas_axe.methods.sensitivity.local import Local
from brevitas_axe.methods.sensitivity.lrp import relevances
from brevitas_axe.methods.sensitivity.pmpq import pmpq
from brevitas_axe.methods.sensitivity.relevance import propagating
from brevitas_axe.methods.sensitivity.scores import from_importance
from brevitas_axe.methods.sensitivity.tdmpq import Tdmpq
from brevitas_axe.model.layers import Layer
from brevitas_axe.model.prepare import as_batches, calibrate, to_brevitas
from brevitas_axe.plan import Choices, LayerPrecision
from tests.model.test_prepare import Residual, X

BATCHES = [X, X.flip(0), X.roll(1, 0)]


def chain(*sizes: int, bias: bool = False, seed: int = 0) -> nn.Sequential:
    """Linear layers with ReLU between them, quantized and calibrated."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [
            qnn.QuantLinear(inputs, outputs, bias=bias, input_quant=Int8ActPerTensorFloat),
            nn.ReLU(),
        ]
    model = nn.Sequential(*layers[:-1]).eval()
    calibrate(model, as_batches([torch.rand(64, sizes[0])]))
    return model


def test_similarity_is_one_under_any_invertible_map() -> None:
    random = np.random.default_rng(0)
    y = random.normal(size=(200, 6))
    mapped = y @ (random.normal(size=(6, 6)) + 3 * np.eye(6)) + 5
    assert similarity(leading(y, 1.0), leading(mapped, 1.0)) == pytest.approx(1, abs=1e-9)
    unrelated = random.normal(size=(200, 6))
    assert similarity(leading(y, 1.0), leading(unrelated, 1.0)) < 0.4


def test_a_layer_of_zeros_loses_nothing_by_pruning() -> None:
    model = chain(8, 8, 8, 4)
    emptied: Layer = model[2]
    emptied.weight.data.zero_()
    emptied.bias = nn.Parameter(torch.rand(8))
    x = torch.rand(32, 8)
    scores = score(model, [x], make_choices(model, (x[:1],)), pmpq)
    assert scores.harm["2"].max() == 0
    assert scores.harm["4"].max() > 0


def test_the_first_order_is_exact_on_a_linear_loss() -> None:
    torch.manual_seed(0)
    weights = torch.randn(32, 4)
    metric = Metric(
        "linear", lambda out, real, item: (out * weights).sum(), slope=lambda real, item, g: weights
    )
    model, x = chain(6, 4), torch.rand(32, 6)
    choices = make_choices(model, (x[:1],), weight=(2, 3, 4))
    exact = score(model, [x], choices, Tdmpq(), metric=metric).harm["0"]
    first = score(model, [x], choices, Tdmpq(first_order=True), metric=metric).harm["0"]
    case = make_case(model, [x], choices, metric)
    weight = case.layers()["0"].weight.detach()
    for harm, choice in zip(first, choices.layers["0"], strict=True):
        step = case.rounded("0", choice)[0] - weight
        assert harm == pytest.approx(abs(float((weights.T @ x * step).sum())), rel=1e-4)
    assert first == pytest.approx(exact, rel=1e-3)
    assert first[0] > 0


def test_the_slope_of_a_metric_that_has_none_is_refused() -> None:
    model, x = chain(6, 4), torch.rand(32, 6)
    with pytest.raises(InvalidOption, match="use 'kl' or 'cross_entropy'"):
        score(model, [x], make_choices(model, (x[:1],)), "importance", metric="mse")


def test_traces_are_those_of_the_hessian() -> None:
    torch.manual_seed(0)
    root = torch.randn(5, 5, dtype=torch.float64)
    x = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    loss = 0.5 * (root @ x).square().sum()
    (trace,) = block_traces(loss, [x], 4000, torch.Generator().manual_seed(0))
    assert trace == pytest.approx(float((root.T @ root).trace()), rel=0.05)
    diagonal = 0.5 * (x.square() * torch.arange(5)).sum()
    assert block_traces(diagonal, [x], 1, torch.Generator().manual_seed(0)) == [10.0]


def test_relevance_is_conserved_in_a_net_without_biases() -> None:
    model = chain(8, 16, 16, 4)
    x = torch.rand(64, 8)
    found = relevances(make_case(model, [x], make_choices(model, (x[:1],))), Trials())
    assert found == pytest.approx(dict.fromkeys(("0", "2", "4"), 1.0), rel=1e-5)


def test_relevance_is_conserved_over_residual_sums_and_attention() -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 5, 8, requires_grad=True)
    body, mix = nn.Linear(8, 8, bias=False), torch.rand(8, 8)
    with propagating():
        residual = x + body(x).relu()
        attended = torch.nn.functional.scaled_dot_product_attention(residual, residual, residual)
        out = nn.functional.layer_norm(attended, (8,)) @ mix / 2
    start = torch.rand_like(out)
    (relevance,) = torch.autograd.grad(out, x, start)
    # The matrix product gives half to `mix`, which is no activation here.
    assert float(relevance.sum()) == pytest.approx(float(start.sum()) / 2, rel=1e-4)


def test_branches_share_relevance() -> None:
    model = to_brevitas(Residual().eval(), as_batches(BATCHES))
    found = relevances(make_case(model, BATCHES, make_choices(model, (X[:1],))), Trials())
    assert found["body"] < found["head"]
    assert found["stem"] > found["body"]


class Branches(nn.Module):
    """Six layers of one shape read one input; their sum counts them very differently."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            qnn.QuantLinear(12, 6, bias=False, input_quant=Int8ActPerTensorFloat) for _ in range(6)
        )
        self.gains = (0.03, 1.0, 0.1, 3.0, 0.3, 0.01)

    def forward(self, x):
        return sum(g * layer(x) for g, layer in zip(self.gains, self.layers, strict=True))


def test_importance_beats_random_and_inverse_importance_at_equal_bits() -> None:
    torch.manual_seed(3)
    model, x = Branches().eval(), torch.rand(256, 12)
    calibrate(model, as_batches([x]))
    choices = make_choices(model, (x[:1],), weight=(4, 8))
    case = make_case(model, [x], choices)
    assert all(c.shape == (1, 6) for c in channel_importance(case, steps=4).values())
    bits = Quantity(tuple(np.array([4.0, 8.0]) for _ in case.names))
    loss = PlanLoss(case)

    def lost(scores: Scores) -> float:
        """Three layers get 8 bits, most importance per added bit first."""
        found = allocate_bits(make_problem(scores, {"bits": bits}, {"bits": 36.0}), "greedy")
        assert sorted(p.weight or 0 for p in found.plan.layers.values()) == [4, 4, 4, 8, 8, 8]
        return loss(found.plan)

    scores = score(model, [x], choices, "importance")
    most = {name: float(harm.max()) for name, harm in scores.harm.items()}
    ours = lost(scores)
    inverse = {name: 1 / value for name, value in most.items()}
    assert ours < 0.1 * lost(from_importance(choices, inverse))
    random = np.random.default_rng(0)
    others = [
        lost(from_importance(choices, dict(zip(most, random.random(6), strict=True))))
        for _ in range(8)
    ]
    assert ours <= min(others)
    assert ours < 0.5 * np.mean(others)


def test_measures_of_images() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 3, 16, 16)
    assert ssim(image, image) == pytest.approx(1)
    assert ssim(image + 0.1 * torch.randn_like(image), image) < 0.999
    assert ssim(torch.rand_like(image), image) < 0.3
    assert sqnr(image * 1.1, image) == pytest.approx(20, abs=1e-3)


def test_every_group_of_layers_has_its_own_metric() -> None:
    model = to_brevitas(Residual().eval(), as_batches(BATCHES))
    choices = make_choices(model, (X[:1],), weight=(2, 8))
    scores = score(model, BATCHES, choices, Decoupled(content="body"))
    assert scores.parts == {"sqnr": ("stem", "head"), "ssim": ("body",)}
    assert np.array_equal(scores.harm["body"], scores.metrics["ssim"]["body"])
    assert np.array_equal(scores.harm["stem"], scores.metrics["sqnr"]["stem"])


def test_local_scores_rank_choices_as_measurements_do() -> None:
    model, x = chain(16, 32, 32, 6, seed=1), torch.rand(256, 16)
    choices = make_choices(
        model, (x[:1],), weight=(2, 3, 4), input=(3, 4, 6), accumulator=(10, 12, 16)
    )
    both = [score(model, [x], choices, name).harm for name in ("local", "measured")]
    flat = [np.concatenate([harm[name] for name in choices.layers]) for harm in both]
    ranks: Any = spearmanr(flat[0], flat[1])
    assert ranks.statistic > 0.8


def test_more_of_anything_never_hurts_the_local_score() -> None:
    model, x = chain(16, 8), torch.rand(256, 16)
    choices = Choices({"0": tuple(LayerPrecision(4, 6, p) for p in (8, 10, 12, 20))})
    harm = score(model, [x], choices, "local").harm["0"]
    assert harm[0] > 2 * harm[2]
    assert harm[2] >= harm[3] > 0


def test_some_rows_speak_for_all() -> None:
    model, x = chain(32, 64, 8, seed=2), torch.rand(256, 32)
    choices = make_choices(model, (x[:1],), weight=(2, 4), input=(4,), accumulator=(10, 14))
    some, every = (score(model, [x], choices, Local(rows=rows)).harm["0"] for rows in (8, 64))
    assert some == pytest.approx(every, rel=0.15)
    assert not np.array_equal(some, every)


def test_the_bias_takes_the_mean_error_of_a_quantized_layer() -> None:
    model, x = chain(16, 4, bias=True), torch.rand(256, 16)
    choices = make_choices(model, (x[:1],), weight=(2,), input=(3,), accumulator=(8,))
    case = make_case(model, [x], choices, "mse")
    (known,) = moments(case, case.names)
    (choice,) = choices.layers["0"]
    (output,) = case.outputs({"0": part(case, "0", choice, known["0"])})
    error = output - case.reference[0]
    assert error.mean(0).abs().max() < 1e-5
    assert error.abs().max() > 0.01
