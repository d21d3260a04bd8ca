"""Relevance is conserved by every operation that has a rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from brevitas import nn as qnn
from brevitas.quant import Int8ActPerTensorFloat
from torch import Tensor, nn

from brevitas_axe.methods.sensitivity import Trials, make_case, make_choices
from brevitas_axe.methods.sensitivity.lrp import relevances
from brevitas_axe.methods.sensitivity.relevance import propagating
from brevitas_axe.model.prepare import as_batches, calibrate

OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "rms_norm": lambda x: F.rms_norm(x, (6,)),
    "written rms_norm": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "mish": F.mish,
    "softplus": F.softplus,
    "selu": F.selu,
    "clamp": lambda x: x.clamp(0.2, 0.6),
    "log_softmax": lambda x: x.log_softmax(-1),
    "sub": lambda x: x - x.flip(0).relu(),
    "sub in place": lambda x: (x * 1.0).sub_(x.relu()),
    "number minus x": lambda x: 1 - x,
    "sum": lambda x: x.sum(1),
    "einsum": lambda x: torch.einsum("bik,bjk->bij", x, x.relu()),
    "einsum of a list": lambda x: torch.einsum("bik,bjk,bik->bj", [x, x.relu(), x.abs()]),
    "einsum of one": lambda x: torch.einsum("bik->bk", x),
    "baddbmm": lambda x: torch.baddbmm(x @ x.mT, x, x.mT, beta=0.5, alpha=2.0),
    "baddbmm without what is added": lambda x: (x @ x.mT).baddbmm(x, x.mT, beta=0.0),
    "addmm": lambda x: torch.addmm(x[0] @ x[1].T, x[0], x[1].T),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_relevance_is_conserved(name) -> None:
    torch.manual_seed(0)
    x = (torch.rand(3, 5, 6) + 0.05).requires_grad_(True)
    with propagating():
        output = OPERATIONS[name](x)
    assert torch.equal(output, OPERATIONS[name](x))
    start = torch.rand_like(output)
    (relevance,) = torch.autograd.grad(output, x, start)
    assert float(relevance.sum()) == pytest.approx(float(start.sum()), rel=1e-4)


def test_masked_scores_get_no_relevance() -> None:
    mask = torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1) > 0, -torch.inf)
    query, key = torch.rand(2, 3, 3), torch.rand(2, 3, 3, requires_grad=True)
    with propagating():
        weights = torch.baddbmm(mask, query, key).softmax(-1)
    start = weights.detach()
    (relevance,) = torch.autograd.grad(weights, key, start)
    # Half went to the query.
    assert float(relevance.sum()) == pytest.approx(float(start.sum()) / 2, rel=1e-4)


class Words(nn.Module):
    """Its input is integer tokens; a scale of its own multiplies what was looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.scale = nn.Embedding(10, 8), nn.Parameter(torch.rand(8))
        options = {"bias": False, "input_quant": Int8ActPerTensorFloat}
        self.body, self.head = (qnn.QuantLinear(8, n, **options) for n in (8, 4))

    def forward(self, tokens):
        x = self.table(tokens) * self.scale
        return self.head(x + self.body(x).relu())


def test_frozen_weights_and_integer_inputs_change_nothing() -> None:
    torch.manual_seed(0)
    model, tokens = Words().eval(), torch.randint(0, 10, (4, 6))
    calibrate(model, as_batches([tokens]))
    choices = make_choices(model, (tokens[:1],))
    trained = relevances(make_case(model, [tokens], choices), Trials())
    model.requires_grad_(False)
    assert relevances(make_case(model, [tokens], choices), Trials()) == trained
    assert trained["head"] == pytest.approx(6, rel=1e-5)
    assert 0 < trained["body"] < trained["head"]


class OneHot(nn.Module):
    """No operation before the first layer has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = qnn.QuantLinear(10, 4, bias=False, input_quant=Int8ActPerTensorFloat)

    def forward(self, tokens):
        return self.layer(F.one_hot(tokens, 10).float())


def test_a_layer_may_be_the_first_operation_with_a_gradient() -> None:
    torch.manual_seed(0)
    model, tokens = OneHot().eval(), torch.randint(0, 10, (4, 6))
    calibrate(model, as_batches([tokens]))
    case = make_case(model, [tokens], make_choices(model, (tokens[:1],)))
    assert relevances(case, Trials()) == pytest.approx({"layer": 6.0})


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


def safe_divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))


def test_a_published_sum_is_split_as_in_the_authors_formula() -> None:
    """For one sample; theirs, written down here from the description of their rule."""
    generator = torch.Generator().manual_seed(0)
    a, b, relevance = torch.randn(3, 1, 7, generator=generator, dtype=torch.float64)
    a, b = a.requires_grad_(), b.requires_grad_()
    with propagating(published=True):
        total = a + b
    found = torch.autograd.grad(total, (a, b), relevance)
    with torch.no_grad():
        parts = [x * safe_divide(relevance, a + b) for x in (a, b)]
        size = [part.sum().abs() for part in parts]
        for part, share, mine in zip(parts, size, found, strict=True):
            wanted = part * share / sum(size) * relevance.sum() / part.sum()
            assert torch.allclose(mine, wanted)
    assert float(sum(f.sum() for f in found)) == pytest.approx(float(relevance.sum()))


def test_published_samples_have_totals_of_their_own() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b, relevance = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64)

    def split(rows: slice) -> list[torch.Tensor]:
        leaves = [x[rows].clone().requires_grad_() for x in (a, b)]
        with propagating(published=True):
            total = leaves[0] + leaves[1]
        return [*torch.autograd.grad(total, leaves, relevance[rows])]

    for whole, first in zip(split(slice(0, 2)), split(slice(0, 1)), strict=True):
        assert torch.allclose(whole[:1], first)


def test_a_published_product_gives_half_to_each_factor_by_signed_terms() -> None:
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    b = torch.randn(4, 2, generator=generator, dtype=torch.float64).requires_grad_()
    relevance = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    with propagating(published=True):
        product = a @ b
    found = torch.autograd.grad(product, (a, b), relevance)
    share = relevance / (a @ b).detach()
    assert torch.allclose(found[0], a.detach() * (share @ b.detach().T) / 2)
    assert torch.allclose(found[1], b.detach() * (a.detach().T @ share) / 2)
    assert float(sum(f.sum() for f in found)) == pytest.approx(float(relevance.sum()))
